"""Compute Gram matrices of the inputs of a live model's linear layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from merge_plugins.api import Batch
from merge_plugins.calibration.batches import unpadded, without_labels

MEMORY = 4 << 30
"""Bytes of Gram matrices in memory at once; models with more are run several times."""
Layers = Mapping[str, Any]
"""Linear layers by the parameter name of their weight."""


def gram(module: nn.Module, batches: Iterable[Batch]) -> Iterator[dict[str, Tensor]]:
    """Forward passes only, again for every 4 GiB of results.

    Mean over tokens of x xᵀ for the inputs x of every linear layer, by the name of its weight:
    float32 [inputs, inputs] [Jin et al. 2023, RegMean, arXiv:2212.09849, sec. 3.2]. Padding does
    not count. Linear layers are `nn.Linear` and GPT-2's Conv1D, except a head whose weight is an
    embedding too; a layer that no token reached has no matrix. Layers that read the very same
    input share one.
    """
    layers = _linear_layers(module)
    shared, routes = _shared_inputs(module, layers, batches)
    for group in _groups({name: layers[name] for name in layers if shared[name] == name}):
        means = _means(module, group, _one_by_one(batches) if routes else batches)
        yield {name: means[first] for name, first in shared.items() if first in means}


def _linear_layers(module: nn.Module) -> Layers:
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    return {
        f"{name}.weight": layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) or _is_conv1d(layer)
        if id(layer.weight) not in embeddings
    }


def _is_conv1d(layer: nn.Module) -> bool:
    return type(layer).__name__ == "Conv1D"  # of transformers, which is not imported for a name


def _n_inputs(layer: Any) -> int:
    return int(layer.weight.shape[0 if _is_conv1d(layer) else 1])


def _shared_inputs(
    module: nn.Module, layers: Layers, batches: Iterable[Batch]
) -> tuple[Mapping[str, str], bool]:
    """Run one batch to find layers that share their inputs, and whether tokens are routed.

    Returns the first layer that reads the very same tensors for each layer, such as q for k and v;
    and whether any layer reads something else than every token or one row per text: an expert of a
    mixture reads selected tokens, DeBERTa's projections a table of positions too. The mask cannot
    locate padding there.
    """
    read: dict[str, list[int]] = {name: [] for name in layers}
    number, routes, last = 0, False, torch.empty(0)
    batch = next(iter(batches))
    mask = batch["attention_mask"]

    def note(name: str, x: Tensor) -> None:
        nonlocal number, routes, last
        n_rows = x.numel() // x.shape[-1]
        of_tokens = x.shape[:-1] == mask.shape or (x.ndim == 2 and n_rows == mask.numel())
        routes |= not of_tokens and n_rows != len(mask)
        number += x is not last
        last = x  # kept alive: no other tensor can be the same object
        read[name].append(number)

    with _watching(layers, note), torch.no_grad():
        module(**without_labels(batch))
    first: dict[tuple[int, ...], str] = {}
    shared = {
        name: first.setdefault(tuple(numbers), name) if numbers else name
        for name, numbers in read.items()
    }
    return shared, routes


def _one_by_one(batches: Iterable[Batch]) -> Iterator[Batch]:
    for batch in batches:
        yield from unpadded(batch)


def _groups(layers: Layers) -> Iterator[Layers]:
    """Split layers into groups whose Gram matrices fit into `MEMORY`, one layer or more."""
    group: dict[str, Any] = {}
    n_bytes = 0
    for name, layer in layers.items():
        size = 4 * _n_inputs(layer) ** 2
        if group and n_bytes + size > MEMORY:
            yield group
            group, n_bytes = {}, 0
        group[name], n_bytes = layer, n_bytes + size
    if group:
        yield group


def _means(module: nn.Module, layers: Layers, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Compute the mean Gram matrix of each layer that received a token."""
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)
    mask = torch.empty(0)

    def add(name: str, x: Tensor) -> None:
        x = _tokens(x, mask).float()
        if len(x):
            n = x.shape[-1]
            sums.setdefault(name, torch.zeros(n, n, device=x.device)).addmm_(x.T, x)
            counts[name] += len(x)

    with _watching(layers, add), torch.no_grad():
        for batch in batches:
            mask = batch["attention_mask"].bool()
            module(**without_labels(batch))
    return {name: total.div_(counts[name]) for name, total in sums.items()}


def _tokens(x: Tensor, mask: Tensor) -> Tensor:
    """Select the rows of tokens that are not padding, or one row per text: [tokens, inputs]."""
    if x.shape[:-1] == mask.shape:
        return x[mask]
    x = x.reshape(-1, x.shape[-1])
    return x[mask.flatten()] if len(x) == mask.numel() else x


@contextmanager
def _watching(layers: Layers, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call ``see(name, input)`` whenever one of the layers runs, inside the block."""

    def hook(name: str) -> Callable[[nn.Module, Sequence[Tensor]], None]:
        return lambda _, inputs: see(name, inputs[0])

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
