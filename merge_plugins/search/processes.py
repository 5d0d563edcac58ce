"""Start the workers of one machine: as many processes as asked for, or one for each GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from merge_plugins.errors import MergeError
from merge_plugins.parallel import accelerator
from merge_plugins.search.ledger import Trial
from merge_plugins.search.loop import PAUSE
from merge_plugins.search.study import Study

VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "xpu": "ZE_AFFINITY_MASK"}
"""Variables that choose the devices which a process sees, by torch's name of their kind."""


def accelerators() -> tuple[str, int]:
    """Return torch's name for this machine's accelerators, and how many there are."""
    import torch

    current = accelerator()
    return ("cpu", 0) if current is None else (current.type, torch.accelerator.device_count())


def number_of(given: str) -> int:
    """Read ``--workers``: a number, or ``auto`` for one per GPU, and one without."""
    if given == "auto":
        return max(accelerators()[1], 1)
    if not given.isdigit() or not int(given):
        raise MergeError(f"--workers is a number from 1 on, or auto; got {given!r}")
    return int(given)


def environment(number: int, n: int) -> Mapping[str, str]:
    """Give worker ``number`` of ``n`` a GPU, in turn, and its share of the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {**os.environ}
    found.setdefault("OMP_NUM_THREADS", str(max((cores or 1) // n, 1)))
    kind, n_devices = accelerators()
    if n_devices and kind in VISIBLE:
        named = os.environ.get(VISIBLE[kind])
        devices = named.split(",") if named else [str(i) for i in range(n_devices)]
        found[VISIBLE[kind]] = devices[number % len(devices)]
    return found


def search(study: Study, words: Sequence[str], n: int, stop: Callable[[], bool]) -> Iterator[Trial]:
    """Run ``merge-plugins search`` with ``words`` in n processes; yield trials as they are noted.

    They are of this process's group, so that an interrupt reaches them too: each ends with the
    candidate that it is scoring. Raises `MergeError` when all have failed.
    """
    logs = study.ledger.folder / "workers"
    logs.mkdir(exist_ok=True)
    files = [logs / f"{number}.log" for number in range(n)]
    workers = [_start(words, number, n, file) for number, file in enumerate(files)]
    n_seen = len(study.ledger.read())
    try:
        running = True
        while running:
            running = any(worker.poll() is None for worker in workers)
            trials = study.ledger.read()
            yield from trials[n_seen:]
            n_seen = len(trials)
            time.sleep(PAUSE if running else 0)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
            worker.wait()
    if all(worker.returncode not in (0, 130) for worker in workers) and not stop():
        raise MergeError(f"all {n} workers failed; the log of the first, {files[0]}, ends:\n"
                         f"{_tail(files[0])}")  # fmt: skip
    for worker, file in zip(workers, files, strict=True):
        if worker.returncode not in (0, 130):
            print(f"a worker ended with status {worker.returncode}: {file}", file=sys.stderr)  # noqa: T201


def _start(words: Sequence[str], number: int, n: int, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "merge_plugins", "search", *words, "--as-worker"]
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(number, n),
        )


def _tail(file: Path) -> str:
    return "\n".join(file.read_text(encoding="utf-8", errors="replace").splitlines()[-10:])
