"""What a recipe's settings come to for one tensor, and whether a method can take them at all.

A per-expert parameter is read from the model's entry, then from the recipe's own parameters, then
from the method's default; a shared one from the recipe's own parameters, then the default.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from merge_plugins.errors import ParameterError, RecipeError
from merge_plugins.recipe import Model, Recipe, experts, normal_form
from merge_plugins.registry import Method, Parameter
from merge_plugins.settings import MISSING, Setting, filters, leaves, matches, resolve, scalar

__all__ = ["MISSING", "build", "resolve", "resolved", "unmatched_filters", "validate"]


def resolved(
    method: Method, recipe: Recipe, models: Sequence[Model], tensor: str, t: float
) -> dict[str, Any]:
    """Return every parameter's value for one tensor at depth ``t`` in [0, 1], by canonical name.

    A per-expert parameter is a tuple, one value per model of ``models``, which are the experts.
    """
    values: dict[str, Any] = {}
    for parameter in method.parameters.values():
        if parameter.per_expert:
            each = (_value(method, parameter, recipe, model, tensor, t) for model in models)
            values[parameter.name] = tuple(each)
        else:
            values[parameter.name] = _value(method, parameter, recipe, None, tensor, t)
    return values


def build(method: Method, recipe: Recipe, models: Sequence[Model], tensor: str, t: float) -> Any:
    """Return the method's dataclass with the parameters of one tensor, or `ParameterError`."""
    values = resolved(method, recipe, models, tensor, t)
    try:
        return method.factory(**{method.parameters[name].field: v for name, v in values.items()})
    except (ValueError, TypeError) as exc:
        said = str(exc).removeprefix(f"{method.name}: ")
        where = f" (at {tensor})" if _varies(recipe, models) else ""
        raise ParameterError(f"{method.name}: {said}{where}") from exc


def validate(method: Method, recipe: Recipe) -> None:
    """Raise for everything that is wrong whatever the tensors are called."""
    recipe = normal_form(recipe, method)
    models = experts(recipe, method)
    _check_models(method, recipe, models)
    if method.stats:
        raise RecipeError(
            f"{method.name}: needs calibration data for {', '.join(method.stats)}: "
            "not supported yet; choose a method that needs none"
        )
    for parameter in method.parameters.values():
        for model in models if parameter.per_expert else (None,):
            if parameter.required and not _scopes(parameter, recipe, model):
                raise ParameterError(_required(method, parameter, model))
    for tensor, t in _probes(recipe, models):
        if not _lacks(method, recipe, models, tensor, t):
            build(method, recipe, models, tensor, t)


def unmatched_filters(recipe: Recipe, tensors: Iterable[str]) -> tuple[str, ...]:
    """Return the filters of a recipe that are part of no tensor's name, in the order written."""
    names = tuple(tensors)
    found = dict.fromkeys(itertools.chain(*map(filters, _settings(recipe, recipe.models))))
    return tuple(f for f in found if not any(matches(f, name) for name in names))


def _value(
    method: Method, parameter: Parameter, recipe: Recipe, model: Model | None, tensor: str, t: float
) -> Any:
    for setting in _scopes(parameter, recipe, model):
        value = resolve(setting, tensor, t)
        if value is not MISSING:
            return scalar(method, parameter, value)
    if parameter.required:
        raise ParameterError(
            _required(method, parameter, model, tensor if _scopes(parameter, recipe, model) else "")
        )
    return parameter.default


def _scopes(parameter: Parameter, recipe: Recipe, model: Model | None) -> list[Setting]:
    """Return the settings that may decide a parameter, the first to be asked first."""
    scopes = [model.parameters] if model and parameter.per_expert else []
    scopes.append(recipe.parameters)
    return [scope[parameter.name] for scope in scopes if parameter.name in scope]


def _required(method: Method, parameter: Parameter, model: Model | None, tensor: str = "") -> str:
    whose = f" for {model.ref}" if model else ""
    said = f"{method.name}: {parameter.name} is required{whose}"
    if tensor:
        return f"{said}; no filter matches {tensor}: end the list with '- value: <value>'"
    short = f"{parameter.name}=<value>"
    if parameter.name == "weight":
        short = "models=<model>:<weight>+…"
    return (
        f"{said}; write parameters: {{{parameter.name}: <value>}}"
        f"{' in its entry' if model else ''}, or in model_args {short}"
    )


def _check_models(method: Method, recipe: Recipe, models: Sequence[Model]) -> None:
    if method.needs_base and recipe.base_model is None:
        raise RecipeError(
            f"{method.name}: needs a base model; "
            "add base_model: <model> (in model_args base=<model>)"
        )
    low, high, n = method.min_experts, method.max_experts, len(models)
    if low <= n and (high is None or n <= high):
        return
    wanted = f"{low} or more" if high is None else f"{low} to {high}" if low < high else f"{low}"
    besides = " besides base_model" if method.needs_base else ""
    given = ", ".join(model.ref for model in models) or "none"
    raise RecipeError(
        f"{method.name}: takes {wanted} model{'' if wanted == '1' else 's'}{besides}; "
        f"got {n}: {given}. Change models: to that many."
    )


def _settings(recipe: Recipe, models: Sequence[Model]) -> list[Setting]:
    scopes = (*(model.parameters for model in models), recipe.parameters)
    return [setting for scope in scopes for setting in scope.values()]


def _varies(recipe: Recipe, models: Sequence[Model]) -> bool:
    return any(isinstance(setting, list | Mapping) for setting in _settings(recipe, models))


def _probes(recipe: Recipe, models: Sequence[Model]) -> Iterable[tuple[str, float]]:
    """Return (tensor name, t) pairs that between them read every value written in the recipe."""
    settings = _settings(recipe, models)
    names = dict.fromkeys(("", *itertools.chain(*map(filters, settings))))
    longest = [len(leaves(setting)) for setting in settings]
    depths = {i / (n - 1) for n in range(2, max(longest, default=1) + 1) for i in range(n)}
    return itertools.product(names, sorted(depths | {0.0, 1.0}))


def _lacks(method: Method, recipe: Recipe, models: Sequence[Model], tensor: str, t: float) -> bool:
    """Whether a required parameter has no value for this name; no such tensor may exist."""
    return any(
        all(resolve(setting, tensor, t) is MISSING for setting in _scopes(parameter, recipe, model))
        for parameter in method.parameters.values()
        if parameter.required
        for model in (models if parameter.per_expert else (None,))
    )
