"""Runs that are killed at a random point: what looks whole is whole, and nothing stays behind.

Real processes run the real command. One process imports everything once, and forks each run.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest

Stream = Callable[[int], Iterator[Random]]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals and forks are POSIX")

SERVER = """
import gc, json, os, signal, sys, traceback
import torch
import merge_plugins.cli, merge_plugins.hf.experts
import merge_plugins.outputs.mount, merge_plugins.outputs.save, merge_plugins.__main__
from merge_plugins.plugins import registry
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

def run(argv, said):
    out = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(out, 1), os.dup2(out, 2)
    sys.argv = ["merge-plugins", *argv]
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return merge_plugins.__main__.main()
    except SystemExit as exc:
        return exc.code
    except KeyboardInterrupt:  # before main was in charge of it, as while Python itself starts
        return 130
    except BaseException:
        traceback.print_exc()
        return 99

torch.set_num_threads(1)
registry()  # imports every method
signal.signal(signal.SIGINT, signal.SIG_DFL)
gc.freeze()  # pages that the children share
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        os._exit(run(*json.loads(line)))  # to tear down all of torch and transformers takes seconds
    print(child, flush=True)
    sys.stdin.readline()  # until then its number stays its own
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
ENDS = {
    signal.SIGKILL: {-signal.SIGKILL},
    signal.SIGTERM: {-signal.SIGTERM, 128 + signal.SIGTERM},
    signal.SIGINT: {-signal.SIGINT, 128 + signal.SIGINT},
}
"""How a run may end that a signal stopped: by the signal, where there was nothing to clean yet."""


class Server:
    """A process that forks one run of the command after the other."""

    def __init__(self, folder: Path) -> None:
        self.said, self.cache = folder / "said", folder / "cache"
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "MERGE_PLUGINS_CACHE": str(self.cache), "TQDM_DISABLE": "1"},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        assert self._out.readline() == "ready\n"

    def run(self, argv: list[str], stop: tuple[Callable[[], None], int] | None = None) -> int:
        """Run the command and return its status; ``stop``: what to wait for, then which signal."""
        child = int(self._ask(json.dumps([argv, str(self.said)])))
        if stop is not None:
            stop[0]()
            os.kill(child, stop[1])
        return int(self._ask(""))

    def _ask(self, line: str) -> str:
        print(line, file=self._in, flush=True)
        return self._out.readline()

    def close(self) -> None:
        self._in.close()
        self._process.wait(60)
        self._out.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    served = Server(tmp_path_factory.mktemp("killed"))
    yield served
    served.close()


def contents(folder: Path) -> dict[str, str]:
    """Hash every file below a folder."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def hidden(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob(".*")]


def moment(random: Random, seconds: float, *folders: Path) -> Callable[[], None]:
    """Choose a moment of a run of some seconds; half of all while it writes into the folders."""

    def any_time() -> None:
        time.sleep(random.uniform(0, 1.1 * seconds))

    def while_writing() -> None:
        end = time.monotonic() + 2 * seconds
        while not any(map(hidden, folders)) and time.monotonic() < end:
            time.sleep(0.0005)
        time.sleep(random.choice([0, 0.0005, 0.005, 0.02]))

    return random.choice([any_time, while_writing])


RECIPES: Mapping[str, dict[str, Any]] = {
    "save": {"merge_method": "linear", "parameters": {"weight": 0.5}},
    "mount": {"merge_method": "linear", "parameters": {"weight": 0.5}},
    "statistics": {"merge_method": "fisher_merging", "data": "data.jsonl"},
}


@pytest.mark.parametrize("what", RECIPES)
def test_a_killed_run_leaves_nothing_half_written(
    what: str,
    server: Server,
    llamas: Mapping[str, str],
    stream: Stream,
    outcomes: Counter[str],
    tmp_path: Path,
) -> None:
    models = [llamas["math"], llamas["code"]]
    (tmp_path / "data.jsonl").write_text('{"text": "1 2 3"}\n{"text": "4 5 6"}\n')
    (tmp_path / "merge.yaml").write_text(json.dumps({**RECIPES[what], "models": models}))
    place, statistics = tmp_path / "place", server.cache / "statistics"
    target = place / "out"
    argv = ["mount" if what == "mount" else "save", str(tmp_path / "merge.yaml"), str(target)]

    def finish() -> dict[Path, dict[str, str]]:
        """Run to the end, and return every file that was written."""
        status = server.run(argv)
        assert status == 0, server.said.read_text()
        assert [path.name for path in place.iterdir()] == ["out"]
        assert not hidden(place, server.cache)
        found = {folder: contents(folder) for folder in (target, *statistics.glob("*"))}
        shutil.rmtree(place)
        shutil.rmtree(statistics, ignore_errors=True)
        return found

    started = time.monotonic()
    whole = finish()
    seconds = time.monotonic() - started
    for random, number in zip(stream(3), itertools.cycle(ENDS)):
        status = server.run(argv, (moment(random, seconds, place, statistics), number))
        said = server.said.read_text()
        assert status in {0, *ENDS[number]}, said
        assert "Traceback" not in said
        for folder in (target, *statistics.glob("[!.]*")):
            if folder.exists():
                outcomes["whole folders"] += 1
                assert contents(folder) == whole[folder]
        name = f"{'finished before' if status == 0 else 'stopped by'} {signal.Signals(number).name}"
        outcomes[name] += 1
        outcomes[f"left by {signal.Signals(number).name}"] += bool(hidden(tmp_path, server.cache))
        shutil.rmtree(target, ignore_errors=True)
        assert finish() == whole


BEFORE_MAIN = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
sys.argv = ["merge-plugins", "list"]
runpy.run_module("merge_plugins", run_name="__main__", alter_sys=True)
"""


def test_an_interrupt_before_the_command_runs_is_no_traceback(
    stream: Stream, outcomes: Counter[str]
) -> None:
    for random in stream(3):
        child = subprocess.Popen(
            [sys.executable, "-X", "importtime", "-c", BEFORE_MAIN],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stderr is not None
        n_modules = random.randrange(1, 600)  # each line is a module that is imported now
        with child.stderr:
            lines = (line for line in child.stderr if " torch" in line)
            for _ in range(n_modules):
                next(lines)
            child.send_signal(signal.SIGINT)
            assert "Traceback" not in child.stderr.read()
        assert child.wait(60) == -signal.SIGINT
        outcomes["stopped by SIGINT"] += 1
