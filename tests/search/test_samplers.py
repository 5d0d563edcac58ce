"""Every sampler finds a better merge than chance, and never has one scored twice."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import nearness
import pytest

from merge_plugins.errors import MergeError
from merge_plugins.installing import to_install
from merge_plugins.search.objective import Goal
from merge_plugins.search.samplers import NAMES


def search(models: Path, folder: Path, **settings: Any) -> Any:
    study = nearness.study(models, folder, **settings)
    trials = [*nearness.run(study)]
    assert max(Counter(t.digest for t in trials).values()) == 1
    return study


@pytest.mark.parametrize(
    ("name", "n", "at_least"),
    [("random", 30, 0.85), ("tpe", 30, 0.93), ("cmaes", 30, 0.9), ("gp", 12, 0.88),
     ("nsga2", 40, 0.93)],
)  # fmt: skip
def test_a_sampler_comes_near(
    models: Path, tmp_path: Path, name: str, n: int, at_least: float
) -> None:
    study = search(models, tmp_path, sampler=name, budget={"trials": n})
    best = study.best()[0]
    assert best.origin == name
    assert best.scores["nearness"].value >= at_least


def test_a_search_starts_with_the_models_equal_weights_and_the_defaults(
    models: Path, tmp_path: Path
) -> None:
    study = search(models, tmp_path, budget={"trials": 5})
    origins = [trial.origin.replace(str(models), "") for trial in study.ledger.trials]
    assert origins == ["base /base", "expert /a", "expert /b", "equal weights", "defaults"]
    assert study.ledger.trials[3].params == {"weight[a]": 0.5, "weight[b]": 0.5}
    assert study.ledger.trials[4].params == {"weight[a]": 1.0, "weight[b]": 1.0}


def test_a_grid_ends_when_all_is_tried(models: Path, tmp_path: Path) -> None:
    content = nearness.content(models, sampler="grid", budget={})
    for model in content["models"]:
        model["parameters"] = {"weight": {"low": 0, "high": 1, "step": 0.5}}
    file = nearness.SearchFile.parse(content, models)
    study = nearness.Study.open(file, tmp_path, nearness.Nearness(models))
    trials = [*nearness.run(study)]
    tried = [tuple(trial.params.values()) for trial in study.ledger.trials if trial.params]
    assert sorted(tried) == [(a / 2, b / 2) for a in range(3) for b in range(3)]
    # 0, 0 is the base and 1, 0 an expert, but written otherwise: their digests differ
    assert len(trials) == 3 + 9


def test_the_same_merge_written_otherwise_is_not_scored_again(models: Path, tmp_path: Path) -> None:
    content = nearness.content(models, sampler="grid", budget={})
    content["parameters"] = {"lambda": {"choices": [1, 1.0000000001]}}
    content["models"][0]["parameters"] = {"weight": {"choices": [0.5, "0.5"]}}
    content["models"][1]["parameters"] = {"weight": 0.5}
    file = nearness.SearchFile.parse(content, models)
    study = nearness.Study.open(file, tmp_path, nearness.Nearness(models, tmp_path / "log"))
    trials = [*nearness.run(study)]
    states = Counter(trial.state for trial in study.ledger.trials)
    assert states == {"complete": 5, "repeat": 3}
    assert len((tmp_path / "log").read_text().splitlines()) == len(trials) == 5


def test_a_front_keeps_goals_apart(models: Path, tmp_path: Path) -> None:
    goals = {"near": Goal(), "far": Goal(higher_is_better=True)}

    class Both(nearness.Nearness):
        def score(self, recipe: Any, documents: Any = None) -> Any:
            scores = super().score(recipe, documents)
            return {**scores, "far": nearness.Score(-scores["near"].value)}

    study = nearness.study(
        models, tmp_path, Both(models, goals=goals), pareto=True, sampler="nsga2",
        budget={"trials": 12},
    )  # fmt: skip
    assert len([*nearness.run(study)]) == 12
    assert len(study.best()) == 12  # what is nearer is less far: nothing dominates


def test_a_lower_goal_is_made_low(models: Path, tmp_path: Path) -> None:
    objective = nearness.Nearness(models, goals={"distance": Goal(higher_is_better=False)})
    study = nearness.study(models, tmp_path, objective, budget={"trials": 10})
    values = {t.number: t.scores["distance"].value for t in nearness.run(study)}
    assert study.best()[0].number == min(values, key=lambda number: values[number])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "tpes"}, "no sampler 'tpes'; did you mean 'tpe'"),
        ({"sampler": "cmaes", "pareto": True}, "cmaes makes one number best"),
        ({"sampler": "grid"}, "a grid needs a step or choices"),
        ({"pareto": True, "racing": True}, "Choose one"),
        ({"subset": "agree"}, "subset is disagree"),
        ({"budget": {}}, "how long"),
        ({"budget": {"trails": 5}}, "no key 'trails'; did you mean 'trials'"),
        ({"split": {"tune": 1.5}}, "a share between 0 and 1"),
        ({"split": {"tune": 64}}, "leaves none to score the winner on"),
        ({"sampel": "tpe"}, "no key 'sampel'; did you mean 'sampler'"),
    ],
)
def test_a_mistake_in_the_search_is_named(
    models: Path, tmp_path: Path, settings: Any, message: str
) -> None:
    with pytest.raises(MergeError, match=message):
        nearness.study(models, tmp_path / "none", **settings)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", NAMES[:4])
def test_optuna_is_asked_for_by_name(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("merge_plugins.search.samplers.find_spec", lambda _: None)
    with pytest.raises(MergeError, match=re.escape(to_install("search"))):
        nearness.study(models, tmp_path, sampler=name)
