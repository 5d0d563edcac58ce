"""Read LoRA adapters in PEFT's format: which weights they change, by what, and how strongly."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from merge_plugins.errors import CheckpointError
from merge_plugins.sources.patterns import Matcher, matchers
from merge_plugins.weights import StoredTensor
from merge_plugins.weights.files import adapter_files, read_json
from merge_plugins.weights.headers import read_header

FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<kind>lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))"
    r"(?:\.weight)?"
)
PREFIX = "base_model.model."
REFUSED = (
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias"),
    *("monteclora_config", "target_parameters", "use_bdlora", "use_qalora"),
)
"""PEFT settings under which the adapted weight is not W + s·B·A."""
PLAIN = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the model's own weights as they are."""
MERGE_FIRST = (
    "is more than a low-rank product. Merge the adapter into its model first "
    "(peft: merge_and_unload, save_pretrained) and name that folder."
)
"""What to do with an adapter, or a part of one, that is not W + s·B·A; after what it is."""


class Adapter:
    """Read a PEFT adapter: factors by module path, replaced weights by tensor name."""

    def __init__(self, path: Path) -> None:
        config, *weights = adapter_files(path)
        self.path, self.config = path, read_json(config)
        _refuse(path, self.config)
        self.factors: dict[str, dict[str, StoredTensor]] = {}
        self.replaced: dict[str, StoredTensor] = {}
        for key, tensor in (item for file in weights for item in read_header(file).items()):
            key = key.removeprefix(PREFIX).replace(".default", "")
            found = FACTOR.fullmatch(key)
            if found:
                self.factors.setdefault(found["module"], {})[found["kind"]] = tensor
            elif "lora_" in key or "trainable_tokens" in key:
                raise CheckpointError(f"{path}: {key} {MERGE_FIRST}")
            else:
                whole = key.replace(".modules_to_save", "").replace(".base_layer", "")
                self.replaced[whole] = tensor
        if not self.factors and not self.replaced:
            raise CheckpointError(f"{path}: the adapter holds no weights. Download it again.")

    def scale(self, module: str, rank: int) -> float:
        """Compute the scale s; the first pattern that matches the end of the path sets alpha."""
        fitting = (alpha for matches, alpha in self.alphas if matches(module))
        alpha = next(fitting, _alpha(self.path, self.config.get("lora_alpha", 8)))
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    @cached_property
    def alphas(self) -> list[tuple[Matcher, float]]:
        """The tests of ``alpha_pattern`` and the alpha of each."""
        given = self.config.get("alpha_pattern") or {}
        if not isinstance(given, dict):
            raise CheckpointError(f"{self.path}: alpha_pattern is a mapping, not {given!r}")
        try:
            found = matchers(given)
        except ValueError as exc:
            raise CheckpointError(
                f"{self.path}: alpha_pattern: {exc}. Name the modules, or merge the adapter into "
                "its model first (peft: merge_and_unload, save_pretrained) and name that folder."
            ) from exc
        return list(zip(found, (_alpha(self.path, a) for a in given.values()), strict=True))


def _alpha(path: Path, given: Any) -> float:
    """Check that an alpha of adapter_config.json is a number."""
    if isinstance(given, int | float) and not isinstance(given, bool):
        with suppress(OverflowError):
            if math.isfinite(given):
                return float(given)
    raise CheckpointError(f"{path}: alpha in adapter_config.json is a number, not {given!r}")


def _refuse(path: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise CheckpointError(f"{path}: an adapter of type {kind} {MERGE_FIRST}")
    for key in REFUSED:
        if config.get(key):
            raise CheckpointError(f"{path}: an adapter with {key} {MERGE_FIRST}")
    start = config.get("init_lora_weights", True)
    if start not in PLAIN:
        raise CheckpointError(
            f"{path}: init_lora_weights={start!r} also changed the model's own weights. Convert it "
            "(peft: save_pretrained with path_initial_model_for_weight_conversion) and name that."
        )
