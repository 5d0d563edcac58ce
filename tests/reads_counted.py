"""Count the bytes of stored weights that this process reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from merge_plugins.api import Region, Slot
from merge_plugins.engine.reader import WeightReader
from merge_plugins.weights import StoredTensor

Key = tuple[str, str]


class Reads:
    """What was read since it was installed: which elements of which weights of which files."""

    def __init__(self) -> None:
        self.read: dict[Key, Tensor] = {}
        self.bytes: dict[Key, int] = {}
        self.total = 0
        """Bytes read, those that were read again counted again."""

    def of(self, stored: StoredTensor) -> Tensor:
        """The elements of a weight: whether each has been read."""
        key = str(stored.file), stored.name
        self.bytes[key] = stored.dtype.itemsize
        return self.read.setdefault(key, torch.zeros(stored.shape, dtype=torch.bool))

    @property
    def distinct(self) -> int:
        """Bytes read, each counted once."""
        return sum(int(read.sum()) * self.bytes[key] for key, read in self.read.items())

    def install(self) -> Reads:
        """Count from now on, for the life of the process."""
        read, sample = StoredTensor.read, WeightReader.sample

        def counted(stored: StoredTensor, region: Region) -> Tensor:
            region.of(self.of(stored)).fill_(True)
            self.total += region.numel * stored.dtype.itemsize
            return read(stored, region)

        def counted_sample(
            reader: WeightReader, pick: Callable[[Tensor], Tensor], positions: Tensor
        ) -> Slot:
            for stored in reader.planned.stored:
                assert isinstance(stored, StoredTensor)
                self.of(stored).view(-1)[positions] = True
                self.total += len(positions) * stored.dtype.itemsize
            return sample(reader, pick, positions)

        changed: Any = StoredTensor, WeightReader
        changed[0].read, changed[1].sample = counted, counted_sample
        return self
