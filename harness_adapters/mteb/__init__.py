"""MTEB: its command line with merges for models, and its tasks as what a search maximises."""

from __future__ import annotations

from harness_adapters.mteb.evaluator import Evaluator
from harness_adapters.mteb.models import meta, register

__all__ = ["Evaluator", "meta", "register"]
