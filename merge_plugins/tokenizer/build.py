"""Build a merge's tokenizer, chat template and generation config.

A merge takes each from the model its recipe names. Where that is a file as it is, it is used where
it lies; a tokenizer that exists nowhere (a union, another chat template) is written to our cache.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merge_plugins.errors import CheckpointError, MergeWarning, MismatchError, RecipeError
from merge_plugins.folders import cache_folder, complete_or_nothing
from merge_plugins.recipe import Delta, Lora, Rebased, Recipe, Reference, references
from merge_plugins.recipe.chat_templates import TEMPLATES
from merge_plugins.recipe.tokenizer import is_template
from merge_plugins.tokenizer.alignment import Alignment, Vocabulary, merged_vocabulary
from merge_plugins.tokenizer.vocabulary import (
    added_entries,
    damaged,
    read_text,
    vocabulary,
    vocabulary_size,
)
from merge_plugins.weights.companions import copy_files, model_file
from merge_plugins.weights.content import content
from merge_plugins.weights.files import read_json, tokenizer_files
from merge_plugins.weights.hub import resolve

GENERATION = "generation_config.json"
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")


def tokenizer_folder(ref: Reference) -> Path:
    """Find the folder with a model's tokenizer; build it for a merge that needs a new one.

    An adapter or delta that comes with a tokenizer brings its own.
    """
    if isinstance(ref, str):
        return resolve(ref)
    if isinstance(ref, Rebased):
        return tokenizer_folder(ref.model)
    if isinstance(ref, Lora | Delta):
        own = resolve(ref.adapter if isinstance(ref, Lora) else ref.delta)
        return own if tokenizer_files(own) else tokenizer_folder(ref.model)
    assert isinstance(ref, Recipe), "the only other kind of reference"
    folder = tokenizer_folder(ref.tokenizer_donor)
    changes = _added_tokens(ref, folder) | _templated(ref, folder)
    return _written(folder, changes) if changes else folder


def generation_config(ref: Reference) -> dict[str, Any] | None:
    """Read a model's generation config; a merge has that of the model its recipe names."""
    if not isinstance(ref, Recipe):
        file = generation_folder(ref) / GENERATION
        return read_json(file) if file.is_file() else None
    donor = ref.generation_donor
    found, alignment = generation_config(donor), aligned(ref)
    return alignment.renumbered(found, donor) if found and alignment else found


def generation_folder(ref: Reference) -> Path:
    """Find the folder of the model that gives the generation config."""
    while isinstance(ref, Recipe):
        ref = ref.generation_donor
    return resolve(references.home(ref))


def aligned(
    recipe: Recipe, configs: Mapping[Reference, Mapping[str, Any]] | None = None
) -> Alignment | None:
    """Match embedding rows across models by token; None if the recipe sets no tokenizer.

    A model without tokenizer files has the tokens of the tokenizer's donor if, by ``configs``, it
    has as many rows.
    """
    if recipe.tokenizer is None:
        return None
    donor = recipe.tokenizer_donor
    refs = dict.fromkeys((*recipe.references, donor, recipe.generation_donor))
    found = {ref: vocabulary(tokenizer_folder(ref)) for ref in refs}
    if not found[donor]:
        raise MismatchError(
            f"{donor} has no tokenizer files, so rows cannot be aligned by token; set "
            "tokenizer_source to a model that has them, or leave it out"
        )
    rows = {ref: vocabulary_size(config) for ref, config in (configs or {}).items()}
    for ref in [ref for ref, tokens in found.items() if not tokens]:
        if rows.get(ref) != rows.get(donor):
            raise MismatchError(
                f"{ref} has no tokenizer files and {rows.get(ref)} rows, {donor} has "
                f"{rows.get(donor)}: copy the tokenizer it was trained with into its folder"
            )
        found[ref] = found[donor]
    known = {ref: found[ref] for ref in (donor, *recipe.references)}
    tokens = merged_vocabulary(recipe.tokenizer, donor, known)
    return Alignment(recipe.tokenizer, recipe.base_model, tokens, found)


def _added_tokens(recipe: Recipe, folder: Path) -> dict[str, str]:
    """Rewrite the tokenizer files that lack tokens of the merge: texts by file name."""
    alignment = aligned(recipe)
    if alignment is None:
        return {}
    known = alignment.vocabularies
    own = known[recipe.tokenizer_donor]
    new = {token: row for token, row in alignment.tokens.items() if token not in own}
    if not new:
        return {}
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json to add {next(iter(new))!r} to; write one with "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    contents, added = read_json(file), _added_entries(known)
    appended: list[dict[str, Any]] = []
    for token, row in new.items():
        in_model = any(token in tokens for tokens in known.values()) and token not in added
        if not in_model:
            entry = added.get(token, {**PLAIN_TOKEN, "content": token})
            appended.append({**entry, "id": row})
        elif isinstance(contents["model"].setdefault("vocab", {}), dict):
            contents["model"]["vocab"][token] = row
        else:
            raise MismatchError(
                f"tokenizer_source: {token!r} is no added token, and the unigram tokenizer of "
                f"{folder} takes no other; set tokenizer_source to base or a model"
            )
    if appended:
        contents["added_tokens"] = [*(contents.get("added_tokens") or ()), *appended]
    return {"tokenizer.json": json.dumps(contents, ensure_ascii=False, indent=2)}


PLAIN_TOKEN = {
    "single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False,
}  # fmt: skip
"""Entry in tokenizer.json of a token of which only the text is known."""


def _added_entries(known: Mapping[Reference, Vocabulary]) -> dict[str, dict[str, Any]]:
    """Collect the tokenizer.json entries of added tokens of all models; the first one counts."""
    entries: dict[str, dict[str, Any]] = {}
    for ref in known:
        file = tokenizer_folder(ref) / "tokenizer.json"
        for entry in added_entries(file) if file.is_file() else []:
            entries.setdefault(entry["content"], entry)
    return entries


def _templated(recipe: Recipe, folder: Path) -> dict[str, str]:
    """Rewrite the tokenizer files that hold the chat template: texts by file name."""
    template = chat_template(recipe)
    if template is None:
        return {}
    config = folder / "tokenizer_config.json"
    settings = read_json(config) if config.is_file() else {}
    return {  # in both places: transformers before 4.43 reads only the first
        "tokenizer_config.json": json.dumps({**settings, "chat_template": template}, indent=2),
        "chat_template.jinja": template,
    }


def chat_template(recipe: Recipe) -> str | None:
    """Find the chat template that a recipe chooses; None: the tokenizer's own."""
    given = recipe.chat_template
    if given is None:
        return None
    if given == "auto":
        found = Counter(filter(None, map(template_of, recipe.references)))
        if not found:
            warnings.warn(
                "chat_template: auto: none of the models has a template, so the merge has none",
                MergeWarning,
                stacklevel=2,
            )
            return None
        return found.most_common(1)[0][0]
    if isinstance(given, str) and is_template(given):
        return TEMPLATES.get(given, given)
    template = template_of(given)
    if template is None:
        raise RecipeError(
            f"chat_template: {given} has none; write auto, {', '.join(TEMPLATES)}, a model that "
            "has one, or the template itself"
        )
    return template


def template_of(ref: Reference) -> str | None:
    """Read a model's chat template, if it has one."""
    folder = tokenizer_folder(ref)
    if (folder / "chat_template.jinja").is_file():
        return read_text(model_file(folder, "chat_template.jinja"))
    for name in ("chat_template.json", "tokenizer_config.json"):
        contents = read_json(folder / name) if (folder / name).is_file() else {}
        template = contents.get("chat_template")
        if isinstance(template, list):  # several by name
            named = [each for each in template if isinstance(each, dict)]
            named = [each for each in named if each.get("name") == "default"]
            template = named[-1].get("template") if named else None
        if template and not isinstance(template, str):
            raise damaged(folder / name, "its chat_template is no text")
        if template:
            return str(template)
    return None


def _written(folder: Path, changes: Mapping[str, str]) -> Path:
    """Copy a tokenizer to the cache with some files changed; return its folder."""
    for name, text in changes.items():
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            raise damaged(folder / name, f"it holds half a character, {text[exc.start]!a}") from exc
    kept = [
        file
        for file in tokenizer_files(folder)
        if file.name not in changes
        and not ("chat_template.jinja" in changes and file.name in TEMPLATE_FILES)
    ]
    parts = {**{file.name: content(file) for file in kept}, **changes}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    target = cache_folder() / "tokenizers" / digest
    if not target.is_dir():
        with complete_or_nothing(target, shared=True) as unfinished:
            copy_files(folder, (file.name for file in kept), unfinished)
            for name, text in changes.items():
                (unfinished / name).write_text(text, encoding="utf-8")
    return target
