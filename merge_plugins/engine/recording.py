"""Record what a kernel does to a block as a program of torch's operators, without doing it.

A kernel is Python: it may branch on thresholds, positions and names, and hash them. So it is called
for every block, on tensors without data, which takes the time of some ten thousand elements. What
it would have done is a `Program`: two blocks with equal programs differ only in numbers and sizes,
and one compiled function serves both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SMALL = 1 << 12
"""Elements of a tensor that a kernel computes for itself: what is larger belongs to the block."""
ALWAYS = 1 << 62
"""From here on an integer stands for no size: the end of an open slice, or all positions."""
NUMBERED = frozenset(
    name + ending
    for name in (
        *("add", "sub", "mul", "div", "bitwise_and", "bitwise_or", "bitwise_xor"),
        *("eq", "ne", "lt", "le", "gt", "ge", "hardshrink", "clamp", "clamp_min", "clamp_max"),
    )
    for ending in ("", "_")
)
"""Operators whose numbers are inputs of the program; see `merge_plugins.engine.compiled.Writer`."""
SIZED: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "expand", "repeat"), (1,)),
    **dict.fromkeys(("new_empty", "new_zeros", "new_ones", "new_full"), (1,)),
    **dict.fromkeys(("empty", "zeros", "ones", "full"), (0,)),
    **dict.fromkeys(("arange", "empty_strided"), (0, 1)),
    "slice": (2, 3),
    "as_strided": (1, 2, 3),
}
"""Arguments that are sizes or positions, by operator: inputs of the program too."""
REFUSED = frozenset(
    {
        torch.Tag.nondeterministic_seeded,
        torch.Tag.data_dependent_output,
        torch.Tag.dynamic_output_shape,
    }
)
"""What an operator must not do: draw numbers, or need the data now."""


class RecordingError(Exception):
    """A kernel does what cannot be recorded; the message says what."""


class Given(NamedTuple):
    """An argument that a program is given or makes, by its kind and its number in that kind."""

    kind: str
    """``tensor`` (below 0: an input), ``float``, ``integer``, or ``size``: a size or a position."""
    at: int


class Step(NamedTuple):
    """One call of an operator."""

    operator: Any
    arguments: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...]
    dtype: torch.dtype | None
    """Dtype of the first argument, if that is a tensor."""
    n_results: int
    """How many tensors it returns in a list; 0 for one tensor, -1 if it writes to an argument."""


class Program(NamedTuple):
    """Steps that make a block of a merge; equal for blocks that one compiled function serves."""

    inputs: tuple[tuple[torch.dtype, int], ...]
    """Dtype and number of dimensions of each tensor that is given."""
    steps: tuple[Step, ...]
    results: tuple[Given, ...]


@dataclass
class Recorded:
    """A program, and the tensors, numbers and sizes that one block gives it."""

    program: Program
    inputs: list[Tensor]
    floats: list[float]
    integers: list[int]
    sizes: list[int]
    alphas: tuple[float, ...]
    """Factors of additions: torch rounds such a product and its sum once, compiled code twice."""


class Form(NamedTuple):
    """What a tensor is without its data."""

    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


class Blank(Tensor):
    """A tensor without data that belongs to a recording."""

    form: Form
    recording: Recording | None
    at: int
    made: Callable[[], Tensor] | None
    """Makes it anew, if it depends on no other tensor: kernels may keep such tensors."""

    @staticmethod
    def __new__(cls, form: Form) -> Blank:
        """Make a tensor of such a form, on the CPU as far as anybody can tell."""
        size, stride, dtype = form
        blank: Blank = torch.Tensor._make_wrapper_subclass(
            cls, size, stride, dtype=dtype, device=torch.device("cpu")
        )
        return blank

    def __init__(self, form: Form) -> None:
        self.form = form

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute with what a kernel kept of a recording, after that has ended."""

        def real(tensor: Any) -> Any:
            if isinstance(tensor, (list, tuple)):
                return type(tensor)(map(real, tensor))
            if not isinstance(tensor, Blank):
                return tensor
            if tensor.made is None:
                raise RecordingError("it keeps tensors of one block for another")
            return tensor.made()

        options = {key: real(value) for key, value in (kwargs or {}).items()}
        return func(*map(real, args), **options)


@functools.cache
def _writes(operator: Any) -> str | None:
    """Find the argument that an operator writes to; None if it writes to none.

    Raises `RecordingError` unless that is the first, or ``out``.
    """
    arguments = operator._schema.arguments
    written = [a.name for a in arguments if a.alias_info and a.alias_info.is_write]
    if written not in ([], ["out"], [arguments[0].name if arguments else None]):
        raise RecordingError(f"{operator} writes to several tensors")
    return written[0] if written else None


@functools.cache
def _makes(operator: Any) -> bool:
    """Whether an operator makes a tensor of no other."""
    return any(argument.name == "device" for argument in operator._schema.arguments)


@functools.cache
def _refused(operator: Any) -> bool:
    return not REFUSED.isdisjoint(operator.tags)


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operators that are called within it on tensors of a block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._inputs: list[Tensor] = []
        self._known: dict[int, int] = {}  # number of an input by the id of its tensor
        self._steps: list[Step] = []
        self._n_values = 0
        self._floats: list[float] = []
        self._integers: list[int] = []
        self._sizes: list[int] = []
        self._alphas: list[float] = []

    def blank(self, tensor: Tensor) -> Blank:
        """Return a tensor without data in place of one of the block."""
        at = self._input(tensor)
        return self._blank(_form(tensor), at)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Let torch call this as it is: no compiler is at work meanwhile."""
        return False

    def finish(self, results: Sequence[Tensor]) -> Recorded:
        """Return what was recorded; ``results``: the tensors that the program makes."""
        made = []
        for result in results:
            if not isinstance(result, Blank) or result.recording is not self:
                raise RecordingError("its result does not depend on the block")
            made.append(Given("tensor", result.at))
        inputs = tuple((tensor.dtype, tensor.ndim) for tensor in self._inputs)
        program = Program(inputs, tuple(self._steps), tuple(made))
        return Recorded(
            program,
            self._inputs,
            self._floats,
            self._integers,
            self._sizes,
            tuple(self._alphas),
        )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Record an operator on the block; call any other."""
        kwargs = kwargs or {}
        tensors = [*_tensors(args), *_tensors(kwargs.values())]
        if not tensors:
            return self._made(func, args, kwargs) if _makes(func) else func(*args, **kwargs)
        if not any(isinstance(t, Blank) or t.numel() > SMALL for t in tensors):
            return func(*args, **kwargs)
        return self._record(func, args, kwargs)

    def _made(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make a tensor of no other: for real if it is small."""
        if _refused(func):
            raise RecordingError(f"it draws random numbers ({func})")
        form = _forms_of(func, args, {**kwargs, "device": "meta"})
        if not isinstance(form, Form) or form.size.numel() <= SMALL:
            return func(*args, **kwargs)
        if func is torch.ops.aten.arange.start and all(type(arg) is int for arg in args):
            start, stop = args
            counted = self._record(torch.ops.aten.arange.default, (stop - start,), kwargs)
            blank = self._record(torch.ops.aten.add.Tensor, (counted, start), {})
        else:
            blank = self._record(func, args, kwargs)
        blank.made = functools.partial(func, *args, **kwargs)
        return blank

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _refused(func):
            raise RecordingError(f"its next step depends on the numbers in a block ({func})")
        name, written = func._opname, _writes(func)
        target = None if written is None else kwargs["out"] if "out" in kwargs else args[0]
        if target is not None and not isinstance(target, Blank):
            raise RecordingError(f"{func} writes to a tensor that is not of this block")
        sized, dtype = SIZED.get(name, ()), getattr(args[0], "dtype", None) if args else None
        numbers = _numbers(args[0]) if name in NUMBERED else ()
        arguments = tuple(
            self._sizes_of(arg) if i in sized else self._argument(arg, numbers if i else ())
            for i, arg in enumerate(args)
        )
        options = tuple((key, self._option(key, kwargs[key], dtype)) for key in sorted(kwargs))
        if target is not None:
            self._steps.append(Step(func, arguments, options, dtype, -1))
            return target
        forms = _forms_of(func, args, kwargs)
        if isinstance(forms, list):
            self._steps.append(Step(func, arguments, options, dtype, len(forms)))
            return [self._result(form) for form in forms]
        self._steps.append(Step(func, arguments, options, dtype, 0))
        return self._result(forms)

    def _result(self, form: Any) -> Blank:
        if not isinstance(form, Form):
            raise RecordingError("it asks for a number that depends on the block")
        return self._blank(form, self._number())

    def _blank(self, form: Form, at: int) -> Blank:
        blank = Blank(form)
        blank.recording, blank.at, blank.made = self, at, None
        return blank

    def _number(self) -> int:
        self._n_values += 1
        return self._n_values - 1

    def _input(self, tensor: Tensor) -> int:
        """Number a tensor that has data: of the block, or one that the kernel brings along."""
        known = self._known.get(id(tensor))
        if known is None:
            known = self._known[id(tensor)] = -1 - len(self._inputs)
            self._inputs.append(tensor)
        return known

    def _argument(self, arg: Any, numbers: tuple[type, ...] = ()) -> Any:
        """Describe an argument; ``numbers``: types of those that are inputs of the program."""
        if isinstance(arg, Tensor):
            if numbers and arg.ndim == 0 and not isinstance(arg, Blank):
                return self._argument(arg.item(), numbers)  # torch takes it for the same
            return self._tensor(arg)
        if isinstance(arg, (list, tuple)):
            return tuple(self._argument(each, numbers) for each in arg)
        if type(arg) in numbers and abs(arg) < ALWAYS:
            return self._a_float(arg) if float in numbers else self._an_integer(arg)
        if not isinstance(arg, Hashable):
            raise RecordingError(f"it calls an operator with {type(arg).__name__}")
        return arg

    def _a_float(self, number: float) -> Given:
        self._floats.append(float(number))
        return Given("float", len(self._floats) - 1)

    def _an_integer(self, number: int) -> Given:
        self._integers.append(number)
        return Given("integer", len(self._integers) - 1)

    def _option(self, key: str, value: Any, dtype: torch.dtype | None) -> Any:
        if key == "alpha" and dtype == torch.float32:
            self._alphas.append(float(value))
            return self._a_float(value)
        return self._argument(value)

    def _tensor(self, tensor: Tensor) -> Given:
        if not isinstance(tensor, Blank):
            return Given("tensor", self._input(tensor))
        if tensor.recording is self:
            return Given("tensor", tensor.at)
        if tensor.made is None:
            raise RecordingError("it keeps tensors of one block for another")
        return Given("tensor", self._input(tensor.made()))

    def _sizes_of(self, arg: Any) -> Any:
        if isinstance(arg, (list, tuple)):
            return tuple(map(self._sizes_of, arg))
        if type(arg) is int and 2 <= arg < ALWAYS:
            self._sizes.append(arg)
            return Given("size", len(self._sizes) - 1)
        return self._argument(arg)


def _numbers(tensor: Any) -> tuple[type, ...]:
    """List the types of numbers that an operator may be given for such a tensor as inputs."""
    if not isinstance(tensor, Tensor) or tensor.ndim == 0 or tensor.dtype == torch.bool:
        return ()
    if tensor.dtype.is_floating_point:
        return (float, int) if tensor.dtype.itemsize <= 4 else ()  # inputs are float32
    return (int,)


def _tensors(values: Any) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found


def _form(tensor: Tensor) -> Form:
    if isinstance(tensor, Blank):
        return tensor.form
    return Form(tensor.size(), tensor.stride(), tensor.dtype)


def _forms_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Work out the form of an operator's result: one, or a list."""
    options = tuple((key, _plain(value)) for key, value in kwargs.items())
    numbers = func._opname in NUMBERED
    return _worked_out(func, tuple(_plain(arg, numbers=numbers) for arg in args), options)


@functools.lru_cache(maxsize=1 << 14)
def _worked_out(func: Any, args: tuple[Any, ...], options: tuple[tuple[str, Any], ...]) -> Any:
    kwargs = {key: "meta" if key == "device" else _on_meta(value) for key, value in options}
    made = func(*map(_on_meta, args), **kwargs)
    return [_form(each) for each in made] if isinstance(made, (list, tuple)) else _formed(made)


def _formed(made: Any) -> Any:
    return _form(made) if isinstance(made, Tensor) else made


def _plain(arg: Any, *, numbers: bool = False) -> Any:
    """Describe an argument such that arguments of one description have one effect on the form."""
    if isinstance(arg, Tensor):
        return _form(arg)
    if type(arg) is float or (numbers and type(arg) is int):
        return type(arg)(1)  # whatever its value
    return tuple(map(_plain, arg)) if isinstance(arg, (list, tuple)) else arg


def _on_meta(arg: Any) -> Any:
    if isinstance(arg, Form):
        return torch.empty_strided(arg.size, arg.stride, dtype=arg.dtype, device="meta")
    return [_on_meta(each) for each in arg] if isinstance(arg, tuple) else arg
