"""One merge by the code a paper published, timed: python published.py CHECKOUT METHOD FOLDER...

CHECKOUT is a clone of MergeLLM (WIDEN) or of DELLA; FOLDERs are the base and its experts. Only run,
never imported by anything here. One thread, float32, models in memory: as the authors run it.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

PARAMETERS: dict[str, dict[str, Any]] = {
    "average_merging": {},
    "task_arithmetic": {"scaling_coefficient": 1.0},
    "slerp_merging": {"slerp_t": 0.5, "dot_threshold": 0.9995},
    "stock_merging": {},
    "breadcrumbs_merging": {
        "param_density": 0.9,
        "param_value_mask_rate": 0.05,
        "scaling_coefficient": 0.5,
    },
    "ties_merging": {"param_value_mask_rate": 0.5, "scaling_coefficient": 1.0},
    "widen_merging": {"above_average_value_ratio": 1.0, "score_calibration_value": 1.0},
    "mask_merging": {
        "weight_mask_rate": 0.5,
        "use_weight_rescale": True,
        "mask_apply_method": "average_merging",
    },
}
"""What the README of MergeLLM runs, by our names, which are its own."""
MAGPRUNE = {"drop_rate": 0.3, "window_size": 0.14}
"""What the README of DELLA runs."""


def mergellm(checkout: str, method: str) -> Callable[[PreTrainedModel, list[Any]], Any]:
    """Return the function that merges, of a MergeLLM checkout."""
    sys.path.insert(0, checkout)
    merging = importlib.import_module("model_merging_methods.merging_methods")
    given = dict(PARAMETERS[method])
    if method == "mask_merging":
        given["weight_mask_rates"] = [given.pop("weight_mask_rate")] * 2
    return lambda base, experts: merging.MergingMethod(method).get_merged_model(
        merged_model=base, models_to_merge=experts, exclude_param_names_regex=[], **given
    )


def magprune(checkout: str) -> Callable[[PreTrainedModel, list[Any]], Any]:
    """Return the function that sparsifies every task vector, of a DELLA checkout.

    Without election and sum, to its advantage.
    """
    file = next(Path(checkout).rglob("sparsify.py"))
    sys.path.insert(0, str(file.parent))  # the file alone: its package wants old dependencies
    module = importlib.import_module(file.stem)
    density, epsilon = 1 - MAGPRUNE["drop_rate"], MAGPRUNE["window_size"] / 2

    def sparsify(base: PreTrainedModel, experts: list[Any]) -> None:
        for name, weight in base.named_parameters():
            for expert in experts:
                delta = expert.get_parameter(name).data - weight.data
                module.rank_magnitude(delta, density, rescale=True, epsilon=epsilon)

    return sparsify


def main(checkout: str, method: str, *folders: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    base, *experts = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in folders
    )
    for model in (base, *experts):  # transformers 5 maps the files: read them before the clock
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    merge = magprune(checkout) if method == "della" else mergellm(checkout, method)
    start = time.process_time()
    merge(base, experts)
    return {"seconds": time.process_time() - start}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
