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
from merge_plugins.engine import MergedTensor, merged_tensors
from merge_plugins.errors import ParameterError
from merge_plugins.plugins import registry

Merged = Callable[..., dict[str, MergedTensor]]
DATA = Path(__file__).parents[1] / "data"
CASES = json.loads((DATA / "seeds-cases.json").read_text())
NOT_YET = {"twin"}
"""Methods of the seeds that have another formula here, or none yet."""
EMBEDDED = {"model_type": "llama", "vocab_size": 97, "hidden_size": 64, "intermediate_size": 80}
"""WIDEN asks the model's modules which weight is an embedding."""
EXACT = ("average_merging", "task_arithmetic", "ties_merging", "breadcrumbs_merging")
AT_THE_EDGE = 4
"""Columns of a weight that WIDEN may score otherwise than MergeLLM: two whose ranks are swapped,
because they moved alike to the last bits of float32; one of exactly average rank, which MergeLLM
takes to be above it when it rounds the average down; and, under a mask, a row of zeros."""


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
    (folder / "config.json").write_text(json.dumps(EMBEDDED))
    return str(folder)


def spelled(case: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the method and parameters of a case, as their repository spells them."""
    method = case["method"]
    if method == "mask":
        inner = case["inner_params"]
        own = {
            "scaling_coefficient": inner["scale"],
            "slerp_t": inner["slerp_t"],
            "clamp": False,
            "param_density": inner["param_density"],
            "param_value_mask_rate": inner[
                "breadcrumbs_small" if case["inner"] == "breadcrumbs_merging" else "ties_mask_rate"
            ],
            "above_average_value_ratio": inner["widen"][0],
            "score_calibration_value": inner["widen"][1],
        }
        read = registry().get(case["inner"]).spellings
        return "mask_merging", {
            "weight_mask_rate": case["mask_rate"],
            "use_weight_rescale": case["rescale"],
            "mask_strategy": case["mask_strategy"],
            "weight_format": case["weight_format"],
            "mask_apply_method": case["inner"],
            **{name: value for name, value in own.items() if name in read},
        }
    if method in ("ties", "ties_noelect") and "density" in case:
        return method, {key: case[key] for key in ("density", "weight", "lambda")}
    if method == "nodrop_noelect":
        return method, {key: case[key] for key in ("weight", "lambda")}
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
    if method == "breadcrumbs":
        names = ("param_density", "param_value_mask_rate")
        own = {"scaling_coefficient": case["scale"]}
        return "breadcrumbs_merging", {**own, **{name: case[name] for name in names}}
    if method == "widen":
        names = ("above_average_value_ratio", "score_calibration_value")
        return "widen_merging", {"zero_columns": "last", **{name: case[name] for name in names}}
    return {
        "average": ("average_merging", {}),
        "linear": ("linear", {}),
        "model_stock": ("stock_merging", {"clamp": False}),
    }[method]


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
        exact = parameters.get("mask_apply_method", method) in EXACT
        off = (tensor[...] - expected[name]).abs() > (0 if exact else 1e-6)
        n_off = off.any(dim=1 if "embed" in name else 0).sum() if off.ndim > 1 else off.sum()
        assert n_off <= (AT_THE_EDGE if "widen" in case["case"] else 0), (case["case"], name)
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


@pytest.mark.parametrize(
    "inner",
    ["average_merging", "task_arithmetic", "breadcrumbs_merging", "ties_merging", "widen_merging"],
)
@pytest.mark.parametrize("strategy", ["random", "magnitude"])
def test_one_model_is_pruned_with_any_method_that_takes_one(
    inner: str, strategy: str, merged: Merged, models: list[str]
) -> None:
    keeps_all = {"param_density": 1.0} if inner == "breadcrumbs_merging" else {}
    rates = {"ties_merging": 0.0, "breadcrumbs_merging": 0.0}
    rate = {"param_value_mask_rate": rates[inner]} if inner in rates else {}
    options = {"weight_mask_rate": 0.7, "mask_strategy": strategy, "use_weight_rescale": True}
    found = masked(merged, models[:2], mask_apply_method=inner, **options, **rate, **keeps_all)
    pruned = masked(merged, models[:2], **options)
    assert torch.allclose(found, pruned, rtol=0, atol=1e-6)
    dropped = torch.isclose(found, weight_of(models[0]), rtol=0, atol=1e-7).float().mean()
    assert abs(float(dropped) - 0.7) < 0.01


@pytest.mark.parametrize(
    ("inner", "n", "message"),
    [
        ("slerp_merging", 1, "slerp_merging merges 2 models, got 1"),
        ("slerp_merging", 3, "slerp_merging merges 2 models, got 3"),
        ("stock_merging", 1, "stock_merging merges 2 or more models, got 1"),
    ],
)
def test_masked_models_are_as_many_as_their_method_takes(
    inner: str, n: int, message: str, merged: Merged, models: list[str], tmp_path: Path
) -> None:
    third = write(tmp_path / "third", load_file(Path(models[1]) / "model.safetensors"))
    with pytest.raises(ParameterError, match=f"{message}.*average_merging, which takes any"):
        masked(merged, [*models, third][: n + 1], mask_apply_method=inner)


@pytest.mark.parametrize(("inner", "rate"), [("ties_merging", 0.8), ("breadcrumbs_merging", 0.09)])
def test_a_rate_that_is_not_given_is_that_of_the_method(
    inner: str, rate: float, merged: Merged, models: list[str]
) -> None:
    silent = masked(merged, models, mask_apply_method=inner)
    assert torch.equal(
        silent, masked(merged, models, mask_apply_method=inner, param_value_mask_rate=rate)
    )


def test_breadcrumbs_without_tails_adds_everything_up(merged: Merged, models: list[str]) -> None:
    base, *experts = map(weight_of, models)
    found = merged(
        "breadcrumbs_merging", models[0], models[1:], param_density=1.0, param_value_mask_rate=0.0
    )
    expected = sum((expert - base for expert in experts), start=base)
    assert torch.allclose(found["w"][...], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "density", "rate", "kept"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 0.75, 0.1, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 0.5, 0.3, [3, 4, 5, 6, 7, 8]),
        ([3, -3, 3, -3, 9, -9], 0.5, 0.5, [3, -3, 3, -3, 9, -9]),
        ([1, 1, 2, -9, 9, 9], 0.66, 0.0, [1, 1, 2, -9, 9, 9]),
        ([5, 6, 7], 0.9, 0.05, [5, 6, 7]),
        ([5, 6, 7], 0.1, 0.0, [5]),
        ([5, 6, 7], 0.0, 0.0, []),
        ([5], 0.9, 0.09, [5]),
    ],
)
def test_breadcrumbs_drops_what_lies_outside_its_two_thresholds(
    changes: list[int],
    density: float,
    rate: float,
    kept: list[int],
    checkpoint: Any,
    merged: Merged,
) -> None:
    change = torch.tensor(changes, dtype=torch.float32)
    base, expert = checkpoint({"w": torch.zeros(len(changes))}), checkpoint({"w": change})
    options = {"param_density": density, "param_value_mask_rate": rate}
    found = merged("breadcrumbs_merging", base, [expert], **options)["w"][...]
    assert found[found != 0].tolist() == kept


@pytest.mark.parametrize("method", ["breadcrumbs_merging", "mask_merging"])
def test_breadcrumbs_cannot_drop_more_small_entries_than_it_drops(
    method: str, merged: Merged, models: list[str]
) -> None:
    inner = {"mask_apply_method": "breadcrumbs_merging"} if method == "mask_merging" else {}
    with pytest.raises(ParameterError, match=r"drops 0\.1 of .* 0\.8 cannot .* to 0\.1 or less"):
        merged(method, models[0], models[1:], param_value_mask_rate=0.8, **inner)


@pytest.mark.parametrize("clamp", [True, False])
def test_models_that_cancel_out_leave_the_base(
    clamp: bool, checkpoint: Callable[..., str], merged: Merged
) -> None:
    base, delta = torch.randn(2, 30, 40, generator=torch.Generator().manual_seed(0))
    folders = [checkpoint({"w": weight}) for weight in (base, base + delta, base - delta)]
    found = merged("stock_merging", folders[0], folders[1:], clamp=clamp)["w"][...]
    assert torch.allclose(found, base, rtol=0, atol=1e-5)


def test_models_that_disagree_are_left_alone_unless_told_to_extrapolate(
    checkpoint: Callable[..., str], merged: Merged
) -> None:
    base, delta, other = torch.randn(3, 30, 40, generator=torch.Generator().manual_seed(0))
    weights = (base, base + delta, base + other - delta / 2)
    folders = [checkpoint({"w": weight}) for weight in weights]
    clamped = merged("stock_merging", folders[0], folders[1:])["w"][...]
    assert torch.equal(clamped, base)
    away = merged("stock_merging", folders[0], folders[1:], clamp=False)["w"][...] - base
    assert float((away * (delta / 2 + other)).sum()) < 0  # from the mean of the experts


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


def test_a_parameter_that_nobody_reads_is_an_error(merged: Merged, models: list[str]) -> None:
    with pytest.raises(ParameterError, match="average_merging does not read param_density"):
        merged("mask_merging", models[0], models[1:], param_density=0.5)


@pytest.mark.parametrize("inner", ["fisher_merging", "regmean_merging"])
def test_masked_models_are_merged_by_what_their_data_says(
    inner: str, llamas: Mapping[str, str], tmp_path: Path
) -> None:
    rows = [{"text": " ".join(map(str, range(n, n + 9)))} for n in range(0, 40, 5)]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def merge(method: str, **parameters: Any) -> dict[str, Tensor]:
        spelled = {
            "merge_method": method,
            "base_model": llamas["base"],
            "models": [{"model": llamas["math"]}, {"model": llamas["code"]}],
            "parameters": parameters,
            **({} if parameters == {"weight_mask_rate": 0.5} else {"data": "texts.jsonl"}),
            "out_dtype": "float32",
        }
        tensors = merged_tensors(Recipe.from_mapping(spelled, tmp_path))
        return {name: tensor[...] for name, tensor in tensors.items()}

    plain = merge(inner)
    whole = merge("mask_merging", mask_apply_method=inner, weight_mask_rate=0.0)
    half = merge("mask_merging", mask_apply_method=inner, weight_mask_rate=0.5)
    averaged = merge("mask_merging", weight_mask_rate=0.5)
    for name, weight in plain.items():
        assert torch.allclose(whole[name], weight, rtol=0, atol=1e-5), name
    changed = [name for name in plain if not torch.equal(half[name], averaged[name])]
    assert "model.layers.0.mlp.up_proj.weight" in changed
    vector = "model.norm.weight"  # has Fisher information, but no inputs to solve for
    assert (vector in changed) == (inner == "fisher_merging")
