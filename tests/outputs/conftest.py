"""The merge that is saved, mounted and published."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from merge_plugins import Recipe


@pytest.fixture
def winner(llamas: Mapping[str, str], recipe: Callable[..., Recipe]) -> Recipe:
    """Ties of the two Llamas."""
    experts = [llamas["math"], llamas["code"]]
    return recipe("ties", llamas["base"], experts, weight=[1.0, 0.5], density=0.4, seed=7)
