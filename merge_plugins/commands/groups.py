"""Tensors that are alike but for the numbers in their names, as one line for people to read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from merge_plugins.commands.values import plain
from merge_plugins.planning import PlannedTensor

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
"""A number that is a part of a tensor's name: of a layer, of an expert."""


@dataclass
class Group:
    """Tensors of one shape and dtype that are merged by the same parameters, or copied."""

    tensors: list[PlannedTensor] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return the name that all have, with the numbers: ``model.layers.{0-11}.norm.weight``."""
        numbers = [NUMBER.findall(tensor.name) for tensor in self.tensors]
        ranges = iter([_range({int(n) for n in each}) for each in zip(*numbers, strict=True)])
        return NUMBER.sub(lambda _: next(ranges), self.tensors[0].name)

    @property
    def shape(self) -> str:
        """Write how many there are, and their shape."""
        n = len(self.tensors)
        return f"{f'{n} x ' if n > 1 else ''}{list(self.tensors[0].shape)}"

    def parameters(self) -> dict[str, str]:
        """Write each parameter: its value, or from which to which it goes."""
        each = [tensor.parameters for tensor in self.tensors]
        return {name: together([one[name] for one in each]) for name in each[0]}


def copied(tensor: PlannedTensor) -> str:
    """Write why a tensor is not merged; empty if it is."""
    if tensor.kernel is not None:
        return ""
    return "copied" if len(tensor.stored) == 1 else "copied: all models must agree"


def grouped(tensors: Iterable[PlannedTensor]) -> list[Group]:
    """Group tensors that are alike, in the order of the first of each."""
    groups: dict[tuple[Any, ...], Group] = {}
    for tensor in tensors:
        like = NUMBER.sub("", tensor.name), tensor.shape, tensor.dtype
        key = (*like, copied(tensor), *tensor.parameters)
        groups.setdefault(key, Group()).tensors.append(tensor)
    return [*groups.values()]


def together(values: Sequence[Any]) -> str:
    """Write values in one: "0.5"; "0.4…0.6", if they lie between; "a|b", if they are words."""
    first = values[0]
    if all(value == first for value in values):
        return plain(first)
    if all(isinstance(value, tuple) and len(value) == len(first) for value in values):
        return f"[{', '.join(map(together, zip(*values, strict=True)))}]"
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        falls = all(a >= b for a, b in pairwise(values))
        ends = sorted((min(values), max(values)), reverse=falls)
        return "…".join(map(plain, ends))
    return "|".join(dict.fromkeys(map(plain, values)))


def shared(groups: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the parameters that are the same everywhere."""
    first, *others = groups or [{}]
    return {
        name: value for name, value in first.items() if all(o.get(name) == value for o in others)
    }


def _range(numbers: Iterable[int]) -> str:
    """Write whole numbers as runs: ``{0-3,8}``, or one as it is."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    text = ",".join("-".join(map(str, run)) for run in runs)
    return text if text.isdigit() else f"{{{text}}}"
