"""OpenCompass's vLLM classes on a recipe folder, which `harness_adapters.vllm` loads.

OpenCompass takes a class for one of vLLM's by ``VLLM`` in its name.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opencompass.models import VLLM, VLLMwithChatTemplate

from harness_adapters.opencompass.models import accepted, check_names
from harness_adapters.vllm import LOAD_FORMAT
from merge_plugins import identity
from merge_plugins.errors import MergeError
from merge_plugins.outputs.mount import mount
from merge_plugins.recipe import Recipe


class OnRecipeFolder:
    """Comes before one of OpenCompass's vLLM classes among a class's bases."""

    def __init__(self, recipe: str, digest: str | None = None, **options: Any) -> None:
        found = accepted(recipe, digest, options)
        check_names(options, super().__init__, type(self))
        refuse_without_vllm(type(self).__name__)
        with recipe_folder(found) as folder:
            super().__init__(path=folder, **options)  # type: ignore[call-arg]
        self.recipe, self.path = found, identity.label(found)

    def _load_model(self, path: str, kwargs: Mapping[str, Any] | None = None, *_: Any) -> None:
        from vllm import LLM

        self.model = LLM(path, load_format=LOAD_FORMAT, **(kwargs or {}))  # stock asks for Ray too


class MergedVLLM(OnRecipeFolder, VLLM):
    """``VLLM`` on a merge: generation and perplexities of base models."""


class MergedVLLMwithChatTemplate(OnRecipeFolder, VLLMwithChatTemplate):
    """``VLLMwithChatTemplate`` on a merge: generation of chat models."""


def refuse_without_vllm(name: str) -> None:
    """Raise `MergeError` unless vLLM is here."""
    try:
        from vllm import LLM  # noqa: F401
    except ImportError as exc:
        raise MergeError(
            f"{name} needs vLLM: {exc}. Its releases ask for numpy>=2 and OpenCompass's for "
            "numpy<2, so pip installs one of them with --no-deps; without vLLM use "
            "MergedCausalLM or MergedWithChatTemplate"
        ) from exc


@contextmanager
def recipe_folder(recipe: Recipe) -> Iterator[str]:
    """Yield what vLLM takes for the merge's checkpoint, until its workers have loaded it."""
    with tempfile.TemporaryDirectory(prefix="merge-plugins-") as name:
        yield str(mount(recipe, Path(name) / "merge"))
