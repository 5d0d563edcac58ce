"""Families of models on disk, and a case's merge of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from merge_plugins.engine import Merge, open_merge
from merge_plugins.parallel import BLOCK
from merge_plugins.recipe import Recipe
from merge_plugins.testing import living
from merge_plugins.testing.case import Case

SHAPES: Mapping[str, Sequence[int]] = {
    "a": (13, 29),
    "layers.0.b": (7, 5, 11),
    "c": (101,),
    "d": (),
    "e": (0, 3),
    "f": (1,),
}


@dataclass(frozen=True)
class Family:
    """A base and three fine-tunes in folders below a root, of weights alone or models that run."""

    root: Path
    shapes: Mapping[str, Sequence[int]] = field(default_factory=lambda: SHAPES)
    base: float = 1.0
    """Standard deviation of the base's weights."""
    step: float = 0.1
    """Standard deviation of what an expert adds."""

    def planned(self, case: Case, *, block: int = BLOCK, seed: int = 0) -> Merge:
        """Plan a case's merge: of models that run, if the method runs them."""
        runs = case.method.reads_data(case.kernel())
        folder = self._living() if runs else self._weights()
        shared = {k: v for k, v in case.parameters.items() if not isinstance(v, tuple)}
        own = {k: v for k, v in case.parameters.items() if isinstance(v, tuple)}
        models = [
            {"model": str(folder / str(i)), "parameters": {k: v[i] for k, v in own.items()}}
            for i in range(case.n_experts)
        ]
        spelled: dict[str, Any] = {"merge_method": case.method.name, "models": models, "seed": seed}
        spelled |= {"base_model": str(folder / "base")} if case.has_base else {}
        spelled |= {"parameters": shared} if shared else {}
        spelled |= {"data": str(folder / "data")} if runs else {}
        return open_merge(Recipe.from_mapping(spelled), block=block)

    def _weights(self) -> Path:
        """Write weights of several shapes, bfloat16, once."""
        folder = self.root / "weights"
        if not folder.exists():
            generator = torch.Generator().manual_seed(0)

            def draw(shape: Sequence[int]) -> Tensor:
                return torch.randn(tuple(shape), generator=generator)

            base = {name: self.base * draw(shape) for name, shape in self.shapes.items()}
            _write(folder / "base", base)
            for i in range(3):
                moved = {name: w + self.step * draw(w.shape) for name, w in base.items()}
                _write(folder / str(i), moved)
        return folder

    def _living(self) -> Path:
        """Write models that run, and examples for them, once."""
        folder = self.root / "living"
        if not folder.exists():
            for number, name in enumerate(("base", "0", "1", "2"), -1):
                living.model(number).save_pretrained(folder / name)
                living.tokenizer().save_pretrained(folder / name)
            rows = [json.dumps({"prompt": e.prompt, "response": e.response})
                    for e in living.EXAMPLES]  # fmt: skip
            (folder / "data").write_text("\n".join(rows), encoding="utf-8")
        return folder


def _write(folder: Path, weights: Mapping[str, Tensor]) -> None:
    folder.mkdir(parents=True)
    save_file({n: w.bfloat16() for n, w in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}", encoding="utf-8")


def read(merge: Merge) -> dict[str, Tensor]:
    """Merge everything."""
    return {name: tensor[...] for name, tensor in merge.tensors().items()}
