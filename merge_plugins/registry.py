"""Which merge methods exist: ours and everyone's, loaded one plugin at a time."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

import pluggy

from merge_plugins import hookspecs
from merge_plugins.api import Statistic
from merge_plugins.errors import UnknownMethodError, did_you_mean
from merge_plugins.matrices import Weight, holds_matrices

T = TypeVar("T")
BUILTIN = (
    "merge_plugins.methods.averages",
    "merge_plugins.methods.spherical",
    "merge_plugins.methods.nuslerp",
    "merge_plugins.methods.multislerp",
    "merge_plugins.methods.karcher",
    "merge_plugins.methods.task_vectors",
    "merge_plugins.methods.della",
    "merge_plugins.methods.della_baselines",
    "merge_plugins.methods.stock",
    "merge_plugins.methods.sce",
    "merge_plugins.methods.ram",
    "merge_plugins.methods.swaps",
    "merge_plugins.methods.seeds",
    "merge_plugins.methods.widen",
    "merge_plugins.methods.masks",
    "merge_plugins.methods.twin",
    "merge_plugins.methods.calibrated",
    "merge_plugins.methods.cocktail",
    "merge_plugins.methods.singular",
    "merge_plugins.methods.wudi",
    "merge_plugins.methods.consensus",
    "merge_plugins.methods.pcb",
    "merge_plugins.methods.emr",
    "merge_plugins.methods.adamerging",
)

BRIDGES = "merge_plugins.bridges"
"""Entry points in this group lead to another program's plugins: see `Registry.load_bridges`."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method, as a recipe may set it."""

    name: str
    field: str
    type: Any
    default: Any
    doc: str
    per_expert: bool
    alias: tuple[str, ...]

    @property
    def required(self) -> bool:
        """Whether a recipe must set it."""
        return self.default is dataclasses.MISSING


def told(fact: T | Callable[[Any], T], kernel: Any) -> T:
    """Return a fact that a plugin stated, or that its function says of a built kernel."""
    return fact(kernel) if callable(fact) else fact


@dataclass(frozen=True)
class Method:
    """A registered merge method and the facts its plugin stated about it."""

    name: str
    factory: Callable[..., Any]
    plugin: str
    version: str = ""
    elementwise: bool | Callable[[Any], bool] = False
    rowwise: bool | Callable[[Any], bool] = False
    matrices: bool | Callable[[Any], bool] = False
    layout: bool | Callable[[Any], bool] = False
    copies: Callable[[Any], bool] | None = None
    needs_base: bool = False
    takes_base: bool = False
    merges_base: bool = False
    min_experts: int = 1
    max_experts: int | None = None
    stats: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ()
    needs_data: bool | Callable[[Any], bool] = False
    paper: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """Parameters by canonical name, in the order of the dataclass."""
        hints = typing.get_type_hints(self.factory)
        found = {}
        for f in dataclasses.fields(self.factory):  # type: ignore[arg-type]
            name = f.name.rstrip("_")  # lambda_ is spelled lambda in recipes
            per_expert = typing.get_args(hints[f.name])[1:] == (...,)  # PerExpert and the like
            alias, doc = f.metadata.get("alias", ()), f.metadata.get("doc", "")
            found[name] = Parameter(name, f.name, hints[f.name], f.default, doc, per_expert, alias)
        return found

    @cached_property
    def spellings(self) -> Mapping[str, Parameter]:
        """Parameters by every spelling a recipe may use."""
        return {word: p for p in self.parameters.values() for word in (p.name, *p.alias)}

    @property
    def summary(self) -> str:
        """First line of the method's docstring."""
        return (inspect.getdoc(self.factory) or "").partition("\n")[0]

    def is_elementwise(self, kernel: Any, weight: Weight) -> bool:
        """Whether this built kernel may be called on any region of that weight."""
        always = told(self.elementwise, kernel)
        return always or (self.merges_matrices(kernel) and not holds_matrices(weight))

    def merges_matrices(self, kernel: Any) -> bool:
        """Whether this built kernel works on matrices of linear layers, and else by element."""
        return told(self.matrices, kernel)

    def is_rowwise(self, kernel: Any) -> bool:
        """Whether this built kernel may be called on any whole rows of a weight."""
        return told(self.rowwise, kernel)

    def statistics(self, kernel: Any) -> tuple[str, ...]:
        """Names of the calibration statistics that this built kernel reads."""
        return told(self.stats, kernel)

    def reads_data(self, kernel: Any) -> bool:
        """Whether this built kernel needs calibration data."""
        return told(self.needs_data, kernel) or bool(self.statistics(kernel))

    @property
    def is_routed(self) -> bool:
        """Whether the method weighs its experts for each input: see `merge_plugins.api.Routes`."""
        return hasattr(self.factory, "branches")

    @property
    def takes_data(self) -> bool:
        """Whether some setting of the method needs calibration data."""
        return bool(self.stats) or bool(self.needs_data)

    def works_from(self, base: object | None) -> bool:
        """Whether that base model is received apart, and not one of the experts."""
        return base is not None and (self.needs_base or self.takes_base)

    def is_copy(self, kernel: Any) -> bool:
        """Whether this built kernel returns its only expert as it is."""
        return self.copies is not None and self.copies(kernel)

    def needs_layout(self, kernel: Any) -> bool:
        """Whether this built kernel asks which dimension of a weight runs over its inputs."""
        return told(self.layout, kernel) or self.merges_matrices(kernel)


@dataclass(frozen=True)
class RegisteredStatistic:
    """A calibration statistic and the plugin it comes from."""

    name: str
    function: Statistic
    plugin: str
    version: str = ""
    elementwise: bool = False

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]


@dataclass
class Registry:
    """Methods and statistics of every plugin that loaded, and why the others did not."""

    methods: dict[str, Method] = field(default_factory=dict)
    statistics: dict[str, RegisteredStatistic] = field(default_factory=dict)
    broken: dict[str, Exception] = field(default_factory=dict)
    plugins: dict[str, str] = field(default_factory=dict)
    bridges: list[EntryPoint] = field(default_factory=list)
    """Those not crossed yet."""

    def __post_init__(self) -> None:
        self._loading = ("", "")
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
        method = Method(name, factory, *self._loading, **facts)
        _ = method.spellings  # a field whose type cannot be read fails here, not in a merge
        self.methods[name] = method

    def _add_statistic(self, name: str, function: Statistic, **facts: Any) -> None:
        if name in self.statistics:
            raise ValueError(f"statistic {name!r} is already registered")
        self.statistics[name] = RegisteredStatistic(name, function, *self._loading, **facts)

    def load(self, plugin: str, version: str, importer: Callable[[], Any]) -> None:
        """Register one plugin; if anything in it fails, keep the error and none of its methods."""
        self._loading = (plugin, version)
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

    def load_bridges(self) -> None:
        """Load what plugins of other programs register: slow, so only for a name nobody here has.

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
        """Methods by every name a recipe may use."""
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
        raise UnknownMethodError(
            f"no merge method {name!r}{did_you_mean(name, named) or '.'} "
            "Run 'merge-plugins list' to see them."
        )


@cache
def registry() -> Registry:
    """Return the process's registry: built-in methods first, then every installed plugin."""
    found = Registry()
    for module in BUILTIN:
        found.load(module, "", lambda module=module: import_module(module))  # type: ignore[misc]
    if found.broken:  # ours must never be: do not hide it behind 'no such method'
        raise next(iter(found.broken.values()))
    for point in sorted(entry_points(group=hookspecs.PROJECT), key=lambda p: p.name):
        dist = point.dist
        label = f"{dist.name}:{point.name}" if dist else point.name
        found.load(label, dist.version if dist else "", point.load)
    found.bridges += entry_points(group=BRIDGES)
    return found
