"""A seed's name gives that seed's tensors: MergeLLM (WIDEN), MergeLM (DARE), LM-Cocktail, DELLA.

The expected tensors were written by the repositories' own code. A few of them are in tests/data;
all of them run where ../shared/fixtures is beside the checkout. Random masks are compared by
distribution: the repositories draw from torch's global stream, we from a counter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge_plugins import Recipe
from merge_plugins.errors import ParameterError
from merge_plugins.runner import MergedTensor, merged_tensors

Merged = Callable[..., dict[str, MergedTensor]]
DATA = Path(__file__).parent / "data"
CASES = json.loads((DATA / "seeds-cases.json").read_text())
NOT_YET = {
    *("model_stock", "breadcrumbs", "widen", "nodrop_noelect", "ties_noelect", "twin"),
    *("stock_merging", "breadcrumbs_merging", "widen_merging"),
}
"""Methods of the seeds that have another formula here, or none yet."""


@pytest.fixture(scope="session")
def cropped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of tests/data, a folder for each."""
    root = tmp_path_factory.mktemp("seeds")
    held = load_file(DATA / "seeds.safetensors")
    for model in {name.partition("/")[0] for name in held}:
        write(
            root / model, {n.partition("/")[2]: w for n, w in held.items() if n.startswith(model)}
        )
    return root


def write(folder: Path, tensors: Mapping[str, Tensor]) -> str:
    folder.mkdir(exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return str(folder)


def spelled(case: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the method and parameters of a case, as their repository spells them."""
    method = case["method"]
    if method == "mask":
        inner = case["inner_params"]
        return "mask_merging", {
            "weight_mask_rate": case["mask_rate"],
            "use_weight_rescale": case["rescale"],
            "mask_strategy": case["mask_strategy"],
            "weight_format": case["weight_format"],
            "mask_apply_method": case["inner"],
            "scaling_coefficient": inner["scale"],
            "slerp_t": inner["slerp_t"],
            "param_value_mask_rate": inner["ties_mask_rate"],
        }
    if method == "ties" and "density" in case:
        return "ties", {key: case[key] for key in ("density", "weight", "lambda")}
    if method == "ties":
        rate, scale, scope = (case[key] for key in ("mask_rate", "scale", "scope"))
        return "ties_merging", {
            "param_value_mask_rate": rate,
            "scaling_coefficient": scale,
            "trim_scope": scope,
        }
    if method == "slerp":
        return "slerp_merging", {"slerp_t": case["t"], "dot_threshold": case["dot_threshold"]}
    if method == "task_arithmetic":
        return method, {"scaling_coefficient": case.get("scale", case.get("lambda"))}
    return {"average": ("average_merging", {}), "linear": ("linear", {})}[method]


def check(case: Mapping[str, Any], folder: Path, expected: Mapping[str, Tensor]) -> None:
    method, parameters = spelled(case)
    base, experts = case["base"], case["experts"]
    recipe: dict[str, Any] = {"merge_method": method, "parameters": parameters, "base_model": base}
    entries = [{"model": model} for model in experts]
    if method == "linear":  # LM-Cocktail mixes the base in as one of the models
        shares = zip([base, *experts], case["weights"], strict=True)
        entries = [{"model": model, "parameters": {"weight": w}} for model, w in shares]
    tensors = merged_tensors(Recipe.from_mapping({**recipe, "models": entries}, folder))
    for name, tensor in tensors.items():
        assert torch.allclose(tensor[...], expected[name], rtol=0, atol=1e-6), (case["case"], name)
    assert expected.keys() - tensors.keys() <= {"lm_head.weight"}  # tied: stored once


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['case']} {case['output']}")
def test_the_tensors_are_those_of_the_repository(case: Mapping[str, Any], cropped: Path) -> None:
    check(case, cropped, load_file(cropped / case["output"] / "model.safetensors"))


def test_the_tensors_of_every_case_at_hand_are_those_of_the_repository(
    shared_fixtures: Path, tmp_path: Path
) -> None:
    root = shared_fixtures / "seeds"
    n_checked = 0
    for case in json.loads((root / "cases.json").read_text()):
        if {case["method"], case.get("inner")} & NOT_YET or case["case"] == "twin ties":
            continue  # twin: trims one entry more than MergeLM
        for file in (case["base"], *case["experts"]):
            write(tmp_path / file, load_file(root / file))
        check(case, tmp_path, load_file(root / case["output"]))
        n_checked += 1
    assert n_checked >= len(CASES)


@pytest.fixture(scope="module")
def models(checkpoint: Callable[..., str]) -> list[str]:
    """A base and two fine-tunes with one large weight each."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(400, 500, generator=generator)
    moved = [base + 0.01 * torch.randn(400, 500, generator=generator) for _ in range(2)]
    return [checkpoint({"w": weight}) for weight in (base, *moved)]


def weight_of(folder: str) -> Tensor:
    return load_file(Path(folder) / "model.safetensors")["w"]


def masked(merged: Merged, models: Sequence[str], **parameters: Any) -> Tensor:
    base, *experts = models
    return merged("mask_merging", base, experts, **parameters)["w"][...]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dare_drops_the_share_it_is_told_and_keeps_the_mean(
    rate: float, merged: Merged, models: list[str]
) -> None:
    base, expert = weight_of(models[0]), weight_of(models[1])
    found = masked(merged, models[:2], weight_mask_rate=rate, use_weight_rescale=True)
    delta, n = found - base, base.numel()
    dropped = int((delta == 0).sum())
    assert abs(dropped - n * rate) < 4 * math.sqrt(n * rate * (1 - rate))
    kept = delta != 0
    assert torch.allclose(delta[kept], (expert - base)[kept] / (1 - rate), rtol=1e-3, atol=1e-6)
    spread = 0.01 * math.sqrt(rate / (1 - rate) / n)  # of the mean of all entries
    assert abs(float(delta.mean() - (expert - base).mean())) < 4 * spread


def test_dropping_without_rescaling_leaves_what_is_kept_as_it_is(
    merged: Merged, models: list[str]
) -> None:
    base, expert = weight_of(models[0]), weight_of(models[1])
    found = masked(merged, models[:2], weight_mask_rate=0.3)
    assert torch.isclose(found, base, atol=1e-6).logical_or(torch.isclose(found, expert)).all()
    assert 0.68 < float(torch.isclose(found, expert, atol=1e-7).float().mean()) < 0.72


def test_masking_the_weights_themselves_never_adds_the_base(
    merged: Merged, models: list[str]
) -> None:
    expert = weight_of(models[1])
    options = {"weight_format": "finetuned_weight", "weight_mask_rate": 0.4}
    random = masked(merged, models[:2], **options)
    assert torch.equal(random[random != 0], expert[random != 0])
    assert abs(float((random == 0).float().mean()) - 0.4) < 0.01
    by_size = masked(merged, models[:2], mask_strategy="magnitude", **options)
    n_dropped = int((by_size == 0).sum())
    assert n_dropped == int(0.4 * expert.numel())
    assert expert[by_size == 0].abs().max() < expert[by_size != 0].abs().min()
    rescaled = masked(merged, models[:2], use_weight_rescale=True, **options)
    assert torch.allclose(rescaled, random / 0.6, rtol=1e-6)


def test_each_model_has_a_mask_of_its_own(merged: Merged, models: list[str]) -> None:
    base, *experts = map(weight_of, models)
    both = masked(merged, models, weight_mask_rate=0.5, mask_apply_method="task_arithmetic")
    first = masked(merged, models[:2], weight_mask_rate=0.5, mask_apply_method="task_arithmetic")
    n_both_dropped = int((both - base).abs().lt(1e-9).sum())
    n = base.numel()
    assert abs(n_both_dropped - n / 4) < 5 * math.sqrt(n * 3 / 16)
    assert torch.isclose(both - first, torch.zeros(()), atol=1e-6).any()
    assert torch.isclose(both - first, experts[1] - base, atol=1e-6).any()


def test_dropping_everything_returns_the_base_also_with_rescaling(
    merged: Merged, models: list[str]
) -> None:
    for strategy in ("random", "magnitude"):
        for rescale in (False, True):
            found = masked(
                merged,
                models,
                weight_mask_rate=1.0,
                mask_strategy=strategy,
                use_weight_rescale=rescale,
            )
            assert torch.allclose(found, weight_of(models[0]), rtol=1e-6)


@pytest.mark.parametrize(
    "method", ["average_merging", "task_arithmetic", "ties_merging", "mask_merging"]
)
def test_one_model_is_enough(method: str, merged: Merged, models: list[str]) -> None:
    parameters: dict[str, Any] = {
        "ties_merging": {"param_value_mask_rate": 0.0},
        "mask_merging": {"weight_mask_rate": 0.0},
    }.get(method, {})
    found = merged(method, models[0], [models[1]], **parameters)["w"][...]
    assert torch.allclose(found, weight_of(models[1]), rtol=1e-6, atol=1e-7)


def test_ranking_over_the_model_is_ranking_over_all_its_weights_as_one(
    merged: Merged, checkpoint: Callable[..., str]
) -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = {"a": (30, 40), "b": (7,), "c": (2, 3, 5)}
    sizes = {"a": 0.01, "b": 10.0, "c": 0.1}  # trimmed each alone, b and c would keep as little
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    experts = [
        {n: w + sizes[n] * torch.randn(w.shape, generator=generator) for n, w in base.items()}
        for _ in range(3)
    ]

    def joined(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"all": torch.cat([model[name].reshape(-1) for name in sorted(model)])}

    folders = [checkpoint(model) for model in (base, *experts)]
    flat = [checkpoint(joined(model)) for model in (base, *experts)]
    parameters = {"param_value_mask_rate": 0.8, "scaling_coefficient": 0.5}
    by_model = merged("ties_merging", folders[0], folders[1:], trim_scope="model", **parameters)
    as_one = merged("ties_merging", flat[0], flat[1:], trim_scope="tensor", **parameters)
    found = joined({name: tensor[...] for name, tensor in by_model.items()})["all"]
    assert torch.equal(found, as_one["all"][...])
    by_tensor = merged("ties_merging", folders[0], folders[1:], **parameters)
    assert not torch.equal(by_tensor["b"][...], by_model["b"][...])


def test_ranking_over_the_model_takes_one_rate_for_all_weights(
    merged: Merged, models: list[str], checkpoint: Callable[..., str]
) -> None:
    base, expert = (
        checkpoint({f"layers.{i}.w": weight_of(model) for i in range(2)}) for model in models[:2]
    )
    tensors = merged(
        "ties_merging", base, [expert], trim_scope="model", param_value_mask_rate=[0.1, 0.9]
    )
    with pytest.raises(ValueError, match="looks at the whole model at once"):
        tensors["layers.0.w"][...]


@pytest.mark.parametrize(
    ("method", "parameter", "given", "message"),
    [
        ("mask_merging", "weight_mask_rate", 20, r"in \[0, 1\]; got 20. For 20 % write .*: 0.2"),
        ("ties_merging", "param_value_mask_rate", -0.1, r"in \[0, 1\]; got -0.1"),
        ("slerp_merging", "dot_threshold", 0.0, r"a cosine, in \(0, 1\]; got 0.0"),
        ("mask_merging", "mask_apply_method", "widen", "mask_apply_method is one of"),
        ("ties_merging", "trim_scope", "models", "did you mean 'model'"),
    ],
)
def test_a_parameter_out_of_range_is_refused_before_anything_is_read(
    method: str, parameter: str, given: Any, message: str, merged: Merged, models: list[str]
) -> None:
    base, *experts = models
    with pytest.raises(ParameterError, match=message):
        merged(method, None if method == "slerp_merging" else base, experts, **{parameter: given})
