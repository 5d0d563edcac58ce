"""Check everything that a method promises, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from merge_plugins.errors import ParameterError
from merge_plugins.plugins import Method, registry
from merge_plugins.plugins.values import scalar
from merge_plugins.testing import engine, promises
from merge_plugins.testing.case import Case
from merge_plugins.testing.family import Family

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((), (1,), (0,), (3, 0), (1, 1), (7,), (3, 5), (4, 1, 3), (2, 3, 4, 5))
AT = (6, 17)


def check_method(
    name: str,
    parameters: Mapping[str, Any] | None = None,
    *,
    copies: bool = False,
    symmetric: bool = False,
    zero: str | None = None,
) -> None:
    """Raise `AssertionError` if a registered method breaks the contract of methods.

    Whatever a weight's shape and dtype, however it is cut into blocks and shards, on any number of
    threads, by the way of another device: one result, the same bits each time, and inputs that stay
    as they were. What the method's class declares (``granularity``,
    ``measured_by``, ``shows_damage``) must be true. Takes seconds.

    ``parameters``: as in a recipe; a tuple has one value for each of up to three models. Promises
    that not every method makes: ``copies``: copies of one model merge to that model; ``symmetric``:
    models may come in any order; ``zero``: the parameter that, at 0, leaves the base.

    Raises `UnknownMethodError` for a method of a plugin that is neither installed nor loaded.
    """
    method = registry().get(name)
    case = Case(method, _read(method, parameters or {}))
    with TemporaryDirectory(prefix="merge-plugins-testing-") as folder:
        for on_base in (False, True) if method.takes_base else (False,):
            tried = replace(case, on_base=on_base)
            _check_weights(tried)
            _check_merges(tried, Family(Path(folder)))
            if copies:
                promises.copies_stay(tried)
            if symmetric:
                promises.order_is_free(tried)
            if zero is not None and tried.has_base:
                promises.zero_is_the_base(tried, zero)


def _read(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read parameters as a recipe does, or raise `ParameterError`; all that are required."""
    values = {}
    for word, value in given.items():
        if word not in method.spellings:
            known = ", ".join(method.parameters) or "none"
            raise ParameterError(f"{method}: no parameter {word!r}; there are {known}")
        parameter = method.spellings[word]
        each = tuple(scalar(method, parameter, one) for one in value) if _is_list(value) else None
        values[parameter.name] = scalar(method, parameter, value) if each is None else each
    lacking = [p.name for p in method.parameters.values() if p.required and p.name not in values]
    if lacking:
        raise ParameterError(
            f"{method}: {lacking[0]} has no default; write "
            f"check_method({method.name!r}, {{{lacking[0]!r}: <value>}})"
        )
    return values


def _is_list(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _check_weights(case: Case) -> None:
    """Check what a method does with one weight in memory."""
    for dtype in DTYPES:
        for shape in SHAPES:
            promises.shape_stays(case, shape, dtype)
        promises.inputs_stay(case, dtype)
        if promises.shows_damage(case):
            for damage in (torch.nan, torch.inf, -torch.inf):
                promises.damage_shows(case, damage, dtype, AT)
    promises.repeats(case)
    promises.whole_is_measured(case)
    if promises.says_what_it_measures(case):
        promises.measured_by_no_other(case)
    engine.measured_by_any_number_of_threads(case)


def _check_merges(case: Case, family: Family) -> None:
    """Check what the engine makes of a method, from files."""
    engine.blocks_never_show(case, family)
    engine.threads_never_show(case, family)
    engine.regions_have_the_bits(case, family)
    engine.seed_decides(case, family)
    engine.another_device_never_shows(case, family)
