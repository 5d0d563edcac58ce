"""Every registered method with the settings it is tried with, and what it is tried on."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import in_memory
import pytest
import torch
from families import drift, seeded, word_tokenizer
from torch import Tensor

from merge_plugins import Slot
from merge_plugins.api import Example, Prepares, Weight
from merge_plugins.calibration.batches import batches
from merge_plugins.engine import Merge
from merge_plugins.plugins import Method, registry
from merge_plugins.recipe import Data

REQUIRED = {"weight": 0.5, "t": 0.375}
"""Values for parameters without a default, by name."""
ALWAYS: dict[str, dict[str, Any]] = {
    "adamerging": {"steps": 3, "learning_rate": 0.01},
    "emr": {"tasks": "any"},
    "wudi": {"steps": 30},
}
"""What a method is run with in place of a default that takes too long here, or is not enough."""
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "linear": [{"weight": (1.0, 0.25, 0.5)}, {"normalize": False}],
    "passthrough": [{"scale": 0.5}],
    "task_arithmetic": [{"weight": (1.0, 0.25, 0.5), "lambda": 0.5}, {"normalize": True}],
    "ties": [
        {"density": (0.25, 0.5, 1.0)},
        {"density": 0.4, "normalize": False, "rescale": "l1"},
        {"density": (0.0, 0.5, 0.4), "rescale": "inverse_keep"},
    ],
    "dare_linear": [
        *({"density": (0.25, 0.5, 0.9), "rescale": rescale} for rescale in ("l1", "none")),
        {"density": 0.5, "rescale": "inverse_keep", "normalize": True},
    ],
    "dare_ties": [{"density": (0.25, 0.5, 0.9)}, {"density": 0.5, "rescale": "inverse_keep"}],
    "della": [
        {"density": (0.3, 0.5, 1.0)},
        {"drop_rate": (0.3, 0.5, 0.7), "window_size": 0.14},
    ],
    "della_linear": [
        {"density": 0.5, "epsilon": 0.1, "rescale": "inverse_keep"},
        {"drop_rate": 0.5, "window_size": 0.2, "rescale": "none", "normalize": True},
    ],
    "della_norank": [{"density": 0.6, "window_size": 0.3}, {"drop_rate": 0.4, "rescale": "l1"}],
    "della_layer_norm": [{"density": 0.6, "window_size": 0.3}],
    "ties_noelect": [{"density": 0.4}],
    "ties_row": [{"density": (0.0, 0.4, 1.0)}, {"density": 0.4, "rescale": "l1"}],
    "dare_noelect": [{"density": 0.4}],
    "dare_della": [{"density": 0.4, "rescale": "l1"}],
    "breadcrumbs": [
        {"density": (0.25, 0.5, 0.9), "gamma": 0.05},
        {"density": (0.0, 0.5, 0.9), "gamma": 0.2, "rescale": "inverse_keep"},
        {"density": 0.5, "rescale": "l1"},
    ],
    "breadcrumbs_ties": [{"density": (0.25, 0.5, 0.9), "gamma": 0.05, "normalize": True}],
    "nuslerp": [
        {"weight": (0.25, 0.5, 0.0)},
        *({"nuslerp_flatten": False, "nuslerp_row_wise": rows} for rows in (False, True)),
    ],
    "multislerp": [{"weight": (1.0, 0.25, 0.5)}, {"normalize_weights": False, "eps": 1e-6}],
    "karcher": [{"max_iter": 2, "tol": 1e-9}],
    "sce": [{"select_topk": 0.4}, {"select_topk": 0.0}],
    "ram": [{"epsilon": 0.5}],
    "ramplus_tl": [{"epsilon": 0.5, "r": 0.5, "alpha": 2.0}],
    "nearswap": [{"t": 0.01}],
    "model_stock": [{"filter_wise": True}],
    "slerp_merging": [{"slerp_t": 0.25}, {"dot_threshold": 0.01}],
    "ties_merging": [
        {"param_value_mask_rate": 0.5, "scaling_coefficient": 0.5},
        {"param_value_mask_rate": 0.5, "trim_scope": "model"},
    ],
    "stock_merging": [{"clamp": False}],
    "fisher_merging": [
        {"fisher_scaling_coefficients": (0.5, 1.0, 0.0)},
        {"normalize_fisher_weight": True, "fisher": "mergelm"},
    ],
    "regmean_merging": [{"reduce_non_diagonal_ratio": 0.5}],
    "breadcrumbs_merging": [
        {"param_density": 0.5, "param_value_mask_rate": 0.3, "scaling_coefficient": 0.5},
        {"param_density": 0.0, "param_value_mask_rate": 0.0},
    ],
    "widen_merging": [
        {"above_average_value_ratio": 0.5, "score_calibration_value": 0.75},
        {"above_average_value_ratio": 2.0, "zero_columns": "last"},
    ],
    "twin_merging": [
        {"router": "fixed", "scaling_coefficient": 0.5},
        {"shared_method": "average_merging", "router": "fixed"},
        {"shared_method": "ties_merging", "param_value_mask_rate": 0.5, "router": "fixed"},
        {"shared_method": "ties_merging", "trim_scope": "model", "router": "fixed"},
    ],
    "tsv": [{"lambda": 0.5}],
    "iso_cts": [{"common_space_fraction": 0.5}, {"common_space_fraction": 0.0}],
    "consensus": [{"mask_lambda": (0.2, 0.4, 0.6), "threshold": 1}, {"threshold": 3}],
    "pcb": [{"density": 0.5, "scope": "tensor"}, {"density": 1.0}],
    "emr": [{"router": "fixed"}],
    "adamerging": [{"mode": "task_wise"}],
    "wudi": [{"learning_rate": 1e-3, "lambda": 0.5}],
    "mask_merging": [
        {"weight_mask_rate": 0.5, "use_weight_rescale": True},
        {"weight_mask_rate": (0.25, 0.5, 0.0), "mask_strategy": "magnitude"},
        *(
            {"weight_mask_rate": 0.5, "mask_apply_method": inner}
            for inner in (
                *("task_arithmetic", "slerp_merging", "stock_merging"),
                *("breadcrumbs_merging", "ties_merging", "widen_merging"),
            )
        ),
        {
            "weight_mask_rate": 0.25,
            "mask_apply_method": "ties_merging",
            "trim_scope": "model",
            "mask_strategy": "magnitude",
        },
        {"weight_mask_rate": 0.5, "weight_format": "finetuned_weight"},
    ],
}
"""What each method is run with besides its defaults."""
SCALES = ("lambda", "scaling_coefficient")


@dataclasses.dataclass(frozen=True)
class Case:
    """A method with parameters, as a recipe could set them."""

    method: Method
    parameters: Mapping[str, Any]
    on_base: bool = False
    """Whether there is a base for a method that need not have one."""

    @property
    def has_base(self) -> bool:
        return self.method.needs_base or self.on_base

    @property
    def n_experts(self) -> int:
        most = 2 if self.inner == "slerp_merging" else self.method.max_experts or 3
        return max(self.method.min_experts, min(3, most))

    @property
    def inner(self) -> str:
        """The method that does the merging."""
        if self.method.name == "twin_merging":
            return str(self.parameters.get("shared_method", "task_arithmetic"))
        if self.method.name != "mask_merging":
            return self.method.name
        return str(self.parameters.get("mask_apply_method", "average_merging"))

    @property
    def is_random(self) -> bool:
        if self.method.name == "mask_merging":
            return self.parameters.get("mask_strategy") != "magnitude"
        drops = {"density", "drop_rate"} & self.parameters.keys()
        return self.method.name.startswith(("dare_", "della")) and bool(drops)

    @property
    def factor(self) -> str | None:
        """The parameter that scales what is added to the base, if it is in use."""
        known = self.method.parameters
        unused = self.inner in (
            "average_merging",
            "slerp_merging",
            "stock_merging",
            "widen_merging",
        )
        return None if unused else next((name for name in SCALES if name in known), None)

    @property
    def keeps_one_model(self) -> bool:
        """Whether these settings leave a single model as it is."""
        masks_weights = self.parameters.get("weight_format") == "finetuned_weight"
        sums = self.inner == "linear" and not self.parameters.get("normalize", True)
        sums |= not self.parameters.get("normalize_weights", True) and not self.on_base
        return not (masks_weights or sums or "scale" in self.parameters)

    @property
    def is_symmetric(self) -> bool:
        """Whether all experts are treated alike; random masks are drawn for each."""
        own = any(isinstance(value, tuple) for value in self.parameters.values())
        halfway = self.parameters.get("slerp_t", 0.5) == 0.5
        by_name = self.inner == "cocktail"  # weighs live models, whose order stays
        return halfway and not (own or by_name or self.is_random) and self.n_experts > 1

    def kernel(self, **changes: Any) -> Any:
        """The method's dataclass for `n_experts` experts."""
        values = {}
        for parameter in self.method.parameters.values():
            default = REQUIRED.get(parameter.name) if parameter.required else parameter.default
            value = {**self.parameters, **changes}.get(parameter.name, default)
            if parameter.per_expert:
                each = value if isinstance(value, tuple) else (value,) * 3
                value = each[: self.n_experts]
            values[parameter.field] = value
        return self.method.factory(**values)

    def merge(self, *slots: Slot, **changes: Any) -> list[Tensor]:
        """Merge whole weights in memory, as the runner would."""
        kernel = self.kernel(**changes)
        if isinstance(kernel, Prepares):
            kernel = kernel.prepare(InMemory(slots)) or kernel
        return [in_memory.merged(kernel, slot) for slot in slots]

    def measured(self, slot: Slot) -> Mapping[str, Tensor]:
        """What the method measures of a whole weight."""
        return in_memory.measured(self.kernel(), slot)

    def slot(self, base: Tensor, *experts: Tensor, name: str = "w", seed: int = 0) -> Slot:
        maybe_base, experts = base if self.has_base else None, experts[: self.n_experts]
        asked = self.method.statistics(self.kernel())
        stats = {stat: tuple(statistic(stat, expert) for expert in experts) for stat in asked}
        return Slot(name, maybe_base, experts, stats, seed=seed)


def statistic(name: str, expert: Tensor) -> Tensor | None:
    """Make up a calibration statistic of a weight, which depends on nothing but its values."""
    if registry().statistics[name].elementwise:
        return (1e-3 * expert.float().sin().square() + 1e-6).reshape(expert.shape)
    if expert.ndim != 2:
        return None  # of no linear layer
    seed = int(1000 * expert.double().abs().sum())
    inputs = torch.randn(99, expert.shape[1], generator=torch.Generator().manual_seed(seed))
    return inputs.T @ inputs / 99


class InMemory:
    """What a method that looks at the whole model sees; the live models are not the slots'."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = slots
        self.seed = slots[0].seed
        self.names = tuple(f"expert {i}" for i, _ in enumerate(slots[0].experts))

    def slots(self) -> Iterator[Weight]:
        return (slot.weight() for slot in self._slots)

    def module(self, expert: int) -> Any:
        return copy.deepcopy(live_model(expert))  # the method's own to change

    def tokenizer(self, expert: int) -> Any:
        return live_tokenizer()

    def examples(self, expert: int) -> tuple[Example, ...]:
        return EXAMPLES

    def stat(self, name: str, expert: int) -> Mapping[str, Tensor]:
        found = {slot.name: slot.stats[name][expert] for slot in self._slots}
        return {key: tensor for key, tensor in found.items() if tensor is not None}

    def batches(self, expert: int) -> Iterator[Mapping[str, Tensor]]:
        return batches(live_tokenizer(), EXAMPLES, Data(path="examples"), classifier=False)


EXAMPLES = (Example("1 2 3", "4 5"), Example("6", "7 8 9 10"), Example("11 12", "13"))


@functools.cache
def live_model(number: int) -> Any:
    """Build one of a family of tiny Llamas: 0, 1, 2, … are fine-tunes of -1."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    model = seeded(config, LlamaForCausalLM).eval()
    torch.manual_seed(number + 1)
    return drift(model, 0.3 * (number + 1))


@functools.cache
def live_tokenizer() -> Any:
    return word_tokenizer(["?", "end", *map(str, range(14))], unknown="?", eos_token="end")


def every_case(that: Callable[[Case], Any] = bool) -> pytest.MarkDecorator:
    """Run a test on every method and its settings in this suite."""
    found = []
    for name in registry().methods:
        for parameters in ({}, *SETTINGS.get(name, [])):
            spelled = ",".join(f"{key}={value}" for key, value in parameters.items())
            for on_base in (False, True) if registry().get(name).takes_base else (False,):
                if that(case := case_of(name, on_base=on_base, **parameters)):
                    label = f"{name}{' on a base' * on_base}[{spelled}]"
                    found.append(pytest.param(case, id=label))
    return pytest.mark.parametrize("case", found)


every_method = pytest.mark.parametrize("name", list(registry().methods))


def case_of(method: str, *, on_base: bool = False, **parameters: Any) -> Case:
    return Case(registry().get(method), {**ALWAYS.get(method, {}), **parameters}, on_base)


def weights(n: int, shape: Sequence[int] = (13, 29), *, seed: int = 0) -> list[Tensor]:
    """Draw numbers whose sums are exact in float32: multiples of 1/256, with many ties."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(-512, 513, tuple(shape), generator=generator) / 256 for _ in range(n)]


def near(base: Tensor, n: int, *, seed: int = 1) -> list[Tensor]:
    """Draw fine-tunes: small steps from a base."""
    return [base + step / 16 for step in weights(n, base.shape, seed=seed)]


def read(merge: Merge) -> dict[str, Tensor]:
    return {name: tensor[...] for name, tensor in merge.tensors().items()}


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and torch.equal(one[n], other[n]) for n in one
    )
