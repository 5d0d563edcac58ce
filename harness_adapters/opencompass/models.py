"""Load merges in OpenCompass's model classes for Hugging Face models.

The stock constructor reads a folder with all of the merge but its weights, so context length,
tokenizer and stop words are those of a saved merge; the weights come from the recipe. Scores of a
text do not depend on the other texts of its batch.
"""

from __future__ import annotations

import inspect
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from opencompass.models import HuggingFaceBaseModel, HuggingFacewithChatTemplate
from opencompass.models.huggingface_above_v4_33 import _convert_base_messages
from torch.nn.functional import cross_entropy
from transformers import AutoConfig

from harness_adapters.opencompass.configs import (
    REFUSED,
    checked,
    refuse,
    refuse_routed,
    trusts,
)
from merge_plugins import identity
from merge_plugins.engine import open_merge
from merge_plugins.errors import RecipeError, did_you_mean
from merge_plugins.hf.versions import DTYPE
from merge_plugins.outputs.load import load_merged
from merge_plugins.outputs.model_files import copy_companions, write_configs
from merge_plugins.plugins import load_plugins
from merge_plugins.recipe import Recipe
from merge_plugins.recipe.dtypes import dtype_name

CONTEXT_LENGTH = ("max_position_embeddings", "seq_length", "model_max_length")
"""Keys of a config for the context length; the first one counts, as in OpenCompass."""


class MergedWithChatTemplate(HuggingFacewithChatTemplate):
    """``HuggingFacewithChatTemplate`` on a merge: chat models, generation only.

    ``recipe`` and ``digest`` are those of `harness_adapters.opencompass.merged_model`; everything
    else is the stock class's, except that remote code runs only with
    ``model_kwargs=dict(trust_remote_code=True)``.
    """

    def __init__(self, recipe: str, digest: str | None = None, **options: Any) -> None:
        self.recipe = accepted(recipe, digest, options)
        check_names(options, super().__init__, type(self))
        trusted = trusts(options)
        given = options.pop("tokenizer_kwargs", None) or {}
        with everything_but_weights(self.recipe) as folder:
            if options.get("max_seq_len") is None:
                options["max_seq_len"] = _context_length(folder, trusted)
            super().__init__(
                path=str(folder),
                tokenizer_kwargs={"trust_remote_code": trusted, **given},
                **options,
            )
        self.path = identity.label(self.recipe)

    def _load_tokenizer(self, *args: Any, **kwargs: Any) -> None:
        super()._load_tokenizer(*args, **kwargs)
        if not hasattr(self.tokenizer, "batch_encode_plus"):  # transformers 5, opencompass #2573
            self.tokenizer.batch_encode_plus = self.tokenizer.__call__

    def _load_model(self, path: str, kwargs: Mapping[str, Any], **_: Any) -> None:
        started = time.monotonic()
        arguments = {"device_map": "auto", **kwargs}
        given = [arguments.pop(name, None) for name in ("dtype", "torch_dtype")]
        names = {dtype_name(value, also=("auto",)) for value in given if value is not None} - {
            "auto"
        }
        if names:  # else the dtype of the merge
            arguments[DTYPE] = getattr(torch, names.pop())
        self.model = load_merged(self.recipe, **arguments)
        self.model.generation_config.do_sample = False
        seconds = time.monotonic() - started
        self.logger.info(
            f"merged {identity.label(self.recipe)} in {seconds:.1f} s, {self.model.dtype}"
        )


class MergedCausalLM(MergedWithChatTemplate, HuggingFaceBaseModel):
    """``HuggingFaceBaseModel`` on a merge: generation, perplexities and log-likelihoods.

    A text's perplexity is that of the text alone: rows are padded on the right. OpenCompass pads
    them on the left and then predicts each text's first token from padding, so its figures depend
    on the batch; ``legacy_left_padding=True`` reproduces them.
    """

    def __init__(self, *args: Any, legacy_left_padding: bool = False, **options: Any) -> None:
        self.legacy_left_padding = legacy_left_padding
        super().__init__(*args, **options)

    def get_ppl(self, inputs: list[str], mask_length: list[int] | None = None) -> Any:
        """Compute each text's summed cross entropy over its number of tokens: float32 [n].

        ``mask_length``: number of tokens at the start of each text that count in neither.
        """
        with self._padded("left" if self.legacy_left_padding else "right"):
            return super().get_ppl(inputs, mask_length)

    def get_ppl_tokenwise(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the stock class's figures, and restore the tokenizer's padding side."""
        with self._padded("right"):
            return super().get_ppl_tokenwise(*args, **kwargs)

    def get_loglikelihood(self, inputs: list[str], conts: list[str]) -> Any:
        """Compute the log-probability of each text's continuation given the rest: float64 [n].

        The continuation's tokens are those after the longest common prefix of the text's tokens
        and the tokens of the text without it. The stock class averages over other tokens.
        """
        texts: list[str] = _convert_base_messages(inputs)
        counts = [self._n_tokens(text, cont) for text, cont in zip(texts, conts, strict=True)]
        with self._padded("right"):
            rows = self.tokenizer(
                texts,
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=self.max_seq_len,
            ).to(self.model.device)
        logits = self.model(**rows)[0][:, :-1].float()
        labels = rows["input_ids"][:, 1:]
        losses = cross_entropy(logits.transpose(1, 2), labels, reduction="none").double()
        ends = (rows["attention_mask"].sum(-1) - 1).tolist()
        scores = [
            -losses[i, max(0, end - count) : end].sum().item()
            for i, (end, count) in enumerate(zip(ends, counts, strict=True))
        ]
        return np.array(scores)

    def _n_tokens(self, text: str, cont: str) -> int:
        """Count the tokens at the end of a text that belong to its continuation."""
        if not cont or not text.endswith(cont):
            raise RecipeError(
                f"a log-likelihood is of the end of a text: ...{text[-60:]!r} does not end with "
                f"{cont!r}, which column 'cont' of the data set says"
            )
        whole: Sequence[int] = self.tokenizer(text)["input_ids"]
        before: Sequence[int] = self.tokenizer(text[: -len(cont)])["input_ids"]
        pairs = zip(whole, before, strict=False)
        return len(whole) - next((i for i, (a, b) in enumerate(pairs) if a != b), len(before))

    @contextmanager
    def _padded(self, side: str) -> Iterator[None]:
        """Pad on one side, then restore the tokenizer's own: generation pads on the left."""
        tokenizer = self.tokenizer
        sides = tokenizer.padding_side, tokenizer.truncation_side
        tokenizer.padding_side = side
        try:
            yield
        finally:
            tokenizer.padding_side, tokenizer.truncation_side = sides


def accepted(recipe: str, digest: str | None, options: dict[str, Any]) -> Recipe:
    """Read and check the recipe of an entry; raises `MergeError` before any weight is read.

    Takes ``plugin`` out of the options, and loads it.
    """
    refuse(options)
    load_plugins(options.pop("plugin", ()))
    parsed = checked(recipe, digest, trusts(options))
    refuse_routed(parsed)
    return parsed


def check_names(options: Mapping[str, Any], stock: Any, ours: type) -> None:
    """Raise `RecipeError` for an unknown argument, which stock constructors only log."""
    named = (*inspect.signature(stock).parameters, *inspect.signature(ours).parameters)
    known = {*named} - {"args", "options", "other_kwargs", *REFUSED}
    for option in options.keys() - known:
        hint = did_you_mean(option, known)
        raise RecipeError(f"{ours.__name__} has no argument {option!r}{hint}")


@contextmanager
def everything_but_weights(recipe: Recipe) -> Iterator[Path]:
    """Write the config, tokenizer and generation config of a merge to a temporary folder."""
    plan = open_merge(recipe).plan
    with tempfile.TemporaryDirectory(prefix="merge-plugins-") as name:
        write_configs(recipe, plan.config, Path(name))
        copy_companions(plan, Path(name))
        yield Path(name)


def _context_length(folder: Path, trust_remote_code: bool) -> int:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    lengths = [getattr(config, name) for name in CONTEXT_LENGTH if hasattr(config, name)]
    if not lengths:
        raise RecipeError(f"max_seq_len= is needed: the config of {folder} does not say it")
    return int(lengths[0])
