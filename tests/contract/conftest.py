"""Families on disk, and a case's merge of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from contract.cases import EXAMPLES, REQUIRED, Case, live_model, live_tokenizer

from merge_plugins.engine import Merge, open_merge

SHAPES = {"a": (13, 29), "layers.0.b": (7, 5, 11), "c": (101,), "d": (), "e": (0, 3), "f": (1,)}


@pytest.fixture(scope="session")
def family(checkpoint: Callable[..., str]) -> dict[str, str]:
    """A base and three fine-tunes on disk, in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    base = {n: torch.randn(shape, generator=generator) for n, shape in SHAPES.items()}
    folders = {"base": checkpoint({n: w.bfloat16() for n, w in base.items()})}
    for i in range(3):
        moved = {n: w + 0.1 * torch.randn(w.shape, generator=generator) for n, w in base.items()}
        folders[str(i)] = checkpoint({n: w.bfloat16() for n, w in moved.items()})
    return folders


@pytest.fixture(scope="session")
def living(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A base and three fine-tunes that can be run, and examples for them."""
    root = tmp_path_factory.mktemp("living")
    for number, name in enumerate(("base", "0", "1", "2"), -1):
        live_model(number).save_pretrained(root / name)
        live_tokenizer().save_pretrained(root / name)
    rows = [json.dumps({"prompt": e.prompt, "response": e.response}) for e in EXAMPLES]
    (root / "data").write_text("\n".join(rows))
    return {path.name: str(path) for path in root.iterdir()}


@pytest.fixture
def lazily(
    family: Mapping[str, str], living: Mapping[str, str], recipe: Callable[..., Any]
) -> Callable[..., Merge]:
    """Plan a case's merge of a family: of the one that can be run if the method runs it."""

    def make(case: Case, *, block: int = 1 << 17, seed: int = 0) -> Merge:
        names = [str(i) for i in range(case.n_experts)]
        runs = case.method.reads_data(case.kernel())
        models, data = (living, {"data": living["data"]}) if runs else (family, {})
        base = models["base"] if case.has_base else None
        required = {p.name: REQUIRED[p.name] for p in case.method.parameters.values() if p.required}
        given = {**required, **case.parameters}
        spelled = recipe(
            case.method.name,
            base,
            [models[n] for n in names],
            seed=seed,
            **data,
            **{
                name: value if not isinstance(value, tuple) else value[0]
                for name, value in given.items()
            },
        )
        return open_merge(spelled, block=block)

    return make
