"""The hooks a plugin may implement. Two, and we mean to keep it two.

A plugin is any module named by an entry point in the group ``merge_plugins``. Twelve lines::

    from dataclasses import dataclass

    import torch
    from merge_plugins import Slot, hookimpl


    @dataclass(frozen=True)
    class Median:
        '''Elementwise median of the experts.'''

        scale: float = 1.0

        def __call__(self, slot: Slot) -> torch.Tensor:
            return self.scale * torch.stack(slot.experts).float().median(dim=0).values


    @hookimpl
    def register_merge_methods(register):
        register("median", Median, elementwise=True)
"""

from __future__ import annotations

from collections.abc import Callable

import pluggy

PROJECT = "merge_plugins"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(historic=True)
def register_merge_methods(register: Callable[..., None]) -> None:
    """Call ``register(name, Method, **facts)`` once per merge method.

    ``Method`` is a frozen dataclass: its fields are the method's parameters, its call is the
    maths (see `merge_plugins.api`). The facts, all optional:

    * ``elementwise=False``: each output element depends only on the same element of the inputs
      and on what ``measure`` said; the runner may then call the kernel on any region. May be a
      function of the built method when a parameter decides.
    * ``needs_base=False``: the recipe must name a base model; it is not one of the experts.
    * ``min_experts=1``, ``max_experts=None``: how many experts the method takes.
    * ``stats=()``: names of calibration statistics it reads from ``slot.stats``.
    * ``paper=""``: where the method comes from.
    """


@hookspec(historic=True)
def register_statistics(register: Callable[..., None]) -> None:
    """Call ``register(name, function)`` once per calibration statistic."""
