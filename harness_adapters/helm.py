"""Merges among HELM's models: its own ``helm-run``, with ``model=merged/RECIPE`` in a run entry.

    helm-run --run-entries "mmlu:subject=anatomy,model=merged/merge.yaml" --suite mine -m 100

HELM imports this module, its entry point, and goes on with a warning if that fails. RECIPE is a
file or a folder, also one that ``merge-plugins mount`` wrote. HELM keeps answers by the name of the
model and results by that of the run; both end with the digest of the merge. The model is HELM's own
``HuggingFaceClient`` on a recipe folder.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from helm.benchmark.metrics.common_metric_specs import get_basic_metric_specs
from helm.benchmark.model_deployment_registry import (
    ClientSpec,
    ModelDeployment,
    model_deployment_generator,
)
from helm.benchmark.model_metadata_registry import (
    MODEL_NAME_TO_MODEL_METADATA,
    get_unknown_model_metadata,
    register_model_metadata,
)
from helm.benchmark.run_expander import RUN_EXPANDERS, ModelRunExpander
from helm.benchmark.run_spec import RunSpec, run_spec_function
from helm.benchmark.tokenizer_config_registry import (
    TokenizerConfig,
    TokenizerSpec,
    register_tokenizer_config,
)

from harness_adapters.ending import end_with_the_message
from merge_plugins.errors import RecipeError

HOST = "merged"
CNN = "summarization_cnndm_rouge"


class MergedModelRunExpander(ModelRunExpander):
    """Expand ``model=merged/RECIPE`` to the run of a merge; HELM expands any other model.

    The deployment keeps the name that was given, which ``--models-to-run`` looks for. The model has
    one with the digest: it names the run, and is the key of HELM's cache.
    """

    def expand(self, run_spec: RunSpec) -> list[RunSpec]:
        """Return the run specs of this model."""
        if not str(self.value).startswith(f"{HOST}/"):
            specs: list[RunSpec] = super().expand(run_spec)
            return specs
        deployment = deploy(self.value)
        named = self.replace_model_in_run_spec(deployment.model_name, run_spec)
        spec = replace(named.adapter_spec, model_deployment=deployment.name)
        return [replace(named, adapter_spec=spec)]


def deploy(given: str) -> ModelDeployment:
    """Describe the merge of ``merged/RECIPE`` to HELM, and register its name and tokenizer.

    Raises `MergeError` before any weight is read when the recipe does not fit its models.
    """
    from transformers import AutoConfig  # seconds, in every run of HELM that has no merge

    from harness_adapters.mounted import mounted

    end_with_the_message("helm.benchmark.run")
    merge = mounted(given.removeprefix(f"{HOST}/"))
    name = f"{HOST}/{merge.name}"
    config = AutoConfig.from_pretrained(merge.folder, trust_remote_code=True).get_text_config()
    length = getattr(config, "max_position_embeddings", None)
    if length is None:
        raise RecipeError(
            f"{given}: the config of the merge has no max_position_embeddings, which HELM needs; "
            "mount the recipe and write max_sequence_length into HELM's model_deployments.yaml"
        )
    where = {"pretrained_model_name_or_path": str(merge.folder), "trust_remote_code": True}
    _register(name, where)
    return ModelDeployment(
        name=given,
        model_name=name,
        tokenizer_name=name,
        max_sequence_length=length,
        client_spec=ClientSpec(
            "helm.clients.huggingface_client.HuggingFaceClient",
            {**where, "torch_dtype": "auto"},  # before transformers 5 the default is float32
        ),
    )


def _register(name: str, where: dict[str, Any]) -> None:
    """Register the name and the tokenizer of a merge with HELM, once."""
    from transformers import AutoTokenizer

    if name in MODEL_NAME_TO_MODEL_METADATA:
        return
    register_model_metadata(get_unknown_model_metadata(name))
    tokenizer = AutoTokenizer.from_pretrained(**where)
    register_tokenizer_config(
        TokenizerConfig(
            name=name,
            tokenizer_spec=TokenizerSpec(
                "helm.tokenizers.huggingface_tokenizer.HuggingFaceTokenizer", where
            ),
            end_of_text_token=tokenizer.eos_token or "",
            prefix_token=tokenizer.bos_token or "",
        )
    )


def cnn_dailymail() -> RunSpec:
    """Build HELM's ``summarization_cnndm`` with its ROUGE scores alone.

    The others need ``crfm-helm[summarization]``, a model of spaCy and three more downloads.
    """
    from helm.benchmark.run_specs.classic_run_specs import get_cnndm_summarization_spec

    return replace(
        get_cnndm_summarization_spec(),
        name=CNN,
        metric_specs=get_basic_metric_specs(["rouge_1", "rouge_2", "rouge_l"]),
    )


RUN_EXPANDERS[ModelRunExpander.name] = MergedModelRunExpander
model_deployment_generator(HOST)(deploy)
run_spec_function(CNN)(cnn_dailymail)
