"""The hooks a plugin may implement. Two, and we mean to keep it two.

A plugin is any module named by an entry point in the group ``merge_plugins``. Twelve lines::

    from dataclasses import dataclass
    from merge_plugins import ELEMENT, Slot, hookimpl


    @dataclass(frozen=True)
    class Median:
        '''Elementwise median of the models.'''

        scale: float = 1.0
        granularity = ELEMENT

        def __call__(self, slot: Slot):
            return self.scale * slot.stacked().median(dim=0).values


    @hookimpl
    def register_merge_methods(register):
        register("median", Median)
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
    maths, and its ``granularity`` is how finely a weight may be cut (see `merge_plugins.api`).
    The facts, all optional:

    * ``layout=False``: it reads ``slot.input_dim``, for which the model's code is built on the
      meta device while planning. May be a function of the built method.
    * ``copies=None``: a function of the built method: whether its one expert comes out unchanged;
      the weight is then handed on unread.
    * ``needs_base=False``: the recipe must name a base model; it is not one of the experts.
    * ``takes_base=False``: a base model is optional; if the recipe names one, it is no expert.
    * ``merges_base=False``: a base model that the recipe names but does not list is merged too, as
      the last expert; otherwise it only gives config and tokenizer.
    * ``min_experts=1``, ``max_experts=None``: how many experts the method takes.
    * ``stats=()``: names of calibration statistics it reads from ``slot.stats``. May be a function
      of the built method. Such a method needs ``data:`` in the recipe.
    * ``needs_data=False``: it reads examples, batches or live models in ``prepare``; the recipe
      must name data. May be a function of the built method.
    * ``paper=""``: where the method comes from.
    * ``aliases={}``: other names that mean this method, each with a note for whoever uses it: a
      recipe that does is merged, and the note is a warning.
    """


@hookspec(historic=True)
def register_statistics(register: Callable[..., None]) -> None:
    """Call ``register(name, function, elementwise=False)`` once per calibration statistic.

    ``function(module, batches)`` yields mappings from parameter name (as the module has it) to a
    tensor (see `merge_plugins.api.Statistic`). Results are cached on disk by model, data, name
    and the plugin's version. The first line of its docstring states what it computes and what that
    costs; users see it before it runs. ``elementwise``: each tensor has its parameter's shape and
    describes each element, so that it can follow the weight wherever a checkpoint stores
    it in other pieces than the module; without, such weights have no statistic.
    """
