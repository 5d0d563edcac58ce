"""Run programs that a model wrote, after consent on the command line; used by scorers of code."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm.auto import tqdm

from harness_adapters.tasks.scoring.execution import runs
from merge_plugins.errors import MergeError

KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR")


def environment() -> dict[str, str]:
    """Return the environment variables of a third party's scorer: no key, no token, no proxy."""
    return {name: os.environ[name] for name in KEPT if name in os.environ}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--score`` and ``--allow-code-execution``."""
    parser.add_argument("--score", action="store_true", help="run the programs on their tests")
    parser.add_argument(
        "--allow-code-execution",
        action="store_true",
        help="agree to run what the model wrote, on this machine and as this user",
    )


def check_consent(options: argparse.Namespace) -> None:
    """Raise `MergeError` unless ``--score`` and ``--allow-code-execution`` are given together.

    Also where programs cannot be run, before hours are spent on writing them.
    """
    if options.score and os.name != "posix":
        raise MergeError(
            "--score runs programs under limits that Windows does not have; leave it out here, and "
            "score the file on Linux, macOS or WSL"
        )
    if options.score and not options.allow_code_execution:
        raise MergeError(
            "--score runs programs that the model wrote, on this machine and as this user; add "
            "--allow-code-execution if you accept that, or run the command in a container"
        )
    if options.allow_code_execution and not options.score:
        raise MergeError("--allow-code-execution without --score runs nothing; add --score")


def run_all(programs: Sequence[str], seconds: float) -> list[bool]:
    """Run each program in a process of its own; True for those that reach their end in time."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        passed = pool.map(lambda program: runs(program, seconds), programs)
        return list(tqdm(passed, total=len(programs), desc="Running", unit="program", delay=2))
