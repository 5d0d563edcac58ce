"""Register the merge methods of every plugin, ours first, one plugin at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pluggy

from merge_plugins.api import Statistic
from merge_plugins.errors import UnknownMethodError, did_you_mean
from merge_plugins.plugins import hookspecs
from merge_plugins.plugins.method import BUILTIN, Method, RegisteredStatistic

FORMER_FACTS = {"elementwise": "ELEMENT", "rowwise": "ROW", "matrices": "MATRIX"}
"""Facts of earlier releases, and the granularity that each means."""
BRIDGES = "merge_plugins.bridges"
"""Entry points in this group lead to another program's plugins: see `Registry.load_bridges`."""


@dataclass(frozen=True)
class PluginFile:
    """A plugin that is one Python file, which a user named: see `plugins.files.load_plugin`."""

    path: Path
    source: bytes
    version: str
    """Hash of the source, 12 hex digits."""


@dataclass
class Registry:
    """Methods and statistics of every plugin that loaded, and the errors of those that failed."""

    methods: dict[str, Method] = field(default_factory=dict)
    statistics: dict[str, RegisteredStatistic] = field(default_factory=dict)
    broken: dict[str, Exception] = field(default_factory=dict)
    plugins: dict[str, str] = field(default_factory=dict)
    files: dict[str, PluginFile] = field(default_factory=dict)
    """Those of the plugins that are no installed package."""
    bridges: list[EntryPoint] = field(default_factory=list)
    """Bridges that are not loaded yet."""

    def __post_init__(self) -> None:
        self._loading = ("", "", "")
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        # Historic and called while no plugin is registered yet: each later register() then runs
        # that plugin's hooks alone, so a broken one cannot stop the next.
        hook = self._manager.hook
        hook.register_merge_methods.call_historic(kwargs={"register": self._add_method})
        hook.register_statistics.call_historic(kwargs={"register": self._add_statistic})

    def _add_method(self, name: str, factory: Callable[..., Any], **facts: Any) -> None:
        for word in (name, *facts.get("aliases", ())):
            if word in self.named:
                raise ValueError(f"{word!r} is already registered by {self.named[word].plugin}")
        if not (dataclasses.is_dataclass(factory) and callable(factory)):
            raise TypeError(f"{name!r}: a merge method is a frozen dataclass, got {factory!r}")
        for fact in facts.keys() & FORMER_FACTS.keys():
            line = f"granularity = {FORMER_FACTS[fact]}"
            raise TypeError(
                f"{name!r}: {fact}= is now declared beside the maths. In class "
                f"{getattr(factory, '__name__', 'Method')} write  {line}  "
                f"(from merge_plugins import {FORMER_FACTS[fact]}) and delete {fact}= here"
            )
        method = Method(name, factory, *self._loading, **facts)
        _ = method.spellings  # a field whose type cannot be read fails here, not in a merge
        self.methods[name] = method

    def _add_statistic(self, name: str, function: Statistic, **facts: Any) -> None:
        if name in self.statistics:
            raise ValueError(f"statistic {name!r} is already registered")
        self.statistics[name] = RegisteredStatistic(name, function, *self._loading, **facts)

    def load(
        self, plugin: str, version: str, importer: Callable[[], Any], *, known_as: str = ""
    ) -> None:
        """Register one plugin; if anything in it fails, keep the error and none of its methods.

        ``known_as``: what digests call it, if not ``plugin``.
        """
        self._loading = (plugin, version, known_as or plugin)
        before = dict(self.methods), dict(self.statistics)
        try:
            self._manager.register(importer(), name=plugin)
            self._manager.check_pending()
        except Exception as exc:  # the one place: a plugin is a guest and may fail in any way
            self.broken[plugin] = exc
            self.methods, self.statistics = before
            if self._manager.has_plugin(plugin):
                self._manager.unregister(name=plugin)
        else:
            self.plugins[plugin] = version

    def of_plugin(self, plugin: str) -> list[str]:
        """List the methods and statistics that a plugin registered, by name."""
        methods = [method.name for method in self.methods.values() if method.plugin == plugin]
        return methods + [s.name for s in self.statistics.values() if s.plugin == plugin]

    def unload(self, plugin: str) -> None:
        """Forget a plugin with all that it registered."""
        self._manager.unregister(name=plugin)
        self.methods = {n: m for n, m in self.methods.items() if m.plugin != plugin}
        self.statistics = {n: s for n, s in self.statistics.items() if s.plugin != plugin}
        del self.plugins[plugin]
        self.files.pop(plugin, None)

    def load_builtin(self) -> None:
        """Register our own methods, through the hooks that everyone's go through."""
        room = import_module(BUILTIN)
        for family in room.FAMILIES:
            name, first_name = (
                f"{BUILTIN}.{n}" for n in (family, room.RENAMED.get(family, family))
            )
            self.load(name, "", partial(import_module, name), known_as=first_name)

    def load_bridges(self) -> None:
        """Load the plugins of other programs: slow, so only for a name that no plugin of ours has.

        A bridge is a function that yields label, version and importer of one plugin after another;
        an importer has run by the time the next plugin is asked for.
        """
        while self.bridges:
            bridge = self.bridges.pop(0)
            try:
                for plugin, version, importer in bridge.load()():
                    self.load(plugin, version, importer)
            except Exception as exc:  # the other program is a guest too
                self.broken[bridge.name] = exc

    @property
    def named(self) -> dict[str, Method]:
        """Methods by every name a recipe may use, aliases included."""
        return {word: m for m in self.methods.values() for word in (m.name, *m.aliases)}

    def get(self, name: str) -> Method:
        """Return the method of that name or alias, or an error that names the nearest one."""
        if name not in self.named:
            self.load_bridges()
        named = self.named
        if name in named:
            return named[name]
        for plugin, exc in self.broken.items():
            if plugin.partition(":")[2] == name:
                raise UnknownMethodError(f"{plugin} failed to load: {exc}") from exc
        near = did_you_mean(name, named)
        own = "" if near else " One in a file of your own is named by --plugin, or plugin=."
        raise UnknownMethodError(
            f"no merge method {name!r}{near or '.'} Run 'merge-plugins list' to see them.{own}"
        )


@cache
def registry() -> Registry:
    """Return the process's registry: built-in methods first, then those of installed plugins."""
    found = Registry()
    found.load_builtin()
    if found.broken:  # ours must never be: do not hide it behind 'no such method'
        raise next(iter(found.broken.values()))
    for point in sorted(entry_points(group=hookspecs.PROJECT), key=lambda p: p.name):
        dist = point.dist
        label = f"{dist.name}:{point.name}" if dist else point.name
        found.load(label, dist.version if dist else "", point.load)
    found.bridges += entry_points(group=BRIDGES)
    return found
