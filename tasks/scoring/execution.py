"""Whether a program that a model wrote runs to its end.

Nothing here is called before the user allowed it, by a flag of the harness.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile

FINISHED = 37
"""Status of a program that got to its end; 0 is what one that gives up with exit() returns."""
MEMORY = 4 * 2**30
"""Bytes of address space; what a test needs is a few hundred MiB, and numpy reserves more."""
RUN = f"""
import os, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (10 * 2**20,) * 2)
if sys.platform == "linux":
    resource.setrlimit(resource.RLIMIT_AS, ({MEMORY},) * 2)
exec(sys.stdin.read(), {{}})
os._exit({FINISHED})
"""


def runs(program: str, seconds: float = 5.0) -> bool:
    """Run a program in an interpreter of its own; return whether it ended without an error in time.

    It gets an empty folder, none of our environment variables (keys and tokens among them), and
    limits on time, memory and file size. That contains accidents, not malice: it can reach the
    network and read this user's files. HumanEval and MBPP give each program 3 seconds; ours
    include the start of the interpreter. Needs a POSIX system.
    """
    if os.name != "posix":
        raise OSError("programs are run under POSIX resource limits; use Linux, macOS or WSL")
    with tempfile.TemporaryDirectory(prefix="merge-plugins-run-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", RUN],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"HOME": folder, "PATH": os.defpath, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(program.encode("utf-8", "replace"), timeout=seconds)
        finally:
            _end(process)
    return process.returncode == FINISHED


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop the program and whatever it started."""
    with contextlib.suppress(ProcessLookupError):  # it ended, and started nothing that still runs
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
