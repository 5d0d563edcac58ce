"""Count what a worker of an engine reads: the engine imports this before it loads a model."""

from __future__ import annotations

from reads_counted import Reads

READS = Reads().install()


class CountingWorker:
    """What the engine's worker can be asked beside its own methods."""

    def bytes_read(self) -> dict[str, int]:
        return {"distinct": READS.distinct, "total": READS.total}
