"""Route requests in transformers' continuous batching, which packs many requests into one row.

Its manager runs in a thread of its own and starts requests as others end. A request is weighed when
it is added, in the thread that adds it; each of its tokens then has its weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import torch
import transformers
from torch import Tensor

from merge_plugins.errors import MergeError

ENDS = "cu_seq_lens_q"
"""Argument of a packed forward pass: where each request's tokens end, after a 0."""
CHILD = "__child#"
"""What the manager appends to the name of a request for its further samples."""

SETTINGS: Mapping[str, Any] = {
    "allow_block_sharing": False,  # keys and values of equal prefixes differ by the request
    "use_async_batching": False,
    "use_cuda_graph": False,  # a hook is no part of a graph
    "varlen_compile_config": None,
    "decode_compile_config": None,
    "default_compile_level": 0,
}
"""What routing needs, whatever the settings say."""


def settings_for_routing(config: Any) -> Any:
    """Return settings of continuous batching that go with routing; None: transformers' own.

    Raises `MergeError` if this transformers has no such settings.
    """
    default = getattr(transformers, "ContinuousBatchingConfig", None)
    if default is None:
        raise MergeError(
            f"transformers {transformers.__version__} batches continuously in a way that cannot be "
            "routed; upgrade to 5.24, or call generate, which takes a batch of any prompts"
        )
    given = default() if config is None else config
    known = {field.name for field in dataclasses.fields(given)}
    return dataclasses.replace(given, **{k: v for k, v in SETTINGS.items() if k in known})


class PackedRequests:
    """Weights of the requests of one manager."""

    def __init__(self, manager: Any, weigh: Callable[[Sequence[int], int], Tensor]) -> None:
        self.manager, self._weigh = manager, weigh
        self._weights: dict[str, Tensor] = {}
        self._n_added = 0
        self._add, manager.add_request = manager.add_request, self.add

    def begin(self) -> None:
        """Count requests anew: held weights of several go to them in order."""
        self._n_added = 0

    def add(
        self, input_ids: Sequence[int], request_id: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Weigh a request, then add it; in place of the manager's ``add_request``."""
        name = f"routed_{uuid4().hex}" if request_id is None else request_id
        self._weights[name] = self._weigh(input_ids, self._n_added)
        self._n_added += 1
        return self._add(input_ids, name, *args, **kwargs)

    def of_tokens(self, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the weights of each token of the current forward pass, and of each logit's."""
        states = self.manager.batch_processor.inputs_and_outputs.requests_in_batch
        names = [each.state.request_id.partition(CHILD)[0] for each in states]
        unknown = [name for name in names if name not in self._weights]
        if unknown:
            raise MergeError(f"requests that were not added to this model's manager: {unknown}")
        weights = torch.stack([self._weights[name] for name in names])
        tokens = weights.repeat_interleave(given[ENDS].diff().cpu(), dim=0)
        kept = given.get("logits_to_keep")
        return tokens, tokens if kept is None else tokens[kept.cpu()]
