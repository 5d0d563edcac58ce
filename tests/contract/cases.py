"""Every registered method with the settings it is tried with, and what it is tried on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from merge_plugins import testing
from merge_plugins.plugins import registry

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
class Case(testing.Case):
    """A method with parameters, and what is known of ours beside the contract."""

    @property
    def n_experts(self) -> int:
        return 2 if self.inner == "slerp_merging" else super().n_experts

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
    found = registry().get(method)
    required = {p.name: REQUIRED[p.name] for p in found.parameters.values() if p.required}
    return Case(found, {**required, **ALWAYS.get(method, {}), **parameters}, on_base)
