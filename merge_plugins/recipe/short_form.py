"""Parse the short form of a recipe: ``method=ties,base=B,models=a:0.6+b:0.4,density=0.5``.

Values may come from any parser of lm-eval's ``--model_args``: as text, as numbers (a path can
arrive as an int, ``0.5+0.5j`` as a complex), as JSON values or as None:

    method=NAME                     required unless in config; alias merge_method
    base=MODEL                      alias base_model
    models=MODEL[:WEIGHT]+…         ':' counts only before a number; a MODEL is a path, a hub id, a
                                    recipe file or MODEL++ADAPTER; also a list of such, a list of
                                    {model, weight} or {model, parameters}, a mapping model → weight
    weights=0.6+0.4                 or a list, one per model; or one number for all
    <parameter>=0.5                 any parameter of the method; per model: 0.5+0.3 or a JSON list
    params={…}                      the recipe's parameters as in YAML: gradients and filters
    data=texts.jsonl                or task:NAME; per model: a.jsonl+b.jsonl or a list; a mapping
    task=cola+rte                   what the head of each model answers: one per model, or a list
    exclude=head+bias               parts of tensor names that are not merged
    plugin=file.py                  or a.py+b.py: runs it, for methods that are in no package
    seed=, out_dtype=, tokenizer_source=, chat_template=, generation_config=, donor=, pooling=
    config=merge.yaml               a full recipe; the keys above override it (models= as a whole)

A list for a per-model parameter is always one value per model; a gradient of one needs params= or
config=. Paths are relative to the current folder, those in the file to the file's.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from merge_plugins.errors import ParameterError, RecipeError, did_you_mean
from merge_plugins.plugins import Method, Parameter, load_plugins, registry
from merge_plugins.recipe import fields, files, keys
from merge_plugins.recipe import short_form_values as values
from merge_plugins.recipe.data import Data
from merge_plugins.recipe.parsing import bounded
from merge_plugins.recipe.pooling import modes_in
from merge_plugins.recipe.references import Reading
from merge_plugins.recipe.settings import read_setting
from merge_plugins.recipe.slices import Entry
from merge_plugins.recipe.task import Task
from merge_plugins.recipe.tokenizer import is_template

CHOSEN = ("tokenizer_source", "chat_template", "generation_config", "donor", "pooling")
"""Keys whose value is a model or a keyword."""
KEYS = {
    **keys.SHORT,
    **{key: key for key in ("merge_method", "base_model")},
    **{key: key for key in ("models", "params", "config", "data", "task", "plugin")},
    **{key: key for key in ("seed", "out_dtype", "exclude", *CHOSEN)},
}
MISTAKEN = {
    "model": "name the models that are merged with models=MODEL:WEIGHT+MODEL:WEIGHT",
    "pretrained": "no checkpoint is loaded. Leave it out, or write base=MODEL if it is the base",
    "revision": "write it behind the model that it is of: MODEL@REVISION",
}
"""Arguments that load a checkpoint in place of a merge; a habit, and what to type instead."""
HARNESS = ("dtype", "tokenizer")  # lm-eval's own, even if a method had a parameter of that name


class ShortForm:
    """A harness's arguments, some of which make up a recipe; a config= file is read once.

    ``reading``: that of the current folder. Raises `RecipeError` if no method is named.
    """

    def __init__(self, args: Mapping[str, Any], reading: Reading) -> None:
        args = {str(key).strip(): value for key, value in bounded(args).items()}
        _refuse_strays(args)
        load_plugins(values.plugins(args.get("plugin")))  # before any name of a method is read
        self._here, self._inner, self._file = reading, reading, _file(args.get("config"))
        self._written: Mapping[str, Any] = {}
        with files.naming(self._file):
            if self._file:
                self._written, self._inner = from_file(self._file, reading)
            self.method = self._method(args)
        words = {*KEYS, *self.method.spellings} - {*HARNESS}
        mistaken = [key for key in MISTAKEN if key in args and key not in words]
        for key in mistaken:
            if values.is_set(args[key]):
                raise RecipeError(f"{key}= does not go with a merge: {MISTAKEN[key]}.")
        self.ours = {key: value for key, value in args.items() if key in words}
        """The arguments that make up the recipe."""
        self.rest = {key: value for key, value in args.items() if key not in {*words, *mistaken}}
        """The arguments that are left to the harness."""

    @property
    def file(self) -> Path | None:
        """The config= file, if no argument changes the recipe that it holds."""
        return self._file if self.ours.keys() == {"config"} else None

    def _method(self, args: Mapping[str, Any]) -> Method:
        """Look up the method that the arguments name, or else their config= file."""
        named = [args.get("method"), args.get("merge_method"), self._written.get("merge_method")]
        given = next((name for name in named if values.is_set(name)), None)
        if given is None:
            raise RecipeError("no merge method given; add method=<name> or config=<merge.yaml>")
        return registry().get(values.text(given))

    def refuse_rest(self) -> None:
        """Raise `RecipeError` for an argument that is not part of a recipe."""
        for key in self.rest:
            hint = did_you_mean(key, {*KEYS, *self.method.spellings})
            raise RecipeError(f"{self.method.name}: no setting or parameter {key!r}{hint}")

    def fields(self) -> dict[str, Any]:
        """Parse the recipe's fields, as `merge_plugins.recipe.fields` does for a file."""
        method, given = self.method, _by_name(self.ours, self.method)
        given.pop("config", None)
        given.pop("plugin", None)
        top = {**self._written, **_settings(given, self._written, self._here)}
        if "tokenizer_source" in given:
            top.pop("tokenizer", None)
        if "models" in given:
            top = {key: value for key, value in top.items() if key not in ("slices", "modules")}
        with files.naming(self._file):
            recipe = fields.fields(top, self._inner)
        for name in (name for name in given if name not in KEYS.values() or name == "weight"):
            _set_parameter(recipe, method, name, given)
        if "data" in given:
            _set_data(recipe, method, values.data(given["data"]))
        if "task" in given:
            _set_tasks(recipe, method, values.tasks(given["task"]))
        return recipe


def _refuse_strays(args: Mapping[str, Any]) -> None:
    """Raise `RecipeError` for what a comma cut off from the argument before it."""
    before = ""
    for key, value in args.items():
        if value == "" or not key.isidentifier():
            rest = key if value == "" else f"{key}={value}"
            joined = f": {before}=…+{rest}" if before else ""
            raise RecipeError(
                f"cannot read {rest!r} in model_args: ',' separates arguments. Join the values of "
                f"one with '+'{joined}; gradients and filters go into params= or config="
            )
        before = key


def from_file(file: Path, reading: Reading) -> tuple[Mapping[str, Any], Reading]:
    """Read a recipe file; return its mapping, and the `Reading` of its paths and names."""
    inside = reading.inside(file.resolve())
    documents = files.read(file)
    return documents.main, replace(inside, folder=file.parent, documents=documents.named)


def _file(given: Any) -> Path | None:
    if not values.is_set(given):
        return None
    return files.find(files.path_of(values.text(given)))


def _by_name(ours: Mapping[str, Any], method: Method) -> dict[str, Any]:
    """Map each argument that is set to the canonical name of its recipe key or parameter."""
    named: dict[str, Any] = {}
    for key, value in ours.items():
        name = KEYS.get(key) or method.spellings[key].name
        if name in named and named[name] != value:
            raise RecipeError(f"{name} is given twice: {named[name]!r} and {key}={value!r}")
        named |= {name: value} if values.is_set(value) else {}
    return named


def _settings(
    given: Mapping[str, Any], written: Mapping[str, Any], reading: Reading
) -> dict[str, Any]:
    """Convert arguments to recipe keys, with models resolved against the cwd."""
    recipe = {key: given[key] for key in ("merge_method", "seed", "out_dtype") if key in given}
    if "base_model" in given:
        recipe["base_model"] = values.reference(given["base_model"], reading)
    for key in (key for key in CHOSEN if key in given):
        is_word = given[key] in ("base", "union") or is_template(given[key])
        is_word = is_word or (key == "pooling" and modes_in(given[key]) is not None)
        recipe[key] = given[key] if is_word else values.reference(given[key], reading)
    if "exclude" in given:
        parts = values.parsed(given["exclude"])
        recipe["exclude"] = parts if isinstance(parts, list) else values.text(parts).split("+")
    if "models" in given:
        recipe["models"] = values.models(given["models"], reading)
    if "params" in given:
        params = values.parsed(given["params"])
        if not isinstance(params, Mapping):
            raise RecipeError(f"params is a mapping, {{density: 0.5}}; got {params!r}")
        recipe["parameters"] = {**(written.get("parameters") or {}), **params}
    return recipe


def _set_parameter(
    recipe: dict[str, Any], method: Method, name: str, given: Mapping[str, Any]
) -> None:
    """Set a parameter in every scope: an argument overrides the whole config= file."""
    parameter = method.parameters.get(name)
    if parameter is None:  # weights= for a method that has no weights
        raise ParameterError(f"{method.name}: no parameter 'weight'; it takes no weights")
    slices, value = recipe["slices"], _value(parameter, given[name])
    own = _experts(recipe, method)
    if "models" in given and any(name in model.parameters for model in own):
        raise RecipeError(f"{name} is given twice: in models= and as {name}={given[name]!r}")
    one_each = parameter.per_expert and isinstance(value, list | tuple) and not _holds_rules(value)
    if one_each and len(value) != len(own):
        raise ParameterError(
            f"{method.name}: {name} has {len(value)} values for {len(own)} models; write one each, "
            "in the order of models=, or one for all (a gradient needs params= or config=)"
        )
    shared = not parameter.per_expert or any(name in slice_.parameters for slice_ in slices)
    settings = [read_setting(method, name, one) for one in (value if one_each else [value])]
    each = iter(settings) if one_each else itertools.repeat(settings[0])
    outer = {name: settings[0]} if shared and not one_each else {}

    def with_value(model: Entry) -> Entry:
        kept = {key: setting for key, setting in model.parameters.items() if key != name}
        return replace(model, parameters=kept if outer else {**kept, name: next(each)})

    recipe["slices"] = tuple(
        replace(
            slice_,
            parameters={k: v for k, v in slice_.parameters.items() if k != name} | outer,
            models=tuple(with_value(m) if m in own else m for m in slice_.models),
        )
        for slice_ in slices
    )


def _set_data(recipe: dict[str, Any], method: Method, given: list[Data | None]) -> None:
    """Replace the calibration data: one value for all models, or one for each."""
    own = _experts(recipe, method)
    if len(given) not in (1, len(own)):
        raise RecipeError(
            f"data has {len(given)} values for {len(own)} models; write one each, in the order "
            "of models=, or one for all"
        )
    shared, each = (given[0], []) if len(given) == 1 else (None, given)
    _set_each(recipe, own, "data", each)
    recipe["data"] = shared


def _set_tasks(recipe: dict[str, Any], method: Method, given: list[Task | None]) -> None:
    """Replace the tasks of the models' heads: one for each."""
    own = _experts(recipe, method)
    if len(given) != len(own):
        raise RecipeError(
            f"task has {len(given)} values for {len(own)} models; write one each, in the order of "
            "models="
        )
    _set_each(recipe, own, "task", given)


def _set_each(
    recipe: dict[str, Any], own: Sequence[Entry], name: str, given: Sequence[Any]
) -> None:
    """Set a field of each of some models; of any other, and where no value is left, to None."""
    each = iter(given)

    def with_value(model: Entry) -> Entry:
        value: Any = next(each, None) if model in own else None
        return replace(model, **{name: value})

    recipe["slices"] = tuple(
        replace(slice_, models=tuple(map(with_value, slice_.models))) for slice_ in recipe["slices"]
    )


def _experts(recipe: Mapping[str, Any], method: Method) -> list[Entry]:
    """List the models of every slice, without a base that is listed among them."""
    return [
        model
        for slice_ in recipe["slices"]
        for model in slice_.models
        if not method.works_from(base := slice_.base.ref if slice_.base else recipe["base_model"])
        or model.ref != base
    ]


def _value(parameter: Parameter, given: Any) -> Any:
    value = values.parsed(given)
    if isinstance(value, complex):
        value = values.text(value)
    if parameter.per_expert and isinstance(value, str) and "+" in value[1:]:
        return value.split("+")
    return value


def _holds_rules(value: Any) -> bool:
    return any(isinstance(item, Mapping) for item in value)
