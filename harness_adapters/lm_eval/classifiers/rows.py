"""Run a classifier on rows of texts, each once, in batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DataCollatorWithPadding

from harness_adapters.lm_eval.classifiers.options import AUTO, Options
from merge_plugins.calibration.batches import by_length
from merge_plugins.errors import DataError

TOKENS = {"cpu": 2048}
"""Most tokens of a batch, padding included, where its size is up to us; by type of device."""
TOKENS_ELSEWHERE = 1 << 15
Texts = tuple[str, ...]
"""One text or two."""


def texts_of(row: Mapping[str, Any], columns: Sequence[str], task: str) -> Texts:
    """Read the texts of a data set's row, or raise `DataError` for one that has no such columns."""
    missing = [column for column in columns if not isinstance(row.get(column), str)]
    if missing:
        raise DataError(
            f"{task}: a row has no text in {missing[0]!r}; it has {', '.join(row)}. Name its "
            f"columns in the recipe: task: {{name: {task}, columns: […]}}"
        )
    return tuple(row[column] for column in columns)


@torch.inference_mode()
def logits(
    model: Any, tokenizer: Any, rows: Sequence[Texts], options: Options, progress: Any
) -> Tensor:
    """Compute a model's logits of rows: float32 [rows, classes], on the CPU.

    ``progress`` is updated by each batch's number of rows.
    """
    longest = options.max_length or _longest(model, tokenizer)
    columns = [list(column) for column in zip(*rows, strict=True)]
    encoded = tokenizer(*columns, truncation=True, max_length=longest)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    found: Tensor | None = None
    pad = DataCollatorWithPadding(tokenizer)
    for batch in _batches(lengths, options, model.device):
        some = [{name: values[i] for name, values in encoded.items()} for i in batch]
        inputs: Any = pad(some)
        inputs = inputs.to(model.device)
        answers = model(**inputs).logits.float()
        if found is None:
            found = answers.new_empty(len(rows), answers.shape[-1])
        found[batch] = answers
        progress.update(len(batch))
    assert found is not None, "there are rows"
    return found.cpu()


def _batches(lengths: Sequence[int], options: Options, device: torch.device) -> Iterator[list[int]]:
    """Group rows by length into batches, lists of positions, of the size that is asked for."""
    if options.batch_size != AUTO:
        return by_length(lengths, None, int(options.batch_size))
    return by_length(lengths, TOKENS.get(device.type, TOKENS_ELSEWHERE), options.max_batch_size)


def _longest(model: Any, tokenizer: Any) -> int | None:
    """Find how many tokens a model can read; None, if any number."""
    tables = [
        module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings")
    ]
    said = getattr(model.config, "max_position_embeddings", None)
    limits = [*tables, tokenizer.model_max_length, *([said] if said else [])]
    return min((limit for limit in limits if 0 < limit < 1 << 30), default=None)
