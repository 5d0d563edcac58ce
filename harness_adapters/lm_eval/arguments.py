"""Check the arguments that ``--model merged`` takes beside the recipe."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PretrainedConfig
from transformers.quantizers.auto import AutoQuantizationConfig

from harness_adapters.options import check_adapter, check_device, check_file
from merge_plugins.errors import RecipeError, did_you_mean
from merge_plugins.recipe.dtypes import dtype_name

REFUSED: Mapping[str, str] = {
    "autogptq": "merge the full-precision models; quantise with load_in_4bit=True",
    "cache_dir": "set the environment variable HF_HOME, which every source obeys",
    "delta": "write it in the recipe, as a model {model: <base>, delta: <delta>}",
    "gguf_file": "name the safetensors version of the model",
    "gptqmodel": "merge the full-precision models; quantise with load_in_4bit=True",
    "state_dict": "the recipe says what the weights are",
    "subfolder": "name the folder itself as a model of the recipe",
    "token": "set the environment variable HF_TOKEN, which every source obeys",
    "variant": "name a folder whose weights have standard file names",
}
REFUSED_BY_VLLM: Mapping[str, str] = {
    "download_dir": "set the environment variable HF_HOME, which every source obeys",
    "hf_config_path": "the config is that of the recipe's donor",
    "hf_token": "set the environment variable HF_TOKEN, which every source obeys",
    "load_format": "the recipe says what the weights are",
    "model_loader_extra_config": "write the recipe as method=… or config=merge.yaml",
    "weight_transfer_config": "one engine becomes one merge after another by the one that is set",
}
FROM_PRETRAINED = {
    *("attn_implementation", "device_map", "device_mesh", "distributed_config", "dtype"),
    *("experts_implementation", "generation_config", "ignore_mismatched_sizes", "kernel_config"),
    *("low_cpu_mem_usage", "max_memory", "offload_buffers", "offload_folder"),
    *("offload_state_dict", "quantization_config", "torch_dtype", "tp_plan", "tp_size"),
    *("trust_remote_code", "use_kernels"),
}
"""Arguments of ``PreTrainedModel.from_pretrained`` that also apply to a merge."""
QUANTIZATION = set(inspect.signature(BitsAndBytesConfig).parameters) - {"kwargs"}
SAME_OUTPUTS = {
    *("batch_size", "device", "device_map", "logits_cache", "low_cpu_mem_usage", "max_batch_size"),
    *("max_cpu_memory", "max_memory", "max_memory_per_gpu", "offload_buffers", "offload_folder"),
    *("offload_state_dict", "parallelize", "tp_plan", "tp_size"),
}
"""Arguments on devices, memory and speed; two runs that differ in them may share a cache."""
SAME_OUTPUTS_OF_VLLM = {
    *("batch_size", "cpu_offload_gb", "data_parallel_size", "device", "disable_log_stats"),
    *("distributed_executor_backend", "enable_chunked_prefill", "enable_prefix_caching"),
    *("enforce_eager", "gpu_memory_utilization", "kv_cache_memory_bytes", "max_batch_size"),
    *("max_num_batched_tokens", "max_num_seqs", "pipeline_parallel_size", "swap_space"),
    "tensor_parallel_size",
}
LABEL = re.compile(r"\w+-[0-9a-f]{12}")
"""A merge's name in tables, `identity.label`: its method and digest."""
FILES = ("lora_local_path", "peft", "steer_path")
"""Arguments that name local files; outputs depend on the files' content, not on their paths."""


def without_label(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the label that we write as ``model`` into the arguments that lm-eval records.

    Recorded arguments can be run again; any other ``model=`` is left to be refused.
    """
    label = LABEL.fullmatch(str(arguments.get("model")))
    return {key: value for key, value in arguments.items() if key != "model" or not label}


def refuse(options: dict[str, Any], refused: Mapping[str, str] = REFUSED) -> None:
    """Raise `RecipeError` for an argument that no merge supports; drop it if it is falsy.

    ``refused``: such arguments, and what to do instead.
    """
    for name in refused.keys() & options.keys():
        if options.pop(name):
            raise RecipeError(f"{name}= does not go with a merge: {refused[name]}.")


def check_values(options: Mapping[str, Any]) -> None:
    """Raise `MergeError` for a value that would stop lm-eval once the weights are merged."""
    given = {name: value for name, value in options.items() if value not in (None, "None", "")}
    for name in ("dtype", "torch_dtype"):
        if name in given and not isinstance(getattr(torch, str(given[name]), None), torch.dtype):
            dtype_name(given[name], name, also=("auto",))
    if not options.get("parallelize"):
        check_device(given.get("device", "cpu"))
    if "peft" in given:
        check_adapter(given["peft"])
    if "steer_path" in given:
        check_file(given["steer_path"], "steer_path")


def refuse_routed(options: Mapping[str, Any], method: str) -> None:
    """Raise `RecipeError` for an argument that merges with per-request weights do not support."""
    for name in ("peft", "steer_path", *QUANTIZATION):
        if options.get(name):
            raise RecipeError(f"{name}= does not go with {method} yet; leave it out.")


def check_names(
    options: Mapping[str, Any], lm_class: type, config: PretrainedConfig, recipe_words: Set[str]
) -> None:
    """Raise `RecipeError` for an unknown argument, before a model's constructor fails on it."""
    known = {*_defaults(lm_class), *FROM_PRETRAINED, *QUANTIZATION, *config.to_dict()}
    known |= {name for name in options if _is_key(config, name)}
    refuse_unknown("merged", options, known, recipe_words)


def refuse_unknown(
    model: str, options: Mapping[str, Any], known: Set[str], recipe_words: Set[str]
) -> None:
    """Raise `RecipeError` for an argument that is neither known nor a word of the recipe."""
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known | recipe_words) or "."
            raise RecipeError(
                f"--model {model} has no argument {name!r}{hint} "
                "'merge-plugins show METHOD' lists a method's parameters."
            )


def refuse_unknown_to_vllm(
    options: Mapping[str, Any], lm_class: type, engine: Set[str], recipe_words: Set[str]
) -> None:
    """Raise `RecipeError` for an argument that neither lm-eval's class nor an engine takes."""
    known = {*_defaults(lm_class), *engine, *SAME_OUTPUTS_OF_VLLM}
    refuse_unknown("merged-vllm", options, known, recipe_words)


def take_quantization(options: dict[str, Any]) -> Any:
    """Remove quantisation arguments from ``options``; return a transformers config for them."""
    names = [name for name in options if name in QUANTIZATION]
    bits = {name: options.pop(name) for name in names}
    given = options.pop("quantization_config", None)
    if given is not None and bits:
        raise RecipeError(f"{names[0]}= and quantization_config= both given; keep one.")
    if isinstance(given, Mapping):
        return AutoQuantizationConfig.from_dict(dict(given))
    if given is None and (bits.get("load_in_4bit") or bits.get("load_in_8bit")):
        return BitsAndBytesConfig(**bits)  # type: ignore[no-untyped-call]
    return given


def config_overrides(kwargs: Mapping[str, Any], config: PretrainedConfig) -> list[str]:
    """List the arguments that ``from_pretrained`` would write into the model's config."""
    return [name for name in kwargs if name not in FROM_PRETRAINED and _is_key(config, name)]


def _is_key(config: PretrainedConfig, name: str) -> bool:
    """Whether a config has a key of that name, maybe one of its other names; no method of it."""
    return hasattr(config, name) and not callable(getattr(config, name))


def outputs_depend_on(
    options: Mapping[str, Any], lm_class: type, same: Set[str] = SAME_OUTPUTS
) -> dict[str, str]:
    """Select the arguments that may change a merge's answers: name to value or file hash.

    ``same``: those that do not.
    """
    defaults = _defaults(lm_class)
    return {
        name: _content(value) if name in FILES else str(value).removeprefix("torch.")
        for name, value in options.items()
        if name not in {*same, "tokenizer"}  # its content is a key already
        and (name not in defaults or value != defaults[name])
    }


def _defaults(lm_class: type) -> dict[str, Any]:
    """List every argument that a class's constructors name, with its default."""
    named: dict[str, inspect.Parameter] = {}
    for ancestor in reversed(lm_class.__mro__[:-1]):
        named |= inspect.signature(vars(ancestor).get("__init__", object)).parameters
    skipped = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name: p.default for name, p in named.items() if p.kind not in skipped}


def _content(ref: str) -> str:
    files = [Path(ref)] if Path(ref).is_file() else sorted(Path(ref).glob("*"))
    parts = [file.name.encode() + file.read_bytes() for file in files if file.is_file()]
    return hashlib.sha256(b"".join(parts)).hexdigest() if parts else ref
