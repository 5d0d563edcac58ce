"""The model class of ``lm_eval --model merged-vllm``: `VLLM` on a merge that is made as it loads.

lm-eval's own class runs the engine, with all of vLLM's arguments; weights come by our load format.
One engine becomes one merge after another where swapping its weights has been verified.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import fields
from inspect import signature
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

import vllm
from lm_eval.models.vllm_causallms import VLLM
from vllm.engine.arg_utils import EngineArgs

from harness_adapters.ending import end_with_the_message
from harness_adapters.lm_eval.arguments import (
    REFUSED_BY_VLLM,
    SAME_OUTPUTS_OF_VLLM,
    outputs_depend_on,
    refuse,
    refuse_unknown_to_vllm,
    without_label,
)
from harness_adapters.lm_eval.named import NamedByDigest
from harness_adapters.vllm import LOAD_FORMAT, engine_options
from harness_adapters.vllm.engines import InProcess
from harness_adapters.vllm.swap import LiveEngine, SwapError
from merge_plugins import identity
from merge_plugins.engine import open_merge
from merge_plugins.outputs.mount import mount
from merge_plugins.plugins import registry
from merge_plugins.recipe import Recipe, short_form
from merge_plugins.tokenizer import tokenizer_folder

ENGINE_ARGUMENTS = {field.name for field in fields(EngineArgs)} | {*signature(vllm.LLM).parameters}
logger = logging.getLogger(__name__)


class MergedVLLM(NamedByDigest, VLLM):
    """Score a merge in vLLM: weights come from a recipe, everything else from lm-eval's `VLLM`."""

    def __init__(self, **arguments: Any) -> None:
        end_with_the_message("lm_eval.__main__")
        self._build(*Recipe.split_model_args(without_label(arguments)))

    @classmethod
    def of(cls, recipe: Recipe, options: Mapping[str, Any], progress: bool = True) -> MergedVLLM:
        """Build the model of a recipe, with arguments as of ``--model merged-vllm`` beside it.

        ``progress``: whether requests show lm-eval's progress bars.
        """
        lm = cls.__new__(cls)
        lm._shown = {} if progress else {"disable_tqdm": True}
        lm._build(recipe, dict(options))
        return lm

    _shown: Mapping[str, Any] = {}

    def _build(self, recipe: Recipe, options: dict[str, Any]) -> None:
        words = {*short_form.KEYS, *registry().get(recipe.merge_method).spellings}
        refuse(options, REFUSED_BY_VLLM)
        refuse_unknown_to_vllm(options, type(self), ENGINE_ARGUMENTS, words)
        self._trusted = bool(options.get("trust_remote_code"))
        self.recipe = recipe.trusting(self._trusted)
        self._options = dict(options)
        open_merge(self.recipe).plan.refuse_routing("vLLM engine")
        root = mkdtemp(prefix="merge-plugins-")  # stays: every replica loads from it
        finalize(self, shutil.rmtree, root, ignore_errors=True)
        folder = Path(root) / identity.label(self.recipe)
        mount(self.recipe, folder, trust_remote_code=self._trusted)
        options.setdefault("tokenizer", str(tokenizer_folder(self.recipe)))
        super().__init__(
            pretrained=str(folder), load_format=LOAD_FORMAT, **engine_options(), **options
        )
        if self.data_parallel_size == 1:
            self._live = LiveEngine(InProcess(self.model), self.recipe)
            # the next engine needs the memory before whatever cycle holds this one is collected
            finalize(self, self.model.llm_engine.engine_core.shutdown)

    def become(self, recipe: Recipe) -> bool:
        """Turn into the merge of another recipe; False if only a new engine can be that.

        After an error, or False, the model may be neither merge; drop it.
        """
        recipe = recipe.trusting(self._trusted)
        if self.data_parallel_size > 1:  # lm-eval starts its engines for each batch of requests
            return False
        try:
            self._live.become(recipe)
        except SwapError as exc:
            logger.warning("starting another engine: %s", exc)
            return False
        self.recipe = recipe
        return True

    @classmethod
    def answers_depend_on(cls, options: Mapping[str, Any]) -> dict[str, str]:
        """Select the arguments that may change a merge's answers, and who gives them."""
        chosen = outputs_depend_on(options, cls, SAME_OUTPUTS_OF_VLLM)
        return {**chosen, "vllm": vllm.__version__}

    def loglikelihood(self, requests: list[Any], **options: Any) -> list[Any]:
        """Score requests, with a progress bar if one is wanted."""
        found: list[Any] = super().loglikelihood(requests, **{**self._shown, **options})
        return found

    def loglikelihood_rolling(self, requests: list[Any], **options: Any) -> list[Any]:
        """Score texts, with a progress bar if one is wanted."""
        found: list[Any] = super().loglikelihood_rolling(requests, **{**self._shown, **options})
        return found

    def generate_until(self, requests: list[Any], **options: Any) -> list[Any]:
        """Answer prompts, with a progress bar if one is wanted."""
        found: list[Any] = super().generate_until(requests, **{**self._shown, **options})
        return found
