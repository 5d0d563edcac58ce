"""Run by mergekit's own python: what mergekit would merge, as JSON on the last line of stdout.

    python mergekit_plan.py RECIPES.yaml NAME…

For each document: for every tensor of the merge, its inputs as [model, tensor] and, for every
NAME that the recipe sets, the value for the whole tensor and those for each input.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import StrictDataclassClassValidationError
from mergekit.config import MergeConfiguration, evaluate_setting
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner

NAMES = sys.argv[2:]


def value(reader: Any, name: str, tensor: str, model: Any) -> Any:
    for scope in reader.parameter_sources(model):
        if scope and name in scope:
            found = evaluate_setting(tensor, scope[name], reader.t, validate=lambda given: given)
            if found is not None:
                return found
    return None


def planned(recipe: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    plan_tensor = MergePlanner.plan_tensor

    def watched(self: Any, weight: Any, weights_in: Any, models: Any, cfg_reader: Any) -> Any:
        pairs = list(zip(models, weights_in, strict=True))
        found[weight.name] = {
            "inputs": [[model.model.path, w.name] for model, w in pairs],
            "shared": {name: value(cfg_reader, name, weight.name, None) for name in NAMES},
            "own": {name: [value(cfg_reader, name, w.name, m) for m, w in pairs] for name in NAMES},
        }
        return plan_tensor(self, weight, weights_in, models, cfg_reader)

    MergePlanner.plan_tensor = watched
    with tempfile.TemporaryDirectory() as folder:
        options = MergeOptions(copy_tokenizer=False, quiet=True)
        with contextlib.suppress(StrictDataclassClassValidationError):  # depth and layer_types
            run_merge(MergeConfiguration.model_validate(recipe), folder, options)
    MergePlanner.plan_tensor = plan_tensor
    return found


with Path(sys.argv[1]).open(encoding="utf-8") as handle:
    plans = [planned(recipe) for recipe in yaml.safe_load_all(handle)]
print()
print(json.dumps(plans))
