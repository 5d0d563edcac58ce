"""Compute the Fisher information of a live model's parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from merge_plugins.api import Batch
from merge_plugins.calibration.batches import UNSCORED, logits_of, unpadded
from merge_plugins.errors import DataError, RecipeError


def per_example(module: nn.Module, batches: Iterable[Batch]) -> Iterator[dict[str, Tensor]]:
    """One backward pass per example, per class for a classifier; another model's size of memory.

    E_x E_y[(∂ log p(y|x) / ∂θ)²], elementwise [Matena & Raffel 2022, arXiv:2111.09832, eq. 5].
    For a classifier y runs over the model's own label distribution, exactly; a single logit is the
    mean of a Gaussian of variance 1. For a causal model, where that expectation has no end, y is
    the example's own response (or text): the empirical Fisher of the summed log-likelihood of its
    tokens. That extension is ours; a longer response counts for more in it.
    """
    with _squared_gradients(module) as (squares, backward):
        n_examples = 0
        for batch in batches:
            for row in unpadded(batch):
                n_examples += 1
                for log_likelihood in _weighted_log_likelihoods(module, row):
                    backward(log_likelihood)
    yield _named(module, squares, n_examples)


def of_batches(module: nn.Module, batches: Iterable[Batch]) -> Iterator[dict[str, Tensor]]:
    """One backward pass per batch; another model's size of memory.

    What MergeLM computes: the square of a gradient summed over a batch and its classes, divided by
    the number of examples. Cross terms between examples and classes survive, so it depends on
    the batch size and is no Fisher information. One logit: the loss is the labels' mean square.
    """
    with _squared_gradients(module) as (squares, backward):
        n_examples = 0
        for batch in batches:
            n_examples += len(batch["input_ids"])
            backward(_of_batch(module, batch))
    yield _named(module, squares, n_examples)


def _weighted_log_likelihoods(module: nn.Module, row: Batch) -> Iterator[Tensor]:
    """Compute scalars whose squared gradients sum to the Fisher information of one example."""
    logits = _logits(module, row)
    if logits.ndim == 3:
        yield _of_tokens(logits, row)
    elif logits.shape[1] == 1:
        yield logits.sum()  # E_y[(y - f)²] is the variance, 1
    else:
        log_p = logits[0].log_softmax(-1)
        yield from log_p * log_p.detach().exp().sqrt()  # squared, the root is the probability


def _of_batch(module: nn.Module, batch: Batch) -> Tensor:
    logits = _logits(module, batch)
    if logits.ndim == 3:
        return _of_tokens(logits, batch)
    if logits.shape[1] > 1:
        log_p = logits.log_softmax(-1)
        return (log_p * log_p.detach().exp().sqrt()).sum()
    if "labels" not in batch:
        raise DataError(
            "fisher: mergelm of a model with one output needs the labels; add label to each row of "
            "data:, or choose fisher: per_example, which needs none"
        )
    return functional.mse_loss(logits.squeeze(-1), batch["labels"].to(logits))


def _of_tokens(logits: Tensor, batch: Batch) -> Tensor:
    """Sum the log-likelihood of every labelled token given those before it: a scalar."""
    predicted, labels = logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    loss = functional.cross_entropy(predicted, labels, ignore_index=UNSCORED, reduction="sum")
    return -loss


def _logits(module: nn.Module, batch: Batch) -> Tensor:
    """Compute float32 scores, [batch, classes] or [batch, length, vocabulary]."""
    logits = logits_of(module, batch)
    if logits is None:
        raise RecipeError(
            f"Fisher information is of a classifier or of a causal language model; "
            f"{type(module).__name__} is neither. regmean_merging takes any model."
        )
    return logits.float()


@contextmanager
def _squared_gradients(
    module: nn.Module,
) -> Iterator[tuple[Mapping[int, Tensor], Callable[[Tensor], None]]]:
    """Accumulate squared gradients; yields them by id of the parameter, and a backward function.

    Each gradient is squared and freed as soon as it is computed, so that the gradients of all
    parameters never exist together.
    """
    parameters = [*module.parameters()]
    squares = {id(p): torch.zeros_like(p, requires_grad=False) for p in parameters}
    asked = [p.requires_grad for p in parameters]

    def add(parameter: Tensor) -> None:
        if parameter.grad is not None:
            squares[id(parameter)].addcmul_(parameter.grad, parameter.grad)
            parameter.grad = None

    def backward(scalar: Tensor) -> None:
        if scalar.requires_grad:  # false if no token is scored
            scalar.backward(retain_graph=True)  # type: ignore[no-untyped-call]

    handles: list[Any] = []
    try:
        for parameter in parameters:
            parameter.requires_grad_()
            handles.append(parameter.register_post_accumulate_grad_hook(add))  # type: ignore[no-untyped-call]
        with torch.enable_grad():
            yield squares, backward
    finally:
        for handle in handles:
            handle.remove()
        for parameter, before in zip(parameters, asked, strict=True):
            parameter.requires_grad_(before)


def _named(module: nn.Module, squares: Mapping[int, Tensor], n_examples: int) -> dict[str, Tensor]:
    """Average squared gradients and name them; a tied weight appears under both names."""
    for square in squares.values():
        square.div_(n_examples)
    named: Any = module.named_parameters(remove_duplicate=False)
    return {name: squares[id(parameter)] for name, parameter in named}
