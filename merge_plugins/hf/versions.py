"""What differs between releases of transformers, and how a live config takes ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version

from merge_plugins.weights.files import read_json

VERSION = Version(transformers.__version__)
LAZY = Version("5.0.0.dev0") <= VERSION
"""Whether this transformers takes lazy tensors; older ones get merged tensors, and one model more
of memory."""
DTYPE = "dtype" if Version("4.56") <= VERSION else "torch_dtype"
"""What this transformers calls the dtype of a model."""
RENAMES = Version("5.0.0.dev0") <= VERSION
"""Whether loading may rename or fuse weights; older modules have their checkpoint's names."""


def adapt(config: Any, wanted: Mapping[str, Any], folder: Path) -> None:
    """Let the live config of a folder say what else a ``config.json`` would: dtype, vocabulary."""
    _update(config, wanted, read_json(folder / "config.json"))


def _update(config: Any, wanted: Mapping[str, Any], held: Mapping[str, Any]) -> None:
    for key, value in wanted.items():
        if value == held.get(key):
            continue
        if isinstance(value, Mapping):
            _update(getattr(config, key), value, held.get(key, {}))
        elif key in ("dtype", "torch_dtype"):
            setattr(config, DTYPE, getattr(torch, value))
        else:
            setattr(config, key, value)
