"""Describe a merge to MTEB: a name, the digest as revision, and how it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mteb.models import CrossEncoderWrapper, ModelMeta, SentenceTransformerEncoderWrapper
from mteb.models.model_implementations import MODEL_REGISTRY

from merge_plugins import Recipe, load_embedder, load_reranker, open_merge
from merge_plugins.identity import digest, label
from merge_plugins.planning.embedding import known
from merge_plugins.recipe import files, read_recipe
from merge_plugins.recipe.references import RECIPE_FILES


def meta(
    recipe: Recipe, name: str, *, trust_remote_code: bool = False, **options: Any
) -> ModelMeta:
    """Describe a merge to MTEB, which loads it when a task asks; ``name``: NAME of merged/NAME.

    ``options``: of `load_embedder` and `load_reranker`. Raises `MergeError` before any weight is
    read when the recipe and its models do not fit.
    """
    plan = open_merge(recipe.trusting(trust_remote_code)).plan
    reranks = any("ForSequenceClassification" in each for each in plan.config["architectures"])
    if not reranks:
        known(plan.embedding)
    options = {**options, "trust_remote_code": trust_remote_code}

    def load(_: str, revision: str | None = None, device: str | None = None, **__: Any) -> Any:
        if reranks:
            return CrossEncoderWrapper(load_reranker(recipe, device=device, **options))
        return SentenceTransformerEncoderWrapper(load_embedder(recipe, device=device, **options))

    described = {
        "loader": load,
        "name": f"merged/{name}",
        "revision": digest(recipe),
        "framework": ["Sentence Transformers"],
        "model_type": ["cross-encoder" if reranks else "dense"],
    }
    return ModelMeta.create_empty(described)


def register(given: str) -> str:
    """Register the merge that an argument names; return the name that MTEB knows it by."""
    path = Path(given)
    is_merge = files.is_short_form(given) or path.suffix in RECIPE_FILES
    if not is_merge and not (path / files.NAME).is_file():
        return given
    recipe = read_recipe(given)
    name = path.stem if path.exists() else label(recipe)
    MODEL_REGISTRY[f"merged/{name}"] = meta(recipe, name)
    return f"merged/{name}"
