"""`merge-plugins report`: the table of a paper from what harnesses left on disk."""

from __future__ import annotations

import csv
import json

import pytest
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

from harness_adapters.commands.report import main
from harness_adapters.lm_eval.discovery import task_folders
from merge_plugins.cli import main as command
from merge_plugins.demo import family

RECIPE = {
    "merge_method": "ties",
    "base_model": "org/base",
    "models": [{"model": "org/math"}, {"model": "/models/code"}],
}
SCORES = {
    "ties-0123456789ab": {"gsm8k": 0.6, "mbpp": 0.3},
    "/models/code": {"gsm8k": 0.1, "mbpp": 0.4},
    "org/math": {"gsm8k": 0.8, "mbpp": 0.05},
    "org/base": {"gsm8k": 0.2, "mbpp": 0.1},
}
OPENCOMPASS = """dataset,version,metric,mode,ties-math+code-012345,base
sea-th,1bbfbc,EM,gen,41.00,-
sea-th,1bbfbc,F1,gen,55.50,40.00
sea-vi,5834ec,EM,gen,20.00,10.00
"""


def results(model, scores, *, shots=5, recipe=None, **changes):
    """Return what lm-eval writes: each task's scores under one or several metrics."""
    measured = {
        task: value if isinstance(value, dict) else {"exact_match,strict-match": value}
        for task, value in scores.items()
    }
    return {
        "results": {
            task: {"alias": task, **given, **{f"{k.replace(',', '_stderr,')}": 0.1 for k in given}}
            for task, given in measured.items()
        },
        "group_subtasks": {},
        "versions": dict.fromkeys(measured, 3.0),
        "n-shot": dict.fromkeys(measured, shots),
        "higher_is_better": {
            task: {key.partition(",")[0]: "perplexity" not in key for key in given}
            for task, given in measured.items()
        },
        "n-samples": {task: {"original": 9, "effective": 9} for task in measured},
        "config": {"model": "hf", "model_args": {}, "limit": None}
        | ({"merge": {"recipe": recipe}} if recipe else {}),
        "model_name": model,
        **changes,
    }


@pytest.fixture
def write(tmp_path):
    """Write a result file as lm-eval names them; return the folder of all."""

    def written(content, name="a"):
        folder = tmp_path / "results" / name
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.iterdir()))
        (folder / f"results_2026-01-01T00-00-{number:02}.json").write_text(json.dumps(content))
        return str(tmp_path / "results")

    return written


@pytest.fixture
def folder(write):
    """A merge, its base and its experts on two tasks."""
    for model, scores in SCORES.items():
        given = write(results(model, scores, recipe=RECIPE if "ties" in model else None))
    return given


def table(capsys):
    """Read the printed Markdown: model -> column -> score, without its mark and its error."""
    return {
        row: {column: cell.strip("*").partition(" ± ")[0] for column, cell in cells.items()}
        for row, cells in marked(capsys).items()
    }


def marked(capsys):
    """Read the printed Markdown: model -> column -> cell."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in body}


def test_rows_are_base_experts_merges_as_the_recipe_of_the_merge_says(folder, capsys):
    assert main([folder]) == 0
    found = table(capsys)
    assert list(found) == ["base", "math", "code", "ties"]
    assert found["ties"] == {"gsm8k": "0.6000", "mbpp": "0.3000", "average": "0.4500"}


def test_it_says_which_metric_a_column_shows(folder, capsys):
    main([folder])
    assert "exact_match,strict-match, 5-shot: gsm8k, mbpp" in capsys.readouterr().out


def test_rows_may_be_named_instead(folder, capsys):
    main([folder, "--base", "code", "--experts", "org/base", "math"])
    assert list(table(capsys)) == ["code", "base", "math", "ties"]


def test_normalised_scores_are_percent_of_each_columns_best_expert(folder, capsys):
    main([folder, "--normalise"])
    out = capsys.readouterr()
    assert "gsm8k: percent of math's 0.8" in out.out
    assert "mbpp: percent of code's 0.4" in out.out
    main([folder, "--normalise"])
    found = table(capsys)
    assert found["ties"] == {"gsm8k": "75.00", "mbpp": "75.00", "average": "75.00"}
    assert found["math"] == {"gsm8k": "100.00", "mbpp": "12.50", "average": "56.25"}


def test_the_command_is_installed(folder, capsys):
    assert command(["report", folder, "--tasks", "mbpp", "--percent"]) == 0
    assert table(capsys)["code"] == {"mbpp": "40.00"}


def test_csv_keeps_every_digit_and_leaves_the_notes_to_the_other_stream(folder, write, capsys):
    write(results("other", {"gsm8k": 1 / 3}))
    main([folder, "--format", "csv"])
    out = capsys.readouterr()
    rows = list(csv.reader(out.out.splitlines()))
    scores = [name for task in ("gsm8k", "mbpp", "average") for name in (task, f"{task} stderr")]
    assert rows[0] == ["model", *scores]
    assert rows[4] == ["other", str(1 / 3), "0.1", "", "", "", ""]
    assert "5-shot" in out.err


def test_latex_is_escaped(write, capsys):
    write(results("b", {"x_y": 0.25}))
    main([write(results("a_b", {"x_y": 0.5})), "--format", "latex"])
    out = capsys.readouterr().out
    assert "model & x\\_y \\\\" in out
    assert "a\\_b & \\textbf{0.5000 $\\pm$ 0.1000} \\\\" in out
    assert "b & 0.2500 $\\pm$ 0.1000 \\\\" in out


def test_a_radar_of_two_columns_is_refused(write, tmp_path, capsys):
    given = write(results("a", {"x": 0.5}))
    assert command(["report", given, "--plot", str(tmp_path / "p.png"), "--kind", "radar"]) == 1
    assert "three columns" in capsys.readouterr().err


def test_two_results_that_differ_are_refused_with_both_files(write, capsys):
    write(results("a", {"gsm8k": 0.5}), "one")
    given = write(results("a", {"gsm8k": 0.6}), "two")
    assert command(["report", given]) == 1
    said = capsys.readouterr().err
    assert "two results of a for gsm8k (exact_match,strict-match, 5-shot): 0.5 in" in said
    assert "/one/" in said
    assert "/two/" in said


def test_the_same_result_twice_is_one(write, capsys):
    write(results("a", {"gsm8k": 0.5}), "one")
    given = write(results("a", {"gsm8k": 0.5}), "two")
    assert main([given, given]) == 0
    assert table(capsys) == {"a": {"gsm8k": "0.5000"}}


def test_results_under_other_conditions_get_another_column(write, capsys):
    write(results("a", {"gsm8k": 0.5}))
    write(results("b", {"gsm8k": 0.25}, shots=0))
    fewer = {"gsm8k": {"original": 9, "effective": 3}}
    given = write(results("c", {"gsm8k": 0.75}, **{"n-samples": fewer}))
    main([given])
    found = table(capsys)
    measured = "gsm8k (exact_match,strict-match, {})"
    assert found["a"][measured.format("5-shot")] == "0.5000"
    assert found["b"][measured.format("0-shot")] == "0.2500"
    assert found["c"][measured.format("5-shot, first 3 items")] == "0.7500"
    assert found["a"]["average"] == found["a"][measured.format("0-shot")] == "–"  # noqa: RUF001


BOTH = {"acc,none": 0.25, "likelihood,none": 0.5}


@pytest.mark.parametrize(
    ("scores", "options", "shown"),
    [
        ({"arc_challenge": {"acc,none": 0.25, "acc_norm,none": 0.5}}, [], "0.5000"),
        ({"t": {"acc,none": 0.25, "acc_norm,none": 0.5}}, ["--metric", "t=acc"], "0.2500"),
        (
            {"gsm8k": {"exact_match,flexible-extract": 0.5, "exact_match,strict-match": 0.25}},
            [],
            "0.2500",
        ),
        ({"gsm8k_alpaca_mergelm": {"exact_match,none": 0.5, "exact_match_mergelm,none": 0.25}}, [],
         "0.2500"),
        ({"t": {"my_metric,none": 0.25}}, [], "0.2500"),
        ({"t": BOTH}, ["--metric", "t=likelihood,none"], "0.5000"),
    ],
)  # fmt: skip
def test_which_of_several_metrics_is_shown(write, capsys, scores, options, shown):
    main([write(results("a", scores)), *options])
    (cells,) = table(capsys).values()
    assert list(cells.values()) == [shown]


@pytest.mark.parametrize(
    ("scores", "options", "said"),
    [
        ({"t": {"x,none": 0.5, "y,none": 0.5}}, [], "t: which metric? It has x,none y,none"),
        ({"t": {"f1,a": 0.5, "f1,b": 0.5}}, ["--metric", "t=f1"], "no one metric is f1"),
        ({"t": 0.5}, ["--metric", "t=acc"], "no one metric is acc"),
        ({"gsm8k": 0.5}, ["--metric", "gsm=acc"], "did you mean 'gsm8k'?"),
        ({"gsm8k": 0.5}, ["--metric", "gsm8k"], "expected TASK=METRIC"),
        ({"gsm8k": 0.5}, ["--tasks", "gsm8"], "did you mean 'gsm8k'?"),
        ({"gsm8k": 0.5}, ["--base", "b"], "no model is called that; there are a"),
        ({"gsm8k": 0.5}, ["--normalise"], "name them with --experts"),
        ({"gsm8k": 0.0}, ["--normalise", "--experts", "a"], "no expert has a score above 0"),
        ({"w": {"word_perplexity,none": 9.0}}, ["--normalise", "--experts", "a"], "a lower w"),
    ],
)
def test_what_is_refused(write, capsys, scores, options, said):
    assert command(["report", write(results("a", scores)), *options]) == 1
    assert said in capsys.readouterr().err


def test_a_folder_without_results_is_refused(tmp_path, capsys):
    assert command(["report", str(tmp_path)]) == 1
    assert "expected lm-eval's results_*.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"), [("results_x.json", "[1]"), ("summary/summary_1.csv", "model,a\nx,1\n")]
)
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, capsys, name, content):
    (tmp_path / "summary").mkdir()
    (tmp_path / name).write_text(content)
    assert command(["report", str(tmp_path)]) == 1
    assert name in capsys.readouterr().err


def test_a_group_with_a_score_stands_for_its_parts_and_another_is_averaged(write, capsys):
    scores = {
        "board": {},
        "mmlu": {"acc,none": 0.5},
        "mmlu_anatomy": {"acc,none": 0.25},
        "mmlu_law": {"acc,none": 0.75},
        "gsm8k": 0.25,
    }
    groups = {"board": ["mmlu", "gsm8k"], "mmlu": ["mmlu_anatomy", "mmlu_law"]}
    given = write(results("a", scores, group_subtasks=groups))
    main([given])
    shown = {"mmlu": "0.5000", "gsm8k": "0.2500", "average of board": "0.3750"}
    assert table(capsys) == {"a": shown}
    main([given, "--tasks", "mmlu_law", "mmlu_anatomy"])
    assert list(table(capsys)["a"])[:2] == ["mmlu_law", "mmlu_anatomy"]


def test_a_summary_of_opencompass(tmp_path, capsys):
    summary = tmp_path / "20260101_000000" / "summary"
    summary.mkdir(parents=True)
    (summary / "summary_20260101_000000.csv").write_text(OPENCOMPASS)
    main([str(tmp_path), "--base", "base"])
    assert table(capsys) == {
        "base": {"sea-th": "–", "sea-vi": "10.00", "average": "–"},  # noqa: RUF001
        "ties-math+code-012345": {"sea-th": "41.00", "sea-vi": "20.00", "average": "30.50"},
    }


def test_shares_and_percent_are_not_averaged(tmp_path, write, capsys):
    (tmp_path / "summary").mkdir()
    (tmp_path / "summary" / "summary_1.csv").write_text(OPENCOMPASS)
    write(results("base", {"gsm8k": 0.5}))
    main([str(tmp_path)])
    out = capsys.readouterr().out
    assert "no average: lm-eval's shares beside OpenCompass's percent" in out
    main([str(tmp_path), "--percent", "--metric", "sea-th=F1"])
    shown = {"sea-th": "40.00", "sea-vi": "10.00", "gsm8k": "50.00", "average": "33.33"}
    assert table(capsys)["base"] == dict(sorted(shown.items(), key=lambda item: item[0] != "gsm8k"))


def test_what_lm_eval_really_writes(tmp_path, capsys):
    models = family()
    merge = {
        "method": "task_arithmetic",
        "base_model": str(models["base"]),
        "models": f"{models['math']}+{models['code']}",
        "lambda": 0.5,
    }
    runs = [("hf", {"pretrained": str(models[name])}) for name in ("math", "base")]
    for model, arguments in (*runs, ("merged", merge)):
        tracker = EvaluationTracker(output_path=str(tmp_path))
        found = simple_evaluate(
            model=model,
            model_args=dict(arguments),
            tasks=["merge_demo_math", "merge_demo_code"],
            task_manager=TaskManager(include_path=list(task_folders()), include_defaults=False),
            limit=8,
            device="cpu",
            batch_size=8,
            bootstrap_iters=0,
            evaluation_tracker=tracker,
        )
        tracker.save_results_aggregated(found, samples=found.pop("samples"))
    main([str(tmp_path)])
    shown = table(capsys)
    assert list(shown)[:2] == ["base", "math"]
    assert list(shown)[2] == "task_arithmetic"
    assert shown["math"]["merge_demo_math"] == "1.0000"
    score = found["results"]["merge_demo_code"]["exact_match,none"]
    assert list(shown.values())[2]["merge_demo_code"] == f"{score:.4f}"
