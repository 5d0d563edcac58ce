"""EMR-Merging: the routed model is the paper's, task by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import field_formulas as field
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from merge_plugins import Recipe, Slot, load_merged, save
from merge_plugins.errors import MergeError, ParameterError, RecipeError
from merge_plugins.methods.emr import EmrMerging, masked

IDS = torch.tensor([[1, 5, 9, 2, 40, 17], [7, 3, 3, 8, 4, 4]])
TASKS = ("gsm8k|math*", "humaneval")


def spelled(models: Mapping[str, str], **given: Any) -> Recipe:
    experts = [
        {"model": models[name], "parameters": {"tasks": tasks}}
        for name, tasks in zip(("math", "code"), TASKS, strict=True)
    ]
    return Recipe.from_mapping(
        {
            "merge_method": "emr",
            "base_model": models["base"],
            "models": experts,
            "parameters": given,
            "dtype": "float32",
        }
    )


@pytest.fixture(scope="session")
def by_the_paper(llamas: dict[str, str]) -> list[dict[str, Tensor]]:
    """The weights that each task gets, in float64."""
    base, *experts = (
        {name: w.double() for name, w in load_file(Path(llamas[n]) / "model.safetensors").items()}
        for n in ("base", "math", "code")
    )
    flat = [torch.cat([(e[n] - w).reshape(-1) for n, w in base.items()]) for e in experts]
    added, _ = field.emr(torch.stack(flat))
    found = []
    for row in added:
        pieces = row.split([w.numel() for w in base.values()])
        found.append({n: w + p.view_as(w) for (n, w), p in zip(base.items(), pieces, strict=True)})
    return found


@pytest.mark.parametrize(("task", "expert"), [("gsm8k", 0), ("math500", 0), ("humaneval", 1)])
def test_a_request_is_answered_by_the_model_of_its_task(
    task: str, expert: int, llamas: dict[str, str], by_the_paper: list[dict[str, Tensor]]
) -> None:
    model: Any = load_merged(spelled(llamas))
    weights = model.routing.weigh([[]], task=task)
    with torch.no_grad(), model.routed(weights):
        found = model(input_ids=IDS).logits
    base: Any = load_merged(spelled(llamas, router="fixed"))
    with torch.no_grad(), base.routed([0.0, 0.0]):
        alone = base(input_ids=IDS).logits
    own = {name: weight.float() for name, weight in by_the_paper[expert].items()}
    with torch.no_grad(), base.routed([0.0, 0.0]):
        expected = torch.func.functional_call(base, own, (IDS,)).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, alone, atol=1e-3)


@given(
    n=st.integers(1, 4),
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_what_masks_leave_and_rescalers_restore(n: int, shape: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    experts = tuple(base + 0.1 * torch.randn(shape, generator=generator) for _ in range(n))
    slot = Slot("w", base, experts)
    kernel = EmrMerging(router_weight=(1.0,) * n, tasks=("any",) * n).prepare(InMemory(slot))
    found = torch.stack([*kernel.branches(slot, base)])  # type: ignore[arg-type]
    deltas = slot.deltas()
    wanted, rescalers = field.emr(deltas.double())
    if rescalers.isfinite().all():  # else an expert agrees with the elected sign nowhere
        assert torch.allclose(found.double(), wanted.view(found.shape), atol=1e-5)
        norms = [x.abs().reshape(n, -1).sum(1) for x in (found, deltas)]
        assert torch.allclose(norms[0], norms[1], rtol=1e-4)
    unified = deltas.abs().amax(0)
    for part in masked(slot):
        assert bool(((part == 0) | (part.abs() <= unified + 1e-7)).all())


class InMemory:
    seed, names = 0, ()

    def __init__(self, *slots: Slot) -> None:
        self.slots: Callable[[], Any] = lambda: (slot.weight() for slot in slots)


def test_an_expert_alone_is_that_expert() -> None:
    base, expert = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    slot = Slot("w", base, (expert,))
    kernel = EmrMerging(router_weight=(1.0,), tasks=("any",)).prepare(InMemory(slot))  # type: ignore[arg-type]
    assert torch.allclose(base + kernel.branches(slot, base)[0], expert, atol=1e-6)  # type: ignore[operator]


def test_a_task_of_nobody_is_refused(llamas: dict[str, str]) -> None:
    model: Any = load_merged(spelled(llamas))
    with pytest.raises(RecipeError, match="'mmlu' belongs to no expert"):
        model.routing.weigh([[]], task="mmlu")


def test_without_tasks_there_is_no_oracle() -> None:
    with pytest.raises(ParameterError, match="tasks of every expert"):
        EmrMerging(router_weight=(1.0, 1.0), tasks=("a", ""))


def test_no_checkpoint_can_hold_it(llamas: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="weighs its experts for each input"):
        save(spelled(llamas), tmp_path / "out")
