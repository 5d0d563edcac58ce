"""What a line of the command costs before it does anything, and the start-up hook an empty process.

Every line in turn, beside an empty process and the import of torch; then two bare environments that
differ in the hook's three files only. Medians of processes that run one at a time.
`python benchmarks/startup.py [runs of each line, 9] [runs of an empty process, 300]`
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path

HOOK = Path(__file__).parents[1] / "harness_adapters" / "_startup"
SILENT = {"PYTHONDONTWRITEBYTECODE": "1"}
COMMAND = ("-m", "merge_plugins")
LINES = {
    "python -c pass": ("-c", "pass"),
    "merge-plugins --version": (*COMMAND, "--version"),
    "merge-plugins --help": (*COMMAND, "--help"),
    "merge-plugins": COMMAND,
    "merge-plugins reprot": (*COMMAND, "reprot"),
    "merge-plugins save --help": (*COMMAND, "save", "--help"),
    "merge-plugins report --help": (*COMMAND, "report", "--help"),
    "python -c 'import torch'": ("-c", "import torch"),
    "merge-plugins show ties": (*COMMAND, "show", "ties"),
    "merge-plugins list": (*COMMAND, "list"),
}
"""Lines, and what Python is started with for each."""


def environment(folder: Path, *, hooked: bool) -> Path:
    """Make a bare environment and return its interpreter."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    if hooked:
        found = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        )
        shutil.copytree(
            HOOK,
            found.stdout.strip(),
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    return python


def process(python: Path, words: Sequence[str], **variables: str) -> tuple[float, float]:
    """Run Python; return the seconds that pass and those that a processor works on it."""
    silence = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
    start = time.perf_counter()
    pid = os.posix_spawn(
        python, [python, *words], {**os.environ, **variables}, file_actions=silence
    )
    _, status, usage = os.wait4(pid, 0)
    passed = time.perf_counter() - start
    assert os.waitstatus_to_exitcode(status) in {0, 2}, f"{words} ended with status {status}"
    return passed, usage.ru_utime + usage.ru_stime


def milliseconds(python: Path, variables: dict[str, str]) -> float:
    """CPU time, user and system, of one empty process."""
    return 1000 * process(python, ("-c", "pass"), **variables)[1]


def lines(runs: int) -> None:
    """Print what each line takes in this environment."""
    python = Path(sys.executable)
    rounds = [[process(python, words) for words in LINES.values()] for _ in range(runs + 1)]
    print(f"Python {sys.version.split()[0]}, {runs} runs each, seconds (median)")
    print(f"{'':32}{'wall':>8}{'CPU':>8}")
    for label, column in zip(LINES, zip(*rounds[1:], strict=True), strict=True):  # files are cached
        wall, cpu = (statistics.median(times) for times in zip(*column, strict=True))
        print(f"{label:32}{wall:8.2f}{cpu:8.2f}")
    print()


def compare(label: str, plain: Path, hooked: Path, runs: int, variables: dict[str, str]) -> None:
    """Print one row."""
    pairs = [(milliseconds(plain, variables), milliseconds(hooked, variables)) for _ in range(runs)]
    without, with_hook = (statistics.median(column) for column in zip(*pairs, strict=True))
    added = with_hook - without
    print(f"{label:28}{without:10.2f}{with_hook:10.2f}{added:+10.2f}{with_hook / without:9.3f}")


def hook(runs: int) -> None:
    """Print the cost with the hook's bytecode absent and present."""
    with tempfile.TemporaryDirectory() as folder:
        plain = environment(Path(folder, "plain"), hooked=False)
        hooked = environment(Path(folder, "hooked"), hooked=True)
        print(f"Python {sys.version.split()[0]}, {runs} runs each, CPU time in ms (median)")
        print(f"{'':28}{'without':>10}{'with':>10}{'added':>10}{'ratio':>9}")
        compare("no bytecode can be written", plain, hooked, runs, SILENT)
        milliseconds(hooked, {})  # writes the bytecode
        compare("bytecode cached", plain, hooked, runs, {})


def main(each: int = 9, empty: int = 300) -> None:
    """Print both tables."""
    lines(each)
    hook(empty)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
