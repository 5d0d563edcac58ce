"""Parts of a model that a recipe merges each in its own way, mergekit's ``modules``.

A part is named by one of mergekit's words, for the weights below, or by how the names of its
weights begin (``model.visual``, ``encoder.block``), which decides first. ``default`` and
``text_decoder`` are what no other part of the recipe takes.
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
"""What mergekit calls the parts of the families it knows, and the names of their weights; the first
that fits is right."""
REST = ("default", "text_decoder")
WHOLE = ""
"""The part that is all of the model."""
DEPTHS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "vision_tower": ("vision_config", ("depth", "num_hidden_layers")),
    "vision_model": ("vision_config", ("depth", "num_hidden_layers")),
    "encoder": ("", ("encoder_layers", "num_layers")),
    "decoder": ("", ("decoder_layers", "num_decoder_layers")),
}
"""Where a config says how many layers a part has: its section, and the key by family. Other parts:
as a text model says it."""


def part_of(name: str, parts: Sequence[str]) -> str | None:
    """Return the part, of those a recipe names, that takes a weight; None: none does."""
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
    """Raise `MismatchError` for a weight of no part, `RecipeError` for a part of no weight."""
    taken = {name: part_of(name, parts) for name in names}
    for name, part in taken.items():
        if part is None:
            raise MismatchError(
                f"no module takes {name}; the recipe has {', '.join(parts)}. Add "
                f"{{{_suggested(name)}: {{models: […]}}}} to modules, or leave such weights as "
                "the donor has them with exclude: [part of their names]"
            )
    for part in parts:
        if part not in taken.values():
            known = ", ".join((*WORDS, *REST))
            raise RecipeError(
                f"modules: no weight is of {part!r}. A module is one of {known}, or how the names "
                f"of its weights begin; names look like {next(iter(taken))!r}"
            )


def section_and_keys(part: str) -> tuple[str, tuple[str, ...] | None]:
    """Return where a config holds the depth of a part; no keys: as a text model holds it."""
    return DEPTHS.get(part, ("", None))


def _begins(name: str, part: str) -> bool:
    return name.startswith(part if part.endswith(".") else f"{part}.")


def _suggested(name: str) -> str:
    """Return what to call the part of a weight: mergekit's word, or how its name begins."""
    word = next((word for word, pattern in WORDS.items() if re.search(pattern, name)), None)
    return word or "default"
