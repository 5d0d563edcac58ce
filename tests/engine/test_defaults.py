"""A loader's defaults, which it sets for the whole process, are not those of the arithmetic."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from merge_plugins.engine import Merge, open_merge
from merge_plugins.engine.defaults import own_defaults
from merge_plugins.parallel import Place

METHODS = {
    "linear": {"weight": 0.3},
    "slerp": {"t": 0.3},
    "ties": {"weight": 0.3, "density": 0.4},
    "dare_ties": {"weight": 0.3, "density": 0.4},
    "ties_merging": {"trim_scope": "model"},
    "pcb": {},
    "model_stock": {},
    "sce": {"select_topk": 0.3},
    "tsv": {},
}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """As vLLM's loader does around the loading of weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        assert torch.get_default_dtype() == dtype, "it is left as it was"
        torch.set_default_dtype(before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("by_threads", [True, False])
def test_the_bits_do_not_depend_on_them(
    method: str, by_threads: bool, checkpoint: Callable[..., str], recipe: Callable[..., object]
) -> None:
    generator = torch.Generator().manual_seed(0)
    names = {"layers.0.mlp.up_proj.weight": (40, 30), "v": (50,)}
    paths = [
        checkpoint({n: torch.randn(s, generator=generator) for n, s in names.items()})
        for _ in range(3)
    ]
    experts = paths[1:2] if method == "slerp" else paths[1:]
    base = None if method == "linear" else paths[0]

    def merged() -> dict[str, Tensor]:
        merge: Merge = open_merge(recipe(method, base, experts, **METHODS[method]))  # type: ignore[arg-type]
        if not by_threads:
            cpu = torch.device("cpu")
            merge.places[cpu] = Place(cpu, 500, by_threads=False)
        return {name: tensor[...] for name, tensor in merge.tensors().items()}

    expected = merged()
    for where in (default_dtype(torch.bfloat16), torch.device("meta")):
        with where:
            found = merged()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_the_last_thread_that_merges_gives_them_back() -> None:
    inside, leave = threading.Event(), threading.Event()

    def merge() -> None:
        with own_defaults():
            inside.set()
            leave.wait(20)

    with default_dtype(torch.float16):
        thread = threading.Thread(target=merge)
        thread.start()
        inside.wait(20)
        with own_defaults():
            assert torch.get_default_dtype() == torch.float32
        assert torch.get_default_dtype() == torch.float32, "another thread still merges"
        leave.set()
        thread.join()
        assert torch.get_default_dtype() == torch.float16
