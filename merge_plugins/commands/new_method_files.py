"""The files that `merge-plugins new-method` writes; ``$$`` is a dollar."""

MODULE = '''"""The merge method $name, a plugin of merge-plugins."""

from collections.abc import Callable
from dataclasses import dataclass

from merge_plugins import ELEMENT, PerExpert, Slot, hookimpl, parameter
from torch import Tensor


@dataclass(frozen=True)
class $Class:
    """Add to the base the weighted mean of what each model changed."""

    weight: PerExpert = parameter(1.0, doc="weight of each model in the mean")
    scale: float = parameter(1.0, doc="factor on the mean change; 0 gives the base")
    granularity = ELEMENT  # each value depends on the same value of the models: any block will do

    def __post_init__(self) -> None:
        if sum(self.weight) == 0:
            raise ValueError(f"weight sums to 0 for {list(self.weight)}; change one of them")

    def __call__(self, slot: Slot) -> Tensor:
        changes = slot.deltas()  # float32 [models, *shape]
        total = sum(w * change for w, change in zip(self.weight, changes, strict=True))
        return slot.base.float() + self.scale / sum(self.weight) * total


@hookimpl
def register_merge_methods(register: Callable[..., None]) -> None:
    """Register the method under the name that recipes use."""
    register("$name", $Class, needs_base=True)
'''

TEST = '''"""$Class keeps the contract of merge methods, and computes what it says."""

import torch
from merge_plugins import Slot
from merge_plugins.testing import check_method

from $module import $Class


def test_it_keeps_the_contract() -> None:
    check_method("$name", {"weight": (1.0, 0.25, 0.5)}, copies=True, zero="scale")


def test_it_adds_the_mean_change_to_the_base() -> None:
    slot = Slot("w", torch.tensor([1.0]), (torch.tensor([3.0]), torch.tensor([7.0])))
    assert $Class(weight=(3.0, 1.0))(slot).tolist() == [4.0]
'''

PROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "$distribution"
version = "0.1.0"
description = "The merge method $name, a plugin of merge-plugins."
requires-python = ">=3.10"
dependencies = ["merge-plugins>=$version"]

[project.optional-dependencies]
test = ["pytest>=8"]

[project.entry-points.merge_plugins]
$name = "$module"

[tool.hatch.build.targets.wheel]
only-include = ["$module.py"]
"""

FILES = {"$module.py": MODULE, "test_$name.py": TEST, "pyproject.toml": PROJECT}
"""Text of each file by its path; both are templates."""
