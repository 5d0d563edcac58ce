"""Tell whoever runs a merge what it comes to: lines on standard error, in any harness.

Harnesses show a library's warnings and nothing below them, so these lines are no log records. They
come from the first process of a group, above progress bars. `QUIET` in the environment
silences them wherever a merge is loaded, ``--quiet`` for one of our commands.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

QUIET = "MERGE_PLUGINS_QUIET"
"""Variable of the environment that silences these lines: anything but nothing or 0."""
VARIABLES = (QUIET, "TQDM_DISABLE")
RANKS = ("RANK", "LOCAL_RANK", "VLLM_DP_RANK")
"""Variables in which launchers number their processes."""


def tell(text: str) -> None:
    """Write a line to standard error, if lines are shown."""
    if is_shown():
        from tqdm.auto import tqdm

        tqdm.write(f"merge-plugins: {text}", file=sys.stderr)


def is_shown() -> bool:
    """Whether lines are shown: nobody silenced them, and this is the first process of its group."""
    return not is_quiet() and _is_first()


def is_quiet() -> bool:
    """Whether the environment silences these lines."""
    return os.environ.get(QUIET, "") not in ("", "0")


def be(*, quiet: bool = False, verbose: bool = False) -> None:
    """Silence these lines and progress bars, or show what the engine logs as well.

    Processes that are started from now on do as this one. tqdm looks when it is imported.
    """
    if quiet:
        os.environ.update(dict.fromkeys(VARIABLES, "1"))
    if verbose:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("merge_plugins").setLevel(logging.DEBUG)


@contextmanager
def hushed() -> Iterator[None]:
    """Silence these lines for work that merges again and again, and shows it in its own way."""
    with restored():
        os.environ[QUIET] = "1"
        yield


@contextmanager
def restored() -> Iterator[None]:
    """Undo `be` at the end."""
    before = {name: os.environ.get(name) for name in VARIABLES}
    logger = logging.getLogger("merge_plugins")
    level = logger.level
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _is_first() -> bool:
    """Whether this process is the first of those that a launcher started for one run."""
    if any(os.environ.get(name, "0") not in ("", "0") for name in RANKS):
        return False
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return True
    return bool(distributed.get_rank() == 0)
