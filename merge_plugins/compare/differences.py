"""List what differs beside the weights: configs and tokenizers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merge_plugins.recipe import Reference
from merge_plugins.tokenizer import template_of, tokenizer_folder
from merge_plugins.tokenizer.vocabulary import vocabulary
from merge_plugins.weights.files import read_json

UNSAID = ("_name_or_path", "transformers_version")
"""Keys of config.json that say nothing of the model."""
RENAMED = {"torch_dtype": "dtype"}
"""Keys that transformers has renamed."""
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
MOST_SHOWN = 5


def configs(found: Mapping[Reference, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """List the keys whose values differ, nested ones by their path: a value for each model."""
    flat = [dict(_flat(config)) for config in found.values()]
    keys = dict.fromkeys(key for each in flat for key in each)
    values = {key: [each.get(key) for each in flat] for key in keys}
    return {key: row for key, row in values.items() if any(each != row[0] for each in row)}


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif key not in UNSAID:
            yield prefix + RENAMED.get(key, key), value


@dataclass(frozen=True)
class Tokens:
    """A model's tokenizer, against the first model's."""

    n_tokens: int
    more: tuple[str, ...] = ()
    """Tokens that the first lacks, by id."""
    fewer: tuple[str, ...] = ()
    """Tokens that only the first has, by its ids."""
    moved: int = 0
    """Tokens of both with another id: their embedding rows do not meet."""
    special: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """Special tokens that differ: the first model's, and this one's."""
    other_template: bool = False
    """Whether the chat templates differ."""

    def said(self) -> list[str]:
        """Describe each difference; nothing if there is none."""
        said = [f"{len(self.more)} tokens more, {_some(self.more)}"] * bool(self.more)
        said += [f"lacks {len(self.fewer)} tokens, {_some(self.fewer)}"] * bool(self.fewer)
        said += [f"{self.moved} tokens have other ids"] * bool(self.moved)
        said += [f"{key} is {own!r}, not {first!r}" for key, (first, own) in self.special.items()]
        return said + ["another chat template"] * self.other_template


def _some(tokens: Sequence[str]) -> str:
    more = ", …" if len(tokens) > MOST_SHOWN else ""
    return ", ".join(map(repr, tokens[:MOST_SHOWN])) + more


def tokenizers(refs: Sequence[Reference]) -> list[Tokens]:
    """Compare the tokenizer of each model with the first one's."""
    folders = [tokenizer_folder(ref) for ref in refs]
    templates = [template_of(ref) for ref in refs]
    first, first_special = vocabulary(folders[0]), _special(folders[0])
    found = []
    for folder, template in zip(folders, templates, strict=True):
        own, special = vocabulary(folder), _special(folder)
        both = first.keys() & own.keys()
        found.append(
            Tokens(
                len(own),
                tuple(sorted(own.keys() - both, key=own.__getitem__)),
                tuple(sorted(first.keys() - both, key=first.__getitem__)),
                sum(first[token] != own[token] for token in both),
                {
                    key: (first_special.get(key), special.get(key))
                    for key in SPECIAL
                    if first_special.get(key) != special.get(key)
                },
                template != templates[0],
            )
        )
    return found


def _special(folder: Path) -> dict[str, Any]:
    """Read the special tokens of a tokenizer, as texts."""
    file = folder / "tokenizer_config.json"
    settings = read_json(file) if file.is_file() else {}
    found = {key: settings[key] for key in SPECIAL if settings.get(key) is not None}
    return {
        key: each.get("content") if isinstance(each, dict) else each for key, each in found.items()
    }
