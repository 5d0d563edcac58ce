"""Read what a sentence-transformers model is besides its transformer, and list its files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_plugins.errors import CheckpointError
from merge_plugins.weights.companions import model_file, model_path
from merge_plugins.weights.files import read_json, text_config
from merge_plugins.weights.modules import NAME, Module, sentence_modules

CONFIG = "config_sentence_transformers.json"
OF_TRANSFORMER = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Names of the transformer's settings; the first that exists is read."""
LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Keys before sentence-transformers 6 and the modes they switch on."""
MODES = tuple(LEGACY_POOLING.values())
"""Modes of pooling; an embedding by several is their concatenation, in this order."""
NORMALIZE = "normalize"
"""Word for embeddings of length 1, beside modes."""
DEFAULTS: Mapping[str, Any] = {
    "do_lower_case": False,
    "include_prompt": True,
    "model_type": "SentenceTransformer",
    "module_input_name": "sentence_embedding",
    "module_output_name": "sentence_embedding",
    "similarity_fn_name": "cosine",
    "transformer_task": "feature-extraction",
    "use_residual": False,
}
"""Settings that mean the same when they are absent."""
IRRELEVANT = ("__version__", "requirements", "modality_config", "unpad_inputs", "max_seq_length")
"""Settings that change no text's embedding, or are compared otherwise."""
NO_LIMIT = 10**9
"""Tokenizers write a huge number where there is no longest input."""


@dataclass(frozen=True)
class SentenceModel:
    """A sentence-transformers model without its transformer."""

    modules: tuple[Module, ...]
    settings: Mapping[str, Any]
    """Whatever changes an embedding and is no weight, by a name for messages; no defaults."""
    pooling: tuple[str, ...]
    """Modes of pooling, and ``normalize`` where embeddings have length 1."""
    max_seq_length: int | None
    """Tokens that are read of a text."""
    folder: Path | None = None
    """The folder it was read from; None: it is in none."""


def sentence_model(folder: Path) -> SentenceModel | None:
    """Read the sentence-transformers model in a folder; None, if there is no ``modules.json``.

    Raises `CheckpointError` if a module lies elsewhere or lacks its files.
    """
    modules = sentence_modules(folder)
    if not modules:
        return None
    settings: dict[str, Any] = {"modules": ", ".join(module.kind for module in modules)}
    pooling: tuple[str, ...] = ()
    longest = None
    for module in modules:
        own = _settings(folder, module)
        if module.kind == "Transformer":
            longest = own.get("max_seq_length")
        if module.kind == "Pooling":
            modes = own["pooling_mode"]
            pooling += (modes,) if isinstance(modes, str) else tuple(modes)
        if module.kind == "Normalize":
            pooling += (NORMALIZE,)
        settings |= {f"{key} of {module.path or 'the transformer'}": own[key] for key in own}
    settings |= _json(folder, CONFIG)
    longest = longest or _longest_input(folder)
    kept = {key: value for key, value in settings.items() if _says_something(key, value)}
    return SentenceModel(modules, {**kept, "max_seq_length": longest}, pooling, longest, folder)


def _says_something(key: str, value: Any) -> bool:
    """Whether a setting is neither irrelevant nor what holds without it."""
    name = key.partition(" of ")[0]
    if name == "module_output_name" and key.endswith("the transformer"):
        return False  # follows from its task
    return name not in IRRELEVANT and value not in (None, {}, [], DEFAULTS.get(name))


def _settings(folder: Path, module: Module) -> dict[str, Any]:
    """Read the settings of one module under today's names."""
    if module.kind == "Transformer":
        names = (str(Path(module.path, name)) for name in OF_TRANSFORMER)
        return next(filter(None, (_json(folder, name) for name in names)), {})
    own = _json(folder, str(Path(module.path, "config.json"))) if module.path else {}
    if module.kind == "Pooling":
        active = tuple(mode for key, mode in LEGACY_POOLING.items() if own.pop(key, False))
        active = active or ("mean",)
        own.setdefault("pooling_mode", active[0] if len(active) == 1 else list(active))
        if "word_embedding_dimension" in own:
            own["embedding_dimension"] = own.pop("word_embedding_dimension")
    return own


def _json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object of a model; empty if there is no such file."""
    path = folder / name
    if not os.path.lexists(path):
        return {}
    found = read_json(model_file(folder, name))
    prompts = found.get("prompts")
    if isinstance(prompts, Mapping):
        found["prompts"] = {key: text for key, text in prompts.items() if text}
    return found


def _longest_input(folder: Path) -> int | None:
    """Compute how many tokens sentence-transformers reads where its own settings do not say so."""
    limits = (
        _json(folder, "tokenizer_config.json").get("model_max_length"),
        text_config(_json(folder, "config.json")).get("max_position_embeddings"),
    )
    known = [int(n) for n in limits if isinstance(n, int | float) and 0 < n < NO_LIMIT]
    return min(known, default=None)


def sentence_files(folder: Path) -> list[str]:
    """List the files of sentence-transformers in a model's folder, such as its pooling config.

    Raises `CheckpointError` if a module lies elsewhere or lacks its files.
    """
    modules = sentence_modules(folder)
    if not modules:
        return []
    files = [folder / NAME, *folder.glob("*sentence_*.json")]
    for module in modules:
        files += _files(folder, module)
    return sorted({str(file.relative_to(folder)) for file in files})


def _files(folder: Path, module: Module) -> Iterator[Path]:
    """Iterate over the files in a module's own folder."""
    if not module.path:
        return
    where = folder / module.path
    if not os.path.isdir(where):  # noqa: PTH112  # Path raises for a name too long
        if module.needs_files:
            raise CheckpointError(
                f"{folder}: modules.json names {module.path}, a {module.kind}, which is not there. "
                "Download the model again, with its folders."
            )
        return
    model_path(folder, module.path)
    yield from (file for file in where.rglob("*") if file.is_file())
