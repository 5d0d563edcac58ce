"""Classifiers whose merge reads data: rows of lm-eval's tasks, and requests that are routed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classifiers import COLUMNS, HEADS, rows_of
from glue_alone import FEWER
from lm_eval.tasks import TaskManager

from harness_adapters.lm_eval.data import _manager
from merge_plugins import Recipe, load_classifiers, merged_tensors
from merge_plugins.errors import DataError, RecipeError
from merge_plugins.recipe import Data

pytestmark = pytest.mark.usefixtures("one_thread", "own_cache")
Score = Callable[..., dict[str, Any]]
TASK_DATA = "+".join(f"task:{task}" for task in HEADS)


@pytest.fixture(autouse=True)
def _few_tasks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(TaskManager, "__init__", TaskManager.__init__)  # as it is afterwards
    exec(FEWER, {})
    _manager.cache_clear()
    yield
    _manager.cache_clear()


def glue(family: Mapping[str, str], method: str, **changes: Any) -> dict[str, Any]:
    return {
        "method": method,
        "base": family["base"],
        "models": "+".join(family[task] for task in HEADS),
        "task": "+".join(HEADS),
        **changes,
    }


@pytest.mark.parametrize("task", HEADS)
def test_a_classifier_reads_the_texts_and_labels_of_rows(task: str) -> None:
    examples = Data(task=task, columns=()).examples()
    assert len(examples) == len(rows_of(task))
    for example, row in zip(examples, rows_of(task), strict=True):
        texts = [row[column] for column in COLUMNS[task]]
        assert [example.prompt, example.response][: len(texts)] == texts
        assert example.label == row["label"]
    assert examples != Data(task=task).examples()  # as lm-eval words it for language models


def test_the_recipe_says_which_columns(one_family: Mapping[str, str]) -> None:
    entry = {"model": one_family["rte"], "data": "task:rte"}
    task = {"name": "rte", "columns": ["sentence2"]}
    for said, columns in ((None, None), ("rte", ()), (task, ("sentence2",)), ("wnli", ())):
        own = {**entry, "task": said} if said else entry
        recipe = Recipe.from_mapping({"merge_method": "fisher_merging", "models": [own]})
        data = recipe.data_of(recipe.models[0])
        assert data is not None
        assert data.columns == columns
        assert Recipe.from_mapping(recipe.as_dict()) == recipe
    assert Data(task="rte", columns=("sentence2",)).examples()[0].response == ""


def test_columns_that_nobody_knows_are_asked_for() -> None:
    task = "gsm8k_cot_zeroshot_alpaca"  # its data set is not here: it is not loaded
    with pytest.raises(RecipeError, match=f"{task} is no task of GLUE"):
        Data(task=task, columns=()).examples()
    with pytest.raises((DataError, RecipeError), match="no text in 'premise'"):
        Data(task="rte", columns=("premise",)).examples()


@pytest.mark.parametrize("fisher", ["per_example", "mergelm"])
def test_rows_of_a_task_weigh_as_those_of_a_file(
    fisher: str, one_family: Mapping[str, str], tmp_path: Path
) -> None:
    files = []
    for task in HEADS:
        rows = [
            dict(zip(("prompt", "response"), (row[c] for c in COLUMNS[task]), strict=False))
            | {"label": row["label"]}
            for row in rows_of(task)
        ]
        files.append(str(tmp_path / f"{task}.jsonl"))
        Path(files[-1]).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    of_tasks, of_files = (
        merged_tensors(
            Recipe.from_model_args(glue(one_family, "fisher_merging", fisher=fisher, data=data))
        )
        for data in (TASK_DATA, "+".join(files))
    )
    for name, tensor in of_tasks.items():
        assert torch.equal(tensor[...], of_files[name][...]), name


def test_an_oracle_with_all_that_experts_know_scores_as_they_do(
    one_family: Mapping[str, str], score: Score
) -> None:
    given = glue(one_family, "twin_merging", router="oracle", mask_rate=0.0)
    routed, alone = score(given)["results"], score({**given, "experts": True})["results"]
    static = score(glue(one_family, "task_arithmetic", scaling_coefficient=0.3))["results"]
    for task in HEADS:
        assert {k: v for k, v in routed[task].items() if k != "alias"} == pytest.approx(
            {k: v for k, v in alone[task].items() if k != "alias"}, abs=1e-5, nan_ok=True
        )
    assert routed != static


def test_lm_eval_gets_the_answers_of_the_routed_models(
    one_family: Mapping[str, str], score: Score
) -> None:
    given = glue(one_family, "twin_merging", router="centroid", mask_rate=0.5, data=TASK_DATA)
    samples = score({**given, "exclude": "heads+bias"})["samples"]
    merge = load_classifiers(Recipe.from_model_args({**given, "exclude": "heads+bias"}))
    weights = []
    for task in HEADS:
        model: Any
        model, tokenizer = merge.for_task(task)
        for sample, row in zip(samples[task], rows_of(task), strict=True):
            texts = (row[column] for column in COLUMNS[task])
            inputs = tokenizer(*texts, truncation=True, return_tensors="pt")
            with torch.no_grad():
                logits = model(**inputs).logits[0]
            prompt = {name: inputs[name][0].tolist() for name in ("input_ids", "token_type_ids")}
            weights.append(model.routing.weigh([prompt])[0])
            found = np.ravel(sample["filtered_resps"])
            if len(logits) == 1:
                assert float(found[0]) == pytest.approx(float(logits), abs=1e-4)
            else:
                likely = sorted(logits.log_softmax(-1).tolist())
                assert sorted(map(float, found[::2])) == pytest.approx(likely, abs=1e-4)
    assert len({int(row.argmax()) for row in weights}) > 1
