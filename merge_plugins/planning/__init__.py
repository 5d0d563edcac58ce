"""Decide which stored tensors make each merged one, with which parameters."""

from merge_plugins.planning.plan import Plan, PlannedTensor, make_plan

__all__ = ["Plan", "PlannedTensor", "make_plan"]
