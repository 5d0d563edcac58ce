"""Load a merge as a live model of sentence-transformers, all its modules included.

The merge is mounted in a folder that lives as long as loading takes, and sentence-transformers
loads that: so the model equals the one of a mounted or a saved merge.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from merge_plugins.engine import open_merge
from merge_plugins.errors import MergeError
from merge_plugins.installing import to_install
from merge_plugins.outputs.mount import mount
from merge_plugins.planning.embedding import known
from merge_plugins.recipe import Recipe, refuse_no_recipe
from merge_plugins.recipe.references import home

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

Model = TypeVar("Model", bound=Any)
logger = logging.getLogger(__name__)


def load_embedder(
    recipe: Recipe, *, trust_remote_code: bool = False, **kwargs: Any
) -> SentenceTransformer:
    """Merge and load a live `SentenceTransformer`; ``kwargs`` are its own: device, prompts, ...

    ``trust_remote_code``: whether code that came with the models or a task of the recipe runs.
    Raises `MergeError` before any weight is read when the recipe and its models do not fit
    together, or do not say how they embed: see the recipe key ``pooling``.
    """
    refuse_no_recipe(recipe)
    known(open_merge(recipe.trusting(trust_remote_code)).plan.embedding)
    return _load("SentenceTransformer", recipe, trust_remote_code, kwargs)  # type: ignore[no-any-return]


def load_reranker(
    recipe: Recipe, *, trust_remote_code: bool = False, **kwargs: Any
) -> CrossEncoder:
    """Merge and load a live `CrossEncoder`; arguments and errors are those of `load_embedder`."""
    refuse_no_recipe(recipe)
    return _load("CrossEncoder", recipe, trust_remote_code, kwargs)  # type: ignore[no-any-return]


def _load(name: str, recipe: Recipe, trust_remote_code: bool, kwargs: dict[str, Any]) -> Any:
    try:
        import sentence_transformers
    except ImportError as exc:
        raise MergeError(
            "a live embedder is one of sentence-transformers, which is not installed: "
            + to_install("embed")
        ) from exc
    with tempfile.TemporaryDirectory(prefix="merge-plugins-") as folder:
        mounted = mount(recipe, Path(folder) / "merge", trust_remote_code=trust_remote_code)
        model_class = getattr(sentence_transformers, name)
        model = model_class(str(mounted), trust_remote_code=True, **kwargs)
    live = model.transformers_model
    live.config._name_or_path = live.name_or_path = home(recipe.donor)  # the folder is gone
    return model
