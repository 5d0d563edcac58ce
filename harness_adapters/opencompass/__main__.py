"""Run an OpenCompass config with merges: one load per merge, all GPUs, a correct exit status.

    python -m harness_adapters.opencompass run_config.py [any option of opencompass]

A model whose entry has ``recipe=`` is a merge; the recipe may be a YAML file, relative to the run
config. ``infer`` and ``eval`` are filled in unless the config or ``--slurm``/``--dlc`` set them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from harness_adapters.ending import exit_status
from harness_adapters.opencompass.runs import Run, read_config


def main(argv: Sequence[str] | None = None) -> int:
    """Run OpenCompass; return the exit status, 1 if a result is missing, unlike OpenCompass's."""
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or given[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 0 if given and given[0] in ("-h", "--help") else 2
    return exit_status(lambda: _run(Path(given[0]), given[1:]))


def _run(file: Path, options: Sequence[str]) -> int:
    config = read_config(file)
    with tempfile.TemporaryDirectory(prefix="merge-plugins-") as folder:
        settled = Path(folder) / file.name
        with _arguments([str(settled), *options]):
            from opencompass.cli.main import main as opencompass
            from opencompass.cli.main import parse_args

            run = Run(config, parse_args(), options, Path(folder), torch.cuda.device_count())
        run.write(settled)
        with _arguments([str(settled), *options, "--reuse", run.name]):
            opencompass()
        lacks = run.lacks()
    if lacks:
        print(lacks, file=sys.stderr)
    return 1 if lacks else 0


@contextmanager
def _arguments(given: Sequence[str]) -> Iterator[None]:
    """Set ``sys.argv`` to OpenCompass's arguments, as it parses no others."""
    before, sys.argv = sys.argv, ["opencompass", *given]
    try:
        yield
    finally:
        sys.argv = before


if __name__ == "__main__":
    sys.exit(main())
