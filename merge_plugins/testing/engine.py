"""What a method promises of a merge from disk: blocks, threads, shards and devices.

Each a function that raises `AssertionError` if the promise is not kept.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from merge_plugins import parallel
from merge_plugins.engine import MergedTensor
from merge_plugins.parallel import Place
from merge_plugins.testing.case import Case, same_bits
from merge_plugins.testing.family import Family, read
from merge_plugins.testing.promises import RANDOM, require

FINER = "its granularity promises more than it keeps: declare ROW, MATRIX or none (WHOLE)"


def blocks_never_show(case: Case, family: Family, sizes: tuple[int, ...] = (1000, 64, 7)) -> None:
    """How a weight is cut into blocks never shows."""
    whole = read(family.planned(case))
    for block in sizes:
        same = same_bits(whole, read(family.planned(case, block=block)))
        require(same, case, f"blocks of {block} elements have other bits than the whole; {FINER}")


def threads_never_show(case: Case, family: Family, numbers: tuple[int, ...] = (1, 5)) -> None:
    """How many threads merge never shows."""
    whole = read(family.planned(case))
    for number in numbers:
        with threads(number):
            same = same_bits(whole, read(family.planned(case, block=50)))
        require(same, case, f"{number} threads have other bits than {torch.get_num_threads()}")


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Merge with that many threads."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(number)
        parallel._pools.clear()
        yield
    finally:
        torch.set_num_threads(before)
        parallel._pools.clear()


def region_has_the_bits(
    case: Case, tensor: MergedTensor, whole: Tensor, cuts: tuple[slice, ...]
) -> None:
    """A region that is asked for alone, as a shard is, has the bits of the whole."""
    same = torch.equal(tensor[cuts], whole[cuts])
    require(same, case, f"{tensor.name}{list(cuts)} alone has other bits than in the whole")


def regions_have_the_bits(case: Case, family: Family, n: int = 15) -> None:
    """Regions drawn at random, the same ones each time, have the bits of the whole."""
    merge, draw = family.planned(case, block=50), random.Random(0)
    tensors, whole = merge.tensors(), read(merge)
    for name in draw.choices(sorted(tensors), k=n):
        shape = tensors[name].shape
        cuts = (slice(*sorted(draw.choices(range(size + 1), k=2))) for size in shape)
        region_has_the_bits(case, tensors[name], whole[name], tuple(cuts))


def measured_by_any_number_of_threads(case: Case) -> None:
    """What is measured of a large weight is the same on any number of threads."""
    generator = torch.Generator().manual_seed(5)
    base = torch.randn(300, 1000, generator=generator)  # three blocks
    experts = [base + 0.1 * torch.randn(base.shape, generator=generator) for _ in range(3)]
    slot = case.slot(base.bfloat16(), *(expert.bfloat16() for expert in experts))
    found = []
    for number in (1, 2, 5):
        with threads(number):
            found.append(case.measured(slot))
    same = all(same_bits(found[0], other) for other in found)
    require(same, case, "measures otherwise with other numbers of threads")


def seed_decides(case: Case, family: Family) -> bool:
    """The same seed gives the same bits in any order; return whether another gives others."""
    first = read(family.planned(case))
    shuffled = list(family.planned(case).tensors().items())
    random.Random(0).shuffle(shuffled)
    same = same_bits(first, {name: tensor[...] for name, tensor in shuffled})
    require(same, case, f"the same seed gives other bits, or in another order; {RANDOM}")
    return not same_bits(first, read(family.planned(case, seed=1)))


def another_device_never_shows(case: Case, family: Family) -> None:
    """The way of another device has the same bits, whether a weight is held there or read in parts.

    On the CPU: what differs is how the engine merges, not the arithmetic.
    """
    expected, merge, cpu = read(family.planned(case)), family.planned(case), torch.device("cpu")
    for room in (0, 1 << 30):
        merge.places[cpu] = Place(cpu, 1 << 18, by_threads=False, room=room)
        held = "held" if room else "read in parts"
        require(same_bits(expected, read(merge)), case, f"weights {held} on a device differ")
