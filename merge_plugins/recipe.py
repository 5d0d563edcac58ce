"""A merge, said completely: which models, which method, which parameters.

Recipes that mean the same merge compare equal and have one digest, whichever way they were written.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from merge_plugins import model_args, recipe_file, recipe_keys
from merge_plugins.errors import ParameterError
from merge_plugins.model_args import split_model_args as split_model_args
from merge_plugins.recipe_keys import renamed
from merge_plugins.registry import Method, registry
from merge_plugins.settings import MISSING, Setting, over


@dataclass(frozen=True)
class Model:
    """One entry of a recipe's models."""

    ref: str
    """An absolute path, or a hub id with an optional ``@revision``."""
    parameters: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """What to merge and how, in mergekit's words plus `seed`."""

    merge_method: str
    models: tuple[Model, ...]
    base_model: str | None = None
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None
    seed: int = 0

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a YAML or JSON file, or the one in a folder; paths in it are relative to it."""
        file = recipe_file.find(Path(path).expanduser())
        with recipe_file.naming(file):
            return cls.from_mapping(recipe_file.read(file), file.parent)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], folder: str | Path | None = None) -> Recipe:
        """Read what a recipe file holds; paths are relative to ``folder``, or to the cwd."""
        return _from_fields(recipe_keys.fields(mapping, Path(folder or ".")))

    @classmethod
    def from_model_args(cls, args: Mapping[str, Any]) -> Recipe:
        """Read the short form of `merge_plugins.model_args`, as lm-eval parses it."""
        return _from_fields(model_args.fields(args))

    @property
    def experts(self) -> tuple[Model, ...]:
        """The models that are merged; see `experts`."""
        return experts(self, registry().get(self.merge_method))

    @property
    def references(self) -> tuple[str, ...]:
        """Every distinct model whose weights are read; the base first unless it is listed."""
        refs = [model.ref for model in self.models]
        first = [self.base_model] if self.base_model and self.base_model not in refs else []
        return tuple(dict.fromkeys(first + refs))

    @property
    def donor(self) -> str:
        """The model that gives config and generation config."""
        return self.base_model or self.models[0].ref

    @property
    def tokenizer_donor(self) -> str:
        """The model that gives the tokenizer."""
        if self.tokenizer_source in (None, "base"):
            return self.donor
        return str(self.tokenizer_source)

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as its YAML holds it, with only what is set."""
        models = [{"model": m.ref, "parameters": dict(m.parameters)} for m in self.models]
        held = {
            "merge_method": self.merge_method,
            "base_model": self.base_model,
            "models": [{k: v for k, v in model.items() if v} for model in models],
            "parameters": dict(self.parameters),
            "dtype": self.dtype,
            "out_dtype": self.out_dtype,
            "tokenizer_source": self.tokenizer_source,
            "seed": self.seed,
        }
        return copy.deepcopy({key: value for key, value in held.items() if value})

    def to_yaml(self) -> str:
        """Return the recipe as a YAML file's text."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)

    @cached_property
    def digest(self) -> str:
        """12 hex digits of recipe, method version and the content of every model's files."""
        from merge_plugins import __version__
        from merge_plugins.hub import identity, tokenizer_identity

        held, method = self.as_dict(), registry().get(self.merge_method)
        for entry in held["models"]:
            entry["model"] = identity(entry["model"])
        if self.base_model:
            held["base_model"] = identity(self.base_model)
        if self.tokenizer_source not in (None, "base"):
            held["tokenizer_source"] = tokenizer_identity(self.tokenizer_donor)
        held["plugin"] = [method.plugin, method.version or __version__]
        text = json.dumps(held, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """The name to show and to cache by: ``<method>-<digest>``."""
        return f"{self.merge_method}-{self.digest}"


def _from_fields(found: Mapping[str, Any]) -> Recipe:
    models = tuple(Model(ref, parameters) for ref, parameters in found["models"])
    recipe = Recipe(**{**found, "models": models})
    return normal_form(recipe, registry().get(recipe.merge_method))


def experts(recipe: Recipe, method: Method) -> tuple[Model, ...]:
    """Return the models that are merged, in the user's order.

    The one rule about base_model:

    * A method that needs a base receives it apart: an entry for it among the models is no expert.
    * For any other method base_model gives config and tokenizer. It is an input too if it is
      listed, or, mergekit's rule, if the recipe's own parameters hold a per-model ``weight``:
      that weight is then also the base's, and the base comes last.
    """
    base, weight = recipe.base_model, method.parameters.get("weight")
    if method.needs_base:
        return tuple(model for model in recipe.models if model.ref != base)
    weighs_base = weight is not None and weight.per_expert and "weight" in recipe.parameters
    if base is None or not weighs_base or base in (model.ref for model in recipe.models):
        return recipe.models
    return (*recipe.models, Model(base))


def normal_form(recipe: Recipe, method: Method) -> Recipe:
    """Return the one recipe that all spellings of this merge share, or raise `ParameterError`.

    Models are the `experts`; parameters have their canonical names and types; one that is the same
    for every model stands in the recipe's own parameters, any other in each model's.
    """
    shared = renamed(method, recipe.parameters)
    models = [replace(m, parameters=renamed(method, m.parameters, m.ref)) for m in recipe.models]
    for model in models if method.needs_base else ():
        if model.ref == recipe.base_model and model.parameters:
            raise ParameterError(
                f"{method.name}: base_model takes no {next(iter(model.parameters))}, only the "
                f"models merged into it do; delete the parameters of {model.ref}"
            )
    recipe = replace(recipe, parameters=shared, models=tuple(models))
    return _settled(replace(recipe, models=experts(recipe, method)), method)


def _settled(recipe: Recipe, method: Method) -> Recipe:
    """Give each per-expert parameter to every model, or to the recipe if all have the same."""
    shared, own = dict(recipe.parameters), [dict(model.parameters) for model in recipe.models]
    unlisted = recipe.base_model and recipe.base_model not in (m.ref for m in recipe.models)
    for name in (p.name for p in method.parameters.values() if p.per_expert and own):
        outer = shared.pop(name, MISSING)
        settings = [over(parameters.pop(name, MISSING), outer) for parameters in own]
        makes_input = name == "weight" and unlisted and not method.needs_base  # see experts
        if not makes_input and all(setting == settings[0] for setting in settings):
            shared |= {name: settings[0]} if settings[0] is not MISSING else {}
            continue
        for parameters, setting in zip(own, settings, strict=True):
            parameters |= {name: setting} if setting is not MISSING else {}
    models = tuple(Model(m.ref, p) for m, p in zip(recipe.models, own, strict=True))
    return replace(recipe, parameters=shared, models=models)
