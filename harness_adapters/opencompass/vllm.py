"""Load merges in OpenCompass's vLLM classes, by way of `harness_adapters.vllm`.

OpenCompass treats a class as one of vLLM's if its name contains ``VLLM``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opencompass.models import VLLM, VLLMwithChatTemplate

from harness_adapters.opencompass.configs import trusts
from harness_adapters.opencompass.models import accepted, check_names
from harness_adapters.vllm import LOAD_FORMAT
from merge_plugins import identity
from merge_plugins.errors import MergeError
from merge_plugins.outputs.mount import mount
from merge_plugins.recipe import Recipe


class OnRecipeFolder:
    """Load a recipe folder in OpenCompass's vLLM class that follows it among a class's bases."""

    def __init__(self, recipe: str, digest: str | None = None, **options: Any) -> None:
        merge = accepted(recipe, digest, options)
        check_names(options, super().__init__, type(self))
        refuse_without_vllm(type(self).__name__)
        with recipe_folder(merge, trusts(options)) as folder:
            super().__init__(path=folder, **options)  # type: ignore[call-arg]
        self.recipe, self.path = merge, identity.label(merge)

    def _load_model(self, path: str, kwargs: Mapping[str, Any] | None = None, *_: Any) -> None:
        from vllm import LLM

        self.model = LLM(path, load_format=LOAD_FORMAT, **(kwargs or {}))  # stock needs Ray too


class MergedVLLM(OnRecipeFolder, VLLM):
    """``VLLM`` on a merge: generation and perplexities of base models."""


class MergedVLLMwithChatTemplate(OnRecipeFolder, VLLMwithChatTemplate):
    """``VLLMwithChatTemplate`` on a merge: generation of chat models."""


def refuse_without_vllm(name: str) -> None:
    """Raise `MergeError` unless vLLM can be imported."""
    try:
        from vllm import LLM  # noqa: F401
    except ImportError as exc:
        raise MergeError(
            f"{name} needs vLLM: {exc}. Its releases ask for numpy>=2 and OpenCompass's for "
            "numpy<2, so pip installs one of them with --no-deps; without vLLM use "
            "MergedCausalLM or MergedWithChatTemplate"
        ) from exc


@contextmanager
def recipe_folder(recipe: Recipe, trust_remote_code: bool) -> Iterator[str]:
    """Write a temporary recipe folder, which vLLM's workers load as the merge's checkpoint."""
    with tempfile.TemporaryDirectory(prefix="merge-plugins-") as name:
        yield str(mount(recipe, Path(name) / "merge", trust_remote_code=trust_remote_code))
