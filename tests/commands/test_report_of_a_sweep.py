"""`merge-plugins report` of many merges: named by what differs, ordered, marked, drawn."""

from __future__ import annotations

import json
import struct

import pytest
from matplotlib.container import ErrorbarContainer

from harness_adapters.commands import report_plot
from harness_adapters.commands.report_table import Cell, Table
from merge_plugins.cli import main
from merge_plugins.drawing import styles
from merge_plugins.search.naming import differing

BASE, EXPERTS = "/family/base", ("/family/math", "/family/code")
SCORES = {0.2: (0.5, 0.4), 0.5: (0.8, 0.7), 0.8: (0.6, 0.9)}


def recipe(density, method="ties", weights=(1.0, 1.0), models=EXPERTS, **settings):
    entries = [
        {"model": model, "parameters": {"weight": weight}}
        for model, weight in zip(models, weights, strict=True)
    ]
    parameters = {"density": density} if density is not None else {}
    return {"merge_method": method, "base_model": BASE, "models": entries,
            "parameters": {**parameters, **settings}}  # fmt: skip


def content(model, scores, merge=None, error=0.01, lower=False):
    """What lm-eval writes of one model."""
    measured = {
        task: {"alias": task, "exact_match,none": value, "exact_match_stderr,none": error}
        for task, value in scores.items()
    }
    config = {"model": "hf", "model_args": {}, "limit": None}
    return {
        "results": measured,
        "group_subtasks": {},
        "versions": dict.fromkeys(scores, 1.0),
        "n-shot": dict.fromkeys(scores, 0),
        "higher_is_better": {task: {"exact_match": not lower} for task in scores},
        "n-samples": {task: {"original": 9, "effective": 9} for task in scores},
        "config": {**config, "merge": {"recipe": merge}} if merge else config,
        "model_name": model,
    }


@pytest.fixture
def write(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()

    def written(*given, **kinds):
        number = len([*folder.iterdir()])
        (folder / f"results_{number:03}.json").write_text(json.dumps(content(*given, **kinds)))
        return str(folder)

    return written


@pytest.fixture
def sweep(write):
    """The base, an expert, and merges of three densities, in no order."""
    write(EXPERTS[0], {"gsm8k": 0.9, "mbpp": 0.1})
    for i, (density, (gsm8k, mbpp)) in enumerate(reversed(SCORES.items())):
        write(f"ties-00000000000{i}", {"gsm8k": gsm8k, "mbpp": mbpp}, recipe(density))
    return write(BASE, {"gsm8k": 0.1, "mbpp": 0.2})


def lines(capsys):
    """The printed table: a list of cells for each row, the head first."""
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return [cells[0], *cells[2:]]


def test_merges_are_named_by_what_differs_in_the_order_of_its_values(sweep, capsys):
    assert main(["report", sweep, "--no-stderr"]) == 0
    assert lines(capsys) == [
        ["model", "density", "gsm8k", "mbpp", "average"],
        ["base", "", "0.1000", "0.2000", "0.1500"],
        ["math", "", "**0.9000**", "0.1000", "0.5000"],
        ["ties", "0.2", "0.5000", "0.4000", "0.4500"],
        ["ties", "0.5", "0.8000", "0.7000", "**0.7500**"],
        ["ties", "0.8", "0.6000", "**0.9000**", "**0.7500**"],
    ]


def test_errors_are_those_of_the_harness_and_an_average_has_that_of_independent_ones(sweep, capsys):
    main(["report", sweep, "--percent"])
    found = {tuple(row[:2]): row[2:] for row in lines(capsys)}
    assert found["ties", "0.2"] == ["50.00 ± 1.00", "40.00 ± 1.00", "45.00 ± 0.71"]


def test_a_score_without_an_error_has_none(write, capsys):
    write("a", {"gsm8k": 0.5}, error="N/A")
    main(["report", write("b", {"gsm8k": 0.25})])
    assert lines(capsys)[1:] == [["a", "**0.5000**"], ["b", "0.2500 ± 0.0100"]]


@pytest.mark.parametrize(
    ("recipes", "expected"),
    [
        ([recipe(0.5), recipe(0.5)], [{}, {}]),
        (
            [recipe(0.5), recipe(0.5, weights=(0.3, 0.3))],
            [{"weight": 1.0}, {"weight": 0.3}],
        ),
        (
            [recipe(0.5), recipe(0.5, weights=(0.3, 1.0))],
            [{"weight": 1.0}, {"weight[math]": 0.3, "weight[code]": 1.0}],
        ),
        ([recipe(0.5), recipe([0.2, 0.8])], [{"density": 0.5}, {"density": [0.2, 0.8]}]),
        ([recipe(0.5), recipe(None, "linear")], [{}, {}]),
        ([recipe(0.5), recipe(0.2, "della")], [{"density": 0.5}, {"density": 0.2}]),
        ([recipe(0.5), recipe(None)], [{"density": 0.5}, {}]),
        ([recipe(0.5), recipe(0.5, seed=1)], [{}, {"seed": 1}]),
        (
            [recipe(0.5), recipe(0.5, models=EXPERTS[:1], weights=(1.0,))],
            [{"models": "math+code"}, {"models": "math"}],
        ),
    ],
)
def test_what_differs_between_recipes(recipes, expected):
    assert differing(recipes) == expected


def test_merges_of_one_recipe_keep_their_digests(write, capsys):
    write("ties-000000000001", {"gsm8k": 0.5}, recipe(0.5))
    main(["report", write("ties-000000000002", {"gsm8k": 0.6}, recipe(0.5))])
    assert [row[0] for row in lines(capsys)[1:]] == ["ties-000000000001", "ties-000000000002"]


def test_a_base_that_was_scored_by_a_relative_path_is_the_recipes(write, capsys):
    write("family/code", {"gsm8k": 0.2})
    write("./family/base", {"gsm8k": 0.1})
    main(["report", write("ties-000000000001", {"gsm8k": 0.4}, recipe(0.5)), "--normalise"])
    assert [row[0] for row in lines(capsys)[1:]] == ["base", "code", "ties"]


@pytest.mark.parametrize(
    ("column", "order"),
    [
        ("gsm8k", ["math", "0.5", "0.8", "0.2", "base"]),
        ("average", ["0.5", "0.8", "math", "0.2", "base"]),
        ("density", ["base", "math", "0.2", "0.5", "0.8"]),
    ],
)
def test_rows_are_sorted_by_a_score_or_a_setting(sweep, capsys, column, order):
    main(["report", sweep, "--sort", column])
    assert [row[1] or row[0] for row in lines(capsys)[1:]] == order


def test_where_lower_is_better_the_lowest_is_marked_and_first(write, capsys):
    write("a", {"ppl": 3.0}, lower=True)
    main(["report", write("b", {"ppl": 2.0}, lower=True), "--sort", "ppl", "--no-stderr"])
    assert lines(capsys)[1:] == [["b", "**2.00**"], ["a", "3.00"]]


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        (["ties"], ["0.2", "0.5", "0.8"]),
        (["math", "density=0.5"], ["math", "ties"]),
        (["b*", "ties-*1", "density=0.2"], ["base", "0.2", "0.5"]),
    ],
)
def test_only_some_rows_are_shown(sweep, capsys, patterns, kept):
    main(["report", sweep, "--only", *patterns])
    found = lines(capsys)
    has_density = found[0][1] == "density"
    assert [row[1] or row[0] if has_density else row[0] for row in found[1:]] == kept


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sort", "gsm"], "--sort gsm: no column of that; did you mean 'gsm8k'?"),
        (["--only", "tie"], "--only tie: no row of that; did you mean 'ties'?"),
        (["--plot", "x.png", "--against", "weight"], "weight is no number that differs"),
        (["--plot", "x.pgn"], "a picture's name ends with .png"),
        (["--plot", "x.png", "--kind", "radar"], "a radar needs three columns or more, not 2"),
    ],
)
def test_what_is_refused(sweep, capsys, words, said):
    assert main(["report", sweep, *words]) == 1
    assert said in capsys.readouterr().err


def test_json_has_everything(sweep, capsys):
    main(["report", sweep, "--format", "json"])
    found = json.loads(capsys.readouterr().out)
    assert found["columns"]["gsm8k"] == {
        "metric": "exact_match, 0-shot",
        "lower_is_better": False,
        "best": ["/family/math"],
    }
    row = found["rows"][3]
    assert (row["model"], row["label"]) == ("ties-000000000001", "ties")
    assert row["settings"] == {"density": 0.5}
    assert row["scores"]["mbpp"] == {"value": 0.7, "stderr": 0.01}


@pytest.mark.parametrize("kind", [None, "curve", "heatmap", "bars"])
def test_a_plot_is_a_picture(sweep, tmp_path, kind):
    file = tmp_path / "new" / "plot.png"
    main(["report", sweep, "--plot", str(file), *(["--kind", kind] if kind else [])])
    data = file.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert min(struct.unpack(">II", data[16:24])) > 250


def made(n_rows=3, n_tasks=3, **settings):
    """A table of merges that differ in the settings given, each a list of values."""
    rows = [f"row{i}" for i in range(n_rows)]
    tasks = [f"task{i}" for i in range(n_tasks)]
    cells = {(row, t): Cell(0.1 * i, 0.02) for i, row in enumerate(rows) for t in (*tasks, "mean")}
    own = {row: {n: v[i] for n, v in settings.items()} for i, row in enumerate(rows)}
    return Table(rows, [*tasks, "mean"], cells, dict.fromkeys(rows, "ties"), own,
                 averages={"mean"}, ways=dict.fromkeys(tasks, "exact_match, 5-shot"))  # fmt: skip


def test_an_average_is_no_spoke_of_a_radar():
    (axes,) = report_plot._radar(made()).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["task0", "task1", "task2"]


def test_bars_have_errors_and_the_name_of_their_metric():
    (axes,) = report_plot._bars(made()).axes
    assert axes.get_ylabel() == "exact_match"
    assert sum(isinstance(each, ErrorbarContainer) for each in axes.containers) == 3


def test_a_curve_has_a_line_for_each_task_against_the_setting():
    figure = report_plot._curve(made(density=[0.2, 0.5, 0.8]), "density")
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("density", "exact_match")
    labels = [each.get_label() for each in axes.containers]
    assert labels == ["task0", "task1", "task2", "mean"]


def test_a_curve_has_a_line_for_each_other_setting():
    table = made(4, density=[0.2, 0.5, 0.2, 0.5], lambda_=[1.0, 1.0, 2.0, 2.0])
    (axes,) = report_plot._curve(table, "density").axes
    assert [each.get_label() for each in axes.containers] == ["ties lambda_=1", "ties lambda_=2"]
    assert axes.get_ylabel() == "mean"


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        (made(density=[0.2, 0.5, 0.8]), "curve"),
        (made(density=[0.2, 0.5, 0.8], method=["a", "b", "c"]), "radar"),
        (made(9), "heatmap"),
        (made(), "radar"),
        (made(n_tasks=2), "bars"),
    ],
)
def test_a_table_is_drawn_in_the_way_that_suits_it(table, kind):
    assert report_plot._fitting(table, None) == kind


def test_no_two_series_look_alike():
    assert len({*styles(40)}) == 40
    assert len({look.colour for look in styles(10)}) == 10
