"""A search through merges that MTEB scores, in this process or by a program of the user's."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("mteb.mocks")

import mteb

from harness_adapters.commands.search import main
from harness_adapters.mteb import Evaluator, register
from merge_plugins import Recipe
from merge_plugins.errors import MergeError
from merge_plugins.search.named import objective
from merge_plugins.search.objective import Benchmarks

pytestmark = pytest.mark.filterwarnings("ignore")  # what MTEB warns of is not ours to mend

PROGRAM = """
import json, sys
import mteb
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(sys.argv[1], trust_remote_code=True, device="cpu")
(result,) = mteb.evaluate(model, [mteb.get_task("STS12")], cache=None).task_results
print(json.dumps({"sts": result.get_score()}))
"""


def by_mteb(file: str) -> Any:
    (result,) = mteb.evaluate(
        mteb.get_model(register(file), device="cpu"), [mteb.get_task("STS12")], cache=None
    ).task_results
    return result


def test_scores_are_those_of_mteb_itself(
    models: dict[str, list[str]], write: Any, workplace: Path
) -> None:
    with Evaluator(["STS12"], device="cpu") as evaluator:
        assert isinstance(evaluator, Benchmarks)
        assert evaluator.test_tasks == ("STS12",)
        scores = []
        for weight in (0.0, 1.0, 0.0):
            file = write(models["embedder"], weight)
            recipe = Recipe.load(file)
            scores.append(evaluator.score(recipe)["STS12"])
            assert scores[-1].value == by_mteb(file).get_score()
            assert evaluator.separately(recipe)["STS12"] == scores[-1]
    assert scores[0] == scores[2]
    assert scores[0] != scores[1]


def test_another_metric_and_what_identity_follows(
    models: dict[str, list[str]], write: Any, workplace: Path
) -> None:
    recipe = Recipe.load(write(models["embedder"], 0.5))
    build = Evaluator.from_settings
    by_default = build(["STS12"], {"device": "cpu"})
    pearson = build({"STS12": {"metric": "cosine_pearson", "weight": 2}}, {"device": "cpu"})
    found = by_mteb(write(models["embedder"], 0.5)).scores["test"][0]
    assert pearson.score(recipe)["STS12"].value == found["cosine_pearson"]
    assert pearson.goals["STS12"].weight == 2
    other = build(["STS12"], {"device": "cpu", "truncate_dim": 8})
    assert len({each.identity for each in (by_default, pearson, other)}) == 3
    assert build(["STS12"], {"batch_size": 2}).identity == by_default.identity
    with pytest.raises(MergeError, match="STS12 has no metric 'cosine_person'; did you mean"):
        build({"STS12": {"metric": "cosine_person"}}, {"device": "cpu"}).score(recipe)


def test_a_task_that_draws_samples_scores_a_merge_the_same_again(
    models: dict[str, list[str]], write: Any
) -> None:
    from mteb.mocks.mock_tasks import MockMultilabelClassification

    recipe, name = (
        Recipe.load(write(models["embedder"], 0.5)),
        MockMultilabelClassification.metadata.name,
    )
    with Evaluator([name], own=[MockMultilabelClassification], device="cpu") as evaluator:
        assert evaluator.score(recipe) == evaluator.score(recipe)


@pytest.mark.parametrize(
    ("tasks", "settings", "message"),
    [
        ({}, {}, "no tasks; write tasks:"),
        (["STS21"], {}, "STS21: MTEB cannot load this task: .*Did you mean: 'STS22'"),
        (
            ["STS12"],
            {"eval_splits": ["dev"]},
            "STS12: MTEB cannot .*no split 'dev'; its data have test",
        ),
        (["STS12"], {"devise": "cpu"}, "take no 'devise'; did you mean 'device'"),
        ({"STS12": {"wait": 1}}, {}, "no setting 'wait'; did you mean 'weight'"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    tasks: Any, settings: Any, message: str, workplace: Path
) -> None:
    with pytest.raises(MergeError, match=message):
        objective("mteb", tasks, settings)


def test_a_reranker_cannot_be_scored_by_similarity(
    models: dict[str, list[str]], write: Any, workplace: Path
) -> None:
    recipe = Recipe.load(write(models["reranker"], 0.5))
    with pytest.raises(MergeError, match=r"STS12: MTEB failed: .*CrossEncoder"):
        Evaluator(["STS12"], device="cpu").score(recipe)


def test_a_search_finds_the_merge_that_mteb_likes_best(
    models: dict[str, list[str]], workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {
        "merge_method": "linear",
        "models": [
            {"model": models["embedder"][0], "parameters": {"weight": {"choices": [0.0, 0.5]}}},
            {"model": models["embedder"][1], "parameters": {"weight": {"choices": [0.5, 1.0]}}},
        ],
        "search": {"tasks": ["STS12"], "budget": {"trials": 5}, "sampler": "random", "rerun": 1},
        "model": {"device": "cpu"},
    }
    Path("search.yaml").write_text(yaml.safe_dump(space))
    given = ["search.yaml", "found", "--objective", "mteb"]
    with pytest.raises(MergeError, match="STS12: the test split would be scored"):
        main(given)
    assert main([*given, "--on-test"]) == 0
    lines = Path("found", "search.jsonl").read_text().splitlines()[1:]
    values = [json.loads(line)["scores"]["STS12"]["value"] for line in lines]
    assert len({*values}) > 1
    best = by_mteb(str(Path("found", "best.yaml"))).get_score()
    assert best == max(values)


def test_a_program_may_ask_mteb_too(
    models: dict[str, list[str]], write: Any, workplace: Path
) -> None:
    Path("sts.py").write_text(PROGRAM)
    found = objective(f"{sys.executable} sts.py {{folder}}", {"sts": None}, {})
    file = write(models["embedder"], 0.5)
    assert found.score(Recipe.load(file))["sts"].value == by_mteb(file).get_score()
