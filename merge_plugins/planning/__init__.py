"""Decide which stored tensors make each merged one, with which parameters."""

from merge_plugins.planning.layouts import in_one_layout
from merge_plugins.planning.plan import Plan, PlannedTensor, make_plan

__all__ = ["Plan", "PlannedTensor", "in_one_layout", "make_plan"]
