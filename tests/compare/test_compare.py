"""`merge-plugins compare`: any models, read as merges read them; what stands out, in words."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import edit, rewrite, write_zeros
from plain_llamas import plain_llamas
from private_memory import STATUS, for_program

from merge_plugins.cli import main
from merge_plugins.compare import chosen, compare
from merge_plugins.compare.places import Spot, spots
from merge_plugins.compare.text import as_dict
from merge_plugins.demo import WRONG, family
from merge_plugins.errors import CheckpointError, MismatchError, RecipeError
from merge_plugins.recipe.references import titles

FAMILY = {name: str(path) for name, path in family().items()}
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command with --json."""

    def ran(*words: str) -> dict[str, Any]:
        assert main(["compare", *words, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return ran


def say(found: dict[str, Any]) -> str:
    return "\n".join(found["reading"])


def test_a_recipe_is_compared_as_its_models_are(run: Run, tmp_path: Path) -> None:
    short = f"method=ties,base={FAMILY['base']},models={FAMILY['math']}+{FAMILY['code']},density=1"
    found = run(short)
    assert (found["base"], found["models"]) == ("base", ["math", "code"])
    assert found == run(FAMILY["math"], FAMILY["code"], "--base", FAMILY["base"])
    file = tmp_path / "merge.yaml"
    models = [FAMILY["math"], FAMILY["code"]]
    file.write_text(json.dumps({"merge_method": "ties", "base_model": FAMILY["base"],
                                "models": models}))  # fmt: skip
    assert run(str(file)) == found == run(str(tmp_path))


def test_each_layer_and_module_type_has_its_numbers(run: Run) -> None:
    found = run(FAMILY["math"], FAMILY["code"], "--base", FAMILY["base"])
    parts = {(part["layer"], part["module"]): part for part in found["parts"]}
    assert {layer for layer, _ in parts} == {None, 0, 1, 2}
    part = parts[0, "mlp.down_proj"]
    assert [change["model"] for change in part["changes"]] == ["math", "code"]
    assert 0 < part["changes"][0]["norm"] < 1
    assert 0 < part["changes"][0]["energy"] <= 1
    (pair,) = part["pairs"]
    assert pair["models"] == ["math", "code"]
    assert -1 <= pair["cosine"] <= 1


def test_the_right_base_is_not_called_out(run: Run) -> None:
    experts = [FAMILY[name] for name in ("math", "code", "sea")]
    said = say(run(*experts, "--base", FAMILY["base"]))
    assert "swapped" not in said
    assert "not the model that they were tuned from" not in said


@pytest.mark.parametrize("wrong", ["math", "code", "sea"])
def test_a_swapped_base_is_called_out(wrong: str, run: Run) -> None:
    others = [path for name, path in FAMILY.items() if name != wrong]
    said = say(run(*others, "--base", FAMILY[wrong]))
    assert f"base looks like the base, and {wrong} like one of its fine-tunes" in said
    experts = [FAMILY[name] for name in ("math", "code", "sea") if name != wrong]
    said = say(run(*experts, "--base", FAMILY[wrong]))
    assert f"{wrong} is not the model that they were tuned from" in said


def test_a_base_among_models_without_one_is_found(run: Run) -> None:
    found = run(*FAMILY.values())
    assert found["base"] is None
    assert "Compare again with --base base" in say(found)


def test_a_copy_of_the_base_adds_nothing(run: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(FAMILY["base"], tmp_path / "copy")
    said = say(run(str(copy), FAMILY["math"], "--base", FAMILY["base"]))
    assert "copy equals the base, base, in every weight" in said


def test_a_model_of_another_family_is_called_out(run: Run, tmp_path: Path) -> None:
    stranger = shutil.copytree(FAMILY["base"], tmp_path / "stranger")
    generator = torch.Generator().manual_seed(0)

    def other(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        noise = {n: torch.randn(w.shape, generator=generator) for n, w in tensors.items()}
        return {n: (noise[n] * w.float().std()).to(w.dtype) for n, w in tensors.items()}

    rewrite(stranger, other)
    said = say(run(str(stranger), FAMILY["math"], "--base", FAMILY["base"]))
    assert "stranger is no relative of base" in said
    assert "math is no relative" not in said


def test_the_model_that_disagrees_is_the_odd_one_out(run: Run) -> None:
    experts = [FAMILY[name] for name in ("math", "code", "sea")]
    said = say(run(*experts, str(WRONG), "--base", FAMILY["base"]))
    assert "wrong is the odd one out" in said


def test_any_layout_and_adapters_are_read_as_merges_read_them(run: Run, tmp_path: Path) -> None:
    plain_llamas(tmp_path)
    found = run(f"{tmp_path}/base+{tmp_path}/lora", f"{tmp_path}/a", "--base", f"{tmp_path}/base")
    assert found["models"] == ["base+lora", "a"]
    changed = {
        (part["layer"], part["module"]) for part in found["parts"] if part["changes"][0]["norm"] > 0
    }
    assert changed == {(i, "self_attn.q_proj") for i in range(2)}


def test_what_does_not_meet_is_left_out_and_said(run: Run, tmp_path: Path) -> None:
    larger = shutil.copytree(FAMILY["math"], tmp_path / "larger")

    def grown(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = next(name for name in tensors if "embed_tokens" in name)
        more = torch.zeros(1, tensors[name].shape[1], dtype=tensors[name].dtype)
        return {**tensors, name: torch.cat([tensors[name], more]), "extra.weight": more}

    rewrite(larger, grown)
    found = run(FAMILY["base"], str(larger))
    assert {"model.embed_tokens.weight", "extra.weight"} == {*found["left_out"]}
    assert found["left_out"]["extra.weight"] == "only in larger"
    assert found["left_out"]["model.embed_tokens.weight"].endswith("in larger")
    assert "2 weights not compared" in say(found)


def test_models_without_a_weight_in_common_are_refused(tmp_path: Path) -> None:
    for name, weight in (("a", "x.weight"), ("b", "y.weight")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        write_zeros(tmp_path / name, {weight: (2, 2)})
    with pytest.raises(MismatchError, match=r"a, b have no weight.* x\.weight: only in a"):
        compare(chosen([str(tmp_path / "a"), str(tmp_path / "b")]))


def test_configs_and_tokenizers_that_differ_are_listed(run: Run, tmp_path: Path) -> None:
    plain_llamas(tmp_path)
    edit(tmp_path / "a", rope_theta=5e5, rope_scaling={"factor": 2})
    found = run(f"{tmp_path}/base", f"{tmp_path}/a")
    assert found["configs"] == {
        "rope_theta": {"base": 10000.0, "a": 5e5},
        "rope_scaling.factor": {"base": None, "a": 2},
    }
    assert found["tokenizers"] == {
        "base": [],
        "a": ["1 tokens more, '<extra>'", "another chat template"],
    }


def test_tokens_with_other_ids_are_called_out(run: Run, tmp_path: Path) -> None:
    other = shutil.copytree(FAMILY["math"], tmp_path / "other")
    file = other / "tokenizer.json"
    content = json.loads(file.read_text())
    tokens = sorted(content["model"]["vocab"], key=content["model"]["vocab"].__getitem__)[-2:]
    first, second = (content["model"]["vocab"][token] for token in tokens)
    content["model"]["vocab"] |= {tokens[0]: second, tokens[1]: first}
    file.write_text(json.dumps(content))
    assert "2 tokens of other have other ids than in base" in say(run(FAMILY["base"], str(other)))


def test_nan_is_refused_with_the_name_of_its_file(tmp_path: Path) -> None:
    broken = shutil.copytree(FAMILY["math"], tmp_path / "broken")
    rewrite(
        broken, lambda t: {n: w.fill_(torch.nan) if "layers.1" in n else w for n, w in t.items()}
    )
    with pytest.raises(CheckpointError, match=r"broken/model.safetensors: model.layers.1"):
        compare(chosen([str(broken)], FAMILY["base"]))


def test_the_text_says_what_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", FAMILY["math"], FAMILY["code"], "--base", FAMILY["base"]]) == 0
    said = capsys.readouterr().out
    assert said.startswith("What each model changes in base: ")
    assert "Math and code agree on " in said
    assert "TIES at density 0.2 and equal weights would drop " in said
    assert max(map(len, said.partition("\n* ")[0].splitlines())) <= 100
    assert main(["compare", FAMILY["math"], FAMILY["code"], "--directions", "0"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("No base: the weights of math, code themselves")
    assert "directions" not in said


@pytest.mark.parametrize("words", [("math", "code", "sea"), ("base", "math")])
def test_the_plot_is_one_picture(words: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "new" / "plot.png"
    base = [] if "base" in words else ["--base", FAMILY["base"]]
    assert main(["compare", *(FAMILY[word] for word in words), *base, "--plot", str(file)]) == 0
    data = file.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert min(struct.unpack(">II", data[16:24])) > 300


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{math}"], "compare needs two models; .*math is alone"),
        (["{math}", "{code}", "--plot", "x.pgn"], "a picture's name ends with .png"),
        (["{math}", "method=linear,models={code}"], "is a recipe; compare one recipe, or models"),
        (["{base}", "--base", "{base}"], "no model is named"),
        (["method=linear,models={math}"], "compare needs two models"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_a_weight_is_read(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *(word.format(**FAMILY) for word in words)]) == 1
    err = capsys.readouterr().err
    assert RecipeError.__name__ not in err
    assert re.search(said, err), err


def test_weights_are_placed_by_layer_and_module_type() -> None:
    names = ["model.embed_tokens.weight", "model.layers.10.mlp.experts.3.w1.weight",
             "model.layers.0.self_attn.q_proj.bias", "lm_head.weight"]  # fmt: skip
    assert [*spots(names).values()] == [
        Spot(None, "embed_tokens"),
        Spot(10, "mlp.experts.*.w1"),
        Spot(0, "self_attn.q_proj.bias"),
        Spot(None, "lm_head"),
    ]
    two = ["encoder.block.0.layer.1.q.weight", "decoder.block.0.layer.1.q.weight"]
    assert [spot.module for spot in spots(two).values()] == [
        "encoder.block.layer.*.q",
        "decoder.block.layer.*.q",
    ]


def test_models_of_one_name_are_told_apart() -> None:
    assert titles(["/a/math", "/b/math", "org/code@main"]) == ["/a/math", "/b/math", "code@main"]


MEASURE = """
import sys
from pathlib import Path
import torch
from merge_plugins.compare import chosen, compare
from private_memory import peak_of

torch.set_num_threads(2)
small, large = Path(sys.argv[1]), Path(sys.argv[2])


def compared(root):
    return compare(chosen([str(root / name) for name in "abc"], str(root / "base")))


compared(small)  # the pool, buffers of matrix products
_, peak = peak_of(lambda: compared(large))
print(peak)
"""


@pytest.mark.skipif(not STATUS.exists(), reason="memory is read from /proc")
def test_memory_is_that_of_blocks_whatever_the_models(tmp_path: Path) -> None:
    for size, rows in (("small", 300), ("large", 16384)):
        for name in ("base", "a", "b", "c"):
            folder = tmp_path / size / name
            folder.mkdir(parents=True)
            (folder / "config.json").write_text("{}")
            write_zeros(folder, {"layers.0.up.weight": (rows, 1024)})
    command = [
        sys.executable,
        "-c",
        MEASURE,
        *(str(tmp_path / size) for size in ("small", "large")),
    ]
    said = subprocess.check_output(command, text=True, timeout=300, env=for_program())
    assert int(said) < 130e6  # in float32, the four models' matrices take 268 MB


def test_numbers_come_out_the_same_again() -> None:
    models = chosen([FAMILY["math"], FAMILY["code"]], FAMILY["base"])
    assert as_dict(compare(models)) == as_dict(compare(models))
