"""One merge of classifiers after another: scored, searched, and two by two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from classifiers import HEADS
from glue_alone import GLUE

from harness_adapters.commands import pairs, search
from harness_adapters.lm_eval import Evaluator
from merge_plugins import Recipe
from merge_plugins.errors import MergeError
from merge_plugins.search.ledger import Ledger

TASKS = {
    "cola": None,
    "rte": {"metric": "acc"},
    "mnli": {"weight": 2.0},
    "stsb": {"metric": "spearman"},
}
HERE = {
    "model": "merged-classifiers",
    "include_path": str(GLUE),
    "device": "cpu",
    "bootstrap_iters": 0,
}
Write = Callable[..., str]


@pytest.fixture
def evaluator() -> Iterator[Evaluator]:
    with Evaluator(TASKS, progress=False, **HERE) as built:
        yield built


def scaled(recipe_file: Write, value: float, **changes: Any) -> Recipe:
    return Recipe.load(recipe_file(parameters={"scaling_coefficient": value}, **changes))


def test_the_next_merge_has_the_scores_of_a_run_of_its_own(
    evaluator: Evaluator, recipe_file: Write, capfd: pytest.CaptureFixture[str]
) -> None:
    first, other = scaled(recipe_file, 0.1), scaled(recipe_file, 0.7)
    before = evaluator.score(first)
    models = evaluator.live(first)._models
    found = evaluator.score(other)
    assert evaluator.live(other)._models is models
    assert before != found == evaluator.separately(other)
    assert "not a git repository" not in capfd.readouterr().err
    assert found.keys() == TASKS.keys()
    assert evaluator.results(first)["config"]["model"] == "merged-classifiers"


def test_what_scores_depend_on_is_known(evaluator: Evaluator) -> None:
    with Evaluator(TASKS, model_args="max_length=8", **HERE) as shorter:
        assert shorter.identity != evaluator.identity
    with Evaluator(TASKS, batch_size=3, **HERE) as smaller:
        assert smaller.identity == evaluator.identity
    with pytest.raises(MergeError, match=r"model is one of merged, .*; got 'hf'"):
        Evaluator(TASKS, model="hf")


def test_a_search_finds_the_best_mean_of_glue(
    recipe_file: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = Recipe.load(recipe_file()).as_dict()
    content["parameters"] = {"scaling_coefficient": {"low": 0.1, "high": 1.0}}
    content |= {"search": {"tasks": TASKS, "budget": {"trials": 5}, "sampler": "random"}}
    content |= {"model": HERE}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(content))
    assert search.main([str(tmp_path / "search.yaml"), str(tmp_path / "found")]) == 0
    trials = Ledger.existing(tmp_path / "found").trials
    assert {trial.state for trial in trials} - {"repeat"} == {"complete", "rerun"}

    def mean(trial: Any) -> float:
        weights = {name: (said or {}).get("weight", 1.0) for name, said in TASKS.items()}
        return sum(weights[name] * score.value for name, score in trial.scores.items())

    best = max((t for t in trials if t.state == "complete"), key=mean)
    again = next(t for t in trials if t.state == "rerun")
    assert again.same_as == best.number
    assert {n: s.value for n, s in again.scores.items()} == {
        n: s.value for n, s in best.scores.items()
    }


def test_every_ordered_pair_is_scored_on_its_first_models_task(
    recipe_file: Write,
    one_family: Mapping[str, str],
    score: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = recipe_file(merge_method="ties_merging", parameters={})
    words = ["--include_path", str(GLUE), "--device", "cpu", "--format", "csv"]
    assert pairs.main([recipe, *words]) == 0
    head, *rows = capsys.readouterr().out.strip().splitlines()
    assert head.split(",") == ["model", "alone", *HEADS, "mean of pairs"]
    table = {row.split(",")[0]: row.split(",")[1:] for row in rows}
    assert [*table] == [*HEADS]
    assert all(table[task][1 + place] == "" for place, task in enumerate(HEADS))

    def scored(models: str, tasks: str, task: str) -> float:
        given = {"method": "ties_merging", "base": one_family["base"], "models": models}
        results = score({**given, "task": tasks}, tasks=[task])["results"][task]
        return float(results["mcc,none" if task == "cola" else "acc,none"])

    for first, other in (("cola", "mnli"), ("mnli", "cola"), ("rte", "cola")):
        models = f"{one_family[first]}+{one_family[other]}"
        wanted = scored(models, f"{first}+{other}", first)
        assert float(table[first][1 + [*HEADS].index(other)]) == pytest.approx(wanted)
    alone = score(
        {"method": "average_merging", "models": one_family["rte"], "task": "rte"}, tasks=["rte"]
    )
    assert float(table["rte"][0]) == alone["results"]["rte"]["acc,none"]
    own = [float(cell) for cell in table["cola"][1:-1] if cell]
    assert float(table["cola"][-1]) == pytest.approx(sum(own) / 3)


def test_pairs_of_models_without_tasks_are_refused(recipe_file: Write) -> None:
    models = Recipe.load(recipe_file()).as_dict()["models"]
    for some in ([entry["model"] for entry in models], models[:1]):
        with pytest.raises(MergeError, match="two or more of them with task: beside model:"):
            pairs.main([recipe_file(models=some)])
