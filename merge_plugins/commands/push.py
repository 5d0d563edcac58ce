"""`merge-plugins push`: a saved merge, to the hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from merge_plugins.errors import MergeError
from merge_plugins.outputs.publish import Saved, Target


def push_merge(options: argparse.Namespace) -> int:
    """Upload a saved merge to the hub, with its card and scores."""
    saved = Saved.read(Path(options.folder))
    target = Target.check(
        options.repo,
        lambda: saved.digest,
        private=options.private,
        overwrite=options.overwrite,
    )
    content = saved.published(options.repo, options.results)
    announce(saved.n_bytes, target)
    print(target.upload(content))
    return 0


def announce(n_bytes: int, target: Target) -> None:
    """Say what will be uploaded, before it is."""
    print(f"{n_bytes / 1e9:.3g} GB will be uploaded to {target}", flush=True)


def upload(saved: Saved, target: Target) -> None:
    """Upload what was just saved; a failure says that it was, and how to go on."""
    try:
        print(target.upload(saved.published(target.repo)))
    except MergeError as exc:
        again = f"merge-plugins push {saved.folder} {target.repo}{' --private' * target.private}"
        raise MergeError(f"{exc}. It is saved; try again with: {again}") from exc
