"""Hosts that share no folder, through a PostgreSQL that the test starts."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nearness
import pytest

from merge_plugins.errors import MergeError
from merge_plugins.search.ledger import Ledger

pwd = pytest.importorskip("pwd", reason="kills by signals that only POSIX has")
pytestmark = pytest.mark.skipif(shutil.which("initdb") is None, reason="no PostgreSQL here")
context = multiprocessing.get_context("forkserver")
N = 24


@pytest.fixture(scope="module")
def storage() -> Iterator[str]:
    """Start a server that listens on a socket in a folder; return its URL."""
    pytest.importorskip("psycopg")
    other = {}
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # a socket's path is short
        if os.geteuid() == 0:  # as whom it does not run
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            other = {"user": "nobody", "cwd": folder}

        def run(*words: str) -> None:
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL, **other)  # type: ignore[call-overload]

        data = f"{folder}/data"
        run("initdb", "-D", data, "-U", "search", "-A", "trust", "--no-sync")
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        run("pg_ctl", "-D", data, "-o", options, "-w", "-l", f"{folder}/log", "start")
        yield f"postgresql://search@/postgres?host={folder}"
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")


def test_hosts_share_a_search_and_take_up_what_a_killed_one_left(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # of the server that is forked
    context.set_forkserver_preload(["nearness"])
    root = nearness.write_models(tmp_path)

    def start(host: int) -> multiprocessing.process.BaseProcess:
        arguments = (root, tmp_path / f"host {host}", 0.1, N, storage)
        worker = context.Process(target=nearness.work, args=arguments)
        worker.start()
        return worker

    hosts = [start(host) for host in range(3)]
    log = root / "log"
    while not log.exists() or len(log.read_text().splitlines()) < 6:
        time.sleep(0.05)
    os.kill(hosts[0].pid, signal.SIGKILL)  # type: ignore[arg-type]
    for host in hosts:
        host.join()
    assert [host.exitcode for host in hosts] == [-signal.SIGKILL, 0, 0]
    for host in (1, 2):
        trials = Ledger.existing(tmp_path / f"host {host}").trials
        assert sorted(t.number for t in trials) == list(range(len(trials)))
        complete = [trial for trial in trials if trial.state == "complete"]
        assert len(complete) == N
        assert max(Counter(trial.digest for trial in complete).values()) == 1
        assert len({trial.worker for trial in complete}) == 3
    # the host that was killed goes on from its own copy and the database: nothing is left to do
    study = nearness.study(root, tmp_path / "host 0", None, storage, budget={"trials": N})
    assert not [*nearness.run(study)]
    assert len(study.scored) == N


def test_a_search_begun_in_a_folder_goes_on_in_a_database(storage: str, tmp_path: Path) -> None:
    root = nearness.write_models(tmp_path)
    search = {"budget": {"trials": 5}, "seed": 7}
    first = [*nearness.run(nearness.study(root, tmp_path / "one", **search))]
    nearness.study(root, tmp_path / "one", None, storage, **search)
    study = nearness.study(root, tmp_path / "two", None, storage, **search)
    assert [t.digest for t in study.ledger.trials] == [t.digest for t in first]


def test_a_database_that_is_none_is_named(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    root = nearness.write_models(tmp_path)
    with pytest.raises(MergeError, match=r"--storage: .*postgresql://user@host/name"):
        nearness.study(root, tmp_path / "one", None, f"postgresql:///x?host={tmp_path}")
