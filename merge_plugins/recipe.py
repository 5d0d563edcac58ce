"""A merge, said completely: which models, which method, which parameters.

Recipes that mean the same merge compare equal and have one digest, whichever way they were written.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from merge_plugins import model_args, recipe_file, recipe_keys
from merge_plugins.data import Data
from merge_plugins.model_args import split_model_args as split_model_args
from merge_plugins.modules import WHOLE
from merge_plugins.normal_form import normal_form
from merge_plugins.references import Reference, written
from merge_plugins.registry import registry
from merge_plugins.settings import MISSING, Setting
from merge_plugins.slices import Model, Slice, Spelled, is_stack, part_as_dict
from merge_plugins.tokenization import Tokenizer, is_template


@dataclass(frozen=True)
class Recipe:
    """What to merge and how, in mergekit's words plus `seed` and `data`."""

    merge_method: str
    slices: tuple[Slice, ...]
    """Those of each part, the first layers first; whole models are one slice."""
    base_model: Reference | None = None
    """The base of every slice that names no other; gives config and tokenizer."""
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: Tokenizer | None = None
    """The merge's vocabulary; None: the models', which must have the same rows."""
    chat_template: Reference | None = None
    """``auto``, a name in `chat_templates`, a template, or the model that has it; None: the
    tokenizer's."""
    generation_config: Reference | None = None
    """The model whose it is; None: the `donor`'s."""
    donor_model: Reference | None = None
    """The `donor`, where it is neither the base nor the first model."""
    exclude: tuple[str, ...] = ()
    """Parts of the names of tensors that are not merged but come from the `donor`."""
    seed: int = 0
    data: Data | None = None
    """Calibration data of every model that has none of its own."""

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
    def models(self) -> tuple[Model, ...]:
        """The models that are merged, in the user's order, those of the first slice first."""
        return tuple(model for piece in self.slices for model in piece.models)

    @property
    def parameters(self) -> Mapping[str, Setting]:
        """What every slice says, without what the models say."""
        first, *others = (piece.parameters for piece in self.slices)
        return {k: v for k, v in first.items() if all(v == o.get(k, MISSING) for o in others)}

    @property
    def parts(self) -> Mapping[str, tuple[Slice, ...]]:
        """Slices by the part of the model they make; most recipes have one part, the whole."""
        names = dict.fromkeys(piece.part for piece in self.slices)
        return {name: tuple(p for p in self.slices if p.part == name) for name in names}

    @property
    def is_stack(self) -> bool:
        """Whether it is made of layers or parts of models, not of whole ones."""
        return WHOLE not in self.parts or is_stack(self.slices)

    @property
    def references(self) -> tuple[Reference, ...]:
        """Every distinct model whose weights are read; the base first unless it is listed."""
        listed = [model.ref for model in self.models]
        own = [piece.base.ref for piece in self.slices if piece.base]
        first = [self.base_model] if self.base_model and self.base_model not in listed else []
        last = [self.donor_model] if self.donor_model else []
        return tuple(dict.fromkeys(first + listed + own + last))

    @property
    def donor(self) -> Reference:
        """The model that gives config and tensor names, and what the recipe does not choose."""
        return self.donor_model or self.base_model or self.slices[0].inputs[0].ref

    def is_excluded(self, name: str) -> bool:
        """Whether a tensor is not merged but comes from the `donor`."""
        return any(part in name for part in self.exclude)

    @property
    def tokenizer_donor(self) -> Reference:
        """The model that gives the tokenizer, or that a union of tokenizers starts with."""
        if self.tokenizer is None:
            return self.donor
        if self.tokenizer.source in ("base", "union"):
            return self.base_model or self.donor
        return self.tokenizer.source

    @property
    def generation_donor(self) -> Reference:
        """The model that gives the generation config."""
        return self.generation_config or self.donor

    def data_of(self, model: Model) -> Data | None:
        """Return what calibrates one of the models."""
        return model.data or self.data

    def as_dict(self, shown: Callable[[str], str] = str) -> dict[str, Any]:
        """Return the recipe as its YAML holds it, with only what is set.

        ``shown`` says how each path, and each hub id of a model, is spelled.
        """

        def spelled(what: Reference | Data) -> Any:
            return what.as_setting(shown) if isinstance(what, Data) else written(what, shown)

        return self._held(spelled, shown)

    def _held(self, spelled: Spelled, shown: Callable[[str], str]) -> dict[str, Any]:
        shared = self.parameters
        held = {
            "merge_method": self.merge_method,
            "base_model": self.base_model and spelled(self.base_model),
            **self._spelled_slices(spelled, shared),
            "parameters": dict(shared),
            "dtype": self.dtype,
            "out_dtype": self.out_dtype,
            **(self.tokenizer.as_keys(shown) if self.tokenizer else {}),
            "chat_template": self._spelled_template(shown),
            "generation_config": self.generation_config and spelled(self.generation_config),
            "donor": self.donor_model and spelled(self.donor_model),
            "exclude": list(self.exclude),
            "seed": self.seed,
            "data": self.data and spelled(self.data),
        }
        return copy.deepcopy({key: value for key, value in held.items() if value})

    def _spelled_slices(self, spelled: Spelled, shared: Mapping[str, Setting]) -> dict[str, Any]:
        held = {
            part: part_as_dict(pieces, spelled, self.base_model, shared)
            for part, pieces in self.parts.items()
        }
        return held.get(WHOLE) or {"modules": held}

    def _spelled_template(self, shown: Callable[[str], str]) -> Any:
        given = self.chat_template
        return given and (given if is_template(given) else written(given, shown))

    def to_yaml(self) -> str:
        """Return the recipe as a YAML file's text."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)

    @cached_property
    def digest(self) -> str:
        """12 hex digits of recipe, method version and the content of every model's files."""
        from merge_plugins import __version__, companions
        from merge_plugins.hub import identity, tokenizer_identity

        method = registry().get(self.merge_method)
        contents = {ref: identity(ref) for ref in self.references}  # all files are here now

        def spelled(what: Reference | Data) -> str:
            return what.digest if isinstance(what, Data) else contents.get(what) or identity(what)

        held = normal_form(self, method)._held(spelled, str)
        readers = [companions.tokenizer_folder(m.ref) for m in self.models if self.data_of(m)]
        if readers:
            held["readers"] = [tokenizer_identity(str(folder)) for folder in readers]
        if self.tokenizer:
            refs = (*self.references, self.tokenizer_donor)
            folders = map(companions.tokenizer_folder, refs)
            held["vocabularies"] = [tokenizer_identity(str(folder)) for folder in folders]
            held |= self.tokenizer.as_keys(lambda ref: tokenizer_identity(ref))
        if self.chat_template:
            held["chat_template"] = companions.chat_template(self)
        if self.generation_config:
            held["generation_config"] = companions.generation_config(self)
        held["plugin"] = [method.plugin, method.version or __version__]
        text = json.dumps(held, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def __hash__(self) -> int:
        return hash((self.merge_method, self.base_model, tuple(m.ref for m in self.models)))

    def __str__(self) -> str:
        return f"{self.merge_method}({', '.join(str(model.ref) for model in self.models)})"

    @property
    def label(self) -> str:
        """The name to show and to cache by: ``<method>-<digest>``."""
        return f"{self.merge_method}-{self.digest}"


def _from_fields(found: Mapping[str, Any]) -> Recipe:
    return normal_form(Recipe(**found), registry().get(found["merge_method"]))
