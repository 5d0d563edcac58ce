"""The model class of ``lm_eval --model merged-classifiers``: a head answers each task of lm-eval.

lm-eval asks for the likelihood of each choice after a prompt. A classifier has no use for prompts:
it reads the raw row that they were made of, once, and each choice is one of its classes. A head
without classes answers with its number, as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lm_eval.api.model import LM
from torch import Tensor
from tqdm import tqdm

import merge_plugins
from harness_adapters.ending import end_with_the_message
from harness_adapters.lm_eval.arguments import without_label
from harness_adapters.lm_eval.classifiers import experts
from harness_adapters.lm_eval.classifiers.cache import Answers
from harness_adapters.lm_eval.classifiers.experts import Experts
from harness_adapters.lm_eval.classifiers.heads import Head, head_for, heads_of
from harness_adapters.lm_eval.classifiers.options import Options
from harness_adapters.lm_eval.classifiers.rows import Texts, logits, texts_of
from merge_plugins import identity
from merge_plugins.errors import RecipeError
from merge_plugins.outputs.classifiers import Classifiers
from merge_plugins.plugins import registry
from merge_plugins.recipe import Recipe, short_form


class MergedClassifiers(LM):
    """Score a merge of classifiers: one encoder, and for each task the head of its own model."""

    def __init__(self, **arguments: Any) -> None:
        end_with_the_message("lm_eval.__main__")
        self._build(*Recipe.split_model_args(without_label(arguments)))

    @classmethod
    def of(
        cls, recipe: Recipe, options: Mapping[str, Any], progress: bool = True
    ) -> MergedClassifiers:
        """Build the model of a recipe, with other arguments beside it.

        ``progress``: whether a bar shows how many rows are left.
        """
        lm = cls.__new__(cls)
        lm._build(recipe, options, progress)
        return lm

    @staticmethod
    def answers_depend_on(options: Mapping[str, Any]) -> dict[str, str]:
        """Select the arguments that may change a merge's answers, which no prompt does."""
        return {"model": "merged-classifiers", **Options.read(options).outputs_depend_on()}

    def _build(self, recipe: Recipe, options: Mapping[str, Any], progress: bool = True) -> None:
        super().__init__()
        words = {*short_form.KEYS, *registry().get(recipe.merge_method).spellings}
        self.options, self._progress = Options.read(options, words), progress
        self.recipe = recipe.trusting(self.options.trust_remote_code)
        self._heads = heads_of(self.recipe)
        self._models = self._loaded()
        self._device = torch.device(self.options.place)
        self._answers = Answers(None, {})

    def _loaded(self) -> Classifiers | Experts:
        given = self.options.for_loading
        trust = self.options.trust_remote_code
        kind = Experts if self.options.experts else Classifiers
        return kind(self.recipe, trust_remote_code=trust, **given)

    def become(self, recipe: Recipe) -> bool:
        """Turn into another merge, in the memory it has; False if only a new one can be that."""
        recipe = recipe.trusting(self.options.trust_remote_code)
        if not isinstance(self._models, Classifiers) or not self._models.become(recipe):
            return False
        self.recipe = recipe
        return True

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Build the model, and write the merge's name into the arguments that lm-eval records."""
        lm = super().create_from_arg_obj(arg_dict, *args, **kwargs)
        arg_dict["model"] = lm.label
        return lm

    @property
    def digest(self) -> str:
        """The digest of the merge, or of the experts that are scored in its place."""
        if self.options.experts:
            return experts.digest(self.recipe)
        return identity.digest(self.recipe)

    @property
    def label(self) -> str:
        """Name of what is scored, for tables and folders."""
        kind = "experts" if self.options.experts else self.recipe.merge_method
        return f"{kind}-{self.digest}"

    @property
    def tokenizer_name(self) -> str:
        """Key of lm-eval's cache of prompts, which no classifier reads."""
        return "none"

    def get_model_info(self) -> dict[str, Any]:
        """Return the recipe and the identity of each source, to be kept beside the scores."""
        digest, refs = self.digest, self.recipe.references
        return {
            "model_sha": digest,
            "merge": {
                "recipe": self.recipe.as_dict(),
                "digest": digest,
                "experts": self.options.experts,
                "sources": {str(ref): identity.model_identity(ref) for ref in refs},
                "merge_plugins": merge_plugins.__version__,
            },
        }

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Keep answers where lm-eval would, by merge, task and row."""
        super().set_cache_hook(cache_hook)
        content = {
            "merge_plugins": merge_plugins.__version__,
            "digest": self.digest,
            "options": self.options.outputs_depend_on(),
        }
        self._answers = Answers(cache_hook.dbdict, content)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Score each choice by the class that it is: log-probability, and whether it is first."""
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for head, places in self._by_head(requests).items():
            scores = self._scores(head, [requests[place] for place in places])
            own = torch.tensor([head.classes[requests[place].idx] for place in places])[:, None]
            likely = torch.log_softmax(scores, -1).gather(-1, own)[:, 0].tolist()
            is_first = (scores.argmax(-1) == own[:, 0]).tolist()
            for place, answer in zip(places, zip(likely, is_first, strict=True), strict=True):
                answers[place] = answer
        return answers

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer each row with its number."""
        answers = [""] * len(requests)
        for head, places in self._by_head(requests).items():
            scores = self._scores(head, [requests[place] for place in places])
            for place, number in zip(places, scores[:, 0].tolist(), strict=True):
                answers[place] = repr(number)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Raise `RecipeError`: a classifier knows no likelihood of texts."""
        raise RecipeError(f"{requests[0].task_name} scores texts, which no classifier does")

    def _by_head(self, requests: Sequence[Any]) -> dict[Head, list[int]]:
        """Group requests by the head that answers them, or raise `RecipeError`; lists of places."""
        places: dict[Head, list[int]] = {}
        for place, request in enumerate(requests):
            head = head_for(request.task_name, self._heads)
            head.check(request)
            places.setdefault(head, []).append(place)
        return places

    def _scores(self, head: Head, requests: Sequence[Any]) -> Tensor:
        """Compute the logits of the rows that requests were made of, each row once."""
        rows = [texts_of(request.doc, head.columns, head.task) for request in requests]
        places = {row: i for i, row in enumerate(dict.fromkeys(rows))}
        found = [self._answers.find(head.task, row) for row in places]
        new = [row for row, known in zip(places, found, strict=True) if known is None]
        for row, scores in zip(new, self._run(head.task, new), strict=True):
            found[places[row]] = scores
            self._answers.keep(head.task, row, scores)
        return torch.tensor(found)[[places[row] for row in rows]]

    def _run(self, task: str, rows: Sequence[Texts]) -> list[list[float]]:
        if not rows:
            return []
        model, tokenizer = self._models.for_task(task)
        with tqdm(total=len(rows), desc=task, disable=not self._progress) as bar:
            scores: list[list[float]] = logits(model, tokenizer, rows, self.options, bar).tolist()
        return scores
