"""Find lm-eval's modules through the other finders, and call `imported` once each has run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType

import _merge_plugins_lm_eval as this

waiting = {"lm_eval.models", "lm_eval.tasks"}
asking: set[str] = set()  # another finder may call the import system, and so this one, again


def find_spec(
    name: str, path: Sequence[str] | None, target: ModuleType | None
) -> ModuleSpec | None:
    """Return the spec of the first other finder that has one, with its loader wrapped."""
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
    """Run the real loader, then call `imported`."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module by the real loader."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Restore the real loader, run the module by it, then call `imported`."""
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        imported(module.__name__)


def imported(name: str) -> None:
    """Call our discovery; no error of ours may stop ``lm_eval --model hf``."""
    waiting.discard(name)
    if not waiting and this in sys.meta_path:
        sys.meta_path.remove(this)
    try:
        from harness_adapters.lm_eval import discovery

        discovery.imported(name)
    except Exception as exc:  # a start-up hook is a guest in every process of the environment
        log = logging.getLogger("merge_plugins")
        log.warning("merge-plugins cannot add itself to %s: %r", name, exc)
