"""Find the weights of a model's head: whatever is outside the base model of its class."""

from __future__ import annotations

from merge_plugins.errors import RecipeError
from merge_plugins.hf.classes import architecture
from merge_plugins.sources import Source
from merge_plugins.weights.modules import of_transformer


def head_of(source: Source) -> frozenset[str]:
    """List the head's tensors, by checkpoint name; none, if the model is a base model.

    Raises `RecipeError` for a class that transformers does not have.
    """
    names = source.config.get("architectures") or ()
    found = architecture(names)
    if found is None:
        raise RecipeError(
            f"exclude: heads needs the class of {source.ref}, and transformers has none of "
            f"{', '.join(map(str, names)) or 'architectures in its config.json'}. Write parts of "
            "the names of its head's weights, such as exclude: [classifier]"
        )
    tensors, prefix = of_transformer(source), f"{found.base_model_prefix}."
    if not any(name.startswith(prefix) for name in tensors):
        return frozenset()
    return frozenset(name for name in tensors if not name.startswith(prefix))
