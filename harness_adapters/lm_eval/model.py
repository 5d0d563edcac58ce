"""The model class of ``lm_eval --model merged``: `HFLM` on a merge that is made as it loads.

`MergedLM` replaces the step of lm-eval's `HFLM` that loads the weights, and everything that
identifies a model: recorded model info, file names, cache keys. A class that derives from it and
from a subclass of `HFLM` does the same for that subclass.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lm_eval.models.huggingface import HFLM
from transformers import PretrainedConfig, PreTrainedModel

import merge_plugins
from harness_adapters.ending import end_with_the_message
from harness_adapters.lm_eval.arguments import (
    check_names,
    check_values,
    config_overrides,
    outputs_depend_on,
    refuse,
    refuse_routed,
    take_quantization,
    without_label,
)
from harness_adapters.lm_eval.routed import RoutedRequests
from harness_adapters.options import naming
from merge_plugins import identity
from merge_plugins.errors import MergeError, first_line
from merge_plugins.outputs.load import load_merged
from merge_plugins.outputs.needs import needs
from merge_plugins.plugins import registry
from merge_plugins.recipe import Recipe, short_form
from merge_plugins.sources.models import model_folder
from merge_plugins.tokenizer import tokenizer_folder
from merge_plugins.weights.hub import resolve


class MergedLM(RoutedRequests, HFLM):
    """Score a merge: weights come from a recipe, everything else from `HFLM`."""

    AUTO_MODEL_CLASS: Any

    def __init__(self, **arguments: Any) -> None:
        end_with_the_message("lm_eval.__main__")
        self._build(*Recipe.split_model_args(without_label(arguments)))

    def _build(self, recipe: Recipe, options: dict[str, Any]) -> None:
        self.recipe = recipe.trusting(bool(options.get("trust_remote_code")))
        refuse(options)
        check_values(options)
        if registry().get(self.recipe.merge_method).is_routed:
            refuse_routed(options, self.recipe.merge_method)
        self._options = dict(options)
        self._quantization = take_quantization(options)
        options.setdefault("tokenizer", str(tokenizer_folder(self.recipe)))
        super().__init__(pretrained=str(model_folder(self.recipe.donor)), **options)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Build the model, and write the merge's name into the arguments that lm-eval records."""
        lm = super().create_from_arg_obj(arg_dict, *args, **kwargs)
        arg_dict["model"] = identity.label(lm.recipe)
        donor, folder = lm.recipe.tokenizer_donor, tokenizer_folder(lm.recipe)
        if not isinstance(donor, str) or resolve(donor) != folder:
            donor = str(folder)
        if "@" not in donor:  # synthetic tasks load it, without support for revisions
            arg_dict.setdefault("tokenizer", donor)
        return lm

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
        """Add the recipe and the identity of each source to the info beside lm-eval's scores."""
        info: dict[str, Any] = super().get_model_info()
        digest = identity.digest(self.recipe)
        info["model_sha"] = digest
        info["merge"] = {
            "recipe": self.recipe.as_dict(),
            "digest": digest,
            "sources": {str(ref): identity.model_identity(ref) for ref in self.recipe.references},
            "merge_plugins": merge_plugins.__version__,
        }
        plugins = needs(self.recipe)
        info["merge"] |= {"plugins": plugins} if plugins else {}
        settled = self.model.merge_settled
        info["merge"] |= {"settled": settled} if settled else {}
        return info

    @cached_property
    def tokenizer_name(self) -> str:
        """Key of lm-eval's prompt cache: the tokenizer's name and a hash of its content."""
        tokenizer = self.tokenizer
        if tokenizer.is_fast:
            rules = tokenizer.backend_tokenizer.to_str()
        else:
            rules = json.dumps(tokenizer.get_vocab(), sort_keys=True)
        content = f"{rules}{tokenizer.chat_template}{tokenizer.special_tokens_map}"
        name = Path(tokenizer.name_or_path).name
        return f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Use a cache table of this model alone: lm-eval's ``--use_cache`` keys name no model."""
        super().set_cache_hook(cache_hook)
        database = cache_hook.dbdict
        if database is None:
            return
        content = {
            "merge_plugins": merge_plugins.__version__,
            "digest": identity.digest(self.recipe),
            "tokenizer": self.tokenizer_name,
            "options": outputs_depend_on(self._options, type(self)),
        }
        key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
        database.tablename = f"merged_{key[:32]}"  # lm-eval's reader holds the same object
        database.conn.execute(
            f'CREATE TABLE IF NOT EXISTS "{database.tablename}" (key TEXT PRIMARY KEY, value BLOB)'
        )
        database.conn.commit()


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
