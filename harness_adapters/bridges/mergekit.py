"""Merge methods that other people registered with mergekit, as methods of ours.

mergekit 0.1.5 discovers no plugins: a method exists once something imports the module that calls
``mergekit.merge_methods.register``. So this looks where such a method can come from: modules that
``MERGE_PLUGINS_MERGEKIT_MODULES`` names (comma between them), modules that the running program has
imported already, and an edited mergekit. Its own twenty are ours too and are left out.

mergekit is imported here and nowhere else, and only where `plugins` is walked: for a method that
nobody else has, and for ``merge-plugins list``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import torch
from packaging.version import Version
from torch import Tensor

from merge_plugins import Slot, hookimpl, parameter
from merge_plugins.errors import MergeError, ParameterError

if TYPE_CHECKING:
    from mergekit.merge_methods import MergeMethod, MergeMethodSpec
    from mergekit.merge_methods.base import ParameterSpec

MODULES = "MERGE_PLUGINS_MERGEKIT_MODULES"
SPOKEN = (0, 1, 5)
"""The release whose interface for methods this speaks: 0.1.4 had another."""
OWN = {
    *("linear", "slerp", "nuslerp", "multislerp", "karcher", "passthrough", "task_arithmetic"),
    *("ties", "dare_ties", "dare_linear", "breadcrumbs", "breadcrumbs_ties", "della"),
    *("della_linear", "model_stock", "sce", "nearswap", "arcee_fusion", "ram", "ramplus_tl"),
}
PROTOCOLS = {"measure", "prepare", "branches", "router"}
"""What our runner would take a field of that name for."""


def plugins() -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Yield label, version and importer of every module named and of every method found.

    A module's importer has run by the time the next one is asked for.
    """
    modules = [name.strip() for name in os.environ.get(MODULES, "").split(",") if name.strip()]
    try:
        version = metadata.version("mergekit")
    except metadata.PackageNotFoundError:
        if modules:
            raise MergeError(
                f"{MODULES} names {', '.join(modules)}, but mergekit is not installed: "
                "pip install 'merge-plugins[mergekit]'"
            ) from None
        return
    if Version(version).release != SPOKEN:
        raise MergeError(
            f"mergekit {version} is installed, whose methods have another interface than those of "
            "0.1.5: pip install 'merge-plugins[mergekit]'"
        )
    registered = import_module("mergekit.merge_methods").registered_methods
    for name in modules:
        yield f"mergekit plugin {name}", "", lambda name=name: _imported(name)  # type: ignore[misc]
    for method in registered():
        if method.spec.name not in OWN:
            label = f"mergekit plugin {_home(method)}:{method.spec.name}"
            yield label, _version(method, version), lambda m=method: Plugin(m)  # type: ignore[misc]


@dataclasses.dataclass(frozen=True)
class Plugin:
    """One method of mergekit's registry, as a plugin of ours."""

    method: MergeMethod

    @hookimpl
    def register_merge_methods(self, register: Callable[..., None]) -> None:
        """Register it, or say why a merge here cannot call it."""
        for reason in refusals(self.method):
            raise MergeError(f"cannot be used here: {reason}")
        register(self.method.spec.name, wrapped(self.method), **facts(self.method.spec))


def refusals(method: MergeMethod) -> Iterator[str]:
    """Yield why a method needs more than the weights of one name, or more than a recipe holds."""
    base = import_module("mergekit.merge_methods.base")
    if not isinstance(method, base.GroupMergeMethod | base.BatchedMergeMethod):
        yield "it is neither a GroupMergeMethod nor a BatchedMergeMethod, so what it reads is open"
        return
    read = set(_names(_kernel(method).__code__))
    if "vocabulary_axis" in read:
        yield "it reads group.metadata.vocabulary_axis, which a merge here does not know"
    if not _base_is_apart(method.spec) and read & {"base", "non_base", "is_base"}:
        yield "it looks for the base without saying so: give it contract=InputContract(base=…)"
    for given in method.spec.parameters:
        if given.scope == base.ParameterScope.INPUT and _base_is_apart(method.spec):
            yield f"{given.name} has a value for the base too; make it a PerNonBase parameter"
        if given.name in PROTOCOLS:
            yield f"a parameter of a method here cannot be named {given.name}"
        if not (given.required or isinstance(given.default, float | int | str | None)):
            yield f"{given.name} has the default {given.default!r}, which no recipe can hold"


def facts(spec: MergeMethodSpec) -> dict[str, Any]:
    """Return what mergekit's contract says, in the words of `register_merge_methods`."""
    contract, base = spec.contract, spec.contract.base.value
    least = contract.min_inputs - _base_is_apart(spec)
    most = contract.max_inputs
    if most is not None and base == "required":
        most -= 1
    return {
        "needs_base": base == "required",
        "takes_base": base == "optional",
        "merges_base": base == "ignored",
        "min_experts": max(1, least, contract.min_non_base or 0),
        "max_experts": min(
            (n for n in (most, contract.max_non_base) if n is not None), default=None
        ),
        "paper": spec.reference_url or "",
    }


def wrapped(method: MergeMethod) -> type:
    """Return a dataclass whose fields are a mergekit method's parameters and whose call runs it."""
    spec, base = method.spec, import_module("mergekit.merge_methods.base")

    def __post_init__(self: Any) -> None:  # noqa: N807
        for given in spec.parameters:
            value = getattr(self, given.name)
            for one in (value,) if given.scope == base.ParameterScope.SHARED else value:
                _check(given, one)

    def __call__(self: Any, slot: Slot) -> Tensor:  # noqa: N807
        """Return the merged weight, [*shape], in the dtype that mergekit gives it."""
        entries = [base.TensorEntry(i, expert) for i, expert in enumerate(slot.experts)]
        if slot.maybe_base is not None:
            entries.append(base.TensorEntry("base", slot.maybe_base, is_base=True))
        group = base.TensorGroup(tuple(entries), base.TensorMetadata(slot.name))
        given = {each.name: getattr(self, each.name) for each in spec.parameters}
        # What it draws from torch's own generator then depends on seed and name alone.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(slot.generator(0).initial_seed())
            merged: Tensor = method((group,), parameters=given)[0]
        return merged

    doc = inspect.getdoc(_written(method)) or f"{spec.pretty_name or spec.name}, undescribed."
    fields = [(each.name, _type(each), _field(each)) for each in spec.parameters]
    written = {"__doc__": doc, "__post_init__": __post_init__, "__call__": __call__}
    return dataclasses.make_dataclass(
        "MergekitMethod", fields, namespace=written, frozen=True, kw_only=True
    )


def _check(given: ParameterSpec, value: Any) -> None:
    """Ask mergekit whether a parameter may have this value."""
    try:
        given.validate(value)
    except ValueError as exc:  # pydantic's, which says more than fits a line
        said = exc.errors()[0]["msg"] if hasattr(exc, "errors") else exc
        raise ParameterError(f"{given.name}: {said}; got {value!r}") from exc


def _type(given: ParameterSpec) -> Any:
    """Return a parameter's type as a recipe writes it; mergekit checks the rest."""
    kind = given.value_type
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    kind = str if isinstance(kind, type) and issubclass(kind, str) else kind
    return kind if given.scope.value == "shared" else types.GenericAlias(tuple, (kind, ...))


def _field(given: ParameterSpec) -> Any:
    spelled = [given.name] if given.name.endswith("_") else []  # our names end before it
    default = dataclasses.MISSING if given.required else given.default
    return parameter(default, doc=given.description or "", alias=spelled)


def _base_is_apart(spec: MergeMethodSpec) -> bool:
    return spec.contract.base.value in ("required", "optional")


def _written(method: MergeMethod) -> Any:
    """Return the function or class that the author wrote."""
    return inspect.unwrap(getattr(method, "implementation", type(method)))


def _kernel(method: MergeMethod) -> Any:
    """Return the function that does the maths."""
    written = _written(method)
    return inspect.unwrap(getattr(written, "merge_group", written))


def _names(code: types.CodeType) -> Iterable[str]:
    """Yield the attributes and globals that a function names, those inside it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _home(method: MergeMethod) -> str:
    """Return the module that a method is written in."""
    return str(_written(method).__module__)


def _version(method: MergeMethod, mergekit: str) -> str:
    """Return what changes when a method's numbers may: it becomes part of a recipe's digest."""
    module = sys.modules[_home(method)]
    written_in = module if getattr(module, "__file__", None) else _written(method)
    digest = hashlib.sha256(inspect.getsource(written_in).encode()).hexdigest()[:8]
    top = module.__name__.partition(".")[0]
    for distribution in metadata.packages_distributions().get(top, ())[:1]:
        return f"{metadata.version(distribution)}+{digest}, mergekit {mergekit}"
    return f"{digest}, mergekit {mergekit}"


def _imported(name: str) -> types.SimpleNamespace:
    """Import a module for what it registers with mergekit; it has no hooks of ours."""
    import_module(name)
    return types.SimpleNamespace()
