"""Offer merge methods that third parties registered with mergekit as methods of ours.

mergekit 0.1.5 discovers no plugins: a method exists once something imports the module that calls
``mergekit.merge_methods.register``. Such methods come from modules that
``MERGE_PLUGINS_MERGEKIT_MODULES`` names (comma-separated), from modules that the running program
has imported already, and from an edited mergekit. mergekit's own twenty methods are built in here
and are left out.

mergekit is imported by this module alone, and only while `plugins` is iterated: for a method that
is registered nowhere else, and for ``merge-plugins list``.
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
from merge_plugins.installing import to_install

if TYPE_CHECKING:
    from mergekit.merge_methods import MergeMethod, MergeMethodSpec
    from mergekit.merge_methods.base import ParameterSpec

MODULES = "MERGE_PLUGINS_MERGEKIT_MODULES"
SUPPORTED = (0, 1, 5)
"""The release whose interface for methods is supported: 0.1.4 had another."""
OWN = {
    *("linear", "slerp", "nuslerp", "multislerp", "karcher", "passthrough", "task_arithmetic"),
    *("ties", "dare_ties", "dare_linear", "breadcrumbs", "breadcrumbs_ties", "della"),
    *("della_linear", "model_stock", "sce", "nearswap", "arcee_fusion", "ram", "ramplus_tl"),
}
PROTOCOLS = {"measure", "prepare", "branches", "router"}
"""Names of a kernel's optional methods; the engine would call a field of that name."""


def plugins() -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Yield label, version and importer of each named module and of each registered method.

    The caller must run a module's importer before it takes the next item: it registers methods.
    """
    modules = [name.strip() for name in os.environ.get(MODULES, "").split(",") if name.strip()]
    try:
        version = metadata.version("mergekit")
    except metadata.PackageNotFoundError:
        if modules:
            raise MergeError(
                f"{MODULES} names {', '.join(modules)}, but mergekit is not installed: "
                + to_install("mergekit")
            ) from None
        return
    if Version(version).release != SUPPORTED:
        raise MergeError(
            f"mergekit {version} is installed, whose methods have another interface than those of "
            f"0.1.5: {to_install('mergekit')}"
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
    """Plugin of one method in mergekit's registry."""

    method: MergeMethod

    @hookimpl
    def register_merge_methods(self, register: Callable[..., None]) -> None:
        """Register the method; raises `MergeError` if no merge here can call it."""
        for reason in refusals(self.method):
            raise MergeError(f"cannot be used here: {reason}")
        register(self.method.spec.name, wrapped(self.method), **facts(self.method.spec))


def refusals(method: MergeMethod) -> Iterator[str]:
    """Yield the reasons why a method cannot be used: its inputs or parameters are unsupported."""
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
    """Convert mergekit's contract of a method to arguments of `register_merge_methods`."""
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
    """Build a kernel class: its fields are a mergekit method's parameters, its call runs it."""
    spec, base = method.spec, import_module("mergekit.merge_methods.base")

    def __post_init__(self: Any) -> None:  # noqa: N807
        for given in spec.parameters:
            value = getattr(self, given.name)
            for one in (value,) if given.scope == base.ParameterScope.SHARED else value:
                _check(given, one)

    def __call__(self: Any, slot: Slot) -> Tensor:  # noqa: N807
        """Compute the merged weight, [*shape], in mergekit's dtype."""
        entries = [base.TensorEntry(i, expert) for i, expert in enumerate(slot.experts)]
        if slot.maybe_base is not None:
            entries.append(base.TensorEntry("base", slot.maybe_base, is_base=True))
        group = base.TensorGroup(tuple(entries), base.TensorMetadata(slot.name))
        given = {each.name: getattr(self, each.name) for each in spec.parameters}
        # Draws from torch's global generator then depend on the seed and the weight's name alone.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(slot.generator(0).initial_seed())
            merged: Tensor = method((group,), parameters=given)[0]
        return merged

    doc = inspect.getdoc(_written(method)) or f"{spec.pretty_name or spec.name}, undescribed."
    fields = [(each.name, _type(each), _field(each)) for each in spec.parameters]
    namespace = {"__doc__": doc, "__post_init__": __post_init__, "__call__": __call__}
    return dataclasses.make_dataclass(
        "MergekitMethod", fields, namespace=namespace, frozen=True, kw_only=True
    )


def _check(given: ParameterSpec, value: Any) -> None:
    """Raise `ParameterError` for a value that mergekit refuses."""
    try:
        given.validate(value)
    except ValueError as exc:  # pydantic's has several lines
        message = exc.errors()[0]["msg"] if hasattr(exc, "errors") else exc
        raise ParameterError(f"{given.name}: {message}; got {value!r}") from exc


def _type(given: ParameterSpec) -> Any:
    """Return a parameter's type in a recipe; mergekit checks the value further."""
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
    """Return the function that computes the merged weight."""
    written = _written(method)
    return inspect.unwrap(getattr(written, "merge_group", written))


def _names(code: types.CodeType) -> Iterable[str]:
    """Yield the attributes and globals that a function and its nested functions name."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _home(method: MergeMethod) -> str:
    """Return the name of the module that defines a method."""
    return str(_written(method).__module__)


def _version(method: MergeMethod, mergekit: str) -> str:
    """Compute a method's version, part of a recipe's digest: releases and a hash of its source."""
    module = sys.modules[_home(method)]
    source = module if getattr(module, "__file__", None) else _written(method)
    digest = hashlib.sha256(inspect.getsource(source).encode()).hexdigest()[:8]
    top = module.__name__.partition(".")[0]
    for distribution in metadata.packages_distributions().get(top, ())[:1]:
        return f"{metadata.version(distribution)}+{digest}, mergekit {mergekit}"
    return f"{digest}, mergekit {mergekit}"


def _imported(name: str) -> types.SimpleNamespace:
    """Import a module that registers methods with mergekit; returns a plugin without hooks."""
    import_module(name)
    return types.SimpleNamespace()
