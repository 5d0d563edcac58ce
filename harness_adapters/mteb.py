"""MTEB's own command line, with merges for models.

    python -m harness_adapters.mteb run -m merge.yaml -t STS12 [any option of mteb]

``-m`` is a recipe file, a folder with one, or the short form; MTEB gets any other model as it is.
Results are filed under ``merged__NAME`` and the digest of the merge: an edited recipe is another
revision, which MTEB never takes for the one before. Classifiers are evaluated as rerankers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mteb.cli import main as mteb_main
from mteb.models import CrossEncoderWrapper, ModelMeta, SentenceTransformerEncoderWrapper
from mteb.models.model_implementations import MODEL_REGISTRY

from merge_plugins import Recipe, load_embedder, load_reranker, open_merge
from merge_plugins.errors import MergeError
from merge_plugins.identity import digest, label
from merge_plugins.planning.embedding import known
from merge_plugins.recipe import files, read_recipe

OPTIONS = ("-m", "--model")


def meta(recipe: Recipe, name: str) -> ModelMeta:
    """Describe a merge to MTEB, which loads it when a task asks; ``name``: NAME of merged/NAME.

    Raises `MergeError` before any weight is read when the recipe and its models do not fit.
    """
    plan = open_merge(recipe).plan
    reranks = any("ForSequenceClassification" in each for each in plan.config["architectures"])
    if not reranks:
        known(plan.embedding)

    def load(_: str, revision: str | None = None, device: str | None = None, **__: Any) -> Any:
        if reranks:
            return CrossEncoderWrapper(load_reranker(recipe, device=device))
        return SentenceTransformerEncoderWrapper(load_embedder(recipe, device=device))

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
    is_merge = ("=" in given and not path.exists()) or path.suffix in (".yaml", ".yml", ".json")
    if not is_merge and not (path / files.NAME).is_file():
        return given
    recipe = read_recipe(given)
    name = path.stem if path.exists() else label(recipe)
    MODEL_REGISTRY[f"merged/{name}"] = meta(recipe, name)
    return f"merged/{name}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run MTEB; return the exit status, 1 for a recipe that is wrong."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        for i, option in enumerate(given[:-1]):
            if option in OPTIONS:
                given[i + 1] = register(given[i + 1])
    except MergeError as exc:
        print(f"merge-plugins: {exc}", file=sys.stderr)
        return 1
    sys.argv = ["mteb", *given]
    mteb_main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
