"""Blocks cover a weight exactly once; every core works on them; order and errors are kept."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merge_plugins.api import Region
from merge_plugins.parallel import alone, parallel, pool


@given(shape=st.lists(st.integers(0, 7), max_size=4).map(tuple), numel=st.integers(1, 30))
def test_blocks_cover_every_element_once_and_in_order(shape: tuple[int, ...], numel: int) -> None:
    whole = Region.whole(shape)
    blocks = list(whole.blocks(numel))
    assert all(block.numel <= numel for block in blocks)
    found = torch.cat([block.index().reshape(-1) for block in blocks])
    assert found.tolist() == list(range(whole.numel))


@st.composite
def boxes(draw: st.DrawFn) -> Region:
    """Draw a shape and a box inside it that is not empty."""
    shape = draw(st.lists(st.integers(1, 6), max_size=4).map(tuple))
    starts = [draw(st.integers(0, n - 1)) for n in shape]
    ends = [draw(st.integers(start + 1, n)) for start, n in zip(starts, shape, strict=True)]
    return Region(shape, tuple(zip(starts, ends, strict=True)))


@given(box=boxes())
def test_a_box_knows_its_positions_and_whether_it_lies_in_one_piece(box: Region) -> None:
    positions = torch.arange(Region.whole(box.shape).numel).view(box.shape)
    inside = box.of(positions).reshape(-1).tolist()
    assert box.index().reshape(-1).tolist() == inside
    in_one_piece = inside == list(range(inside[0], inside[-1] + 1))
    assert box.span == ((inside[0], inside[-1] + 1) if in_one_piece else None)


def test_results_come_in_the_order_of_the_items() -> None:
    def slow_at_first(i: int) -> int:
        time.sleep(0.02 if i == 0 else 0)
        return i * i

    assert parallel(slow_at_first, range(20)) == [i * i for i in range(20)]


def test_what_is_found_out_about_a_block_does_not_lie_in_the_way_of_the_next() -> None:
    found: list[weakref.ref[torch.Tensor]] = []
    waiting = []

    def look(i: int) -> torch.Tensor:
        waiting.append(sum(each() is not None for each in found))
        small = torch.tensor([i, -i])
        found.append(weakref.ref(small))
        return small

    results = parallel(look, range(40))
    assert [each.tolist() for each in results] == [[i, -i] for i in range(40)]
    assert max(waiting) <= pool().size, "one in each thread's hands"


def test_the_first_error_is_raised_and_the_rest_is_not_started() -> None:
    done = []

    def fail(i: int) -> None:
        done.append(i)
        time.sleep(0.05 if i == 0 else 0.005)  # others fail before it
        raise KeyError(i)

    with pytest.raises(KeyError, match="0"):
        parallel(fail, range(1000))
    time.sleep(0.05)
    assert len(done) < 100


def test_an_error_keeps_nothing_that_it_met_when_it_is_gone() -> None:
    class Block:
        """What a worker holds."""

    held: list[weakref.ref[Block]] = []

    def fail(_: int) -> None:
        block = Block()
        held.append(weakref.ref(block))
        raise KeyError

    gc.disable()  # it would find what holds itself, later
    try:
        with contextlib.suppress(KeyError):
            parallel(fail, range(2))
        assert held
        assert all(block() is None for block in held)
    finally:
        gc.enable()


def test_all_threads_work_and_each_computes_alone(with_threads: Callable[[int], None]) -> None:
    with_threads(3)
    together = threading.Barrier(3)

    def look(_: int) -> int:
        together.wait(timeout=20)
        return torch.get_num_threads()

    assert parallel(look, range(3)) == [1, 1, 1]
    assert torch.get_num_threads() == 3


def test_callers_in_several_threads_share_the_workers() -> None:
    found: dict[int, list[int]] = {}

    def call(start: int) -> None:
        found[start] = parallel(lambda i: i + start, range(50))

    callers = [threading.Thread(target=call, args=(1000 * i,)) for i in range(5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == {s: list(range(s, s + 50)) for s in range(0, 5000, 1000)}


def test_what_runs_alone_runs_in_one_thread_with_the_callers_cores(
    with_threads: Callable[[int], None],
) -> None:
    running, found = threading.Semaphore(1), []

    def look() -> None:
        assert running.acquire(blocking=False)
        time.sleep(0.01)
        found.append((threading.get_ident(), torch.get_num_threads()))
        running.release()

    for n_threads in (2, 3):
        with_threads(n_threads)
        callers = [threading.Thread(target=alone, args=(look,)) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert [n for _, n in found] == [2] * 4 + [3] * 4
    assert len({thread for thread, _ in found}) == 1


def test_an_error_alone_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError):
        alone(lambda: 1 // 0)
    assert alone(lambda: 7) == 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_has_workers_of_its_own() -> None:
    code = (
        "import os\n"
        "from merge_plugins.parallel import alone, parallel\n"
        "assert parallel(abs, [-1]) == [alone(lambda: 1)]\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if parallel(abs, [-2]) == [alone(lambda: 2)] else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


FIRST_AT_ONCE = """
import threading, torch
from merge_plugins import parallel
torch.set_num_threads(3)
start = threading.Barrier(8)
def first():
    start.wait()
    parallel.parallel(abs, range(3))
threads = [threading.Thread(target=first) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(parallel.pool().size)
"""


def test_threads_that_ask_first_at_once_share_one_pool_of_every_core() -> None:
    """A loader's threads do; a pool of one worker is what a race left of them."""
    found = subprocess.run(
        [sys.executable, "-c", FIRST_AT_ONCE], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "3"
