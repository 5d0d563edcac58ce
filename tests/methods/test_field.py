"""Singular vectors, interference, consensus and competition: what the formulas promise.

That they are the papers' formulas is shown in tests/contract, against field_formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import field_formulas as field
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from merge_plugins import Recipe, Slot, merged_tensors
from merge_plugins.errors import CheckpointError, ParameterError
from merge_plugins.methods.consensus import Consensus
from merge_plugins.methods.pcb import PcbMerging
from merge_plugins.methods.tsv_iso import (
    IsoC,
    IsoCTS,
    TaskSingularVectors,
    gram_of,
    whitening,
    whitening_of_two,
)
from merge_plugins.methods.wudi import Wudi
from merge_plugins.ops import matrices
from merge_plugins.plugins import registry
from merge_plugins.testing import in_memory

Merging = TaskSingularVectors | IsoC | IsoCTS | Wudi
BY_MATRIX: list[Merging] = [
    *(TaskSingularVectors(), IsoC(), IsoCTS(common_space_fraction=0.5)),
    Wudi(steps=20, learning_rate=1e-2),
]
by_matrix = pytest.mark.parametrize("method", BY_MATRIX, ids=lambda m: type(m).__name__)
by_name = pytest.mark.parametrize("method", ["tsv", "iso_c", "iso_cts", "wudi"])
sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))
seeds = st.integers(0, 999)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def family(n: int, *shape: int, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    base = normal(*shape, seed=seed)
    return base, [base + 0.1 * normal(*shape, seed=seed + i) for i in range(1, n + 1)]


def saved(checkpoint: Callable[..., str], base: Tensor, *experts: Tensor) -> tuple[str, list[str]]:
    """Write each as the one weight of a model: base and experts."""
    return checkpoint({"w": base}), [checkpoint({"w": expert}) for expert in experts]


def slot_of(base: Tensor, experts: list[Tensor], **facts: Any) -> Slot:
    return Slot("w", base, tuple(experts), **facts)


# Which weights are matrices.


@by_matrix
@pytest.mark.parametrize("input_dim", [0, None])
def test_embeddings_and_convolutions_are_averaged(method: Merging, input_dim: int | None) -> None:
    base, experts = family(3, 8, 6)
    merged = in_memory.merged(method, slot_of(base, experts, input_dim=input_dim))
    assert torch.allclose(merged, torch.stack(experts).mean(0), atol=1e-6)
    assert not torch.allclose(in_memory.merged(method, slot_of(base, experts)), merged, atol=1e-3)


@by_name
def test_only_what_is_no_matrix_is_merged_in_boxes(method: str, llamas: dict[str, str]) -> None:
    """An embedding is the largest weight of a small model: whole, it would decide the memory."""
    held = {"merge_method": method, "base_model": llamas["base"]}
    spelled = {**held, "models": [llamas["math"], llamas["code"]]}
    tensors = merged_tensors(Recipe.from_mapping(spelled))
    boxed = {name for name, tensor in tensors.items() if tensor.is_elementwise}
    assert boxed == {n for n in tensors if "norm" in n or "embed" in n}
    assert boxed < tensors.keys()
    embedding = tensors["model.embed_tokens.weight"]
    assert torch.equal(embedding[3:40, 5:20], embedding[...][3:40, 5:20])


@by_matrix
def test_a_layer_stored_the_other_way_round_is_the_same_layer(method: Merging) -> None:
    base, experts = family(2, 9, 5)
    merged = in_memory.merged(method, slot_of(base, experts))
    turned = in_memory.merged(method, slot_of(base.mT, [e.mT for e in experts], input_dim=-2))
    assert torch.allclose(turned.mT, merged, atol=1e-6)


@by_matrix
def test_inputs_in_float64_are_left_as_they_are(method: Merging) -> None:
    base, experts = family(2, 6, 5)
    before = [tensor.double() for tensor in (base, *experts)]
    first, *others = [tensor.clone() for tensor in before]
    in_memory.merged(method, slot_of(first, others))
    assert all(map(torch.equal, (first, *others), before))


@by_matrix
@pytest.mark.parametrize("input_dim", [-1, -2])
def test_each_expert_of_a_stack_is_a_matrix_of_its_own(method: Merging, input_dim: int) -> None:
    base, experts = family(2, 3, 6, 8)
    merged = in_memory.merged(method, slot_of(base, experts, input_dim=input_dim))
    for i in range(3):
        alone = slot_of(base[i], [e[i] for e in experts], input_dim=input_dim)
        assert torch.equal(in_memory.merged(method, alone), merged[i])


@by_name
@pytest.mark.parametrize("shape", [(90, 40), (40, 90)])
def test_a_matrix_read_in_pieces_is_the_same_matrix(
    method: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, experts = family(3, *shape)
    merge = registry().get(method).factory()
    whole = merge(slot_of(base, experts))
    monkeypatch.setattr(matrices, "PIECE", 7 * 90)
    assert torch.allclose(merge(slot_of(base, experts)), whole, rtol=1e-6, atol=1e-6)


@by_name
def test_a_box_of_a_stack_reads_the_matrices_it_touches_and_no_other(
    method: str, checkpoint: Callable[..., str], merged: Callable[..., Any]
) -> None:
    base, (one, other) = family(2, 4, 6, 8)
    healthy = merged(method, *saved(checkpoint, base, one, other))["w"]
    other = other.clone()
    other[3, 5, 7] = torch.nan
    damaged = merged(method, *saved(checkpoint, base, one, other))["w"]
    assert torch.equal(damaged[1:3, 2:5, :4], healthy[...][1:3, 2:5, :4])
    with pytest.raises(CheckpointError, match=r"w holds NaN or infinity, first at \[3, 5, 7\]"):
        damaged[2:4]


def test_which_inputs_a_layer_has_matters_to_interference() -> None:
    base, experts = family(2, 6, 6)
    method = Wudi(steps=50, learning_rate=1e-2)
    one, other = (
        in_memory.merged(method, slot_of(base, experts, input_dim=dim)) for dim in (-1, -2)
    )
    assert not torch.allclose(one, other, atol=1e-3)


@by_name
def test_what_it_costs_is_said_before_it_starts(
    method: str,
    llamas: dict[str, str],
    recipe: Callable[..., Recipe],
    capsys: pytest.CaptureFixture[str],
) -> None:
    tensors = merged_tensors(recipe(method, llamas["base"], [llamas["math"], llamas["code"]]))
    _ = tensors["model.norm.weight"][...]
    (line,) = (each for each in capsys.readouterr().err.splitlines() if "TFLOP" in each)
    assert line.startswith(f"merge-plugins: {method}: ")
    assert " of 15 matrices" in line  # 7 in each of 2 layers, and the head
    assert "the other 6 weights are averaged" in line


# Singular vectors.


@given(size=sizes, seed=seeds)
@example(size=(12, 12), seed=54)
def test_orthogonalised_columns_are_the_nearest_orthonormal_ones(
    size: tuple[int, int], seed: int
) -> None:
    columns = normal(max(size), min(size), seed=seed).double()
    found = columns @ whitening(columns.mT @ columns)
    within = 1e-12 + 1e-15 * float(torch.linalg.cond(columns)) ** 2
    assert torch.allclose(found.mT @ found, torch.eye(min(size)).double(), atol=within)
    stretch = found.mT @ columns  # columns = found @ stretch is the polar decomposition
    assert torch.allclose(stretch, stretch.mT, atol=within * float(columns.norm()))
    assert torch.linalg.eigvalsh(stretch).min() > -1e-9


def test_dependent_columns_span_what_they_did() -> None:
    columns = normal(7, 2).double()
    twice = torch.cat([columns, columns], dim=1)
    found = twice @ whitening(twice.mT @ twice)
    span = torch.linalg.qr(columns).Q
    assert torch.allclose(found @ found.mT, span @ span.mT, atol=1e-9)


@given(known=st.integers(0, 9), others=st.integers(0, 6), seed=seeds)
def test_columns_that_are_orthonormal_already_need_no_decomposition(
    known: int, others: int, seed: int
) -> None:
    first = torch.linalg.qr(normal(16, known, seed=seed).double()).Q
    columns = torch.cat([first, normal(16, others, seed=seed + 1).double()], dim=1)
    gram = columns.mT @ columns
    assert torch.allclose(whitening(gram[:, known:]), whitening(gram), atol=1e-9)


@given(sizes=st.tuples(st.integers(0, 8), st.integers(0, 8)), shared=st.integers(0, 3), seed=seeds)
def test_of_two_sets_of_orthonormal_columns_the_angles_are_enough(
    sizes: tuple[int, int], shared: int, seed: int
) -> None:
    n_shared = min(shared, *sizes)
    both = torch.linalg.qr(normal(16, n_shared, seed=seed).double()).Q
    one, other = (
        torch.linalg.qr(torch.cat([both, normal(16, n - n_shared, seed=s).double()], dim=1)).Q
        for s, n in enumerate(sizes, seed + 1)
    )
    columns = torch.cat([one, other.roll(1, dims=1)], dim=1)
    gram = columns.mT @ columns
    found = whitening_of_two(gram[: sizes[0], sizes[0] :])
    assert torch.allclose(found, whitening(gram), atol=1e-7)


@given(rows=st.integers(1, 40), n=st.integers(0, 9), first=st.integers(0, 9), seed=seeds)
def test_columns_of_a_gram_matrix_are_those_of_the_product(
    rows: int, n: int, first: int, seed: int
) -> None:
    matrix, first = normal(rows, n, seed=seed).double(), min(first, n)
    found = gram_of(n, matrix.split(7), first)
    assert torch.allclose(found, (matrix.mT @ matrix)[:, first:], atol=1e-12)


@given(n=st.integers(1, 4), size=sizes, seed=seeds)
def test_task_singular_vectors_of_copies_are_those_of_one(
    n: int, size: tuple[int, int], seed: int
) -> None:
    base, (expert,) = family(1, *size, seed=seed)
    merged = in_memory.merged(TaskSingularVectors(), slot_of(base, [expert] * n))
    u, s, vt = torch.linalg.svd((expert - base).double(), full_matrices=False)
    k = max(1, min(size) // n)
    expected = base + (u[:, :k] * s[:k]) @ vt[:k]
    assert torch.allclose(merged.double(), expected, atol=1e-5)


def test_adapters_that_share_nothing_are_added_up() -> None:
    base, rows = normal(12, 10), torch.linalg.qr(normal(12, 4)).Q
    columns = torch.linalg.qr(normal(10, 4, seed=1)).Q
    deltas = [rows[:, i : i + 2] @ columns[:, i : i + 2].mT for i in (0, 2)]
    merged = in_memory.merged(
        TaskSingularVectors(), slot_of(base, [base + delta for delta in deltas])
    )
    assert torch.allclose(merged, base + sum(deltas), atol=1e-5)


@given(rank=st.integers(1, 4), n=st.integers(1, 3), seed=seeds)
def test_an_isotropic_merge_spreads_the_same_sum_evenly_over_the_same_directions(
    rank: int, n: int, seed: int
) -> None:
    base = torch.zeros(9, 14)
    pairs = [(9, rank, seed + i, 14) for i in range(n)]
    deltas = [normal(m, r, seed=s) @ normal(r, k, seed=s + 50) for m, r, s, k in pairs]
    merged = in_memory.merged(IsoC(), slot_of(base, deltas)).double()
    before, after = (torch.linalg.svdvals(a.double()) for a in (sum(deltas), merged))
    held = int((before > 1e-5 * before[0]).sum())
    assert torch.allclose(after[:held], before[:held].mean().expand(held), rtol=1e-4)
    assert after[held:].sum() < 1e-4 * after.sum()
    span = torch.linalg.svd(sum(deltas).double()).U[:, :held]  # type: ignore[union-attr]
    assert torch.allclose(span @ (span.mT @ merged), merged, atol=1e-3)


@pytest.mark.parametrize("shape", [(24, 20), (20, 24)])
def test_what_rounding_leaves_outside_the_common_space_is_no_tasks_own(
    shape: tuple[int, int],
) -> None:
    base = normal(*shape)
    experts = [base + normal(shape[0], 2, seed=i) @ normal(2, shape[1], seed=-i) for i in (1, 2)]
    slot = slot_of(base, experts)  # of float32: rounded
    method = IsoCTS(common_space_fraction=0.5)
    assert method.own_directions(20, 2) == 5  # of each expert, if it had them
    assert torch.allclose(in_memory.merged(method, slot), in_memory.merged(IsoC(), slot), atol=1e-4)


def test_a_common_space_of_everything_is_iso_c() -> None:
    base, experts = family(3, 11, 8)
    slot = slot_of(base, experts)
    assert torch.allclose(
        in_memory.merged(IsoCTS(common_space_fraction=1.0), slot),
        in_memory.merged(IsoC(), slot),
        atol=1e-6,
    )


@given(rank=st.integers(1, 40), n=st.integers(1, 9), fraction=st.floats(0, 1))
def test_the_directions_of_iso_cts_are_no_more_than_there_are(
    rank: int, n: int, fraction: float
) -> None:
    own = IsoCTS(common_space_fraction=fraction).own_directions(rank, n)
    assert 0 <= own * n <= rank
    if rank * (1 - fraction) <= rank - n:  # room to round up
        assert abs(own - (rank - int(rank * fraction)) / n) <= 0.5


# Interference.


def test_descent_lowers_interference_from_that_of_the_sum() -> None:
    base, experts = family(3, 10, 12)
    slot = slot_of(base, experts)
    deltas = slot.deltas().double()
    methods = [Wudi(steps=steps, learning_rate=1e-3) for steps in (0, 10, 100)]
    losses = [
        float(field.wudi_loss(in_memory.merged(method, slot).double() - base, deltas))
        for method in methods
    ]
    assert losses[0] == pytest.approx(float(field.wudi_loss(deltas.sum(0), deltas)), rel=1e-4)
    assert losses[0] > 1.05 * losses[1] > 1.1 * losses[2]


def test_one_expert_interferes_with_nobody() -> None:
    base, (expert,) = family(1, 6, 7)
    for experts in ([expert], [base, expert], [expert, base]):
        assert torch.allclose(in_memory.merged(Wudi(), slot_of(base, experts)), expert, atol=1e-6)


def test_a_task_vector_weighs_as_much_however_short_it_is() -> None:
    experts = [1e-30 * normal(6, 7), normal(6, 7, seed=1)]  # its square is 0 in float32
    merged = in_memory.merged(
        Wudi(steps=20, learning_rate=1e-3), slot_of(torch.zeros(6, 7), experts)
    )
    expected = field.wudi(torch.stack(experts).double(), 20, 1e-3)
    assert torch.allclose(merged.double(), expected, atol=1e-6)
    assert not torch.allclose(merged, experts[1], atol=1e-3)


# Consensus.


@given(seed=seeds, threshold=st.integers(0, 3))
def test_a_consensus_merge_is_task_arithmetic_or_the_base(seed: int, threshold: int) -> None:
    base, experts = family(3, 40, seed=seed)
    method = Consensus(mask_lambda=(0.4,) * 3, threshold=threshold)
    merged, plain = (
        in_memory.merged(method, slot_of(base, experts)),
        base + slot_of(base, experts).deltas().sum(0),
    )
    assert bool(((merged == base) | torch.isclose(merged, plain, atol=1e-6)).all())
    if threshold == 0:
        assert torch.allclose(merged, plain, atol=1e-6)


def test_selfish_and_catastrophic_entries_go() -> None:
    base = torch.zeros(3)
    together, selfish, against = [1.0, 1.0], [1.0, 0.0], [0.2, -1.0]
    experts = [torch.tensor(pair) for pair in zip(together, selfish, against, strict=True)]
    merged = in_memory.merged(Consensus(mask_lambda=(0.4, 0.4)), slot_of(base, experts))
    assert merged.tolist() == [2.0, 0.0, 0.0]


# Competition.


@given(seed=seeds, density=st.floats(0, 1), scope=st.sampled_from(["tensor", "model"]))
def test_a_balanced_entry_lies_between_the_experts_or_is_the_base(
    seed: int, density: float, scope: Any
) -> None:
    base, experts = family(3, 50, seed=seed)
    method, slot = PcbMerging(density=density, scope=scope), slot_of(base, experts)
    found = method.over([slot.weight()])(slot) - base
    deltas = slot.deltas()
    low, high = deltas.amin(0).clamp(max=0), deltas.amax(0).clamp(min=0)
    assert bool(((low - 1e-6 <= found) & (found <= high + 1e-6)).all())
    if int(density * 50) == 0:
        assert not found.any()


def test_a_model_is_balanced_as_one_long_vector(
    checkpoint: Callable[..., str], merged: Callable[..., Any]
) -> None:
    shapes = {"a": (20, 8), "b": (30,), "c": (0, 3), "d": ()}
    models = [{n: normal(*s, seed=i) * (1 + i) for n, s in shapes.items()} for i in range(4)]
    base, *experts = map(checkpoint, models)
    flat = [torch.cat([w.reshape(-1) for w in model.values()]).double() for model in models]
    together = field.pcb(flat[0], torch.stack(flat[1:]), 0.3, 1.0)
    pieces = together.split([math.prod(shape) for shape in shapes.values()])
    found = merged("pcb", base, experts, density=0.3)
    for (name, shape), expected in zip(shapes.items(), pieces, strict=True):
        assert torch.allclose(found[name][...].double(), expected.view(shape), atol=1e-5), name
    alone = merged("pcb", base, experts, density=0.3, scope="tensor")
    assert not torch.allclose(alone["a"][...], found["a"][...], atol=1e-3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: IsoCTS(common_space_fraction=80), r"common_space_fraction: 0\.8"),
        (lambda: Consensus(mask_lambda=(0.4, -1.0)), "mask_lambda is 0 or more"),
        (lambda: Consensus(mask_lambda=(0.4, 0.4), threshold=3), "from 0 to that of the models, 2"),
        (lambda: PcbMerging(density=20), r"density: 0\.2"),
        (lambda: Wudi(steps=-1), "steps is 0 or more"),
        (lambda: Wudi(learning_rate=0.0), "learning_rate is a number above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        build()
