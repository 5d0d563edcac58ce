"""Lets the other finders find lm-eval's modules and reports each one once it has run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType

import _merge_plugins_lm_eval as this

waiting = {"lm_eval.models", "lm_eval.tasks"}
asking: set[str] = set()  # a finder that we ask may ask the import system, and so us, again


def find_spec(
    name: str, path: Sequence[str] | None, target: ModuleType | None
) -> ModuleSpec | None:
    """Return what the other finders find, with a loader that reports."""
    if name not in waiting or name in asking:
        return None
    asking.add(name)
    try:
        for finder in sys.meta_path:
            spec = None if finder is this else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = Reporting(spec.loader)
                return spec
    finally:
        asking.discard(name)
    return None


class Reporting(Loader):
    """Steps aside for the real loader, and says when that one is done."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Part of the loader protocol."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Part of the loader protocol."""
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        imported(module.__name__)


def imported(name: str) -> None:
    """Hand over; whatever goes wrong with us must not stop ``lm_eval --model hf``."""
    waiting.discard(name)
    if not waiting and this in sys.meta_path:
        sys.meta_path.remove(this)
    try:
        from harness_adapters import _discovery

        _discovery.imported(name)
    except Exception as exc:  # a start-up hook is a guest in every process of the environment
        log = logging.getLogger("merge_plugins")
        log.warning("merge-plugins cannot add itself to %s: %r", name, exc)
