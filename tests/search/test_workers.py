"""Several processes on one folder, any of which may be killed: no candidate is lost, none twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import nearness
import pytest

from merge_plugins.search.ledger import Ledger

if os.name != "posix":
    pytest.skip("kills by signals that only POSIX has", allow_module_level=True)
context = multiprocessing.get_context("forkserver")  # a fork of a process without threads
N_WORKERS = 4


@pytest.mark.parametrize("n_candidates", [60])
def test_workers_killed_at_random_lose_nothing_and_score_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_candidates: int
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # of the server that is forked
    context.set_forkserver_preload(["nearness"])
    root, folder = nearness.write_models(tmp_path), tmp_path / "search"

    def start() -> multiprocessing.process.BaseProcess:
        worker = context.Process(target=nearness.work, args=(root, folder, 0.05, n_candidates))
        worker.start()
        return worker

    rng, workers, n_killed = random.Random(0), [start() for _ in range(N_WORKERS)], 0
    while any(worker.is_alive() for worker in workers):
        time.sleep(rng.uniform(0.05, 0.4))
        alive = [i for i, worker in enumerate(workers) if worker.is_alive()]
        if alive and n_killed < 12 and folder.exists() and len(scored(folder)) > n_killed:
            victim = rng.choice(alive)
            os.kill(workers[victim].pid, signal.SIGKILL)  # type: ignore[arg-type]
            workers[victim].join()
            workers[victim], n_killed = start(), n_killed + 1
    assert n_killed >= 5
    assert [worker.exitcode for worker in workers] == [0] * N_WORKERS
    trials = Ledger.existing(folder).trials
    complete = [trial for trial in trials if trial.state == "complete"]
    assert len(complete) == n_candidates
    assert sorted(trial.number for trial in trials) == list(range(len(trials)))
    assert max(Counter(trial.digest for trial in complete).values()) == 1
    assert len({trial.worker for trial in complete}) >= N_WORKERS
    # a score that ended in no line of the ledger is of a worker that was killed before it wrote
    scores = Counter(line.split()[0] for line in (root / "log").read_text().splitlines())
    assert sum(scores.values()) <= n_candidates + n_killed
    assert not [*(folder / "running").iterdir()]


def scored(folder: Path) -> list[str]:
    file = folder / "search.jsonl"
    return file.read_text().splitlines()[1:] if file.exists() else []


def test_a_candidate_whose_workers_all_die_is_given_up(tmp_path: Path) -> None:
    root, folder = nearness.write_models(tmp_path), tmp_path / "search"
    done = [*nearness.run(nearness.study(root, folder, budget={"trials": 3}))]
    (folder / "running").mkdir(exist_ok=True)
    lost = {"number": 3, "origin": "equal weights", "recipe": done[0].recipe, "digest": "0" * 12}
    lost |= {"params": {"weight[a]": 0.5, "weight[b]": 0.5}, "attempts": 5}
    (folder / "running" / "000003.json").write_text(json.dumps(lost))
    (folder / "running" / "000004.json").write_text('{"number": 4, "ori')  # killed while claiming
    trials = [*nearness.run(nearness.study(root, folder, budget={"trials": 6}))]
    assert [(trial.number, trial.state) for trial in trials] == [
        (3, "failed"), (4, "complete"), (5, "complete"),
    ]  # fmt: skip
    assert "begun 5 times" in trials[0].error
