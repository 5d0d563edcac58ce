"""Bridge releases of transformers; apply a merge's config to a live one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import PretrainedConfig

from merge_plugins.weights.files import read_json

VERSION = Version(transformers.__version__)
LAZY = Version("5.0.0.dev0") <= VERSION
"""Whether this transformers loads lazy tensors; older releases need all tensors merged first, which
takes the memory of one more model."""
DTYPE = "dtype" if Version("4.56") <= VERSION else "torch_dtype"
"""Name of the dtype argument in this transformers."""
RENAMES = Version("5.0.0.dev0") <= VERSION
"""Whether loading may rename or fuse weights; older releases keep the checkpoint's names."""


def adapt(config: Any, wanted: Mapping[str, Any], folder: Path) -> None:
    """Apply to a folder's live config the values of ``wanted`` that its config.json lacks."""
    _update(config, wanted, read_json(folder / "config.json"))


def _update(config: Any, wanted: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    for key, value in wanted.items():
        if value == stored.get(key):
            continue
        inner = getattr(config, key, None)
        if isinstance(value, Mapping) and isinstance(inner, PretrainedConfig):
            _update(inner, value, stored.get(key, {}))
        elif key in ("dtype", "torch_dtype"):
            setattr(config, DTYPE, getattr(torch, value))
        else:
            setattr(config, key, value)
