"""Each of two processes reads and merges its share of a model, as an engine's ranks do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from merge_plugins import Recipe, merged_tensors

HIDDEN, INNER, WORDS, LAYERS = 64, 160, 512, 1
COLUMNS = ("o_proj", "down_proj")
"""Layers of which each rank holds columns; of norms it holds all, of other weights rows."""
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"parameters": {"weight": 0.4}},
    "task_arithmetic": {"parameters": {"weight": 0.4}},
    "ties": {"parameters": {"weight": 0.4, "density": 0.5}},
    "ties_merging": {"parameters": {"trim_scope": "model"}},
    "slerp": {"parameters": {"t": 0.4}},
    "model_stock": {"parameters": {}},
}
ELEMENTWISE = ("linear", "task_arithmetic")
"""Those that measure nothing."""
RANK = f"""
import datetime, json, sys
import torch
import torch.distributed as dist
from reads_counted import Reads
from safetensors.torch import save_file
from merge_plugins import Recipe
from merge_plugins.engine import open_merge
from merge_plugins.outputs.ranks import in_group, lazily
from merge_plugins.parallel import Place

rank, size = int(sys.argv[1]), 2
Place.block_size = lambda *_: 1024  # blocks for weights as small as these
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=size,
                        timeout=datetime.timedelta(seconds=60))
reads = Reads().install()

def load(name, lazy):
    '''Load a rank's share into a parameter as vLLM's layers do: narrow, check, copy.'''
    if lazy.ndim == 1:
        share = lazy
    else:
        dim = lazy.ndim - 1 if any(part in name for part in {COLUMNS}) else lazy.ndim - 2
        length = lazy.shape[dim] // size
        share = lazy.narrow(dim, rank * length, length)
    parameter = torch.nn.Parameter(torch.empty(share.shape, dtype=lazy.dtype))
    assert parameter.data.shape == share.shape
    parameter.data.copy_(share)
    return parameter.data

found = {{}}
for name, recipe in json.load(sys.stdin).items():
    reads.__init__()
    ranks = in_group(dist.group.WORLD)
    tensors = open_merge(Recipe.from_mapping(recipe)).tensors().items()
    shares = {{one: load(one, lazy) for one, lazy in lazily(tensors, ranks)}}
    save_file(shares, sys.argv[3] + "/" + name + "-" + str(rank))
    found[name] = [reads.distinct, reads.total]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def models(checkpoint: Callable[..., str]) -> dict[str, str]:
    """A base and two fine-tunes with the weights of a small Llama, in bfloat16."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (WORDS, HIDDEN),
        "lm_head.weight": (WORDS, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for i in range(LAYERS):
        sides = {"q_proj": HIDDEN, "k_proj": HIDDEN // 2, "v_proj": HIDDEN // 2}
        sides |= {"gate_proj": INNER, "up_proj": INNER}
        shapes |= {f"model.layers.{i}.{name}.weight": (n, HIDDEN) for name, n in sides.items()}
        shapes[f"model.layers.{i}.o_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[f"model.layers.{i}.down_proj.weight"] = (HIDDEN, INNER)
        shapes[f"model.layers.{i}.input_layernorm.weight"] = (HIDDEN,)
    generator = torch.Generator().manual_seed(0)
    base = {n: torch.randn(shape, generator=generator).bfloat16() for n, shape in shapes.items()}
    folders = {"base": checkpoint(base)}
    for name in ("math", "code"):
        moved = {
            n: (w + 0.1 * torch.randn(w.shape, generator=generator)).bfloat16()
            for n, w in base.items()
        }
        folders[name] = checkpoint(moved)
    return folders


@pytest.fixture(scope="module")
def recipes(models: dict[str, str]) -> dict[str, dict[str, Any]]:
    spelled = {}
    for method, settings in METHODS.items():
        experts = [models["math"]] if method == "slerp" else [models["math"], models["code"]]
        base = {} if method == "linear" else {"base_model": models["base"]}
        spelled[method] = {"merge_method": method, "models": experts, **base, **settings}
    return spelled


@pytest.fixture(scope="module")
def on_two(
    recipes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, list[int]]]]:
    """Load every recipe on two ranks: where their shares are, and what each of them read."""
    folder = tmp_path_factory.mktemp("shares")
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), folder / "meeting", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write(json.dumps(recipes))
        process.stdin.close()
        process.stdin = None
    outputs = [process.communicate(timeout=120)[0] for process in started]
    return folder, [json.loads(output) for output in outputs]


@pytest.fixture
def one_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from merge_plugins.parallel import Place

    monkeypatch.setattr(Place, "block_size", lambda *_: 1024)


def stored(recipe: dict[str, Any]) -> int:
    """Bytes of all models of a recipe."""
    named = {*recipe["models"], *({recipe["base_model"]} if "base_model" in recipe else ())}
    files = [Path(model, "model.safetensors") for model in named]
    return sum(t.numel() * t.element_size() for file in files for t in load_file(file).values())


@pytest.mark.parametrize("method", METHODS)
def test_a_rank_reads_little_more_than_it_holds(method: str, on_two: Any, recipes: Any) -> None:
    """Measuring, a rank reads rows also of what it holds columns of."""
    _, read = on_two
    bytes_of_all = stored(recipes[method])
    for rank in read:
        distinct, total = rank[method]
        assert 0.49 * bytes_of_all < distinct
        assert distinct <= (0.55 if method in ELEMENTWISE else 0.60) * bytes_of_all
        if method in ELEMENTWISE:
            assert total == distinct, "nothing is read twice"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("one_block_size")
def test_the_shares_are_those_of_one_rank_alone(method: str, on_two: Any, recipes: Any) -> None:
    folder, _ = on_two
    shares = [load_file(folder / f"{method}-{rank}") for rank in range(2)]
    alone = merged_tensors(Recipe.from_mapping(recipes[method]))
    assert alone.keys() == shares[0].keys() == shares[1].keys()
    for name, tensor in alone.items():
        assert torch.equal(joined(name, [share[name] for share in shares]), tensor[...]), name


def joined(name: str, parts: list[Tensor]) -> Tensor:
    if parts[0].ndim == 1:
        assert torch.equal(*parts)
        return parts[0]
    return torch.cat(parts, -1 if any(part in name for part in COLUMNS) else -2)
