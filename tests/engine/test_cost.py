"""What a merge costs, before the first weight is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from merge_plugins import Recipe, digest, identity, load_merged, notice, save
from merge_plugins.cli import main
from merge_plugins.demo import family
from merge_plugins.engine import Cost, open_merge

MODELS = {name: str(path) for name, path in family().items()}
EXPERTS = [MODELS["math"], MODELS["code"]]


@pytest.fixture(autouse=True)
def _shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (notice.QUIET, *notice.RANKS):
        monkeypatch.delenv(name, raising=False)


def ties(**changes: object) -> Recipe:
    given = {"merge_method": "ties", "base_model": MODELS["base"], "models": EXPERTS}
    return Recipe.from_mapping({**given, "parameters": {"weight": 1}, **changes})


def examples(folder: Path) -> str:
    file = folder / "examples.jsonl"
    file.write_text('{"prompt": "1 + 1 =", "response": " 2"}\n')
    return str(file)


def test_a_loaded_merge_says_in_one_line_what_it_costs(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ties()
    load_merged(recipe)
    out, err = capsys.readouterr()
    (line,) = [each for each in err.splitlines() if "merge-plugins: " in each]
    said = line[line.index("merge-plugins: ") :]
    assert said.startswith(
        f"merge-plugins: ties of 2 models, digest {digest(recipe)}: 29 tensors, "
    )
    assert " on cpu in up to " in said
    assert said.endswith(" of memory.")
    assert out == ""


def test_a_model_in_another_dtype_takes_its_memory() -> None:
    plan = open_merge(ties()).plan
    half = Cost(plan, dtype=torch.bfloat16).peak_bytes
    whole = Cost(plan, dtype=torch.float32).peak_bytes
    assert whole - half == pytest.approx(plan.bytes_merged, rel=0.2)
    assert Cost(plan, is_kept=False).peak_bytes < half


def test_calibration_is_part_of_the_line(tmp_path: Path) -> None:
    given = {"merge_method": "fisher_merging", "base_model": None, "parameters": {}}
    data = {"path": examples(tmp_path), "limit": 64}
    plan = open_merge(ties(**given, data=data)).plan
    cost = Cost(plan)
    assert cost.calibration is not None
    assert cost.calibration["statistics"] == ["fisher"]
    assert cost.calibration["examples"] == 64
    assert "; first runs fisher on up to 64 examples of each model, " in str(cost)
    assert cost.peak_bytes >= 2 * cost.calibration["bytes"]
    assert Cost(open_merge(ties()).plan).calibration is None


def test_a_digest_that_takes_long_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGE_PLUGINS_CACHE", str(tmp_path))
    monkeypatch.setattr(identity, "QUICK", 1 << 20)
    recipe = ties()
    assert identity.quick_digest(recipe) == ""
    known = digest(recipe)  # whoever needs it waits for it
    assert identity.quick_digest(recipe) == known


def test_quiet_is_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(ties(), tmp_path / "loud")
    assert "merge-plugins: ties of 2 models" in capsys.readouterr().err
    monkeypatch.setenv(notice.QUIET, "1")
    save(ties(), tmp_path / "quiet")
    assert "merge-plugins" not in capsys.readouterr().err


def recipe_file(folder: Path) -> str:
    file = folder / "merge.yaml"
    file.write_text(json.dumps(ties().as_dict()))
    return str(file)


def test_check_prints_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = recipe_file(tmp_path)
    assert main(["check", file]) == 0
    printed = capsys.readouterr().out
    assert main(["save", file, str(tmp_path / "saved")]) == 0
    out, err = capsys.readouterr()
    start = f"ties of 2 models, digest {digest(ties())}: 29 tensors, reads "
    assert printed.startswith(start)
    assert f"merge-plugins: {start}" in err
    assert out == f"{tmp_path / 'saved'}\n"


def test_check_has_it_all_as_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = recipe_file(tmp_path)
    assert main(["check", file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    plan = open_merge(ties()).plan
    assert found["recipe"] == ties().as_dict()
    assert found["digest"] == digest(ties())
    assert found["bytes_to_read"] == plan.bytes_read > found["bytes_merged"] == plan.bytes_merged
    assert found["peak_bytes"] > found["bytes_merged"]
    assert found["calibration"] is found["seconds"] is None


def test_quiet_and_verbose_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = recipe_file(tmp_path)
    assert main(["check", file, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["save", file, str(tmp_path / "saved"), "-q"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'saved'}\n"
    assert "merge-plugins" not in err
    with pytest.raises(SystemExit, match="2"):
        main(["check", file, "-q", "-v"])
