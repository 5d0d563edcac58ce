"""Read the recipe key `pooling:`, how an embedder turns the states of a text into one vector.

    pooling: mean                 the mean over its tokens, as sentence-transformers names modes
    pooling: [cls, normalize]     the first token's state, divided by its length
    pooling: MODEL                as this model of the merge does it, with its prompts and limits

It is for models that come without `modules.json`, or with different ones. In the short form, `+`
joins a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from merge_plugins.errors import RecipeError, did_you_mean, nearest_or_all
from merge_plugins.recipe.files import path_of
from merge_plugins.recipe.references import Reading, Reference, reference
from merge_plugins.weights.sentence import MODES, NORMALIZE

Modes: TypeAlias = tuple[str, ...]
"""One mode or more, and ``normalize`` last if embeddings have length 1."""


def from_setting(given: Any, reading: Reading) -> Modes | Reference | None:
    """Parse ``pooling``, or raise `RecipeError`."""
    if given is None:
        return None
    words = modes_in(given)
    if words is not None:
        return _checked(words)
    if isinstance(given, str) and not path_of(given, reading.folder).exists():
        hint = did_you_mean(given, (*MODES, NORMALIZE))
        if hint:
            raise RecipeError(f"pooling is {', '.join(MODES)}, or a model; got {given!r}{hint}")
    return reference(given, reading)


def modes_in(given: Any) -> Modes | None:
    """Split what names modes, not a model: a list, or words joined by ``+``."""
    if isinstance(given, str):
        words = tuple(given.split("+"))
        return words if {*words} & {*MODES, NORMALIZE} else None
    return tuple(given) if isinstance(given, Sequence) else None


def _checked(words: Modes) -> Modes:
    modes = [word for word in words if word != NORMALIZE]
    wrong = next((word for word in modes if word not in MODES), None)
    if wrong is not None:
        hint = nearest_or_all(str(wrong), MODES)
        raise RecipeError(f"pooling: no mode {wrong!r}{hint}")
    if not modes or len({*words}) < len(words):
        raise RecipeError(
            f"pooling names modes, each once, and then normalize or not, as in [cls, {NORMALIZE}]; "
            f"got {list(words)}"
        )
    return tuple(word for word in (*MODES, NORMALIZE) if word in words)
