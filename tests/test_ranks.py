"""Ranks share work in step, and go on alone together once one of them cannot."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from ranks_in_threads import on_ranks

from merge_plugins.ranks import Ranks, UnsharedError, packed, unpacked


def squares(ranks: Ranks, numbers: list[int]) -> list[int]:
    owners = [ranks.owner(i, len(numbers)) for i in range(len(numbers))]
    return ranks.map(lambda own: [n * n for n in own], numbers, owners, work="squares")


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("n_items", [0, 1, 2, 5, 30])
def test_each_does_a_part_and_gets_all(size: int, n_items: int) -> None:
    numbers, done = [*range(n_items)], []

    def work(ranks: Ranks) -> list[int]:
        def compute(own: list[int]) -> list[int]:
            done.extend(own)
            return [n * n for n in own]

        owners = [ranks.owner(i, n_items) for i in range(n_items)]
        return ranks.map(compute, numbers, owners, work="squares")

    assert on_ranks(size, work) == [[n * n for n in numbers]] * size
    assert sorted(done) == numbers


@pytest.mark.parametrize("fails", ["while it computes", "between", "to say it", "by its effects"])
def test_where_one_fails_none_has_it_and_all_go_on(fails: str) -> None:
    def work(ranks: Ranks) -> tuple[list[int] | None, list[int] | None]:
        def compute(own: list[int]) -> list[object]:
            if ranks.rank == 1 and fails == "while it computes":
                raise torch.OutOfMemoryError
            unsaid = {"to say it": threading.Lock(), "by its effects": None}
            return [unsaid.get(fails, n) if ranks.rank == 1 else n for n in own]

        def run() -> list[int]:
            ranks.map(compute, [1, 2, 3], [0, 1, 2], work="first")
            if ranks.rank == 1 and fails == "between":
                raise ValueError
            return squares(ranks, [1, 2, 3])

        return ranks.all_or_none(run), ranks.all_or_none(lambda: squares(ranks, [4, 5]))

    assert on_ranks(3, work) == [(None, [16, 25])] * 3


@pytest.mark.parametrize("stops", ["leaves", "does other work", "dies"])
def test_nobody_waits_for_one_that_stops(stops: str) -> None:
    def work(ranks: Ranks) -> tuple[list[int] | None, bool]:
        first = ranks.all_or_none(lambda: squares(ranks, [1, 2]))
        assert first == [1, 4]
        if ranks.rank == 0 and stops == "leaves":
            ranks.leave()
        if stops == "dies":
            ranks.gather = dead
        numbers = [1, 2, 3] if ranks.rank == 0 and stops == "does other work" else [1, 2]
        found = ranks.all_or_none(lambda: squares(ranks, numbers))
        again = ranks.all_or_none(lambda: squares(ranks, [1]))
        assert again is None
        with pytest.raises(UnsharedError):
            squares(ranks, [1])
        return found, ranks.open

    assert on_ranks(2, work) == [(None, False)] * 2


def dead(message: bytes) -> list[bytes]:
    raise RuntimeError("Connection closed by peer")


def test_an_error_that_ends_the_work_of_one_is_told_to_the_others() -> None:
    def work(ranks: Ranks) -> list[int] | None:
        if ranks.rank == 1:
            raise KeyboardInterrupt
        return ranks.all_or_none(lambda: squares(ranks, [1, 2]))

    with pytest.raises(KeyboardInterrupt):
        on_ranks(2, work)


def test_what_is_told_of_a_view_is_its_own_elements() -> None:
    rows = torch.arange(10000.0).view(100, 100)
    for dtype in (torch.float32, torch.bfloat16, torch.bool, torch.int64):
        column = rows.to(dtype)[:, 3]
        message = packed([column, {"of": rows[:0]}, np.arange(3)])
        assert len(message) < 2000
        found, empty, array = unpacked(message)
        assert found.dtype == dtype
        assert torch.equal(found, column)
        assert empty["of"].shape == (0, 100)
        assert array.tolist() == [0, 1, 2]
        found.zero_()  # writable, and that without a warning
