"""What a method promises of any weight: each a function that raises `AssertionError` if it lies."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from merge_plugins.errors import ParameterError
from merge_plugins.parallel import CPU
from merge_plugins.plugins import Parameter
from merge_plugins.testing.case import Case, near, same_bits, weights

NUMBERS = (0.0, 0.125, 0.4, 0.9, 1.0, 2.0, 3)
"""Values that other parameters are set to."""
RANDOM = "draw from merge_plugins.ops.random, or from slot.generator in a method of whole weights"


def require(claim: bool, case: Case, message: str) -> None:
    """Raise `AssertionError` unless something holds."""
    if not claim:
        raise AssertionError(f"{case}: {message}")


def repeats(case: Case) -> None:
    """The same inputs give the same bits, in any state of torch's own generator."""
    base, *_ = weights(1)
    found = []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 1):
            torch.manual_seed(seed)
            (merged,) = case.merge(case.slot(base, *near(base, 3)))
            found.append({"w": merged})
    require(same_bits(*found), case, f"gives other bits for the same inputs; {RANDOM}")


def inputs_stay(case: Case, dtype: torch.dtype) -> None:
    """Inputs are bit-identical afterwards, and the result is a new tensor."""
    (base,) = weights(1)
    tensors = [tensor.to(dtype) for tensor in (base, *near(base, 3))]
    before = [tensor.clone() for tensor in tensors]
    (merged,) = case.merge(case.slot(*tensors))
    merged.fill_(7.0)
    same = all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
    require(same, case, f"writes to its {dtype} inputs, or returns one; return a new tensor")


def shape_stays(case: Case, shape: Sequence[int], dtype: torch.dtype, seed: int = 0) -> None:
    """A weight of any shape merges to a finite tensor of that shape."""
    base, *_ = weights(1, shape, seed=seed)
    slot = case.slot(*(tensor.to(dtype) for tensor in (base, *near(base, 3, seed=seed + 10))))
    (merged,) = case.merge(slot)
    given = f"a weight {list(shape)} of {dtype}"
    is_float = isinstance(merged, Tensor) and merged.is_floating_point()
    got = merged.dtype if isinstance(merged, Tensor) else type(merged).__name__
    require(is_float, case, f"gives {got} for {given}; a kernel returns floating-point numbers")
    require(merged.shape == torch.Size(shape), case, f"gives {list(merged.shape)} for {given}")
    require(bool(torch.isfinite(merged).all()), case, f"gives NaN or infinity for {given}")


def copies_stay(case: Case) -> None:
    """Copies of one model merge to that model."""
    (model,) = weights(1)
    (merged,) = case.merge(case.slot(model, *[model] * 3))
    solved = 1e-12 if case.method.stats else 0.0  # solving for a zero need not give just that
    same = torch.allclose(merged.float(), model, rtol=1e-6, atol=solved)
    require(same, case, "merges copies of one model to another model")


def zero_is_the_base(case: Case, parameter: str) -> None:
    """Nothing of the experts leaves the base."""
    (base,) = weights(1)
    none = replace(case, parameters={**case.parameters, parameter: 0.0})
    (merged,) = none.merge(none.slot(base, *near(base, 3)))
    require(torch.equal(merged.float(), base), case, f"{parameter}=0 does not give the base")


def order_is_free(case: Case) -> None:
    """Experts that are treated alike may come in any order."""
    (base,) = weights(1)
    (first, *others) = (
        case.merge(case.slot(base, *order))[0] for order in permutations(near(base, case.n_experts))
    )
    for other in others:
        same = torch.allclose(first, other, rtol=1e-6, atol=1e-6)
        require(same, case, "depends on the order of the models")


def whole_is_measured(case: Case) -> None:
    """A weight that is measured in many blocks is measured as a whole."""
    base, *_ = weights(1, (50, 60))
    slot = case.slot(base, *near(base, 3))
    (expected,), (merged,) = case.merge(slot), case.merge(slot, place=replace(CPU, block=64))
    same = torch.allclose(merged, expected, rtol=1e-6, atol=1e-6)
    require(same, case, "measures a weight otherwise if it comes in blocks")


def says_what_it_measures(case: Case) -> bool:
    """Whether a method says which of its fields a measurement depends on."""
    return hasattr(case.method.factory, "measured_by")


def measured_by_no_other(case: Case) -> None:
    """What a method says that its measurement depends on is all that it depends on."""
    base = weights(1)[0]
    slot = case.slot(base, *near(base, case.n_experts))
    before = case.measured(slot)
    for parameter in case.method.parameters.values():
        if parameter.field in case.method.factory.measured_by:  # type: ignore[attr-defined]
            continue
        tried = 0
        for value in _others(parameter, getattr(case.kernel(), parameter.field)):
            changed = replace(case, parameters={**case.parameters, parameter.name: value})
            try:
                changed.kernel()
            except (ParameterError, ValueError):
                continue
            tried += 1
            same = same_bits(before, changed.measured(slot))
            require(same, case, f"measured_by lacks {parameter.field}: {value} measures otherwise")
        require(bool(tried), case, f"no other value of {parameter.name} was accepted")


def _others(parameter: Parameter, value: Any) -> Iterator[Any]:
    """Yield other values of a parameter, some of which the method may refuse."""
    kind = parameter.type
    if kind is bool:
        yield not value
    elif typing.get_origin(kind) is typing.Literal:
        yield from typing.get_args(kind)
    elif parameter.per_expert:
        yield from ((number, 0.3, 0.7) for number in NUMBERS)
    else:
        yield from NUMBERS


def shows_damage(case: Case) -> bool:
    """Whether a method says that damaged inputs show in its result."""
    return bool(getattr(case.kernel(), "shows_damage", False))


def damage_shows(case: Case, damage: float, dtype: torch.dtype, at: tuple[int, ...]) -> None:
    """One damaged entry of any input shows in the result, where the engine then looks for it."""
    (base,) = weights(1)
    models = [model.to(dtype) for model in (base, *near(base, case.n_experts))]
    for damaged in range(not case.has_base, len(models)):
        for others in (0, 1):  # also where the others are 0, or equal
            inputs = [model.clone() * others for model in models]
            inputs[damaged][at] = damage
            (merged,) = case.merge(case.slot(*inputs))
            shown = not bool(merged[at].isfinite())
            require(shown, case, f"shows_damage, but {damage} in model {damaged} does not show")
