"""`merge-plugins plan`: a summary, a line for each group of like tensors, or all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from merge_plugins.cli import main
from merge_plugins.commands.groups import together
from merge_plugins.demo import family

MODELS = {name: str(path) for name, path in family().items()}


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    content = {
        "merge_method": "ties",
        "base_model": MODELS["base"],
        "models": [
            {"model": MODELS["math"], "parameters": {"weight": 1, "density": [0.4, 0.6]}},
            {
                "model": MODELS["code"],
                "parameters": {"weight": [{"filter": "mlp", "value": 2}, {"value": 1}]},
            },
        ],
        "parameters": {"lambda": 0.9},
        "exclude": ["embed_tokens"],
    }
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump(content))
    return str(tmp_path / "merge.yaml")


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["plan", *words]) == 0
    return capsys.readouterr().out


def test_like_tensors_are_one_line_below_a_summary(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    head, _, body = printed(capsys, recipe).partition("\n\n")
    summary, *common = head.replace("\n    ", " ").splitlines()
    assert summary.startswith("ties of 2 models: ")
    assert f"base: {MODELS['base']}" in common
    assert "every tensor: lambda=0.9, normalize=true, rescale=false, int8_mask=false" in common
    assert max(map(len, body.splitlines())) <= 100
    lines = {line.split()[0]: line for line in body.replace("\n    ", " ").splitlines()}
    tensors = json.loads(printed(capsys, recipe, "--json"))["tensors"]
    counts = [
        int(line.split(" x ")[0].split()[-1]) if " x " in line else 1 for line in lines.values()
    ]
    assert sum(counts) == len(tensors)
    n_layers = len({name.split(".")[2] for name in tensors if ".layers." in name})
    up = lines[f"model.layers.{{0-{n_layers - 1}}}.mlp.up_proj.weight"]
    assert f" {n_layers} x [" in up
    assert up.endswith("weight=[1, 2], density=[0.4…0.6, 1]")
    assert lines["model.embed_tokens.weight"].endswith("copied")


def test_all_is_a_line_for_each_tensor(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, recipe, "--all").splitlines()
    tensors = json.loads(printed(capsys, recipe, "--json"))["tensors"]
    assert [line.split()[0] for line in lines] == list(tensors)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.5, 0.5], "0.5"),
        ([0.6, 0.5, 0.4], "0.6…0.4"),
        ([0, 1, 0.5], "0…1"),
        ([(1, 0.4), (1, 0.6)], "[1, 0.4…0.6]"),
        ([True, False, True], "true|false"),
        (["random", "magnitude"], "random|magnitude"),
        ([None, 0.5], "none|0.5"),
    ],
)
def test_values_are_written_in_one(values: list[object], text: str) -> None:
    assert together(values) == text
