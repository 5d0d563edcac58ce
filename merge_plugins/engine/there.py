"""Run kernels that are written for the CPU on another device, to the same bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CONSTRUCTORS: set[Callable[..., Any]] = {
    *(torch.arange, torch.as_tensor, torch.empty, torch.eye, torch.full, torch.linspace),
    *(torch.logspace, torch.ones, torch.rand, torch.randint, torch.randn, torch.randperm),
    *(torch.tensor, torch.zeros),
}
"""Functions that make a tensor of no other tensor."""
IN_PLACE: set[Callable[..., Any]] = {
    *(Tensor.div_, Tensor.divide_, Tensor.true_divide_, Tensor.__itruediv__),
}
DIVISIONS: set[Callable[..., Any]] = IN_PLACE | {
    *(Tensor.div, Tensor.divide, Tensor.true_divide, Tensor.__truediv__),
    *(torch.div, torch.divide, torch.true_divide),
}


class There(TorchFunctionMode):
    """Makes new tensors on a device, and divisions by a number divisions by a tensor there.

    By a number, also one in a tensor of the CPU, kernels of GPUs multiply with its rounded
    reciprocal, and may differ by an ulp; by a tensor on their device they divide.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch."""
        kwargs = kwargs or {}
        if func in CONSTRUCTORS:
            return func(*args, **{"device": self.device, **kwargs})
        if func in DIVISIONS and len(args) == 2 and not kwargs and _by_a_number(*args):
            value, by = args
            wide = value if value.dtype.itemsize > 2 else value.float()  # as kernels do
            divided = wide / torch.as_tensor(by, dtype=wide.dtype, device=value.device)
            return value.copy_(divided) if func in IN_PLACE else divided.to(value.dtype)
        return func(*args, **kwargs)


def _by_a_number(value: Any, by: Any) -> bool:
    known = isinstance(by, int | float) or (isinstance(by, Tensor) and by.device.type == "cpu")
    return known and isinstance(value, Tensor) and value.ndim > 0 and value.is_floating_point()
