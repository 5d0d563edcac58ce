"""What a merge costs, in one line before it begins: bytes, memory, device, calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from merge_plugins import identity
from merge_plugins.api import WHOLE
from merge_plugins.engine.merge import SCRATCH, Merge
from merge_plugins.engine.meter import Meter, total, work
from merge_plugins.engine.work import granularity
from merge_plugins.notice import is_shown, tell
from merge_plugins.parallel import BLOCK, MOST_WORKERS
from merge_plugins.planning import Plan
from merge_plugins.planning.plan import readable

MARGIN = {"cpu": 0.15}
"""Memory beside the merged model, of its size; see benchmarks/README.md."""
MARGIN_ELSEWHERE = 0.1
LIVE_COPIES = 2
"""A method that looks at data holds a model in float32, and about as much again."""


@dataclass(frozen=True)
class Cost:
    """What a merge costs, as far as that is known before the first weight is read."""

    plan: Plan
    device: torch.device | None = torch.device("cpu")
    """Where the model goes; None: to several."""
    dtype: torch.dtype | None = None
    """Dtype of the live model; None: that of the merge."""
    is_kept: bool = True
    """Whether the merged model stays in memory; it does not where it is written to disk."""

    digest: str = ""
    """Digest of the merge, if it is known."""

    @property
    def peak_bytes(self) -> int:
        """Most memory that the merge should take: of the model, of blocks, of a live model."""
        tensors = self.plan.tensors.values()
        sizes = [math.prod(t.shape) * (self.dtype or t.dtype).itemsize for t in tensors]
        model = sum(sizes)
        share = MARGIN.get(str(self.device), MARGIN_ELSEWHERE)
        workers = min(torch.get_num_threads(), MOST_WORKERS)
        beside = max(int(share * model), workers * BLOCK * SCRATCH, self._largest_whole)
        live = LIVE_COPIES * self._live_bytes if self.calibration else 0
        return max((model if self.is_kept else max(sizes)) + beside, live)

    @property
    def _largest_whole(self) -> int:
        """Bytes of a weight that a method takes as a whole, in float32, with its inputs."""
        return max(
            (
                math.prod(t.shape) * 4 * (len(t.stored) + 2)
                for t in self.plan.tensors.values()
                if t.kernel is not None and granularity(t) is WHOLE
            ),
            default=0,
        )

    @property
    def _live_bytes(self) -> int:
        return sum(4 * math.prod(t.shape) for t in self.plan.tensors.values())

    @cached_property
    def calibration(self) -> dict[str, Any] | None:
        """Cost of looking at data: models that run, examples of each at most; None without any."""
        plan = self.plan
        kernels = [t.kernel for t in plan.tensors.values() if t.kernel is not None]
        kernel = next(filter(plan.method.reads_data, kernels), None)
        if kernel is None:
            return None
        limits = [data.limit for m in plan.recipe.models if (data := plan.recipe.data_of(m))]
        return {
            "statistics": [*plan.method.statistics(kernel)],
            "models": len(plan.recipe.models),
            "examples": max(limits, default=0),
            "bytes": self._live_bytes,
        }

    def __str__(self) -> str:
        """Write the cost in one line."""
        plan, where = self.plan, self.device or "several devices"
        n = len(plan.experts)
        digest = f", digest {self.digest}" if self.digest else ""
        limit = "at least" if plan.method.is_routed else "up to"
        return (
            f"{plan.method.name} of {n} model{'s' * (n != 1)}{digest}: {len(plan.tensors)} "
            f"tensors, reads {readable(plan.bytes_read)}, merges {readable(plan.bytes_merged)} on "
            f"{where} in {limit} {readable(self.peak_bytes)} of memory{self._data()}"
        )

    def _data(self) -> str:
        found = self.calibration
        if found is None:
            return ""
        what = " and ".join(found["statistics"]) or "its models"
        return (
            f"; first runs {what} on up to {found['examples']} examples of each model, "
            f"{readable(found['bytes'])} in float32, one at a time"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all of it for JSON; seconds are known when the first weights are merged."""
        return {
            "method": self.plan.method.name,
            "digest": self.digest or None,
            "models": [str(model) for model in self.plan.experts],
            "tensors": len(self.plan.tensors),
            "bytes_to_read": self.plan.bytes_read,
            "bytes_merged": self.plan.bytes_merged,
            "device": None if self.device is None else str(self.device),
            "peak_bytes": self.peak_bytes,
            "calibration": self.calibration,
            "seconds": None,
        }


def announce(merge: Merge, cost: Cost, *, timed: bool = True) -> None:
    """Tell what a merge costs, and how long it takes when its first weights are merged.

    ``timed``: whether all of it is merged here, in one go, and no progress bar says how long.
    """
    plan = merge.plan
    if not is_shown():
        return
    cost = replace(cost, digest=identity.quick_digest(plan.recipe))
    tell(f"{cost}.")
    if not timed:
        return
    name = f"{plan.method.name}-{cost.digest}" if cost.digest else plan.method.name
    whole = total(work(t, math.prod(t.shape)) for t in plan.tensors.values())
    merge.meter = Meter(whole, f"{name} is merged")
