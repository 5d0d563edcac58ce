"""Merge blocks by compiled code: one loop in place of a pass for each operator.

What a kernel does to a block is recorded (`merge_plugins.engine.recording`) and compiled by torch's
own compiler, inductor. Numbers and sizes are inputs, so one function serves every weight and every
value of a parameter. It is used only if it gave the kernel's bits on the first block.
"""

from __future__ import annotations

import functools
import logging
import operator
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from merge_plugins.api import Kernel, Slot
from merge_plugins.engine.recording import (
    Given,
    Program,
    Recorded,
    Recording,
    RecordingError,
    Step,
)
from merge_plugins.errors import first_line
from merge_plugins.folders import cache_folder

logger = logging.getLogger(__name__)

BLOCK = 1 << 21
"""Elements per block: recording one takes milliseconds, and memory for what is kept between two
loops of a function is reused up to `merge_plugins.parallel.KEPT` bytes."""
SMALLEST = 1 << 16
"""Elements of a block that is worth a recording."""
OFTEN = 64
"""Blocks after which a further program of a method is compiled too: those where a threshold cuts
through the block are few."""
MOST = 8
"""Programs of one method, dtype and number of models; more are a sign that they never repeat."""
OPTIONS: Mapping[str, Any] = {
    "emulate_precision_casts": True,  # else only the last of several roundings is made
    "compile_threads": 1,  # one small file at a time needs no pool of processes
    "cpp.dynamic_threads": True,
    "cpp_cache_precompile_headers": False,  # takes longer than the few functions that it is for
}
"""Settings of inductor; a version that does not know one yet does without."""

FOLDER = "TORCHINDUCTOR_CACHE_DIR"
"""Variable with the folder of compiled code, which torch itself sets when it is first asked."""
USUAL = {"darwin": "clang++", "win32": "cl"}
"""The compiler that torch looks for, elsewhere than on Linux."""
CHOSEN = os.environ.get(FOLDER)

aten: Any = torch.ops.aten
Kind: TypeAlias = tuple[Any, ...]
"""Name and class of a method, and the dtypes of the merge and of its inputs."""


@dataclass
class Function:
    """A program's compiled code, as far as it is there and known to be right."""

    seen: int = 0
    call: Callable[..., Any] | None = None
    equal: dict[tuple[float, ...], bool] = field(default_factory=dict)
    """Whether it gave the kernel's bits, by the factors in `Recorded.alphas`."""


class Compiler:
    """Compiles programs, each once in this process, and holds what it made of them."""

    def __init__(self) -> None:
        self._functions: dict[Program, Function] = {}
        self._tried: Counter[Kind] = Counter()
        self._refused: set[Kind] = set()
        self._works = True

    def serves(self, kind: Kind) -> bool:
        """Whether kernels of a kind may still turn out to gain from it."""
        return self._works and kind not in self._refused

    def merge(
        self, kind: Kind, recorded: Recorded, out: Tensor, kernel: Callable[[Tensor], object]
    ) -> bool:
        """Merge a block into ``out`` by a program's function, if it is known to be right.

        Returns False if the kernel must.
        """
        function = self._functions.setdefault(recorded.program, Function())
        function.seen += 1
        if function.call is None:
            tried = self._tried[kind]
            if tried >= MOST or (tried and function.seen < OFTEN):
                return False
            self._tried[kind] += 1
        if recorded.alphas not in function.equal:
            self._compare(kind, function, recorded, out, kernel)
            return True
        if function.call is None or not function.equal[recorded.alphas]:
            return False
        return bool(run(function.call, recorded).isfinite())  # else the kernel finds out why

    def _compare(
        self,
        kind: Kind,
        function: Function,
        recorded: Recorded,
        out: Tensor,
        kernel: Callable[[Tensor], object],
    ) -> None:
        """Merge a block by the kernel, and compare what the function makes of it."""
        wanted = torch.empty_like(out)
        kernel(wanted)
        function.equal[recorded.alphas] = False
        started = time.monotonic()
        try:
            if function.call is None:
                function.call = compiled(recorded.program)
            run(function.call, recorded)
        except Exception as exc:  # whatever may be wrong with a compiler, and it says it in Python
            self._works = any(any(known.equal.values()) for known in self._functions.values())
            self.refuse(kind, f"it cannot be compiled: {first_line(exc)}")
        else:
            if same_bits(out, wanted):
                function.equal[recorded.alphas] = True
                logger.info("%s: compiled in %.1f s", kind[0], time.monotonic() - started)
            else:
                self.refuse(kind, "compiled, it gives other bits")
        out.copy_(wanted)

    def refuse(self, kind: Kind, reason: str) -> None:
        """Merge all of a kind by its kernel from now on, and log why, once."""
        if kind not in self._refused:
            self._refused.add(kind)
            logger.warning("%s merges without compiled code: %s", kind[0], reason)


_compiler = Compiler()


@dataclass(frozen=True)
class Compiled:
    """Merges blocks of weights that have one kernel."""

    kernel: Kernel
    dtype: torch.dtype
    """Dtype that merged blocks are rounded to."""
    kind: Kind

    @classmethod
    def of(
        cls, method: str, kernel: Kernel, dtype: torch.dtype, dtypes: Sequence[torch.dtype]
    ) -> Compiled | None:
        """Return what merges with a kernel, or None if that is known to gain nothing."""
        kind = (method, type(kernel), dtype, *dtypes)
        return cls(kernel, dtype, kind) if _compiler.serves(kind) else None

    def block(self, slot: Slot, out: Tensor, kernel: Callable[[Tensor], object]) -> None:
        """Merge a block into ``out``; ``kernel(out)`` does so without compiled code."""
        if not self._by_code(slot, out, kernel):
            kernel(out)

    def _by_code(self, slot: Slot, out: Tensor, kernel: Callable[[Tensor], object]) -> bool:
        if slot.shape.numel() < SMALLEST or not _compiler.serves(self.kind):
            return False
        try:
            recorded = self.record(slot, out)
        except RecordingError as exc:
            _compiler.refuse(self.kind, str(exc))
            return False
        return _compiler.merge(self.kind, recorded, out, kernel)

    def record(self, slot: Slot, out: Tensor) -> Recorded:
        """Record the kernel, the rounding, and a sum that is finite if all numbers are."""
        try:
            recording = Recording()

            def blank(tensor: Tensor | None) -> Any:
                is_of_block = tensor is not None and tensor.shape == slot.shape
                return recording.blank(tensor) if is_of_block and tensor is not None else tensor

            base, experts = blank(slot.maybe_base), tuple(map(blank, slot.experts))
            stats = {name: tuple(map(blank, each)) for name, each in slot.stats.items()}
            target = recording.blank(out)
            without = replace(slot, maybe_base=base, experts=experts, stats=stats, recorded=True)
            with torch.no_grad(), recording:
                merged = self.kernel(without)
                if merged.shape != slot.shape:
                    raise RecordingError("its result has another shape")
                merged = merged.to(self.dtype)
                target.copy_(merged)
                inputs = experts if base is None else (base, *experts)
                total = functools.reduce(
                    torch.add, (t.sum(dtype=torch.float32) for t in (*inputs, merged))
                )
            return recording.finish([total])
        except RecordingError:
            raise
        except Exception as exc:
            raise RecordingError(first_line(exc)) from exc


def run(function: Callable[..., Any], recorded: Recorded) -> Tensor:
    """Call a compiled function with the tensors, numbers and sizes of a block."""
    floats = torch.tensor(recorded.floats, dtype=torch.float32)
    integers = torch.tensor(recorded.integers, dtype=torch.int64)
    with _cached():
        (total,) = function(*recorded.inputs, floats, integers, *recorded.sizes)
    result: Tensor = total
    return result


@contextmanager
def _cached() -> Iterator[None]:
    """Keep compiled code in the folder for costly results, unless the user has chosen another."""
    found = os.environ.get(FOLDER)
    os.environ[FOLDER] = CHOSEN or str(cache_folder() / "compiled")
    try:
        yield
    finally:
        if found is None:
            os.environ.pop(FOLDER, None)
        else:
            os.environ[FOLDER] = found


def compiled(program: Program) -> Callable[..., Any]:
    """Compile a program: a function of its inputs, floats, integers and sizes. Does so when called.

    The sizes of tensors are free. Raises `FileNotFoundError` where there is no C++ compiler.
    """
    named = os.environ.get("CXX") or USUAL.get(sys.platform, "g++")
    if shutil.which(named) is None and shutil.which(named.split()[0]) is None:
        raise FileNotFoundError(f"no C++ compiler, {named} is not found; CXX may name another")
    with _cached():
        known = torch._inductor.list_options()
        function: Callable[..., Any] = torch.compile(
            Writer(program).module(),
            dynamic=True,
            fullgraph=True,
            options={name: value for name, value in OPTIONS.items() if name in known},
        )
    return function


class Writer:
    """Writes a program as a graph of torch.fx, with numbers and sizes as inputs."""

    def __init__(self, program: Program) -> None:
        self._program, self._graph = program, fx.Graph()
        self._given: dict[Given, fx.Node] = {}
        self._n_made = 0

    def module(self) -> fx.GraphModule:
        """Write the graph."""
        program, graph = self._program, self._graph
        for at in range(len(program.inputs)):
            self._given[Given("tensor", -1 - at)] = graph.placeholder(f"input_{at}")
        numbers = {kind: graph.placeholder(f"{kind}s") for kind in ("float", "integer")}
        for given in sorted(_all_given([step[1:3] for step in program.steps])):
            if given.kind == "size":
                self._given[given] = graph.placeholder(f"size_{given.at}")
            elif given.kind in numbers:
                self._given[given] = self._call(aten.select.int, numbers[given.kind], 0, given.at)
        for step in program.steps:
            self._step(step)
        graph.output(tuple(map(self._written, program.results)))
        return fx.GraphModule(torch.nn.Module(), graph)

    def _step(self, step: Step) -> None:
        arguments = [self._written(arg) for arg in step.arguments]
        options = {key: self._written(value) for key, value in step.options}
        target = options.pop("out", None)
        kinds = {given.kind for given in _all_given(step[1:3])}
        if kinds & {"float", "integer"}:
            name = step.operator._opname.removesuffix("_")
            result = self._with_numbers(name, step, arguments, options)
            if step.n_results == -1 and target is None:
                target = arguments[0]
        else:
            made_by = step.operator if target is None else _making(step.operator)
            result = self._call(made_by, *arguments, **options)
        if target is not None:
            self._call(aten.copy_.default, target, result)
        if step.n_results == 0:
            self._made(result)
        for at in range(step.n_results):
            self._made(self._call(operator.getitem, result, at))

    def _made(self, node: fx.Node) -> None:
        self._given[Given("tensor", self._n_made)] = node
        self._n_made += 1

    def _with_numbers(
        self, name: str, step: Step, arguments: Sequence[Any], options: Mapping[str, Any]
    ) -> fx.Node:
        """Write an operator whose numbers are inputs, with the roundings of torch's own."""
        dtype, (x, *others) = step.dtype, arguments
        as_float = torch.float32 if dtype is not None and dtype.is_floating_point else dtype
        if name in ("mul", "div"):  # the number is not rounded to the dtype, the product is
            result = self._call(
                getattr(aten, name).Tensor,
                self._to(x, as_float),
                *self._tensors(others, as_float),
                **options,
            )
            return self._to(result, dtype)
        if name == "hardshrink":
            (limit,) = self._tensors(others, dtype)
            wide, limit = self._to(x, torch.float32), self._to(limit, torch.float32)
            inside = self._call(aten.le.Tensor, self._call(aten.abs.default, wide), limit)
            return self._to(self._call(aten.where.ScalarSelf, inside, 0.0, wide), dtype)
        if "alpha" in options:
            (y,) = self._tensors(others, dtype)
            product = self._call(aten.mul.Tensor, self._to(y, dtype), options["alpha"])
            return self._call(getattr(aten, name).Tensor, x, product)
        return self._call(getattr(aten, name).Tensor, x, *self._tensors(others, dtype), **options)

    def _tensors(self, arguments: Sequence[Any], dtype: Any) -> list[Any]:
        """Convert the numbers among some arguments to a dtype."""
        numbers = {self._given[g] for g in self._given if g.kind in ("float", "integer")}
        return [self._to(arg, dtype) if arg in numbers else arg for arg in arguments]

    def _to(self, node: fx.Node, dtype: Any) -> fx.Node:
        return self._call(aten.to.dtype, node, dtype)

    def _call(self, function: Any, *arguments: Any, **options: Any) -> fx.Node:
        return self._graph.call_function(function, arguments, options)

    def _written(self, arg: Any) -> Any:
        if isinstance(arg, Given):
            return self._given[arg]
        return [self._written(each) for each in arg] if isinstance(arg, tuple) else arg


def _making(operator: Any) -> Any:
    """Find the operator that makes what another one writes to ``out``."""
    packet = operator.overloadpacket
    wanted = [argument for argument in _arguments(operator) if argument[0] != "out"]
    others = (getattr(packet, name) for name in packet.overloads())
    return next(other for other in others if _arguments(other) == wanted)


def _arguments(operator: Any) -> list[tuple[str, str]]:
    """List name and type of an operator's arguments."""
    return [(each.name, str(each.type)) for each in operator._schema.arguments]


def _all_given(arguments: Any) -> set[Given]:
    """Collect what a program is given among some arguments, at any depth."""
    found = set()
    for arg in arguments:
        if isinstance(arg, Given):
            found.add(arg)
        elif isinstance(arg, (tuple, list)):
            found |= _all_given(arg)
    return found


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same to the last bit, signs of zeros included."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
