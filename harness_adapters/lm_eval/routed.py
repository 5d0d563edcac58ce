"""Score requests with a routed merge: the router reads each prompt, never its continuation.

lm-eval calls its model on rows that join prompt and continuation, sorted, shared and padded. So
each request's expert weights are computed before that, and looked up by the tokens of its row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Tokens = tuple[int, ...]
Scored = tuple[Any, list[int], list[int]]
"""A request as lm-eval scores it: text (None for a window of a text), prompt, continuation."""


class RoutedRequests:
    """Route requests of `HFLM`, as a base class before it; merges without a router pass through."""

    _weights_of_row: dict[Tokens, Tensor] | None = None
    _task: str | None = None

    def loglikelihood(self, requests: list[Any], **options: Any) -> list[Any]:
        """Score each request with the expert weights of its prompt."""
        return self._by_task(super().loglikelihood, requests, options)  # type: ignore[misc]

    def loglikelihood_rolling(self, requests: list[Any], **options: Any) -> list[Any]:
        """Score each window of a text, which has no prompt, with the window's expert weights."""
        return self._by_task(super().loglikelihood_rolling, requests, options)  # type: ignore[misc]

    def generate_until(self, requests: list[Any], **options: Any) -> list[Any]:
        """Answer each prompt with its expert weights."""
        return self._by_task(super().generate_until, requests, options)  # type: ignore[misc]

    def _by_task(
        self, run: Callable[..., list[Any]], requests: list[Any], options: dict[str, Any]
    ) -> list[Any]:
        """Run the requests of one task at a time if the router weighs by task name."""
        routing = _routing(self)
        if routing is None or not routing.by_task:
            return run(requests, **options)
        places: dict[str, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            places[str(request.task_name)].append(place)
        answers: list[Any] = [None] * len(requests)
        for task, some in places.items():
            with self.model.routed(routing.weigh([()], task)[0]):  # type: ignore[attr-defined]
                scored = run([requests[place] for place in some], **options)
            for place, answer in zip(some, scored, strict=True):
                answers[place] = answer
        return answers

    def _loglikelihood_tokens(
        self, requests: Sequence[Scored], *args: Any, **options: Any
    ) -> list[Any]:
        score = super()._loglikelihood_tokens  # type: ignore[misc]
        routing = _routing(self)
        if routing is None or routing.by_task or self.backend != "causal":  # type: ignore[attr-defined]
            return score(requests, *args, **options)  # type: ignore[no-any-return]
        left = list(range(len(requests)))
        answers: list[Any] = [None] * len(requests)
        while left:  # once, unless rows of equal tokens have prompts of different length
            prompts: dict[Tokens, Tokens] = {}
            now: list[int] = []
            later: list[int] = []
            for i in left:
                (text, prompt, _), row = requests[i], self._row(requests[i])
                seen = row if text is None else tuple(prompt[-self.max_length :])  # type: ignore[attr-defined]
                (now if prompts.setdefault(_unpadded(row), seen) == seen else later).append(i)
            weights = routing.weigh(list(prompts.values()))
            self._weights_of_row = dict(zip(prompts, weights, strict=True))
            try:
                scored = score([requests[i] for i in now], *args, **options)
            finally:
                self._weights_of_row = None
            for i, answer in zip(now, scored, strict=True):
                answers[i] = answer
            left = later
        return answers

    def _model_call(self, inps: Tensor, *args: Any, **options: Any) -> Tensor:
        call = super()._model_call  # type: ignore[misc]
        weights = self._weights_of_row or {}
        rows = [_unpadded(row) for row in inps.tolist()] if weights else []
        if not rows or not all(row in weights for row in rows):  # lm-eval tries out a batch size
            return call(inps, *args, **options)  # type: ignore[no-any-return]
        with self.model.routed(torch.stack([weights[row] for row in rows])):  # type: ignore[attr-defined]
            return call(inps, *args, **options)  # type: ignore[no-any-return]

    def _row(self, request: Scored) -> Tokens:
        """Compute the model's input for a request: all tokens but the last, cut on the left."""
        _, prompt, continuation = request
        return (*prompt, *continuation)[-(self.max_length + 1) : -1]  # type: ignore[attr-defined]


def _routing(lm: Any) -> Any:
    """Return the router of a model; None if its merge is not routed."""
    return getattr(lm.model, "routing", None)


def _unpadded(row: Sequence[int]) -> Tokens:
    """Strip lm-eval's padding, zeros on the right. A prompt's own trailing zeros go with it."""
    end = len(row)
    while end and row[end - 1] == 0:
        end -= 1
    return tuple(row[:end])
