"""The model class of ``lm_eval --model merged``: `HFLM` on a merge that is made as it loads.

`MergedLM` replaces the step of lm-eval's `HFLM` that loads the weights, and, as `NamedByDigest`,
everything that identifies a model: recorded model info, file names, cache keys. A class that
derives from it and from a subclass of `HFLM` does the same for that subclass.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from lm_eval.models.huggingface import HFLM
from transformers import PretrainedConfig, PreTrainedModel

from harness_adapters.ending import end_with_the_message
from harness_adapters.lm_eval.arguments import (
    check_names,
    check_values,
    config_overrides,
    refuse,
    refuse_routed,
    take_quantization,
    without_label,
)
from harness_adapters.lm_eval.named import NamedByDigest
from harness_adapters.lm_eval.routed import RoutedRequests
from harness_adapters.options import naming
from merge_plugins.errors import MergeError, first_line
from merge_plugins.outputs.load import load_merged
from merge_plugins.plugins import registry
from merge_plugins.recipe import Recipe, short_form
from merge_plugins.sources.models import model_folder
from merge_plugins.tokenizer import tokenizer_folder


class MergedLM(NamedByDigest, RoutedRequests, HFLM):
    """Score a merge: weights come from a recipe, everything else from `HFLM`."""

    AUTO_MODEL_CLASS: Any

    def __init__(self, **arguments: Any) -> None:
        end_with_the_message("lm_eval.__main__")
        self._build(*Recipe.split_model_args(without_label(arguments)))

    def _build(self, recipe: Recipe, options: dict[str, Any]) -> None:
        self.recipe = recipe.trusting(bool(options.get("trust_remote_code")))
        refuse(options)
        if registry().get(self.recipe.merge_method).is_routed:
            refuse_routed(options, self.recipe.merge_method)
        check_values(options)
        self._options = dict(options)
        self._quantization = take_quantization(options)
        options.setdefault("tokenizer", str(tokenizer_folder(self.recipe)))
        super().__init__(pretrained=str(model_folder(self.recipe.donor)), **options)

    def _get_config(self, *args: Any, **kwargs: Any) -> None:
        super()._get_config(*args, **kwargs)
        method = registry().get(self.recipe.merge_method)
        words = {*short_form.KEYS, *method.spellings}
        check_names(self._options, type(self), self._config, words)

    def _create_tokenizer(self, *args: Any, **kwargs: Any) -> None:
        if self._options.get("tokenizer") is None:
            super()._create_tokenizer(*args, **kwargs)
            return
        with naming("tokenizer", self._options["tokenizer"]):
            super()._create_tokenizer(*args, **kwargs)

    def _create_model(self, pretrained: str, *args: Any, **kwargs: Any) -> None:
        auto_class = self.AUTO_MODEL_CLASS
        merging = Merging(auto_class, self.recipe, self._config, self._quantization)
        self._merging = self.AUTO_MODEL_CLASS = merging
        try:
            super()._create_model(pretrained, *args, **kwargs)
        finally:
            self.AUTO_MODEL_CLASS = auto_class

    def get_model_info(self) -> dict[str, Any]:
        """Add the recipe, its sources, and what a method settled on, to lm-eval's info."""
        info = super().get_model_info()
        settled = self.model.merge_settled
        info["merge"] |= {"settled": settled} if settled else {}
        return info


@dataclass
class Merging:
    """Load a merge by the call that lm-eval makes on an ``AutoModelFor...`` class."""

    auto_class: type
    recipe: Recipe
    config: PretrainedConfig
    quantization: Any
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the call, as `load_merged` takes them."""

    def from_pretrained(
        self,
        pretrained: str,
        *,
        revision: str | None = None,
        subfolder: str = "",
        gguf_file: None = None,
        quantization_config: Any = None,
        **kwargs: Any,
    ) -> PreTrainedModel:
        """Load the merged model from the recipe; arguments that locate weights are ignored."""
        if self.quantization is not None:
            kwargs["quantization_config"] = self.quantization
        self.config = copy.deepcopy(self.config)
        for name in config_overrides(kwargs, self.config):
            setattr(self.config, name, kwargs.pop(name))
        self.kwargs = kwargs
        config = copy.deepcopy(self.config)
        try:
            return load_merged(self.recipe, self.auto_class, config=config, **kwargs)
        except ImportError as exc:  # bitsandbytes, flash_attn: transformers says what to install
            raise MergeError(first_line(exc)) from exc
