"""`merge-plugins search`: from a search.yaml to a report, on the demo's models and lm-eval."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness_adapters.commands.search import main
from harness_adapters.commands.search_run import _words
from merge_plugins import Recipe
from merge_plugins.demo import family
from merge_plugins.errors import MergeError
from merge_plugins.plugins import registry
from merge_plugins.search import proposal
from merge_plugins.search.history import History
from merge_plugins.search.ledger import Ledger
from merge_plugins.search.proposal import IGNORED
from merge_plugins.search.space import Space
from merge_plugins.search.table import what

MODELS = {name: str(path) for name, path in family().items()}
LONG = os.environ.get("MERGE_PLUGINS_LONG_TESTS")
NORM = """
import os, signal
def norm(model, tokenizer, recipe):
    if recipe.merge_method != "passthrough" and os.environ.get("INTERRUPT"):
        os.kill(os.getpid(), signal.SIGINT)
    return {"norm": float(model.get_input_embeddings().weight.float().norm())}
"""


def write_search(folder: Path, tasks: Any, **changes: Any) -> str:
    content = {
        "merge_method": "task_arithmetic",
        "base_model": MODELS["base"],
        "models": [MODELS["math"], MODELS["sea"]],
        "parameters": {"lambda": {"low": 0.1, "high": 1.5}},
        "search": {"tasks": tasks, "budget": {"trials": 6}, "sampler": "random"},
        "model": {"dtype": "float32", "device": "cpu"},
    }
    for key, value in changes.items():
        content[key] = {**content[key], **value}  # type: ignore[dict-item]
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump(content))
    return str(file)


def test_a_search_ends_with_winners_scored_again_by_lm_eval_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = {"merge_demo_math": None, "merge_demo_sea": {"weight": 0.5}}
    file = write_search(
        tmp_path, tasks, search={"split": {"tune": 0.5}, "rerun": 1},
        model={"limit": 12, "batch_size": 16},
    )  # fmt: skip
    folder = tmp_path / "found"
    with pytest.raises(MergeError, match="merge_demo_math, merge_demo_sea: the test split would"):
        main([file, str(folder)])
    assert main([file, str(folder), "--on-test"]) == 0
    output = capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in output.splitlines() if line.startswith("|")] == [
        "candidate", "--------:", *"012356",
    ]  # fmt: skip
    assert "held out" in output

    trials = Ledger.existing(folder).trials
    again = trials[-1]
    states = ["complete"] * 4 + ["repeat"] + ["complete"] * 2 + ["rerun"]
    assert [t.state for t in trials] == states  # the defaults are equal weights here
    tuned = trials[again.same_as].scores  # type: ignore[index]
    assert f"\n1. candidate {again.same_as}: {what(trials[again.same_as])}\n" in output
    for goal, score in again.scores.items():
        assert len(score.documents) == 12
        assert {**score.documents, **tuned[goal].documents} == score.documents
        assert len(tuned[goal].documents) == 6

    best = Recipe.load(folder / "best.yaml")
    assert best.as_dict() == again.recipe
    report = (folder / "report.md").read_text()
    assert "Tuned on the test split of merge_demo_math, merge_demo_sea" in report
    assert "0.5" not in {line for line in report.splitlines() if "held out" in line}
    for name in ("course", "parameters", "front"):
        assert (folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG"

    n_bytes = (folder / "search.jsonl").stat().st_size
    (folder / "report.md").unlink()
    assert main([file, str(folder), "--on-test"]) == 0  # resumes: nothing is left to do
    assert (folder / "search.jsonl").stat().st_size == n_bytes
    assert (folder / "report.md").read_text() == report
    (folder / "best.yaml").unlink()
    assert main(["--show", str(folder)]) == 0
    assert (folder / "report.md").read_text() == report
    assert Recipe.load(folder / "best.yaml") == best


@pytest.fixture
def norm(tmp_path: Path) -> list[str]:
    (tmp_path / "norm.py").write_text(NORM)
    return ["--objective", f"{tmp_path / 'norm.py'}:norm"]


def test_an_interrupt_ends_with_the_candidate_and_the_report(
    tmp_path: Path, norm: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file, folder = write_search(tmp_path, {"norm": None}), tmp_path / "found"
    monkeypatch.setenv("INTERRUPT", "yes")
    assert main([file, str(folder), *norm]) == 130
    assert [t.number for t in Ledger.existing(folder).trials] == [0, 1, 2, 3]
    assert (folder / "report.md").exists()
    monkeypatch.delenv("INTERRUPT")
    capsys.readouterr()
    assert main([file, str(folder), *norm]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|  ")]
    assert [row.split("|")[1].strip() for row in rows] == ["5", "6"]


def test_a_worker_is_started_with_what_it_needs_of_the_line() -> None:
    line = "search.yaml found --workers 4 --objective loss=a.jsonl --storage postgresql://h/d "
    line += "--on-test --trust-remote-code --plugin a.py --plugin b.py"

    def parsed(words: list[str]) -> dict[str, Any]:
        parser = argparse.ArgumentParser()
        main.arguments(parser)
        return vars(parser.parse_args(words))

    given = parsed(line.split())
    assert parsed(_words(argparse.Namespace(**given))) == {**given, "workers": "1"}


@pytest.mark.skipif(not LONG, reason="set MERGE_PLUGINS_LONG_TESTS=1: four more processes")
def test_two_workers_share_a_search(
    tmp_path: Path, norm: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = write_search(tmp_path, {"norm": None}), tmp_path / "found"
    assert main([file, str(folder), *norm, "--workers", "2"]) == 0
    trials = Ledger.existing(folder).trials
    assert sum(t.state == "complete" for t in trials) == 6
    assert "|        6|" in capsys.readouterr().out
    (tmp_path / "norm.py").write_text("def norm(model, tokenizer, recipe):\n    1 / 0\n")
    with pytest.raises(MergeError, match=r"(?s)all 2 workers failed.*division by zero"):
        main([file, str(tmp_path / "other"), *norm, "--workers", "2"])


def test_optuna_dashboard_opens_the_study(
    tmp_path: Path, norm: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = write_search(tmp_path, {"norm": None}), tmp_path / "found"
    assert main([file, str(folder), *norm]) == 0
    (command,) = (line for line in (folder / "report.md").read_text().splitlines()
                  if line.startswith("optuna-dashboard "))  # fmt: skip
    program = str(Path(sys.executable).parent / "optuna-dashboard")
    words = [program, *command.split()[1:], "--port", "0", "--server", "wsgiref"]
    port = free_port()
    words[words.index("0")] = str(port)
    dashboard = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        studies = fetched(f"http://127.0.0.1:{port}/api/studies")["study_summaries"]
        assert [study["study_name"] for study in studies] == ["found"]
        found = fetched(f"http://127.0.0.1:{port}/api/studies/{studies[0]['study_id']}")
        values = [trial["values"] for trial in found["trials"]]
    finally:
        dashboard.terminate()
        dashboard.wait()
    points = History(Ledger.existing(folder).trials).points
    assert len(points) == 4
    assert values == [[trial.scores["norm"].value] for trial in points]


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def fetched(address: str) -> Any:
    for _ in range(300):
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return json.load(answer)
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{address} does not answer")


@pytest.mark.parametrize(
    "name", [name for name, m in sorted(registry().methods.items()) if {*m.parameters} - {*IGNORED}]
)
def test_ranges_are_proposed_for_every_method(name: str) -> None:
    method = registry().get(name)
    n = max(method.min_experts, min(2, method.max_experts or 2))
    required = [p for p in method.parameters.values() if p.required]
    recipe = {
        "merge_method": name,
        "models": ["org/a", "org/b", "org/c"][:n],
        "parameters": {p.name: "*a" if p.name == "tasks" else 0.5 for p in required},
    }
    if method.needs_base:
        recipe["base_model"] = "org/base"
    content = proposal.propose(Recipe.from_mapping(recipe), ["gsm8k"])
    mapping = {key: value for key, value in content.items() if key not in ("search", "model")}
    if not method.takes_data:  # whose recipes need data: to be checked
        names = {name.partition("[")[0] for name in Space.parse(mapping, Path.cwd()).dimensions}
        assert names >= {p.name for p in required} - {"tasks"}


def test_init_writes_a_search_that_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = f"method=ties,base={MODELS['base']},models={MODELS['math']}+{MODELS['sea']},weights=1"
    assert main(["--init", short, "--tasks", "merge_demo_math"]) == 0
    content = yaml.safe_load(Path("search.yaml").read_text())
    assert [model["parameters"] for model in content["models"]] == [
        {"weight": {"low": 0.0, "high": 1.0}}
    ] * 2
    assert content["parameters"]["density"] == {"low": 0.1, "high": 1.0}
    assert content["parameters"]["normalize"] == {"choices": [True, False]}
    assert content["search"]["tasks"] == ["merge_demo_math"]
    with pytest.raises(MergeError, match="exists; name another file"):
        main(["--init", short])
    with pytest.raises(MergeError, match="--on-test"):
        main(["search.yaml", "found"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search.yaml"], "takes a search.yaml and a folder"),
        (["none.yaml", "found"], "no search.yaml at none.yaml"),
        (["search.yaml", "found", "--workers", "0"], "--workers is a number from 1 on"),
        (["search.yaml", "found", "--objective", "lm-evil"], "did you mean 'lm-eval'"),
        (["--show", "found"], "holds no search.jsonl"),
    ],
)
def test_a_mistake_in_the_line_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_search(tmp_path, ["merge_demo_math"])
    with pytest.raises(MergeError, match=message):
        main(words)
    assert not os.path.exists("found")  # noqa: PTH110


def test_an_unknown_metric_and_unknown_keys_are_named(tmp_path: Path) -> None:
    metric = {"merge_demo_math": {"metric": "exact_mach,none"}}
    with pytest.raises(MergeError, match="did you mean 'exact_match,none'"):
        main([write_search(tmp_path, metric), str(tmp_path / "found")])
    file = write_search(tmp_path, ["merge_demo_math"], parameters={"lamda": 1})
    with pytest.raises(MergeError, match="did you mean 'lambda'"):
        main([file, str(tmp_path / "found"), "--on-test"])
