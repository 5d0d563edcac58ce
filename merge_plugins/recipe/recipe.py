"""A merge, said completely: which models, which method, which parameters.

Recipes that mean the same merge compare equal and have one digest, whichever way they were written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from merge_plugins.plugins import Method, registry
from merge_plugins.recipe import fields, files
from merge_plugins.recipe.data import Data
from merge_plugins.recipe.normalize import normal_slices, shared_data
from merge_plugins.recipe.parts import WHOLE
from merge_plugins.recipe.references import Reading, Reference, written
from merge_plugins.recipe.settings import Settings, as_yaml
from merge_plugins.recipe.short_form import ShortForm, from_file
from merge_plugins.recipe.slices import Entry, Slice, Spelled, is_stack, part_as_dict
from merge_plugins.recipe.tokenizer import Tokenizer, is_template


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
        return _load(Path(path).expanduser(), _reading())

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], folder: str | Path | None = None) -> Recipe:
        """Read what a recipe file holds; paths are relative to ``folder``, or to the cwd."""
        return _read(mapping, _reading(folder or "."))

    @classmethod
    def from_model_args(cls, args: Mapping[str, Any]) -> Recipe:
        """Read the short form of `merge_plugins.recipe.short_form`, as lm-eval parses it."""
        short = ShortForm(args, _reading())
        short.refuse_rest()
        return _normal(short.fields())

    @classmethod
    def split_model_args(cls, args: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any]]:
        """Read the recipe among a harness's arguments; return the harness's own too."""
        short = ShortForm(args, _reading())
        return _normal(short.fields()), short.rest

    @property
    def models(self) -> tuple[Entry, ...]:
        """The models that are merged, in the user's order, those of the first slice first."""
        return tuple(model for piece in self.slices for model in piece.models)

    @property
    def parameters(self) -> Settings:
        """Parameters that all slices share; per-model parameters are not included."""
        first, *others = (slice_.parameters for slice_ in self.slices)
        return {k: v for k, v in first.items() if all(v == other.get(k) for other in others)}

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

    def data_of(self, model: Entry) -> Data | None:
        """Return what calibrates one of the models."""
        return model.data or self.data

    def as_dict(self, shown: Callable[[str], str] = str) -> dict[str, Any]:
        """Return the recipe as its YAML holds it, with only what is set.

        ``shown`` says how each path, and each hub id of a model, is spelled.
        """

        def spelled(what: Reference | Data) -> Any:
            return what.as_setting(shown) if isinstance(what, Data) else written(what, shown)

        return self.spelled(spelled, shown)

    def spelled(self, spelled: Spelled, shown: Callable[[str], str]) -> dict[str, Any]:
        """Return the recipe as its YAML holds it; `spelled` writes models and data."""
        shared = self.parameters
        held = {
            "merge_method": self.merge_method,
            "base_model": self.base_model and spelled(self.base_model),
            **self._spelled_slices(spelled, shared),
            "parameters": as_yaml(shared),
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
        return {key: value for key, value in held.items() if value}

    def _spelled_slices(self, spelled: Spelled, shared: Settings) -> dict[str, Any]:
        held = {
            part: part_as_dict(pieces, spelled, self.base_model, shared)
            for part, pieces in self.parts.items()
        }
        return held.get(WHOLE) or {"modules": held}

    def _spelled_template(self, shown: Callable[[str], str]) -> Any:
        given = self.chat_template
        return given and (given if is_template(given) else written(given, shown))

    def normal(self, method: Method) -> Recipe:
        """Return the one recipe that all spellings of this merge share, or raise `RecipeError`."""
        slices = normal_slices(self.slices, self.base_model, method)
        slices, data = shared_data(slices, self.data)
        found = replace(self, slices=slices, data=data)
        if found.donor_model == replace(found, donor_model=None).donor:
            found = replace(found, donor_model=None)
        if found.generation_config == found.donor:
            found = replace(found, generation_config=None)
        return found

    def to_yaml(self) -> str:
        """Return the recipe as a YAML file's text."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)

    def __hash__(self) -> int:
        return hash((self.merge_method, self.base_model, tuple(m.ref for m in self.models)))

    def __str__(self) -> str:
        return f"{self.merge_method}({', '.join(str(model.ref) for model in self.models)})"


def read_recipe(given: str) -> Recipe:
    """Read a recipe as a command line names it: a file, a folder, or the short form."""
    if "=" in given and not Path(given).exists():
        return Recipe.from_model_args(dict(part.partition("=")[::2] for part in given.split(",")))
    return Recipe.load(given)


def _reading(folder: str | Path = ".") -> Reading:
    """Return the reading of a recipe that is in no file."""
    return Reading(Path(folder), _load, _read)


def _load(path: Path, reading: Reading) -> Recipe:
    file = files.find(path)
    with files.naming(file):
        return _read(*from_file(file, reading))


def _read(mapping: Mapping[str, Any], reading: Reading) -> Recipe:
    return _normal(fields.fields(mapping, reading))


def _normal(found: Mapping[str, Any]) -> Recipe:
    return Recipe(**found).normal(registry().get(found["merge_method"]))
