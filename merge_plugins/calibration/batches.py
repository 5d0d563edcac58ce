"""Tokenize examples into batches of token ids, padded on the right; run models on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from merge_plugins.api import Batch, Example
from merge_plugins.recipe import Data

UNSCORED = -100
"""Label of a token that losses ignore; the default of transformers and torch."""
Row = dict[str, list[int]]


def batches(
    tokenizer: Any, examples: Sequence[Example], data: Data, *, classifier: bool
) -> Iterator[dict[str, Tensor]]:
    """Tokenize examples into batches; keys and shapes are those of `api.Sources.batches`."""
    pad = tokenizer.pad_token_id
    size = (
        1 if classifier and pad is None else data.batch_size
    )  # a classifier without padding token cannot find where a padded text ends
    for start in range(0, len(examples), size):
        some = examples[start : start + size]
        if classifier:
            rows = [pair_row(tokenizer, example, data.max_length) for example in some]
        else:
            rows = [text_row(tokenizer, example, data.max_length) for example in some]
        batch = padded(rows, pad or 0)
        labels = [example.label for example in some if example.label is not None]
        if classifier and len(labels) == len(some):
            batch["labels"] = torch.tensor(labels)
        yield batch


def text_row(tokenizer: Any, example: Example, max_length: int) -> Row:
    """Tokenize a text, or a prompt and its response, for a language model.

    Truncates the end of a plain text, the beginning of a prompt and response.
    """
    if not example.response:
        ids = tokenizer(example.prompt)["input_ids"][:max_length]
        return {"input_ids": ids, "labels": list(ids)}
    parts = example.prompt, example.response
    glued = parts[0][-1:].isspace() or parts[1][:1].isspace()
    ids = list(tokenizer(("" if glued else " ").join(parts))["input_ids"])
    if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
        ids.append(tokenizer.eos_token_id)
    # A tokenizer may join the end of a prompt and the start of a response into one token.
    prompt = tokenizer(example.prompt)["input_ids"]
    n_prompt = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(ids, prompt)))  # noqa: B905
    labels = [UNSCORED] * n_prompt + ids[n_prompt:]
    return {"input_ids": ids[-max_length:], "labels": labels[-max_length:]}


def pair_row(tokenizer: Any, example: Example, max_length: int) -> Row:
    """Tokenize one text, or a pair of texts, for a classifier."""
    second = example.response or None
    found = tokenizer(example.prompt, second, truncation=True, max_length=max_length)
    return {key: list(found[key]) for key in found if key != "attention_mask"}


def padded(rows: Sequence[Mapping[str, Sequence[int]]], pad: int) -> dict[str, Tensor]:
    """Stack rows into one batch, each key padded on the right, and add attention_mask.

    ``pad``: token id that fills input_ids; any valid id, since padding is masked.
    """
    fill = {"input_ids": pad, "labels": UNSCORED}
    batch = {}
    for key in rows[0]:
        columns = [torch.tensor(row[key], dtype=torch.int64) for row in rows]
        batch[key] = pad_sequence(columns, batch_first=True, padding_value=fill.get(key, 0))
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    batch["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    return batch


def by_length(
    lengths: Sequence[int], tokens: int | None, most: int | None = None
) -> Iterator[list[int]]:
    """Group rows by length into batches, lists of their positions, the longest rows first.

    ``tokens``: most tokens of a batch, padding included, unless one row alone has more; ``most``:
    most rows of a batch. None: any number.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        longest = max(1, lengths[order[start]])
        size = len(order) if tokens is None else max(1, tokens // longest)
        stop = start + min(most or size, size)
        yield order[start:stop]
        start = stop


def without_labels(batch: Batch) -> dict[str, Tensor]:
    """Drop the labels of a batch: the rest is a model's input."""
    return {key: tensor for key, tensor in batch.items() if key != "labels"}


def logits_of(module: Any, batch: Batch) -> Tensor | None:
    """Run a classifier or causal language model; None if the model is neither.

    Returns scores of classes [batch, classes] or of next tokens [batch, length, vocabulary], in the
    model's dtype.
    """
    logits: Tensor | None = getattr(module(**without_labels(batch)), "logits", None)
    generates = getattr(module, "can_generate", lambda: True)()
    return None if logits is not None and logits.ndim == 3 and not generates else logits


def unpadded(batch: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Split a batch into batches of one example and strip their padding."""
    for i, length in enumerate(batch["attention_mask"].sum(-1).tolist()):
        yield {
            key: tensor[i : i + 1, :length] if tensor.ndim == 2 else tensor[i : i + 1]
            for key, tensor in batch.items()
        }
