"""AdaMerging: coefficients are those of plain gradient descent through the merged model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import seeded, word_tokenizer, write_family
from torch import Tensor

from merge_plugins import Recipe
from merge_plugins.api import PerExpert
from merge_plugins.calibration.coefficients import mean_entropy
from merge_plugins.engine import open_merge
from merge_plugins.errors import ParameterError, RecipeError
from merge_plugins.methods.adamerging import AdaMerging

DECODER = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.4,
    "pad_token_id": 0,
}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", DECODER),
    "llama, tied": ("LlamaConfig", "LlamaForCausalLM", {**DECODER, "tie_word_embeddings": True}),
    "bert": ("BertConfig", "BertForSequenceClassification", {**DECODER, "num_labels": 3}),
    "encoder": ("BertConfig", "BertModel", DECODER),
    "regression": ("BertConfig", "BertForSequenceClassification", {**DECODER, "num_labels": 1}),
}
TEXTS = {
    "a": [{"prompt": "1 2 3", "response": "4 5"}, {"text": "6 7 8 9 10 11"}, {"text": "9 9 3"}],
    "b": [{"text": "12 13 1 2"}, {"prompt": "2 3", "response": "14 15 16"}],
}
STEPS, RATE = 4, 0.05

Family = Callable[[str], dict[str, str]]


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A base and two fine-tunes of each kind, and texts for both."""
    made: dict[str, dict[str, str]] = {}

    def make(kind: str) -> dict[str, str]:
        if kind in made:
            return made[kind]
        root = tmp_path_factory.mktemp("adamerging")
        config, architecture, options = KINDS[kind]
        built = getattr(transformers, config)(**options)
        model = seeded(built, getattr(transformers, architecture))
        words = ["<pad>", "</s>", "?", *map(str, range(21))]
        tokenizer = word_tokenizer(words, unknown="?", eos_token="</s>", pad_token="<pad>")
        write_family(model, root, spread=0.1, tokenizer=tokenizer)
        for name, rows in TEXTS.items():
            (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        made[kind] = {path.name: str(path) for path in root.iterdir()}
        return made[kind]

    return make


def spelled(models: Mapping[str, str], *, apart: bool = False, **given: Any) -> Recipe:
    data = {name: {"path": models[f"{name}.jsonl"], "batch_size": 2} for name in TEXTS}
    return Recipe.from_mapping(
        {
            "merge_method": "adamerging",
            "base_model": models["base"],
            "models": [{"model": models[name], "data": data[name]} for name in TEXTS],
            "exclude": ["heads"] if apart else [],
            "parameters": {"steps": STEPS, "learning_rate": RATE, **given},
        }
    )


def learned(recipe: Recipe) -> dict[str, PerExpert]:
    merge = open_merge(recipe)
    kernel: Any = merge.kernel(next(iter(merge.plan.tensors.values())))
    return dict(kernel.coefficients)


def entropy(model: Any, weights: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
    """Mean of -sum p ln p, one prediction at a time."""
    inputs = {key: batch[key] for key in batch if key != "labels"}
    logits = torch.func.functional_call(model, dict(weights), (), inputs).logits.double()
    if logits.ndim == 2:
        rows = [*logits]
    else:
        places = [(i, j) for i, j in (batch["labels"][:, 1:] != -100).nonzero().tolist()]
        rows = [logits[i, j] for i, j in places]
    return sum(-(p * p.log()).sum() for p in (row.softmax(0) for row in rows)) / len(rows)  # type: ignore[return-value]


def by_autograd(
    recipe: Recipe, models: Mapping[str, str], kind: str, *, by_weight: bool, initial: float
) -> tuple[dict[str, list[float]], list[float]]:
    """Return coefficients, and the loss of every step, of descent with every task vector held."""
    architecture: Any = getattr(transformers, KINDS[kind][1])
    live = [architecture.from_pretrained(models[n]).eval() for n in ("base", "a", "b")]
    base, *experts = (dict(model.named_parameters()) for model in live)
    planned = open_merge(recipe).plan.tensors
    names = [n for n, tensor in planned.items() if n in base and tensor.kernel is not None]
    raw = torch.full((len(names) if by_weight else 1, 2), initial, requires_grad=True)
    optimizer, sources, losses = torch.optim.Adam([raw], lr=RATE), open_merge(recipe).sources, []
    batches = [list(sources.batches(expert)) for expert in range(2)]
    for step in range(STEPS):
        used = raw.clamp(0, 1).expand(len(names), -1)
        merged = {
            name: base[name].detach()
            + sum(c * (e[name] - base[name]).detach() for c, e in zip(row, experts, strict=True))
            for name, row in zip(names, used, strict=True)
        }
        loss = sum(
            entropy(own, merged, some[step % len(some)])
            for own, some in zip(live[1:], batches, strict=True)
        )
        losses.append(float(loss.detach()))  # type: ignore[union-attr]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
    found = raw.detach().clamp(0, 1).expand(len(names), -1).tolist()
    return dict(zip(names, found, strict=True)), losses


@pytest.mark.parametrize(
    ("kind", "mode", "initial", "apart"),
    [
        ("llama", "layer_wise", 0.3, False),
        ("llama", "task_wise", 0.02, False),
        ("llama, tied", "layer_wise", 0.02, False),
        ("bert", "layer_wise", 0.3, False),
        ("bert", "task_wise", 0.3, False),
        ("bert", "layer_wise", 0.3, True),
    ],
)
def test_coefficients_are_those_of_descent_through_the_merged_model(
    kind: str, mode: str, initial: float, apart: bool, family: Family
) -> None:
    """``apart``: each task has a head of its own, which reads its texts."""
    recipe = spelled(family(kind), apart=apart, mode=mode, initial=initial)
    expected, losses = by_autograd(
        recipe, family(kind), kind, by_weight=mode == "layer_wise", initial=initial
    )
    found = learned(recipe)
    assert found.keys() == expected.keys()
    for name, row in found.items():
        if not name.endswith("key.bias"):  # which attention cannot see: a gradient of noise
            assert row == pytest.approx(expected[name], abs=2e-3), name
        assert min(row) >= 0
    assert losses[2] < losses[0]  # of the same batches
    assert any(abs(c - initial) > 0.01 for row in found.values() for c in row)


def test_the_merge_is_base_plus_learned_shares_of_task_vectors(family: Family) -> None:
    recipe = spelled(family("llama"))
    coefficients, merge = learned(recipe), open_merge(recipe)
    for name, tensor in merge.tensors().items():
        base, *experts = (s.view() for s in tensor.planned.stored)
        pairs = zip(coefficients[name], experts, strict=True)
        expected = base + sum(c * (expert - base) for c, expert in pairs)
        assert torch.allclose(tensor[...], expected, atol=1e-6), name


def test_no_steps_is_task_arithmetic(family: Family) -> None:
    assert {*learned(spelled(family("llama"), steps=0)).values()} == {(0.3, 0.3)}


def test_entropy_is_of_scored_positions_only(family: Family) -> None:
    uniform = torch.nn.Module()
    logits = torch.zeros(1, 4, 8)
    logits[0, 0, 3] = 50.0  # certain, before the second token
    uniform.forward = lambda **_: type("Output", (), {"logits": logits})  # type: ignore[method-assign, assignment]
    for labels, expected in (([-100, 5, 5, 5], 2 / 3), ([-100, -100, 5, 5], 1), ([5] * 4, 2 / 3)):
        batch = {"input_ids": torch.tensor([[5] * 4]), "labels": torch.tensor([labels])}
        found = mean_entropy(uniform, batch) / torch.tensor(8.0).log()
        assert float(found) == pytest.approx(expected, abs=1e-5)
    nothing = {"input_ids": torch.tensor([[5] * 4]), "labels": torch.full((1, 4), -100)}
    assert float(mean_entropy(uniform, nothing)) == 0


@pytest.mark.parametrize("kind", ["encoder", "regression"])
def test_a_model_without_predictions_has_no_entropy(kind: str, family: Family) -> None:
    with pytest.raises(RecipeError, match="entropy is of a classifier with two classes"):
        learned(spelled(family(kind)))


def test_weights_the_live_model_does_not_have_keep_their_coefficient(
    family: Family, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.torch import load_file, save_file

    models = dict(family("llama"))
    for name in ("base", "a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        for file in Path(models[name]).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        tensors = load_file(folder / "model.safetensors")
        save_file({**tensors, "unused.weight": torch.ones(3)}, folder / "model.safetensors")
        models[name] = str(folder)
    with caplog.at_level(logging.WARNING, "merge_plugins"):
        found = learned(spelled(models))
    assert found["unused.weight"] == (0.3, 0.3)
    assert "first unused.weight" in caplog.text
    assert {n: c for n, c in found.items() if n != "unused.weight"} == learned(
        spelled(family("llama"))
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"initial": 1.5}, "initial is a share"),
        ({"steps": -1}, "steps is 0 or more"),
        ({"learning_rate": 0.0}, "learning_rate is a number above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        AdaMerging(**given)
