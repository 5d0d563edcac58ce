"""``lm_eval --model merged-multimodal``: a merge of models that also read images."""

from lm_eval.models.hf_vlms import HFMultimodalLM

from harness_adapters.lm_eval import MergedLM


class MergedMultimodalLM(MergedLM, HFMultimodalLM):
    """What ``--model hf-multimodal`` does, on merged weights."""
