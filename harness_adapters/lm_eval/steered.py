"""``lm_eval --model merged-steered``: steering vectors on top of a merge; takes ``steer_path=``."""

from lm_eval.models.hf_steered import SteeredModel

from harness_adapters.lm_eval.model import MergedLM


class MergedSteeredLM(MergedLM, SteeredModel):
    """Steer a merge as ``--model steered`` steers a checkpoint."""
