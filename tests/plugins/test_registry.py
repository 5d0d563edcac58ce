"""A plugin is a guest: it may fail without hurting the host, and may not shadow what is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_plugins import PerExpert, Slot, hookimpl, parameter
from merge_plugins.errors import UnknownMethodError
from merge_plugins.plugins import Registry, registry
from merge_plugins.plugins.registry import BUILTIN

Register = Callable[..., None]


@dataclasses.dataclass(frozen=True)
class Median:
    """Elementwise median of the experts.

    A second paragraph.
    """

    scale: float = 1.0

    def __call__(self, slot: Slot) -> Tensor:
        return self.scale * torch.stack(slot.experts).float().median(dim=0).values


def plugin(function: Callable[[Register], None], name: str = "register_merge_methods") -> Any:
    """Return what a plugin module is: an object with hooks."""
    function.__name__ = name
    return SimpleNamespace(**{name: hookimpl(function)})


def loaded(*plugins: Any) -> Registry:
    found = Registry()
    for i, module in enumerate(plugins):
        found.load(f"plugin-{i}", f"{i}.0", lambda module=module: module)
    return found


def register_median(register: Register, name: str = "median", **facts: Any) -> None:
    register(name, Median, **facts)


def test_a_plain_dataclass_is_a_method() -> None:
    found = loaded(plugin(lambda register: register_median(register, paper="Tukey 1977")))
    method = found.get("median")
    assert not found.broken
    assert found.plugins == {"plugin-0": "0.0"}
    assert (method.plugin, method.version, method.paper) == ("plugin-0", "0.0", "Tukey 1977")
    assert method.summary == "Elementwise median of the experts."
    assert (method.min_experts, method.max_experts, method.needs_base) == (1, None, False)
    (only,) = method.parameters.values()
    assert (only.name, only.type, only.default, only.required) == ("scale", float, 1.0, False)
    slot = Slot("w", None, tuple(torch.tensor([[1.0], [5.0], [2.0]])))
    assert method.factory(scale=2.0)(slot).tolist() == [4.0]


def test_parameters_say_their_spellings_and_whether_each_expert_has_one() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mix:
        weight: PerExpert = parameter(doc="share of each model", alias=("share",))
        lambda_: float = parameter(1.0, doc="factor")

        def __call__(self, slot: Slot) -> Tensor:
            return slot.experts[0].float()

    method = loaded(plugin(lambda register: register("mix", Mix))).get("mix")
    weight, lambda_ = method.parameters.values()
    assert (weight.per_expert, weight.required, weight.doc) == (True, True, "share of each model")
    assert (lambda_.name, lambda_.field, lambda_.per_expert) == ("lambda", "lambda_", False)
    assert set(method.spellings) == {"weight", "share", "lambda"}


def test_an_alias_gives_its_method() -> None:
    aliases = {"middle": "a word for it", "centre": "another"}
    found = loaded(plugin(lambda register: register_median(register, aliases=aliases)))
    assert found.get("centre") is found.get("median")
    assert found.methods.keys() == {"median"}
    with pytest.raises(UnknownMethodError, match="did you mean 'middle'"):
        found.get("midle")


def test_an_alias_may_not_shadow_a_name() -> None:
    def register_pair(register: Register) -> None:
        register_median(register, "mean", aliases={"median": "taken"})

    found = loaded(plugin(lambda register: register_median(register)), plugin(register_pair))
    assert found.methods.keys() == {"median"}
    assert str(found.broken["plugin-1"]) == "'median' is already registered by plugin-0"


def failing(register: Register) -> None:
    register_median(register, "half done")
    raise ImportError("needs scipy")


def clashing(register: Register) -> None:
    register_median(register, "first of a pair")
    register_median(register, "median")


@pytest.mark.parametrize(
    ("broken", "error", "message"),
    [
        (plugin(failing), ImportError, "needs scipy"),
        (plugin(clashing), ValueError, "'median' is already registered by plugin-0"),
        (plugin(lambda register: register("f", lambda slot: slot)), TypeError, "a merge method is"),
        (plugin(lambda register: register("f", Register)), TypeError, "a merge method is a frozen"),
        (plugin(lambda register: register("m", Median, speed=9)), TypeError, "speed"),
        (plugin(lambda register: None, "register_merge_method"), Exception, "unknown hook"),
    ],
    ids=["raises", "clashes", "a function", "no dataclass", "unknown fact", "wrong hook name"],
)
def test_a_broken_plugin_is_reported_and_leaves_nothing_behind(
    broken: Any, error: type[Exception], message: str
) -> None:
    good = plugin(lambda register: register_median(register))
    late = plugin(lambda register: register_median(register, "late"))
    found = loaded(good, broken, late)
    assert found.methods.keys() == {"median", "late"}
    assert found.plugins.keys() == {"plugin-0", "plugin-2"}
    assert isinstance(found.broken["plugin-1"], error)
    assert message in str(found.broken["plugin-1"])


def test_a_plugin_that_cannot_be_imported_is_reported() -> None:
    def missing() -> Any:
        raise ModuleNotFoundError("No module named 'nowhere'")

    found = Registry()
    found.load("guest", "1.0", missing)
    found.load("other", "1.0", lambda: plugin(lambda register: register_median(register)))
    assert str(found.broken["guest"]) == "No module named 'nowhere'"
    assert found.methods.keys() == {"median"}


def test_a_plugin_without_hooks_adds_nothing_and_breaks_nothing() -> None:
    found = loaded(SimpleNamespace(helper=1))
    assert (found.methods, found.broken) == ({}, {})


def test_statistics_are_registered_the_same_way() -> None:
    def fisher(module: object, batches: object) -> dict[str, Tensor]:
        return {}

    module = plugin(lambda register: register("fisher", fisher), "register_statistics")
    found = loaded(module, module)
    statistic = found.statistics["fisher"]
    assert (statistic.function, statistic.plugin) == (fisher, "plugin-0")
    assert "already registered" in str(found.broken["plugin-1"])


def test_a_fact_of_earlier_releases_shows_the_line_to_write() -> None:
    old = plugin(lambda register: register("median", Median, elementwise=True))
    found = loaded(old)
    message = str(found.broken["plugin-0"])
    assert "In class Median write  granularity = ELEMENT" in message
    assert "from merge_plugins import ELEMENT" in message


def test_nobody_may_shadow_a_method_of_ours() -> None:
    found = Registry()
    found.load_builtin()
    ours = dict(found.methods)
    found.load("guest", "1.0", lambda: plugin(lambda register: register_median(register, "ties")))
    assert found.methods == ours
    assert "'ties' is already registered by merge_plugins.methods" in str(found.broken["guest"])


def test_our_methods_are_there_without_any_plugin() -> None:
    assert not any(plugin.startswith(BUILTIN) for plugin in registry().broken)
    first_set = "linear slerp task_arithmetic ties dare_linear dare_ties model_stock breadcrumbs"
    seeds = "average_merging slerp_merging ties_merging mask_merging passthrough"
    assert {*first_set.split(), *seeds.split()} <= registry().methods.keys()
    for method in registry().methods.values():
        assert method.summary
        assert all(p.doc for p in method.parameters.values() if method.plugin.startswith(BUILTIN))


def test_an_unknown_method_names_the_nearest() -> None:
    expected = r"no merge method 'tie'; did you mean 'ties'\? Run 'merge-plugins list' to see them"
    with pytest.raises(UnknownMethodError, match=expected):
        registry().get("tie")
    with pytest.raises(UnknownMethodError, match=r"no merge method 'zzz'\. Run"):
        registry().get("zzz")
