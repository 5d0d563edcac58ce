"""Replace a live engine's weights by another merge's, as a backend of vLLM's weight transfer.

    vllm serve DIR --load-format merged --weight-transfer-config '{"backend": "merged"}'

The recipe is announced first (``init_weight_transfer_engine``), which opens it and makes every
check that needs no weight, and only then do the weights move: ``start_weight_update``,
``update_weights``, ``finish_weight_update``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from harness_adapters.vllm.loader import MergedModelLoader, planned
from merge_plugins.errors import MergeError
from merge_plugins.planning import Plan
from merge_plugins.recipe import Recipe


@dataclass
class Announced(WeightTransferInitInfo):
    """The recipe to come, with absolute paths."""

    recipe: dict[str, Any]


@dataclass
class Update(WeightTransferUpdateInfo):
    """Nothing: the recipe has been announced."""


class Transfer(WeightTransferEngine[Announced, Update]):
    """Merge an announced recipe into the weights of one worker."""

    init_info_cls = Announced
    update_info_cls = Update
    supports_draft_weight_update = False  # a draft model is no merge

    _plan: Plan | None = None

    def init_transfer_engine(self, init_info: Announced) -> None:
        """Open the merge, or raise `MergeError` while the engine is as it was."""
        recipe = Recipe.from_mapping(init_info.recipe)
        recipe = recipe.trusting(bool(self.model_config.trust_remote_code))
        self._plan = planned(recipe, self.model_config)

    def start_weight_update(self) -> None:
        """Let vLLM take weights in the names and shapes of checkpoints again."""
        if self._plan is None:
            raise MergeError("no recipe was announced: call init_weight_transfer_engine first")
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Merge into the model, layer by layer."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():  # upstream's own synchronises, which no CPU can
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: Update) -> None:
        """Merge into the model, layer by layer."""
        plan, self._plan = self._plan, None
        assert plan is not None
        loader = MergedModelLoader(self.vllm_config.load_config)
        self.model.load_weights(loader.merged(plan))

    def finish_weight_update(self) -> None:
        """Let vLLM process what it processes after loading."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Close the files of a merge that never came."""
        self._plan = None
