"""Fewer documents for the same winner: racing, subsets, and documents that are held out."""

from __future__ import annotations

from pathlib import Path

import nearness
import pytest

from merge_plugins.search import racing
from merge_plugins.search.objective import Goal
from merge_plugins.search.ranking import Ranking, of_documents

IDS = [f"d{i}" for i in range(100)]


def n_scored(log: Path) -> int:
    return sum(int(line.split()[1]) for line in log.read_text().splitlines())


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_racing_finds_as_good_a_merge_for_half_the_documents(
    models: Path, tmp_path: Path, sampler: str
) -> None:
    best, cost = {}, {}
    for name, races in (("whole", False), ("racing", True)):
        objective = nearness.Nearness(models, tmp_path / f"{name}.log")
        study = nearness.study(
            models, tmp_path / name, objective, racing=races, sampler=sampler, budget={"trials": 25}
        )
        trials = [*nearness.run(study)]
        best[name], cost[name] = study.best()[0], n_scored(tmp_path / f"{name}.log")
        assert {t.state for t in trials} == {"complete", "stopped"} if races else {"complete"}
        assert len(best[name].scores["nearness"].documents) == nearness.N
    assert cost["racing"] < 0.6 * cost["whole"]
    if sampler == "random":  # draws the same, whatever was scored
        assert best["racing"].params == best["whole"].params
    near = {name: trial.scores["nearness"].value for name, trial in best.items()}
    assert near["racing"] == pytest.approx(near["whole"], abs=0.02)


def test_models_are_never_stopped(models: Path, tmp_path: Path) -> None:
    study = nearness.study(models, tmp_path, racing=True, budget={"trials": 12})
    trials = [*nearness.run(study)]
    assert [t.state for t in trials if not t.params] == ["complete"] * 3
    assert "stopped" in {t.state for t in trials}


def test_a_subset_is_where_the_models_differ(models: Path, tmp_path: Path) -> None:
    class Rounded(nearness.Nearness):
        def score(self, recipe, documents=None):  # type: ignore[no-untyped-def]
            found = super().score(recipe, documents)["nearness"].documents
            return {"nearness": of_documents({d: float(v > 0.2) for d, v in found.items()})}

    objective = Rounded(models, tmp_path / "log")
    study = nearness.study(
        models, tmp_path / "search", objective, subset="disagree", split={"tune": 0.5},
        budget={"trials": 10},
    )  # fmt: skip
    trials = [*nearness.run(study)]
    sizes = [len(trial.scores["nearness"].documents) for trial in trials]
    assert sizes[:3] == [nearness.N // 2] * 3
    assert {*sizes[3:]} == {len(study.tuned["nearness"])}
    assert 0 < sizes[3] < nearness.N // 2
    sources = [trial.scores["nearness"].documents for trial in trials[:3]]
    for one in study.split.tune["nearness"]:
        differ = len({source[one] for source in sources}) > 1
        assert differ == (one in study.tuned["nearness"])
    # models are compared with merges on the same documents
    assert len(dict(study.complete[0][1])["nearness"].documents) == sizes[3]


def test_a_split_is_seeded_and_keeps_sides_when_documents_are_added() -> None:
    first = racing.Split.of({"task": IDS}, 0.3, seed=0)
    assert [len(first.tune["task"]), len(first.held_out["task"])] == [30, 70]
    assert sorted([*first.tune["task"], *first.held_out["task"]]) == sorted(IDS)
    assert first == racing.Split.of({"task": IDS[::-1]}, 0.3, seed=0)
    assert first != racing.Split.of({"task": IDS}, 0.3, seed=1)
    assert racing.Split.of({"task": IDS}, 30, seed=0) == first
    more = racing.Split.of({"task": [*IDS, "new"]}, 30, seed=0)
    assert len({*more.tune["task"]} & {*first.tune["task"]}) >= 29
    assert racing.Split.of({"task": IDS, "none": []}, None, seed=0).is_whole


def test_rounds_are_all_documents_once() -> None:
    parts = racing.rounds({"task": IDS, "small": IDS[:3], "none": []})
    assert [len(part["task"]) for part in parts] == [12, 13, 25, 50]
    for goal, ids in (("task", IDS), ("small", IDS[:3])):
        assert [one for part in parts for one in part.get(goal, ())] == ids
    assert len(racing.rounds({"task": IDS[:5]})) == 1


def test_only_what_is_clearly_worse_is_stopped() -> None:
    ranking = Ranking({"task": Goal()})
    best = {"task": of_documents({one: float(i % 4 > 0) for i, one in enumerate(IDS)})}

    def result(n_wrong: int, n: int = 50) -> bool:
        own = {one: float(i >= n_wrong and i % 4 > 0) for i, one in enumerate(IDS[:n])}
        return racing.cannot_win({"task": of_documents(own)}, best, ranking, n_looks=3)

    assert [result(n) for n in (0, 2, 4, 20, 50)] == [False, False, False, True, True]
    lower = Ranking({"task": Goal(higher_is_better=False)})
    everything = {"task": of_documents(dict.fromkeys(IDS, 0.0))}
    assert not racing.cannot_win(everything, best, lower, n_looks=3)
    assert racing.cannot_win(best, everything, lower, n_looks=3)


def test_racing_needs_documents(models: Path, tmp_path: Path) -> None:
    class Whole(nearness.Nearness):
        documents = {"nearness": ()}  # type: ignore[assignment]  # noqa: RUF012

    with pytest.raises(nearness.MergeError, match="means of documents"):
        nearness.study(models, tmp_path, Whole(models), racing=True)
