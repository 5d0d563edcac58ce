"""Assign weights to the parts of a model that a recipe merges separately, mergekit's ``modules``.

A part is named by one of mergekit's words (`WORDS`) or by a prefix of its weights' names
(``model.visual``, ``encoder.block``). Prefixes take precedence, the longest first. ``default`` and
``text_decoder`` take the weights that no other part of the recipe takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from merge_plugins.errors import MismatchError, RecipeError

VISION = r"\b(visual|vision_tower|vision_model)\."
WORDS: Mapping[str, str] = {
    "multi_modal_projector": r"\bmulti_modal_projector\.|\bvisual\.(deepstack_)?merger(_list)?\.",
    "vision_tower": VISION,
    "vision_model": VISION,
    "encoder": r"^(model\.)?encoder\.",
    "decoder": r"^(model\.)?decoder\.",
    "shared": r"^(model\.)?shared\.|^(lm_head|proj_out)\.",
}
"""Patterns of weight names by mergekit's word for the part; the first match decides."""
REST = ("default", "text_decoder")
"""Names for the part that takes all remaining weights."""
WHOLE = ""
"""Name of the only part in a recipe without ``modules``: the whole model."""
DEPTHS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "vision_tower": ("vision_config", ("depth", "num_hidden_layers")),
    "vision_model": ("vision_config", ("depth", "num_hidden_layers")),
    "encoder": ("", ("encoder_layers", "num_layers")),
    "decoder": ("", ("decoder_layers", "num_decoder_layers")),
}
"""Config section and keys, by family, that hold the number of layers of a part; a part that is not
listed has those of a text model."""


def part_of(name: str, parts: Sequence[str]) -> str | None:
    """Find the part of ``parts`` that takes a weight; None if no part does."""
    if WHOLE in parts:
        return WHOLE
    for part in sorted(parts, key=len, reverse=True):
        if part not in WORDS and part not in REST and _begins(name, part):
            return part
    for word, pattern in WORDS.items():
        if word in parts and re.search(pattern, name):
            return word
    return next((part for part in parts if part in REST), None)


def check(names: Iterable[str], parts: Sequence[str]) -> None:
    """Raise `MismatchError` for a weight in no part, `RecipeError` for a part without weights."""
    taken = {name: part_of(name, parts) for name in names}
    for name, part in taken.items():
        if part is None:
            raise MismatchError(
                f"no module takes {name}; the recipe has {', '.join(parts)}. Add "
                f"{{{_suggested(name)}: {{models: […]}}}} to modules, or leave such weights as "
                "the donor has them with exclude: [part of their names]"
            )
    if not taken:
        raise RecipeError(
            "no weight is left to merge: the donor has none but those that exclude: names"
        )
    for part in parts:
        if part not in taken.values():
            known = ", ".join((*WORDS, *REST))
            raise RecipeError(
                f"modules: no weight is of {part!r}. A module is one of {known}, or how the names "
                f"of its weights begin; names look like {next(iter(taken))!r}"
            )


def section_and_keys(part: str) -> tuple[str, tuple[str, ...] | None]:
    """Return the config section and keys of a part's depth; None as keys: those of a text model."""
    return DEPTHS.get(part, ("", None))


def _begins(name: str, part: str) -> bool:
    return name.startswith(part if part.endswith(".") else f"{part}.")


def _suggested(name: str) -> str:
    """Suggest a module for a weight: mergekit's word that matches its name, or ``default``."""
    word = next((word for word, pattern in WORDS.items() if re.search(pattern, name)), None)
    return word or "default"
