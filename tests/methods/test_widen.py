"""WIDEN on real layers: which vector of a weight is a column, and what has no direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import seeded, write_family
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from merge_plugins import Recipe, Slot, load_merged
from merge_plugins.engine import MergedTensor, merged_tensors
from merge_plugins.errors import ParameterError
from merge_plugins.methods.widen import WidenMerging, column_products, divergences
from merge_plugins.parallel import Place
from merge_plugins.testing import in_memory

Merged = Callable[..., dict[str, MergedTensor]]
SIZES = {"vocab_size": 24, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
DECODER = {**SIZES, "intermediate_size": 12, "num_key_value_heads": 1, "head_dim": 4}
DECODER |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
EXPERTS = {"num_local_experts": 3, "num_experts": 3, "moe_intermediate_size": 12}
GPT2 = {"vocab_size": 24, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 6}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
ENCODER = {**SIZES, "intermediate_size": 12, "num_labels": 3}
ARCHITECTURES = {
    "Llama": DECODER,
    "Qwen2": {**DECODER, "tie_word_embeddings": True},
    "Qwen3": DECODER,
    "Gemma3Text": DECODER,
    "GPT2": GPT2,
    "Mixtral": {**DECODER, **EXPERTS},
    "Qwen3Moe": {**DECODER, **EXPERTS},
    "GptOss": {**DECODER, **EXPERTS},
    "Roberta": ENCODER,
    "Bert": ENCODER,
}


def reference(base: Tensor, experts: Sequence[Tensor], ratio: float, value: float) -> Tensor:
    """Return WIDEN [Yu et al. 2024, sec. 3.2] of matrices whose columns are columns, float64."""
    b, x = base.double(), torch.stack([expert.double() for expert in experts])
    n = b.shape[-1]
    lengths, length = x.norm(dim=-2), b.norm(dim=-2)
    cosines = (x * b).sum(-2) / (lengths * length)
    total = torch.zeros_like(lengths)
    for change in ((lengths - length).abs(), 1 - cosines):
        rank = change.argsort(dim=-1, stable=True).argsort(dim=-1)
        total += torch.where(2 * rank > ratio * (n - 1), value, (rank / n).double().softmax(0))
    return b + (total.unsqueeze(-2) / 2 * (x - b)).sum(0)


def widened(slot: Slot, **parameters: Any) -> Tensor:
    return in_memory.merged(WidenMerging(**parameters), slot)


def drawn(*shape: int, seed: int = 0, step: float = 0.01) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return [base, *(base + step * torch.randn(shape, generator=generator) for _ in range(2))]


def scores(slot: Slot, **parameters: Any) -> Tensor:
    return WidenMerging(**parameters).measure(slot.weight())["scores"]


@pytest.mark.parametrize("step", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize(("ratio", "value"), [(1.0, 1.0), (0.5, 0.8), (2.0, 1.0)])
def test_it_is_the_papers_algorithm_in_float64(step: float, ratio: float, value: float) -> None:
    base, *experts = drawn(64, 80, step=step)
    slot = Slot("w", base, tuple(experts))
    found = widened(slot, above_average_value_ratio=ratio, score_calibration_value=value)
    expected = reference(base, experts, ratio, value)
    assert torch.allclose(found.double(), expected, rtol=0, atol=1e-6)


def test_tiny_moves_are_told_apart_from_rounding() -> None:
    """Lengths and cosines in float32 would not see moves of this size at all."""
    base, *experts = (weight.double() for weight in drawn(48, 30, step=1e-6))
    slot = Slot("w", base, tuple(experts))
    stretched, turned = divergences(column_products(slot.weight(), 0), 0.0)
    x = torch.stack(experts)
    exact = (x.norm(dim=1) - base.norm(dim=0)).abs()
    assert torch.allclose(stretched, exact, rtol=1e-3, atol=1e-10)
    away = x - base * ((x * base).sum(1) / base.square().sum(0)).unsqueeze(1)
    angles = (away.norm(dim=1) / base.norm(dim=0)).square() / 2  # 1 - cos of small angles
    assert torch.allclose(turned, angles, rtol=1e-3, atol=0)


@pytest.mark.parametrize("rows_and_columns", [(7, 5), (1, 4), (4, 1), (1, 1)])
def test_an_embedding_or_a_conv1d_is_a_linear_layer_the_other_way_round(
    rows_and_columns: tuple[int, int],
) -> None:
    base, *experts = drawn(*rows_and_columns)
    by_row = widened(Slot("w", base, tuple(experts), input_dim=0))
    by_column = widened(Slot("w", base.T, tuple(e.T for e in experts), input_dim=-1))
    assert torch.equal(by_row, by_column.T)


@pytest.mark.parametrize("input_dim", [-1, -2])
def test_each_expert_of_a_stack_is_a_matrix_of_its_own(input_dim: int) -> None:
    base, *experts = drawn(3, 6, 5)
    together = widened(Slot("w", base, tuple(experts), input_dim=input_dim))
    for i in range(3):
        alone = Slot("w", base[i], tuple(e[i] for e in experts), input_dim=input_dim)
        assert torch.equal(together[i], widened(alone))


def test_a_convolution_is_scored_entry_by_entry_as_a_vector_is() -> None:
    base, *experts = drawn(6, 1, 4)
    kernel = widened(Slot("w", base, tuple(experts), input_dim=None))
    vector = widened(Slot("w", base.view(-1), tuple(e.view(-1) for e in experts)))
    assert torch.equal(kernel.view(-1), vector)


def test_half_of_the_columns_are_important_by_default() -> None:
    base, *experts = drawn(40, 30)
    found = scores(Slot("w", base, tuple(experts)), above_average_value_ratio=1.0)
    stretched, turned = divergences(
        column_products(Slot("w", base, tuple(experts)).weight(), 0), 0.0
    )
    both = (stretched.argsort(-1).argsort(-1) >= 15) & (turned.argsort(-1).argsort(-1) >= 15)
    assert torch.equal(found[:, 0] == 1, both)
    assert ((found > 0.25) & (found <= 1)).all()


def test_of_one_model_nothing_is_lost() -> None:
    for shape in ((12, 9), (9,), (2, 4, 3)):
        base, expert, _ = drawn(*shape)
        found = widened(Slot("w", base, (expert,)))
        assert torch.allclose(found, expert, rtol=0, atol=1e-6)
        assert not torch.allclose(
            widened(Slot("w", base, (expert,)), score_calibration_value=0.5), expert, atol=1e-4
        )


def test_a_column_of_zeros_has_not_turned_unless_told_it_has_most() -> None:
    base, *experts = drawn(10, 8)
    base[:, 2] = experts[0][:, 2] = experts[1][:, 2] = 0  # a reserved token
    base[:, 5] = 0  # trained from nothing
    slot = Slot("w", base, tuple(experts))
    stretched, turned = divergences(column_products(slot.weight(), 0), 0.0)
    assert torch.equal(stretched[:, 2], torch.zeros(2, dtype=torch.float64))
    assert torch.equal(turned[:, [2, 5]], torch.zeros(2, 2, dtype=torch.float64))
    for choice in ("first", "last"):
        found = widened(slot, zero_columns=choice)
        assert torch.isfinite(found).all()
        assert torch.equal(found[:, 2], torch.zeros(10))
    assert not torch.equal(widened(slot), widened(slot, zero_columns="last"))
    seen = scores(slot, zero_columns="last", above_average_value_ratio=1.0)
    assert torch.equal(seen[:, 0, 5], torch.ones(2))  # most of both


@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 9)),
    seed=st.integers(0, 99),
    block=st.integers(1, 20),
)
def test_scores_do_not_depend_on_how_a_weight_is_cut(
    shape: tuple[int, int], seed: int, block: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randint(-8, 9, shape, generator=generator) / 8 for _ in range(3)]
    slot = Slot("w", weights[0], tuple(weights[1:]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Place, "block_size", lambda *_: block)
        cut = scores(slot)
    assert torch.equal(cut, scores(slot))


def test_a_ratio_below_zero_is_refused() -> None:
    with pytest.raises(ParameterError, match="a multiple of the average rank, 0 or more; got -1"):
        WidenMerging(above_average_value_ratio=-1.0)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """Save a tiny base and two fine-tunes of an architecture, once."""
    root = tmp_path_factory.mktemp("widen")

    def save(name: str) -> list[str]:
        folders = [root / name / model for model in ("base", "a", "b")]
        if not folders[0].is_dir():
            config = getattr(transformers, f"{name}Config")(**ARCHITECTURES[name])
            write_family(seeded(config, _class_for(name)), root / name, spread=0.01)
        return [str(folder) for folder in folders]

    return save


def _class_for(name: str) -> Any:
    return AutoModelForSequenceClassification if "num_labels" in ARCHITECTURES[name] else (
        AutoModelForCausalLM
    )  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_merged_by_the_columns_of_its_layers(
    name: str, families: Callable[[str], list[str]], recipe: Callable[..., Recipe]
) -> None:
    base, *experts = families(name)
    spelled = recipe("widen_merging", base, experts)
    live = load_merged(spelled, _class_for(name)).state_dict()
    stored = [load_file(Path(folder) / "model.safetensors") for folder in (base, *experts)]
    tensors = merged_tensors(spelled)
    for key, tensor in tensors.items():
        weights, input_dim = [model[key] for model in stored], tensor.planned.input_dim
        merged = tensor[...]
        if key in live:
            assert torch.equal(live[key], merged), key
        if merged.ndim < 2 or input_dim is None:
            continue  # entry by entry: tests/contract
        by_row = input_dim % merged.ndim != merged.ndim - 1
        matrices = [weight.mT if by_row else weight for weight in weights]
        if all(matrix.norm(dim=-2).min() > 0 for matrix in matrices):
            expected = reference(matrices[0], matrices[1:], 1.0, 1.0).float()
            expected = expected.mT if by_row else expected
            assert torch.allclose(merged, expected, rtol=0, atol=1e-6), key
    assert len(tensors.keys() & live.keys()) > 5


@pytest.mark.parametrize("inner", ["widen_merging", "stock_merging", "breadcrumbs_merging"])
def test_masked_models_are_merged_by_the_layout_of_the_model(
    inner: str, families: Callable[[str], list[str]], merged: Merged
) -> None:
    base, *experts = families("GPT2")
    options = {"mask_apply_method": inner}
    unmasked = merged("mask_merging", base, experts, weight_mask_rate=0.0, **options)
    plain = merged(inner, base, experts)
    for name, tensor in plain.items():  # a change is rounded once more when the base is added
        assert torch.allclose(unmasked[name][...], tensor[...], rtol=0, atol=1e-6), name
