"""Measure private memory; imported by programs that tests run as processes of their own."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")


def private() -> int:
    """Bytes of this process that are no file's."""
    found = re.search(r"RssAnon:\s+(\d+)", STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024


def peak_of(function: Callable[[], Any]) -> tuple[Any, int]:
    """Call a function: its result, and the bytes by which private memory grew meanwhile."""
    before, peak, done = private(), 0, False

    def watch() -> None:
        nonlocal peak
        while not done:
            peak = max(peak, private() - before)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return function(), max(peak, private() - before)
    finally:
        done = True
        watcher.join()


def for_program() -> dict[str, str]:
    """Environment in which ``python -c`` finds this file."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
