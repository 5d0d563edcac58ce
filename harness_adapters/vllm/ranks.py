"""Find which ranks of an engine hold shares of the same weights, and on which device."""

from __future__ import annotations

import torch
from vllm.config import get_current_vllm_config_or_none
from vllm.config.load import LoadConfig
from vllm.distributed import parallel_state
from vllm.model_executor.model_loader.ep_weight_filter import parse_expert_id

from merge_plugins.outputs.ranks import in_group
from merge_plugins.ranks import Ranks


def sharing_ranks() -> Ranks | None:
    """Return the tensor-parallel ranks; None if there is one, or layers are spread over ranks.

    Ranks that hold some layers measure only those, each alone.
    """
    if not parallel_state.model_parallel_is_initialized():
        return None
    if parallel_state.get_pp_group().world_size > 1:
        return None
    return in_group(parallel_state.get_tp_group().cpu_group)


def all_hold(name: str) -> bool:
    """Whether each tensor-parallel rank holds a share of a weight: not of experts that are spread.

    Unless vLLM says otherwise, experts are taken to be spread.
    """
    config = get_current_vllm_config_or_none()
    if config is not None and not config.parallel_config.enable_expert_parallel:
        return True
    return parse_expert_id(name) is None


def loaded_to(load_config: LoadConfig) -> torch.device:
    """Return the device that weights are loaded onto; most are merged there."""
    config = get_current_vllm_config_or_none()
    device = load_config.device or (config and config.device_config.device)
    return torch.device(device or "cpu")
