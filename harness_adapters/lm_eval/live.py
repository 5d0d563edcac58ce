"""A model of lm-eval that becomes one merge after another, in the memory it has."""

from __future__ import annotations

import copy
from array import array
from collections.abc import Hashable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from transformers import PreTrainedModel

from harness_adapters.lm_eval.model import MergedLM
from merge_plugins.outputs.live import become
from merge_plugins.recipe import Recipe
from merge_plugins.sources.models import model_folder
from merge_plugins.tokenizer import tokenizer_folder


class LiveLM(MergedLM):
    """A `MergedLM` that outlives its merge: the next one is written over it.

    Texts are tokenised once: the same prompts come back with every merge.
    """

    @classmethod
    def of(cls, recipe: Recipe, options: Mapping[str, Any], progress: bool = True) -> LiveLM:
        """Build the model of a recipe, with arguments as of ``--model merged`` beside it.

        ``progress``: whether requests show lm-eval's progress bars.
        """
        lm = cls.__new__(cls)
        lm._tokenised = {}
        lm._shown = {} if progress else {"disable_tqdm": True}
        lm._build(recipe, dict(options))
        return lm

    _tokenised: dict[Hashable, Any]
    _shown: dict[str, Any]

    def become(self, recipe: Recipe) -> bool:
        """Turn into the merge of another recipe; False if only a new model can be that.

        After an error, or False, the model may be neither merge; drop it.
        """
        recipe = recipe.trusting(bool(self._options.get("trust_remote_code")))
        model, merging = self._model, self._merging
        if not isinstance(model, PreTrainedModel) or _files(recipe) != _files(self.recipe):
            return False
        config = copy.deepcopy(merging.config)
        if not become(model, recipe, merging.auto_class, merging.kwargs, config):
            return False
        self.recipe = merging.recipe = recipe
        self.batch_sizes: dict[int, int] = {}
        return True

    def loglikelihood(self, requests: list[Any], **options: Any) -> list[Any]:
        """Score requests, with a progress bar if one is wanted."""
        return super().loglikelihood(requests, **{**self._shown, **options})

    def loglikelihood_rolling(self, requests: list[Any], **options: Any) -> list[Any]:
        """Score texts, with a progress bar if one is wanted."""
        return super().loglikelihood_rolling(requests, **{**self._shown, **options})

    def generate_until(self, requests: list[Any], **options: Any) -> list[Any]:
        """Answer prompts, with a progress bar if one is wanted."""
        return super().generate_until(requests, **{**self._shown, **options})

    def _loglikelihood_tokens(self, requests: Any, **options: Any) -> list[Any]:
        return super()._loglikelihood_tokens(requests, **{**options, **self._shown})

    def tok_encode(self, string: str, *args: Any, **options: Any) -> list[int]:
        """Tokenise a text, or remember what came of it."""
        key = _key([string], args, options)
        if key not in self._tokenised:
            self._tokenised[key] = array("i", super().tok_encode(string, *args, **options))
        return list(self._tokenised[key])

    def tok_batch_encode(self, strings: list[str], *args: Any, **options: Any) -> Any:
        """Tokenise and pad a batch of texts, or remember what came of it."""
        key = _key(strings, args, options)
        if key not in self._tokenised:
            self._tokenised[key] = super().tok_batch_encode(strings, *args, **options)
        return tuple(rows.clone() for rows in self._tokenised[key])


def _key(texts: Sequence[str], args: tuple[Any, ...], options: Mapping[str, Any]) -> Hashable:
    """Return a key of texts that is shorter than they are: there may be many, and long ones."""
    hashed = blake2b(digest_size=16)
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        hashed.update(len(encoded).to_bytes(8, "little") + encoded)
    return hashed.digest(), args, tuple(sorted(options.items()))


def _files(recipe: Recipe) -> tuple[Hashable, ...]:
    """Return where a merge has its config and tokenizer from, which are read once for each."""
    return model_folder(recipe.donor), tokenizer_folder(recipe)
