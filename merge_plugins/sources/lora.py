"""Add LoRA adapters in PEFT's format to a model's weights while these are read.

Hu et al. 2021, section 4.1: W + s·B·A, with s = alpha/r, or alpha/sqrt(r) for rank-stabilised LoRA
(Kalajdzievski 2023). Weight-decomposed adapters (DoRA, Liu et al. 2024, eq. 5) scale each row of
that to a learnt norm. The sum is kept in float32; rounded to W's dtype it is what PEFT's
merge_and_unload saves. The factors stay separate: a full weight is computed only for methods that
need one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge_plugins.api import LowRank, Region
from merge_plugins.errors import CheckpointError, MismatchError
from merge_plugins.recipe import Lora
from merge_plugins.sources.models import ComputedCheckpoint, Source
from merge_plugins.sources.patterns import Matcher, matchers
from merge_plugins.tokenizer.vocabulary import vocabulary_size, with_vocabulary_size
from merge_plugins.weights import ComputedTensor, SourceTensor, StoredTensor
from merge_plugins.weights.files import adapter_files, read_json
from merge_plugins.weights.headers import read_header
from merge_plugins.weights.spelling import only_match

PANEL = 64
"""Rows of B·A per multiplication, on a fixed grid: bits do not depend on the region read."""
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


@dataclass(frozen=True)
class Update:
    """Change one weight: add a low-rank product of its shape, and rescale rows for DoRA."""

    added: LowRank
    magnitude: Tensor | None = None
    """Norm of every row of the result, [rows], for DoRA; None for LoRA."""


def with_adapter(ref: Lora, model: Source, adapter: Path) -> ComputedCheckpoint:
    """Add a LoRA adapter's updates to an opened model."""
    tensors = Adapter(adapter).added_to(model)
    return ComputedCheckpoint(ref, model.path, _resized(model, tensors), tensors)


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

    def added_to(self, model: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
        """Apply the adapter to a model's weights lazily; keeps the model's order."""
        tensors = dict(model)
        for name, tensor in self.replaced.items():
            whole = _stored_name(name, model, self.path, optional=True)
            own = model.get(whole)
            if own is not None and len(own.shape) != len(tensor.shape):
                raise _misfit(self.path, name, tensor.shape, own)
            tensors[whole] = tensor
        updated = {f"{module}.weight": factors for module, factors in self.factors.items()}
        names = {name: _stored_name(name, model, self.path) for name in updated}
        flag = bool(self.config.get("fan_in_fan_out")) or any(
            _is_transposed(factors, tensors[names[name]]) for name, factors in updated.items()
        )
        for name, factors in updated.items():
            weight = tensors[names[name]]
            update = self._update(name.removesuffix(".weight"), factors, weight, flag)
            tensors[names[name]] = _added(weight, update, tuple(factors.values()))
        return tensors

    def _update(
        self, module: str, factors: Mapping[str, StoredTensor], weight: SourceTensor, flag: bool
    ) -> Update:
        kind = "embedding_" if "lora_embedding_A" in factors else ""
        try:
            a, b = factors[f"lora_{kind}A"].view(), factors[f"lora_{kind}B"].view()
        except KeyError as exc:
            raise CheckpointError(
                f"{self.path}: {module} has no {exc}. Download it again."
            ) from exc
        if a.ndim != 2 or b.ndim != 2 or len(weight.shape) != 2:
            raise CheckpointError(f"{self.path}: {module} is no linear layer: it {MERGE_FIRST}")
        if not len(a):
            raise CheckpointError(f"{self.path}: {module} has rank 0. Leave out this adapter.")
        scale = self._scale(module, len(a))
        magnitude = factors.get("lora_magnitude_vector")
        turned = (a.shape[1], b.shape[0]) == weight.shape
        if kind or (turned and (weight.shape[0] != weight.shape[1] or flag)):
            if magnitude is not None:
                raise CheckpointError(
                    f"{self.path}: DoRA of {module}, which is stored transposed, {MERGE_FIRST}"
                )
            update = Update(LowRank(a.T, b.T, scale))
        else:
            norms = None if magnitude is None else magnitude.view().reshape(-1)
            update = Update(LowRank(b, a, scale), norms)
        up, down = update.added.up, update.added.down
        shape = (up.shape[0], down.shape[1])
        n_norms = len(up) if update.magnitude is None else len(update.magnitude)
        if shape != weight.shape or up.shape[1] != down.shape[0] or n_norms != len(up):
            raise _misfit(self.path, module, shape, weight)
        return update

    def _scale(self, module: str, rank: int) -> float:
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


MERGE_FIRST = (
    "is more than a low-rank product. Merge the adapter into its model first "
    "(peft: merge_and_unload, save_pretrained) and name that folder."
)


def _misfit(path: Path, name: str, shape: Sequence[int], weight: SourceTensor) -> MismatchError:
    """Build the error for a change of another shape than the weight it changes."""
    return MismatchError(
        f"{path}: the adapter's {name} is {list(shape)}, {weight.name} is {list(weight.shape)} in "
        f"{weight.file.parent}. Is it an adapter of this model?"
    )


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


def _stored_name(
    wanted: str, model: Mapping[str, SourceTensor], path: Path, *, optional: bool = False
) -> str:
    """Find the checkpoint name of a weight that an adapter names; prefixes may differ."""
    name = only_match(wanted, model)
    if name is not None:
        return name
    if optional:
        return wanted
    raise MismatchError(
        f"{path}: the adapter changes {wanted}, which the model has not; its weights look like "
        f"{next(iter(model), None)!r}. Is it an adapter of this model?"
    )


def _is_transposed(factors: Mapping[str, StoredTensor], weight: SourceTensor) -> bool:
    """Whether the shapes prove that a weight is stored (in, out), as GPT-2's Conv1D is."""
    a, b = factors.get("lora_A"), factors.get("lora_B")
    if a is None or b is None:
        return False
    turned = (*a.shape[1:], *b.shape[:1])
    return turned == weight.shape and turned[0] != turned[-1]


def _added(
    weight: SourceTensor, update: Update, factors: tuple[SourceTensor, ...]
) -> ComputedTensor:
    n_rows, n_columns = weight.shape

    def compute(region: Region) -> Tensor:
        (start, stop), (left, right) = region.bounds
        for factor in factors:
            factor.view()  # refuses a file that was cut off: `update` holds views of it
        made = torch.empty(region.sizes, dtype=torch.float32)
        a = update.added.down.float().contiguous()
        for top in range(start - start % PANEL, stop, PANEL):
            bottom = min(top + PANEL, n_rows)
            first, last = max(start, top), min(stop, bottom)
            b = update.added.up[top:bottom].float().contiguous()
            delta = (b @ a).mul_(update.added.scale)[first - top : last - top]
            if update.magnitude is None:
                own = weight.read(Region(weight.shape, ((first, last), (left, right))))
                made[first - start : last - start] = own + delta[:, left:right]
                continue
            own = weight.read(Region(weight.shape, ((first, last), (0, n_columns))))
            whole = own.float() + delta
            norm = torch.linalg.vector_norm(whole, dim=1)
            whole *= (update.magnitude[first:last].float() / norm)[:, None]
            made[first - start : last - start] = whole[:, left:right]
        return made

    made = ComputedTensor(
        weight.name, weight.file, weight.dtype, weight.shape, (weight, *factors), compute
    )
    if update.magnitude is None:
        made.factors = update.added
    return made


def _resized(model: Source, tensors: Mapping[str, SourceTensor]) -> Mapping[str, Any]:
    """Update a config's vocabulary size if the adapter replaced an embedding."""
    rows = vocabulary_size(model.config)
    grown = {
        tensors[name].shape[0]
        for name, tensor in model.items()
        if tensor.shape[:1] == (rows,) and tensors[name].shape != tensor.shape
    }
    return with_vocabulary_size(model.config, grown.pop()) if len(grown) == 1 else model.config
