"""Random input, a few seconds of it in the suite and as much as you like by hand.

    pytest tests/fuzz                           the same few examples every time
    FUZZ_SECONDS=3600 pytest -n 0 tests/fuzz    an hour of new ones, shared by the tests
    FUZZ_SEED=17 pytest -n 0 tests/fuzz -k …    one example again; a failure prints its seed

How often each outcome came is printed at the end.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from huggingface_hub import constants
from plain_llamas import plain_llamas

from merge_plugins.errors import MergeError

try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]

T = TypeVar("T")
Stream = Callable[[int], Iterator[random.Random]]
Attempt = Callable[[Callable[[], T]], "T | None"]

CPU_SECONDS, BYTES = 10, 256 * 2**20
"""More than this for one example is a bug: tiny files cost no more."""


@pytest.fixture
def outcomes(request: pytest.FixtureRequest) -> Iterator[Counter[str]]:
    """Count what came of each example; printed at the end."""
    counts: Counter[str] = Counter()
    yield counts
    request.node.user_properties.append(("outcomes", dict(counts.most_common())))


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> Iterator[Stream]:
    """Draw one generator of random numbers per example: ``n``, or new ones while time lasts."""
    drawn: list[int] = []

    def generators(n: int) -> Iterator[random.Random]:
        seconds = float(os.environ.get("FUZZ_SECONDS", 0)) / request.session.config.stash[SHARES]
        end = time.monotonic() + seconds
        seeds: Iterable[int] = range(n)
        if "FUZZ_SEED" in os.environ:
            seeds = [int(os.environ["FUZZ_SEED"])]
        elif seconds:
            seeds = itertools.count(random.SystemRandom().getrandbits(48))
        for seed in seeds:
            drawn[:] = [seed]
            yield random.Random(seed)
            if seconds and time.monotonic() > end:
                return

    yield generators
    if drawn:
        print(f"the last example: FUZZ_SEED={drawn[-1]} pytest -n 0 '{request.node.nodeid}'")


@pytest.fixture
def attempt(outcomes: Counter[str]) -> Attempt[T]:
    """Call a function: its value, or None for a `MergeError`. Anything else fails the test.

    So does an example that takes seconds, or makes the process grow by hundreds of megabytes.
    """

    def call(function: Callable[[], T]) -> T | None:
        cpu, peak, value = time.process_time(), _peak(), None
        try:
            value = function()
            outcomes["accepted"] += 1
        except MergeError as exc:
            outcomes[type(exc).__name__ if str(exc).strip() else "without a message"] += 1
        assert not outcomes["without a message"]
        assert time.process_time() - cpu < CPU_SECONDS
        assert _peak() - peak < BYTES
        return value

    return call


@pytest.fixture(scope="session")
def offline() -> Iterator[None]:
    """Ask no hub for the models that mutated recipes name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture
def family(tmp_path: Path, offline: None) -> Path:
    """A folder with four tiny Llamas of two layers, an adapter, a delta and a few texts."""
    return plain_llamas(tmp_path)


def _peak() -> int:
    """Return the most memory that this process ever held, in bytes; 0 on Windows."""
    if resource is None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


SHARES = pytest.StashKey[int]()
"""How many tests share the time."""


def pytest_collection_finish(session: pytest.Session) -> None:
    names = [getattr(item, "fixturenames", ()) for item in session.items]
    sharing = sum("stream" in each and "outcomes" in each for each in names)
    session.config.stash[SHARES] = max(1, sharing)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        properties = dict(getattr(report, "user_properties", ()))
        if getattr(report, "when", None) == "teardown" and "outcomes" in properties:
            counts = ", ".join(f"{n} {name}" for name, n in properties["outcomes"].items())
            terminalreporter.write_line(f"{report.nodeid}: {counts}")
