"""Compute models from other models: LoRA adapters, deltas, experts of another base."""

from merge_plugins.sources.models import ComputedCheckpoint, Source, tied_to

__all__ = ["ComputedCheckpoint", "Source", "tied_to"]
