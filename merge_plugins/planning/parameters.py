"""Resolve a recipe's settings for one tensor; refuse settings that a method cannot take.

A per-expert parameter is read from the model's entry, then from its slice's own parameters, then
from the entry's ``task:`` if it follows that, then from the method's default; a shared one from the
slice's own parameters, then the default.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from merge_plugins.errors import ParameterError, RecipeError
from merge_plugins.plugins import Method, Parameter
from merge_plugins.plugins.values import scalar
from merge_plugins.recipe import Entry, Recipe, Reference, Slice
from merge_plugins.recipe.settings import MISSING, Constant, Rule, Setting, rules_of


def resolved(
    method: Method, slice_: Slice, tensor: str, t: float, own: Sequence[str] = ()
) -> dict[str, Any]:
    """Resolve every parameter for one tensor at position ``t`` in [0, 1], by canonical name.

    A per-expert parameter is a tuple, one value per model of the slice. ``own``: the
    tensor's names in those models, which filters of per-expert parameters match.
    """
    names = own or [tensor] * len(slice_.models)
    values: dict[str, Any] = {}
    for parameter in method.parameters.values():
        if parameter.per_expert:
            each = (
                _value(method, parameter, slice_, model, name, t)
                for model, name in zip(slice_.models, names, strict=True)
            )
            values[parameter.name] = tuple(each)
        else:
            values[parameter.name] = _value(method, parameter, slice_, None, tensor, t)
    return values


def build(
    method: Method, slice_: Slice, tensor: str, t: float, own: Sequence[str] = ()
) -> tuple[Any, dict[str, Any]]:
    """Build the method's dataclass for one tensor; return it with its `resolved` parameters."""
    values = resolved(method, slice_, tensor, t, own)
    try:
        fields = {method.parameters[name].field: value for name, value in values.items()}
        return method.factory(**fields), values
    except Exception as exc:
        is_told = isinstance(exc, ValueError | TypeError)
        if not is_told and not method.is_guest:
            raise
        message = str(exc).removeprefix(f"{method.name}: ")
        message = message if is_told else f"{type(exc).__name__}: {message}"
        raise ParameterError(
            f"{method.name}: {message}{_where(slice_, tensor, t, message)}"
        ) from exc


def validate(method: Method, recipe: Recipe) -> None:
    """Raise `RecipeError` for everything that is wrong whatever the tensors are called.

    ``recipe``: in its normal form, as reading makes it.
    """
    kernels: list[Any] = []
    for slice_ in recipe.slices:
        if recipe.is_stack and is_only_base(slice_, method):
            continue
        _check_models(method, recipe, slice_)
        for parameter in method.parameters.values():
            for model in slice_.models if parameter.per_expert else (None,):
                if parameter.required and not _scopes(parameter, slice_, model):
                    raise ParameterError(_required(method, parameter, model))
        kernels += [
            build(method, slice_, tensor, t)[0]
            for tensor, t in _probes(slice_)
            if not _lacks(method, slice_, tensor, t)
        ]
    if not kernels and all(is_only_base(slice_, method) for slice_ in recipe.slices):
        _check_models(method, recipe, recipe.slices[0])
    _check_data(method, recipe, any(map(method.reads_data, kernels)))
    _check_stack(method, recipe, kernels)


def is_only_base(slice_: Slice, method: Method) -> bool:
    """Whether a slice merges nothing into its base, where a method takes any number of models."""
    return not slice_.models and method.needs_base and (method.min_experts, method.max_experts) == (
        1, None,
    )  # fmt: skip


def _check_stack(method: Method, recipe: Recipe, kernels: Sequence[Any]) -> None:
    """Refuse stacks of layers with a method that reads whole models, not one weight at a time."""
    looks = any(method.reads_data(k) or method.needs_layout(k) for k in kernels)
    if recipe.is_stack and (method.is_routed or looks or hasattr(method.factory, "prepare")):
        raise RecipeError(
            f"{method.name}: looks at whole models, not at layers or parts of them; merge whole "
            "models first, in a document or file of its own, and stack its layers with "
            "merge_method: passthrough"
        )


def _check_data(method: Method, recipe: Recipe, is_read: bool) -> None:
    """Refuse a model without examples if any are read, and examples if none are."""
    named = [(model.ref, recipe.data_of(model)) for model in recipe.models]
    for ref, data in named:
        if data is None and is_read:
            raise RecipeError(
                f"{method.name}: needs calibration data for {ref}; add data: <texts.jsonl>, "
                "or data: task:<name> for the training split of an lm-eval task"
            )
        if data is not None and not is_read:
            raise RecipeError(f"{method.name}: reads no calibration data here; delete data:")
    for _, data in named:
        if data is not None:
            data.check()  # a row that is none stops here


def unmatched_filters(recipe: Recipe, tensors: Iterable[str]) -> tuple[str, ...]:
    """List the filters of a recipe that match no tensor's name, in the order written."""
    names = tuple(tensors)
    rules = (rule for slice_ in recipe.slices for rule in _rules(slice_))
    found = dict.fromkeys(rule.filter for rule in rules if rule.filter is not None)
    return tuple(f for f in found if not any(f in name for name in names))


def _value(
    method: Method, parameter: Parameter, slice_: Slice, model: Entry | None, tensor: str, t: float
) -> Any:
    for setting in _scopes(parameter, slice_, model):
        value = setting.at(tensor, t)
        if value is not MISSING:  # between two whole numbers of a gradient may lie none
            return value if isinstance(setting, Constant) else scalar(method, parameter, value)
    if parameter.required:
        raise ParameterError(
            _required(method, parameter, model, tensor if _scopes(parameter, slice_, model) else "")
        )
    if parameter.follows == "task" and model is not None and model.task is not None:
        return model.task.name
    return parameter.default


def _scopes(parameter: Parameter, slice_: Slice, model: Entry | None) -> list[Setting]:
    """List the settings that may decide a parameter, innermost scope first."""
    scopes = [model.parameters] if model and parameter.per_expert else []
    scopes.append(slice_.parameters)
    return [scope[parameter.name] for scope in scopes if parameter.name in scope]


def _required(method: Method, parameter: Parameter, model: Entry | None, tensor: str = "") -> str:
    whose = f" for {model.ref}" if model else ""
    message = f"{method.name}: {parameter.name} is required{whose}"
    if tensor:
        return f"{message}; no filter matches {tensor}: end the list with '- value: <value>'"
    short = f"{parameter.name}=<value>"
    if parameter.name == "weight":
        short = "models=<model>:<weight>+…"
    return (
        f"{message}; write parameters: {{{parameter.name}: <value>}}"
        f"{' in its entry' if model else ''}, or in model_args {short}"
    )


def _check_models(method: Method, recipe: Recipe, slice_: Slice) -> None:
    low, high, n = method.min_experts, method.max_experts, len(slice_.models)
    one_more = slice_.models[0].ref if slice_.models and high == n - 1 else None
    if method.needs_base and slice_.base is None:
        raise RecipeError(f"{method.name}: needs a base model; {_base_from(one_more)}")
    if low <= n and (high is None or n <= high):
        return
    wanted = f"{low} or more" if high is None else f"{low} to {high}" if low < high else f"{low}"
    besides = " besides base_model" if slice_.base else ""
    given = ", ".join(str(model.ref) for model in slice_.models) or "none"
    where = f" in slice {recipe.slices.index(slice_) + 1}" if len(recipe.slices) > 1 else ""
    other = (
        f", or make one of them the base: base_model: {one_more}" if besides and one_more else ""
    )
    raise RecipeError(
        f"{method.name}: takes {wanted} model{'' if wanted == '1' else 's'}{besides}; "
        f"got {n}{where}: {given}. Change {'sources' if where else 'models'}: to that many{other}."
    )


def _base_from(one: Reference | None) -> str:
    """Say how to name a base; ``one``: a model that may be it, as there is one too many."""
    if one is None:
        return "add base_model: <what the others were tuned from> (in model_args base=<model>)"
    return f"it is one of those you merge, so add base_model: {one} (in model_args base=…)"


def _rules(slice_: Slice) -> Iterator[Rule]:
    """Yield the rules of every setting of a slice and its models, in the order written."""
    for scope in (*(model.parameters for model in slice_.models), slice_.parameters):
        for setting in scope.values():
            yield from rules_of(setting)


def _where(slice_: Slice, tensor: str, t: float, message: str) -> str:
    """Tell of which model, weight and layer a refused value of a varying setting is."""
    alone = f" of {slice_.models[0].ref}" if len(slice_.models) == 1 else ""
    scopes = [*((m.parameters, f" of {m.ref}") for m in slice_.models), (slice_.parameters, alone)]
    varying = [
        (name + whose, setting.at(tensor, t))
        for settings, whose in scopes
        for name, setting in settings.items()
        if not isinstance(setting, Constant)
    ]
    if not varying:
        return ""
    likely = [name for name, value in varying if str(value) in message] or [varying[0][0]]
    layers = {0.0: "in the first layer", 1.0: "in the last layer"}
    layer = layers.get(t, f"{t:.0%} of the way from the first layer to the last")
    return f" ({likely[0]}, {f'weights named *{tensor}*, ' if tensor else ''}{layer})"


def _probes(slice_: Slice) -> Iterator[tuple[str, float]]:
    """Yield (tensor name, t) pairs that between them resolve every value written for a slice.

    As many as there are values: a filter is tried in the first and the last layer, and where its
    own gradients have their values.
    """
    positions: dict[str, set[float]] = {"": {0.0, 1.0}}
    for rule in _rules(slice_):
        last = len(rule.value.scalars) - 1
        between = (i / last for i in range(1, last))
        positions.setdefault(rule.filter or "", {0.0, 1.0}).update(between)
    for name, found in positions.items():
        yield from ((name, t) for t in sorted(found))


def _lacks(method: Method, slice_: Slice, tensor: str, t: float) -> bool:
    """Whether a required parameter has no value for this name; no such tensor may exist."""
    return any(
        all(setting.at(tensor, t) is MISSING for setting in _scopes(parameter, slice_, model))
        for parameter in method.parameters.values()
        if parameter.required
        for model in (slice_.models if parameter.per_expert else (None,))
    )
