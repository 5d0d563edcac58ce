"""Does this kind of engine hold the right weights after a swap? Asked once, and remembered.

vLLM's reload of a live model is wrong for some layers on some devices, and silently: packed or tied
copies of a weight keep what they were loaded with. So the first swap of each kind of engine is to a
probe, the merge that it was started with but every weight halved, so that any layer that is stale
shows. Its log-probabilities are compared with those of transformers, which loads the probe by
itself. How far the two programs are apart anyway is measured on the merge before the swap.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import merge_plugins
from harness_adapters.vllm.engines import Engine, Prompts
from merge_plugins.folders import cache_folder, write_whole
from merge_plugins.outputs.load import load_merged
from merge_plugins.recipe import Recipe

N_PROMPTS, LENGTH = 4, 24
FLOOR = 1e-4
"""A distance, mean over tokens of log-probabilities, that needs no explanation."""
APART = 10.0
"""The probe must be this many times as far from the merge as is allowed after a swap."""
OF_THE_ENGINE = {
    "quantization": "model_config.quantization",
    "dtype": "model_config.dtype",
    "eager": "model_config.enforce_eager",
    "tensor parallel": "parallel_config.tensor_parallel_size",
    "pipeline parallel": "parallel_config.pipeline_parallel_size",
    "data parallel": "parallel_config.data_parallel_size",
    "expert parallel": "parallel_config.enable_expert_parallel",
    "backend": "weight_transfer_config.backend",
}
"""Settings of vLLM on which it depends how weights are replaced."""
NAMES_ONLY = ("_name_or_path", "auto_map", "merge_plugins", "transformers_version")
"""Keys of a config.json that change nothing of a model."""


def setting(config: Any, path: str) -> Any:
    """Look up a setting of vLLM, in its own objects or in JSON; None if it has no such."""
    for name in path.split("."):
        config = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    return config


def kind(engine: Engine, layers: Mapping[str, Any]) -> dict[str, str]:
    """Describe a kind of engine: release, device, model and parallelism.

    ``layers``: what the model's config.json holds.
    """
    found = {name: str(setting(engine.config, path)) for name, path in OF_THE_ENGINE.items()}
    return {
        "vllm": engine.release,
        "place": engine.place,
        "merge_plugins": merge_plugins.__version__,
        "layers": json.dumps(layers, sort_keys=True, default=str),
        "lora": str(setting(engine.config, "lora_config") is not None),
        **found,
    }


@dataclass(frozen=True)
class Verdict:
    """How far a swapped engine was from the right log-probabilities: means over tokens."""

    noise: float
    """Between vLLM and transformers, on the merge that the engine was started with."""
    swapped: float
    """Between the two, on the probe, after the swap."""
    apart: float
    """Between the merge and the probe, in transformers."""

    @property
    def allowed(self) -> float:
        """The largest distance after a swap that is taken for right.

        Halved weights make logits, and so their rounding errors, smaller.
        """
        return max(FLOOR, self.noise)

    @property
    def is_right(self) -> bool:
        """Whether the swap was right, beyond doubt; False for what is not a number."""
        return self.swapped <= self.allowed and self.allowed * APART <= self.apart

    def __str__(self) -> str:
        return (
            f"after a swap its log-probabilities were {self.swapped:.2g} per token from those of "
            f"transformers, where {self.allowed:.2g} is allowed; before and after are "
            f"{self.apart:.2g} apart"
        )


def remembered(described: Mapping[str, str]) -> Verdict | None:
    """Return the verdict on a kind of engine, if there is one."""
    try:
        return Verdict(**json.loads(_file(described).read_text(encoding="utf-8"))["verdict"])
    except (OSError, ValueError, TypeError, KeyError):  # never asked, or cut off: ask again
        return None


def remember(described: Mapping[str, str], verdict: Verdict) -> None:
    """Keep the verdict on a kind of engine."""
    content = {"kind": dict(described), "verdict": asdict(verdict)}
    write_whole(_file(described), json.dumps(content, indent=2) + "\n")


def _file(described: Mapping[str, str]) -> Path:
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "swaps" / f"{key[:32]}.json"


def probe(recipe: Recipe) -> Recipe:
    """Return a merge of the same shape and far away: every weight halved, which rounds nothing."""
    models = [{"model": recipe.as_dict(), "parameters": {"weight": 0.5}}]
    halved = {"merge_method": "linear", "models": models, "parameters": {"normalize": False}}
    return Recipe.from_mapping(halved)


def prompts(vocabulary: int, longest: int) -> Prompts:
    """Draw the canary's prompts, the same each time: tokens at random, which need no tokenizer."""
    draw = random.Random(0)
    length = min(LENGTH, longest - 1)
    return [[draw.randrange(vocabulary) for _ in range(length)] for _ in range(N_PROMPTS)]


def expected(recipe: Recipe, asked: Prompts, dtype: torch.dtype) -> list[list[float]]:
    """Score each token of each prompt but the first with transformers, on the CPU."""
    model = load_merged(recipe, dtype=dtype)
    tokens = torch.tensor(asked)
    with torch.inference_mode():
        scores = model(input_ids=tokens).logits.float().log_softmax(-1)
    found: list[list[float]] = scores[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0].tolist()
    return found


def distance(one: list[list[float]], other: list[list[float]]) -> float:
    """Compute the mean absolute difference of log-probabilities."""
    pairs = [abs(x - y) for a, b in zip(one, other, strict=True) for x, y in zip(a, b, strict=True)]
    return math.fsum(pairs) / len(pairs)
