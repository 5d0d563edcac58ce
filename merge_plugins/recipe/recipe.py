"""Describe a merge completely: models, method and parameters.

Recipes of the same merge compare equal and have one digest, however they were written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from merge_plugins.errors import RecipeError, nearest_or_all
from merge_plugins.plugins import Method, registry
from merge_plugins.recipe import fields, files, short_form_values
from merge_plugins.recipe.data import Data
from merge_plugins.recipe.normalize import check_tasks, normal_slices, shared_data
from merge_plugins.recipe.parsing import bounded
from merge_plugins.recipe.parts import WHOLE
from merge_plugins.recipe.pooling import Modes
from merge_plugins.recipe.references import Reading, Reference, written
from merge_plugins.recipe.settings import Settings, as_yaml
from merge_plugins.recipe.short_form import ShortForm, from_file
from merge_plugins.recipe.slices import Entry, Slice, Write, is_stack, part_as_dict
from merge_plugins.recipe.tokenizer import Tokenizer, is_template
from merge_plugins.recipe.trust import trusting

HEADS, NONE = "heads", "none"
"""Words under ``exclude`` that are no parts of tensor names."""


@dataclass(frozen=True)
class Recipe:
    """A merge: its models, method and settings, with mergekit's keys plus `seed` and `data`."""

    merge_method: str
    slices: tuple[Slice, ...]
    """Slices of every part, first layers first; a merge of whole models has one slice."""
    base_model: Reference | None = None
    """Base of every slice without its own; provides config and tokenizer."""
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: Tokenizer | None = None
    """Vocabulary of the merge; None: rows are merged by position, all models need as many."""
    chat_template: Reference | None = None
    """``auto``, a name in `chat_templates`, a template, or a model that has one; None: the
    tokenizer's."""
    generation_config: Reference | None = None
    """Model that provides the generation config; None: the `donor`."""
    donor_model: Reference | None = None
    """The `donor`, if it is neither the base nor the first model."""
    exclude: tuple[str, ...] = ()
    """Substrings of tensor names; matching tensors are copied from the `donor`, not merged.
    ``heads``: all that is outside the base model; ``none``: not even heads of unknown tasks."""
    seed: int = 0
    data: Data | None = None
    """Calibration data of every model without its own."""
    pooling: Modes | Reference | None = None
    """How an embedder pools, see `merge_plugins.recipe.pooling`; None: as its models do."""
    file: Path | None = field(default=None, compare=False, repr=False)
    """Where the recipe was read from, for messages."""

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Load a YAML or JSON file, or the one in a folder; its paths are relative to the file."""
        return _load(files.path_of(str(path)), _reading())

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], folder: str | Path | None = None) -> Recipe:
        """Parse a recipe file's mapping; paths are relative to ``folder``, by default the cwd."""
        if not isinstance(mapping, Mapping):
            raise RecipeError(f"a recipe is a mapping; got {type(mapping).__name__}")
        return _read(bounded(mapping), _reading(folder or "."))

    @classmethod
    def from_model_args(cls, args: Mapping[str, Any]) -> Recipe:
        """Parse the short form of `merge_plugins.recipe.short_form`, as lm-eval parses it."""
        short = ShortForm(args, _reading())
        short.refuse_rest()
        return replace(_normal(short.fields()), file=short.file)

    @classmethod
    def split_model_args(cls, args: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any]]:
        """Split a harness's arguments into a recipe and the remaining arguments."""
        short = ShortForm(args, _reading())
        return replace(_normal(short.fields()), file=short.file), short.rest

    @property
    def models(self) -> tuple[Entry, ...]:
        """List the merged models in the user's order, those of the first slice first."""
        return tuple(model for slice_ in self.slices for model in slice_.models)

    @property
    def parameters(self) -> Settings:
        """Parameters that all slices share; per-model parameters are not included."""
        first, *others = (slice_.parameters for slice_ in self.slices)
        return {k: v for k, v in first.items() if all(v == other.get(k) for other in others)}

    @property
    def parts(self) -> Mapping[str, tuple[Slice, ...]]:
        """Group slices by part of the model; most recipes have one part, the whole model."""
        names = dict.fromkeys(slice_.part for slice_ in self.slices)
        return {name: tuple(p for p in self.slices if p.part == name) for name in names}

    @property
    def is_stack(self) -> bool:
        """Whether the merge is made of layers or parts of models, not of whole models."""
        return WHOLE not in self.parts or is_stack(self.slices)

    @property
    def references(self) -> tuple[Reference, ...]:
        """List every distinct model whose weights are read, the base first unless it is listed."""
        listed = [model.ref for model in self.models]
        own = [slice_.base.ref for slice_ in self.slices if slice_.base]
        first = [self.base_model] if self.base_model and self.base_model not in listed else []
        last = [self.donor_model] if self.donor_model else []
        return tuple(dict.fromkeys(first + listed + own + last))

    @property
    def tasks(self) -> Mapping[str, Entry]:
        """The models whose heads answer tasks, by task; empty, if the recipe names none."""
        return {model.task.name: model for model in self.models if model.task}

    @property
    def donor(self) -> Reference:
        """The model that provides config, tensor names and any file the recipe does not choose."""
        with_head = next((model.ref for model in self.models if model.task), None)
        return self.donor_model or with_head or self.base_model or self.slices[0].inputs[0].ref

    def for_task(self, task: str) -> Recipe:
        """Copy the recipe with the model of a task as donor: its head, config and tokenizer.

        What the recipe excludes comes from that model, too. Raises `RecipeError` for a task that no
        model of the recipe answers.
        """
        known = self.tasks
        if not known:
            raise RecipeError(
                "no model of this merge says which task its head answers; write task: beside "
                "model:, as in {model: roberta-cola, task: cola}, or task=cola+rte for two models"
            )
        if task not in known:
            hint = nearest_or_all(task, known)
            raise RecipeError(f"no model of this merge has task: {task}{hint}")
        chosen = replace(self, donor_model=known[task].ref)
        return chosen.normal(registry().get(self.merge_method))

    def is_excluded(self, name: str) -> bool:
        """Check whether a tensor is copied from the `donor` instead of merged."""
        return any(part in name for part in self.exclude if part not in (HEADS, NONE))

    @property
    def tokenizer_donor(self) -> Reference:
        """The model that provides the tokenizer, or the first tokens of a union."""
        if self.tokenizer is None:
            return self.donor
        if self.tokenizer.source in ("base", "union"):
            return self.base_model or self.donor
        return self.tokenizer.source

    @property
    def generation_donor(self) -> Reference:
        """The model that provides the generation config."""
        return self.generation_config or self.donor

    def data_of(self, model: Entry) -> Data | None:
        """Select the calibration data of a model: its own, or else the recipe's.

        Of a harness's task, a model with ``task:`` reads the texts of rows, not prompts.
        """
        data = model.data or self.data
        if data is None or data.task is None or model.task is None:
            return data
        is_own = model.task.name == data.task
        return replace(data, columns=model.task.columns if is_own else ())

    def trusting(self, trust_remote_code: bool | None = True) -> Recipe:
        """Copy the recipe with leave to run code that comes with its tasks, or without.

        None: neither run it nor raise `UntrustedCodeError`, to check everything else.
        """
        copied: Recipe = trusting(self, trust_remote_code)
        return copied

    def as_dict(self, shown: Callable[[str], str] = str) -> dict[str, Any]:
        """Convert the recipe to its YAML mapping, without unset keys.

        ``shown`` converts each path, and each hub id of a model, to the text that is written.
        """

        def write(value: Reference | Data) -> Any:
            return value.as_setting(shown) if isinstance(value, Data) else written(value, shown)

        return self.written_with(write, shown)

    def written_with(self, write: Write, shown: Callable[[str], str]) -> dict[str, Any]:
        """Convert to a YAML mapping; ``write`` converts models and data, ``shown`` paths."""
        shared = self.parameters
        mapping = {
            "merge_method": self.merge_method,
            "base_model": self.base_model and write(self.base_model),
            **self._written_slices(write, shared),
            "parameters": as_yaml(shared),
            "dtype": self.dtype,
            "out_dtype": self.out_dtype,
            **(self.tokenizer.as_keys(shown) if self.tokenizer else {}),
            "chat_template": self._written_template(shown),
            "generation_config": self.generation_config and write(self.generation_config),
            "donor": self.donor_model and write(self.donor_model),
            "exclude": list(self.exclude),
            "seed": self.seed,
            "data": self.data and write(self.data),
            "pooling": self._written_pooling(write),
        }
        return {key: value for key, value in mapping.items() if value}

    def _written_slices(self, write: Write, shared: Settings) -> dict[str, Any]:
        parts = {
            part: part_as_dict(slices, write, self.base_model, shared)
            for part, slices in self.parts.items()
        }
        return parts.get(WHOLE) or {"modules": parts}

    def _written_template(self, shown: Callable[[str], str]) -> Any:
        given = self.chat_template
        return given and (given if is_template(given) else written(given, shown))

    def _written_pooling(self, write: Write) -> Any:
        given = self.pooling
        return list(given) if isinstance(given, tuple) else given and write(given)

    def normal(self, method: Method) -> Recipe:
        """Normalise the recipe, so that all its spellings are equal, or raise `RecipeError`."""
        slices = normal_slices(self.slices, self.base_model, method)
        slices, data = shared_data(slices, self.data)
        normal = replace(self, slices=slices, data=data)
        check_tasks(normal.models, is_one_task=NONE in self.exclude)
        if normal.donor_model == replace(normal, donor_model=None).donor:
            normal = replace(normal, donor_model=None)
        if normal.generation_config == normal.donor:
            normal = replace(normal, generation_config=None)
        return normal

    def to_yaml(self) -> str:
        """Serialise the recipe as the text of a YAML file."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)

    def __hash__(self) -> int:
        return hash((self.merge_method, self.base_model, tuple(m.ref for m in self.models)))

    def __str__(self) -> str:
        return f"{self.merge_method}({', '.join(str(model.ref) for model in self.models)})"


def read_recipe(given: str) -> Recipe:
    """Load a recipe from a command-line argument: a file, a folder, or the short form."""
    if files.is_short_form(given):
        return Recipe.from_model_args(dict(part.partition("=")[::2] for part in given.split(",")))
    return Recipe.load(given)


def read_model(given: str) -> Reference:
    """Parse a model from a command-line argument: a folder, a hub id, MODEL+ADAPTER, a recipe."""
    return short_form_values.reference(given, _reading()).ref


def _reading(folder: str | Path = ".") -> Reading:
    """Start the reading of a recipe that is in no file; paths are relative to ``folder``."""
    return Reading(Path(folder), _load, _read)


def refuse_no_recipe(given: object) -> None:
    """Raise `RecipeError` if something else was given where a recipe belongs, such as its file."""
    if isinstance(given, Recipe):
        return
    if isinstance(given, str | Path):
        raise RecipeError(f"a Recipe belongs here; got {given!r}: give Recipe.load({str(given)!r})")
    made = "Recipe.from_mapping(it)" if isinstance(given, Mapping) else "what Recipe.load returns"
    raise RecipeError(f"a Recipe belongs here; got a {type(given).__name__}: give {made}")


def _load(path: Path, reading: Reading) -> Recipe:
    file = files.find(path)
    with files.naming(file):
        return replace(_read(*from_file(file, reading)), file=file)


def _read(mapping: Mapping[str, Any], reading: Reading) -> Recipe:
    reading.count()
    return _normal(fields.fields(mapping, reading))


def _normal(fields: Mapping[str, Any]) -> Recipe:
    return Recipe(**fields).normal(registry().get(fields["merge_method"]))
