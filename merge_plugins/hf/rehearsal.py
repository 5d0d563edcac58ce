"""Load a model without its weights, to see where each stored one would go.

transformers' own loader runs on the meta device with sketches in place of tensors: each knows of
which boxes of which stored weights it is made. Renaming, prefixes, fused experts, ties, weights
that the class ignores: whatever the loader does to a checkpoint, the sketches tell afterwards.
"""

from __future__ import annotations

import json
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils._pytree import tree_map_only
from transformers import CONFIG_MAPPING, AutoConfig

from merge_plugins.errors import CheckpointError
from merge_plugins.hf.classes import architecture
from merge_plugins.hf.versions import DTYPE, LAZY
from merge_plugins.weights.pieces import Piece, Pieces
from merge_plugins.weights.views import VIEWS

aten = torch.ops.aten
META = torch.device("meta")


@dataclass
class Rehearsal:
    """What became of each stored weight when a model was loaded without them."""

    model: Any
    """The model, on the meta device."""
    live: dict[str, Pieces]
    """Of which pieces of stored weights each weight of the model is made; a tied one has the pieces
    of its twin. Weights that the loader computes otherwise are left out."""
    shapes: dict[str, tuple[int, ...]]
    """Shapes of the model's weights."""
    ignored: frozenset[str] = frozenset()
    """Stored weights that the model's class does not use, or that are `mismatched`."""
    missing: tuple[str, ...] = ()
    """Weights of the model that were not stored."""
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    """Name, stored shape and wanted shape of weights that do not fit."""
    unexpected: tuple[str, ...] = ()
    """Stored weights of which the class does not say that it ignores them, as the loader renamed
    them."""
    computed: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Weights of the model that the loader computes in other ways than by moving boxes of elements,
    each with the stored weights it takes."""
    errors: tuple[str, ...] = ()
    """What the loader could not convert."""

    @property
    def ties(self) -> Mapping[str, str]:
        """Weights of the model that its config ties to others."""
        return getattr(self.model, "all_tied_weights_keys", None) or {}


def config_of(config: Mapping[str, Any], where: object) -> Any:
    """Build a live config from the contents of a config.json; None for an unknown model type.

    Raises `CheckpointError` if the class of the model type refuses the values.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return read_config(folder, where)


def read_config(folder: str, where: object, trust_remote_code: bool | None = False) -> Any:
    """Read a folder's config with the class of its model type, or raise `CheckpointError`."""
    with quiet():
        try:
            return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except Exception as exc:  # validators of many classes, each with errors of its own
            lines = str(exc).strip().splitlines() or [type(exc).__name__]
            raise CheckpointError(
                f"{where}: transformers {transformers.__version__} cannot read this config: "
                f"{' '.join(line.strip() for line in lines)}"
            ) from exc


def text_written_out(config: Mapping[str, Any], where: object) -> Mapping[str, Any]:
    """Complete the text part of a config with the defaults of its class, if transformers has it."""
    live = config_of(config, where)
    return config if live is None else dict(live.get_text_config().to_dict())


def for_class(model_class: Any, config: Any) -> Any:
    """Return the part of a composite config that a model class takes: all of it, or the text's."""
    text = config.sub_configs.get("text_config") if LAZY else None
    if text is not None and getattr(model_class, "config_class", None) == text:
        return config.get_text_config()
    return config


def rehearse_stored(
    config: Mapping[str, Any], where: object, shapes: Mapping[str, Sequence[int]]
) -> Rehearsal | None:
    """Rehearse loading a checkpoint with the class that its config names.

    None where transformers has no such class, or is older than 5 and cannot rehearse.
    """
    model_class = architecture(config.get("architectures") or ()) if LAZY else None
    live = None if model_class is None else config_of(config, where)
    return None if live is None else rehearse(model_class, live, shapes)


def rehearse(model_class: Any, config: Any, shapes: Mapping[str, Sequence[int]]) -> Rehearsal:
    """Load weights of these shapes, by checkpoint name, into a model without memory.

    The last few are remembered: merges of one family differ in nothing that counts here.
    """
    config = for_class(model_class, config)
    text = json.dumps(config.to_dict(), default=str, sort_keys=True)
    key = (model_class, text, tuple((name, tuple(shape)) for name, shape in shapes.items()))
    with LOCK:
        if key not in REMEMBERED:
            REMEMBERED[key] = _rehearse(model_class, config, shapes)
            while len(REMEMBERED) > MOST:
                REMEMBERED.pop(next(iter(REMEMBERED)))
        return REMEMBERED[key]


MOST = 8
REMEMBERED: dict[Any, Rehearsal] = {}
LOCK = threading.Lock()


def _rehearse(model_class: Any, config: Any, shapes: Mapping[str, Sequence[int]]) -> Rehearsal:
    sketches = {name: Sketch(shape, (Piece.whole(name, shape),)) for name, shape in shapes.items()}
    arguments: dict[str, Any] = {
        "config": config,
        "state_dict": sketches,
        "device_map": {"": "meta"},
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
        DTYPE: torch.float32,
    }
    with quiet():
        try:
            model, info = model_class.from_pretrained(None, **arguments)
        except RuntimeError as exc:  # of the loader, with its conversions' errors
            with torch.device("meta"):
                model = model_class(config)
            return Rehearsal(model, {}, _shapes(model), errors=(str(exc).strip(),))
    weights = {
        name: weight
        for name, weight in model.state_dict(keep_vars=True).items()
        if isinstance(weight, Sketch)
    }
    used = {name for weight in weights.values() for name in weight.stored}
    return Rehearsal(
        model,
        {name: weight.pieces for name, weight in weights.items() if weight.pieces is not None},
        _shapes(model),
        frozenset(shapes.keys() - used),
        tuple(sorted(map(str, info["missing_keys"]))),
        tuple(sorted((n, tuple(a), tuple(b)) for n, a, b in info["mismatched_keys"])),
        tuple(sorted(map(str, info["unexpected_keys"]))),
        {name: weight.stored for name, weight in weights.items() if weight.pieces is None},
        tuple(map(str, info["error_msgs"])),
    )


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' own messages and progress bars; ours say more."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(logging.CRITICAL)
    log.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()  # type: ignore[no-untyped-call]


class Sketch(Tensor):
    """A tensor without memory that knows of which pieces of stored weights it is made."""

    pieces: Pieces | None
    """None after an operation that does more than move elements in boxes."""
    stored: frozenset[str]
    """The stored weights it is made of."""

    @staticmethod
    def __new__(
        cls,
        shape: Sequence[int],
        pieces: Pieces | None,
        names: frozenset[str] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Sketch:
        """Make a sketch of a shape; ``names`` are those of the pieces by default."""
        made: Sketch = Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype, device=META)
        made.pieces = pieces
        made.stored = frozenset(piece.source for piece in pieces or ()) if names is None else names
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Sketch({list(self.shape)} of {', '.join(sorted(self.stored))})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation on the shapes, and on the pieces if it moves boxes of elements."""
        kwargs = kwargs or {}
        view = VIEWS.get(func)
        if view is not None and isinstance(args[0], cls) and args[0].pieces is not None:
            viewed = view(*args, **kwargs)
            if viewed is not None:
                return viewed
        inputs: list[Sketch] = []

        def empty(sketch: Sketch) -> Tensor:
            inputs.append(sketch)
            return torch.empty(sketch.shape, dtype=sketch.dtype, device=META)

        plain_args, plain_kwargs = tree_map_only(cls, empty, (args, kwargs))
        result = func(*plain_args, **plain_kwargs)
        names = frozenset().union(*(sketch.stored for sketch in inputs))
        join = JOINS.get(func)
        known = join is not None and all(sketch.pieces is not None for sketch in inputs)
        pieces = join(*args) if known and join else None
        return tree_map_only(
            Tensor, lambda each: cls(each.shape, pieces, names, each.dtype), result
        )

    def cut(self, dim: int, start: int, stop: int) -> Sketch:
        """Keep ``[start, stop)`` of one dimension, counted from 0."""
        stop = max(start, stop)
        cuts = (piece.cut(dim, start, stop) for piece in self._known)
        sizes = [*self.shape[:dim], stop - start, *self.shape[dim + 1 :]]
        return Sketch(sizes, tuple(cut for cut in cuts if cut), None, self.dtype)

    def ordered(self, order: Sequence[int | None]) -> Sketch:
        """Reorder dimensions; None inserts one of size 1, as those left out are."""
        sizes = [1 if dim is None else self.shape[dim] for dim in order]
        pieces = tuple(piece.permuted(order) for piece in self._known)
        return Sketch(sizes, pieces, None, self.dtype)

    @property
    def _known(self) -> Pieces:
        assert self.pieces is not None
        return self.pieces


def _copied(sketch: Sketch, *_: Any) -> Pieces:
    return sketch._known


def _concatenated(sketches: Sequence[Sketch], dim: int = 0) -> Pieces:
    found, at = [], 0
    for sketch in sketches:
        axis = dim % sketch.ndim
        found += [piece.moved(axis, at) for piece in sketch._known]
        at += sketch.shape[axis]
    return tuple(found)


def _stacked(sketches: Sequence[Sketch], dim: int = 0) -> Pieces:
    return _concatenated([VIEWS[aten.unsqueeze.default](sketch, dim) for sketch in sketches], dim)


JOINS: dict[Any, Callable[..., Pieces]] = {
    aten._to_copy.default: _copied,
    aten.cat.default: _concatenated,
    aten.clone.default: _copied,
    aten.stack.default: _stacked,
}
"""Operators that are no views but only move boxes of elements: the pieces of their result."""
