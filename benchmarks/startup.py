"""What the start-up hook costs: CPU time of an empty Python process, without and with it.

Two bare environments that differ in the hook's three files only, run in turn; medians.
`python benchmarks/startup.py [runs]`
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HOOK = Path(__file__).parents[1] / "harness_adapters" / "_startup"
SILENT = {"PYTHONDONTWRITEBYTECODE": "1"}


def environment(folder: Path, hook: bool) -> Path:
    """Make a bare environment and return its interpreter."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    if hook:
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


def milliseconds(python: Path, variables: dict[str, str]) -> float:
    """CPU time, user and system, of one empty process."""
    pid = os.posix_spawn(python, [python, "-c", "pass"], {**os.environ, **variables})
    _, status, usage = os.wait4(pid, 0)
    assert status == 0, f"{python} ended with status {status}"
    return 1000 * (usage.ru_utime + usage.ru_stime)


def compare(label: str, plain: Path, hooked: Path, runs: int, variables: dict[str, str]) -> None:
    """Print one row."""
    pairs = [(milliseconds(plain, variables), milliseconds(hooked, variables)) for _ in range(runs)]
    without, with_hook = (statistics.median(column) for column in zip(*pairs, strict=True))
    added = with_hook - without
    print(f"{label:28}{without:10.2f}{with_hook:10.2f}{added:+10.2f}{with_hook / without:9.3f}")


def main(runs: int = 300) -> None:
    """Print the cost with the hook's bytecode absent and present."""
    with tempfile.TemporaryDirectory() as folder:
        plain = environment(Path(folder, "plain"), hook=False)
        hooked = environment(Path(folder, "hooked"), hook=True)
        print(f"Python {sys.version.split()[0]}, {runs} runs each, CPU time in ms (median)")
        print(f"{'':28}{'without':>10}{'with':>10}{'added':>10}{'ratio':>9}")
        compare("no bytecode can be written", plain, hooked, runs, SILENT)
        milliseconds(hooked, {})  # writes the bytecode
        compare("bytecode cached", plain, hooked, runs, {})


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
