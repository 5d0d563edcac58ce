"""lm-eval's own GLUE scores a merge of classifiers as transformers' `Trainer` does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classifiers import COLUMNS, HEADS, rows_of
from families import edit, rewrite
from lm_eval.api.instance import Instance
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, matthews_corrcoef
from transformers import Trainer, TrainingArguments

from harness_adapters.lm_eval.classifiers.heads import Head
from harness_adapters.lm_eval.classifiers.model import MergedClassifiers
from merge_plugins import Recipe, load_classifiers
from merge_plugins.errors import DataError, RecipeError

TASKS = ("cola", "rte", "mnli", "mnli_mismatch", "stsb")
TO_DATA_SET = {"rte": [1, 0], "mnli": [2, 1, 0], "mnli_mismatch": [2, 1, 0]}
"""The data set's label of each class, where the experts' configs name them in another order."""
METRICS: Mapping[str, Mapping[str, Callable[[Any, Any], float]]] = {
    "cola": {"mcc": matthews_corrcoef},
    **{name: {"acc": accuracy_score} for name in ("rte", "mnli", "mnli_mismatch")},
    "stsb": {
        "pearson": lambda labels, answers: pearsonr(labels, answers).statistic,
        "spearman": lambda labels, answers: spearmanr(labels, answers).statistic,
    },
}


def glue(family: Mapping[str, str], **changes: Any) -> dict[str, Any]:
    return {
        "method": "task_arithmetic",
        "base": family["base"],
        "models": "+".join(family[task] for task in HEADS),
        "task": "+".join(HEADS),
        "scaling_coefficient": 0.3,
        **changes,
    }


def by_trainer(model: Any, tokenizer: Any, task: str, folder: Path) -> Any:
    """Let a Trainer answer the rows of a task: the data set's labels, or numbers."""
    rows = rows_of(task)
    encoded = [
        dict(tokenizer(*(row[name] for name in COLUMNS[task]), truncation=True)) for row in rows
    ]
    arguments = TrainingArguments(
        str(folder), per_device_eval_batch_size=4, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = Trainer(model=model, args=arguments, processing_class=tokenizer)
    logits = trainer.predict(encoded).predictions
    if logits.shape[1] == 1:
        return logits[:, 0]
    found = logits.argmax(-1)
    return np.array(TO_DATA_SET[task])[found] if task in TO_DATA_SET else found


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
def test_scores_are_those_of_a_trainer(family: Any, score: Any, tmp_path: Path) -> None:
    found = score(glue(family), tasks=[*TASKS])["results"]
    live = load_classifiers(Recipe.from_model_args(glue(family)))
    for task in TASKS:
        answers = by_trainer(*live.for_task(task.partition("_")[0]), task, tmp_path)
        labels = [row["label"] for row in rows_of(task)]
        for metric, compute in METRICS[task].items():
            assert found[task][f"{metric},none"] == pytest.approx(
                compute(labels, answers), abs=1e-6
            )


def test_answers_do_not_depend_on_the_batch(one_family: Mapping[str, str], score: Any) -> None:
    answers = []
    for sizes in ({"max_batch_size": 1}, {"batch_size": 5}, {"batch_size": "auto"}):
        samples = score(glue(one_family), **sizes)["samples"]
        rows = [row for task in samples.values() for row in task]
        answers.append([float(np.ravel(row["filtered_resps"][0])[0]) for row in rows])
    assert answers[1] == pytest.approx(answers[0], abs=1e-5)
    assert answers[2] == pytest.approx(answers[0], abs=1e-5)
    assert len({*answers[0]}) > 20


def test_each_row_is_read_once(
    one_family: Mapping[str, str], score: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_read = 0
    of = MergedClassifiers._run

    def counting(self: Any, task: str, rows: Any) -> Any:
        nonlocal n_read
        model, _ = self._models.for_task(task)

        def count(module: Any, args: Any, kwargs: Any) -> None:
            nonlocal n_read
            n_read += len(kwargs["input_ids"])

        handle = model.register_forward_pre_hook(count, with_kwargs=True)
        try:
            return of(self, task, rows)
        finally:
            handle.remove()

    monkeypatch.setattr(MergedClassifiers, "_run", counting)
    score(glue(one_family), tasks=["mnli", "rte"])
    assert n_read == len(rows_of("mnli")) + len(rows_of("rte"))


@pytest.fixture
def relabelled(one_family: Mapping[str, str], tmp_path: Path) -> Callable[..., str]:
    """Copy the mnli expert with its classes in the data set's order, and name them."""

    def write(names: Any) -> str:
        folder = tmp_path / f"mnli{len([*tmp_path.iterdir()])}"
        shutil.copytree(one_family["mnli"], folder)
        rewrite(
            folder,
            lambda tensors: {
                name: weight.flip(0) if name.startswith("classifier.out_proj") else weight
                for name, weight in tensors.items()
            },
        )
        edit(folder, id2label={str(i): name for i, name in enumerate(names)})
        return str(folder)

    return write


def only_mnli(folder: str, **changes: Any) -> dict[str, Any]:
    return {"method": "average_merging", "models": folder, "task": "mnli", **changes}


def firsts(sample: Mapping[str, Any]) -> list[bool]:
    return [is_first for _, is_first in sample["filtered_resps"]]


def likelihoods(sample: Mapping[str, Any]) -> list[float]:
    return [likely for likely, _ in sample["filtered_resps"]]


IN_ORDER: Mapping[str, tuple[Any, Any]] = {
    "as the data set": (["entailment", "neutral", "contradiction"], "mnli"),
    "in capitals": (["Entailment", "NEUTRAL", "Contradiction"], "mnli"),
    "unnamed": (["LABEL_0", "LABEL_1", "LABEL_2"], "mnli"),
    "in words of its own": (
        ["yes", "maybe", "no"],
        {"name": "mnli", "labels": ["yes", "maybe", "no"]},
    ),
}


@pytest.mark.parametrize("what", IN_ORDER)
def test_a_class_is_found_by_its_name(
    what: str,
    one_family: Mapping[str, str],
    relabelled: Callable[..., str],
    score: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    names, task = IN_ORDER[what]
    options = {"tasks": ["mnli", "mnli_mismatch"]}
    wanted = score(only_mnli(one_family["mnli"]), **options)["samples"]
    caplog.clear()
    given = task if isinstance(task, str) else json.dumps(task)
    found = score(only_mnli(relabelled(names), task=given), **options)["samples"]
    for name in wanted:
        for one, other in zip(wanted[name], found[name], strict=True):
            assert firsts(one) == firsts(other)
            assert likelihoods(one) == pytest.approx(likelihoods(other), abs=1e-6)
    said = [line for line in caplog.messages if "do not name their labels" in line]
    assert len(said) == (what == "unnamed")


def test_names_that_do_not_fit_are_refused_with_what_to_write(
    relabelled: Callable[..., str],
) -> None:
    folder = relabelled(["yes", "maybe", "no"])
    with pytest.raises(RecipeError, match=r"Write the model's .* \['yes', 'maybe', 'no'\]"):
        MergedClassifiers(**only_mnli(folder))
    for labels, said in {
        ("yes", "no"): "mnli has 2 labels",
        ("yes", "no", "never"): "mnli are yes, no, never, and its model names",
    }.items():
        task = json.dumps({"name": "mnli", "labels": labels})
        with pytest.raises(RecipeError, match=said):
            MergedClassifiers(**only_mnli(folder, task=task))
    task = json.dumps({"name": "mnli", "labels": ["a", "b", "c"]})
    unnamed = only_mnli(relabelled(["LABEL_0", "LABEL_1", "LABEL_2"]), task=task)
    with pytest.raises(RecipeError, match="but the config of its model names none"):
        MergedClassifiers(**unnamed)


WRONG: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "a head of another task": ({"task": "stsb+rte+mnli+cola"}, "the head is of another task"),
    "a task nobody knows": ({"task": "cola+rte+mnli+mine"}, r"columns: \[text\]"),
    "no tasks": ({"task": None}, "says which task its head answers"),
    "a mistyped argument": ({"bach_size": 3}, "no argument 'bach_size'; did you mean 'batch_size'"),
    "no number": ({"batch_size": "many"}, "batch_size= is a whole number, 1 or more; got 'many'"),
    "no truth": ({"experts": "cola"}, "experts= is true or false"),
    "a checkpoint": ({"pretrained": "x"}, "pretrained= does not go with a merge"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_refused_before_a_weight_is_read(
    what: str, one_family: Mapping[str, str]
) -> None:
    changes, said = WRONG[what]
    with pytest.raises(RecipeError, match=said):
        MergedClassifiers(**glue(one_family, **changes))


def test_a_task_that_no_head_answers_is_refused(one_family: Mapping[str, str], score: Any) -> None:
    with pytest.raises(RecipeError, match=r"has task: wnli, .* --tasks glue8"):
        score(glue(one_family), tasks=["wnli"])


REQUESTS: Mapping[str, tuple[str, int, tuple[int, ...], str]] = {
    "too many choices": ("loglikelihood", 2, (0, 1), "mine has 3 choices or more, .* 2 classes"),
    "choices of a number": ("loglikelihood", 0, (), "1 choices or more, .* with a number"),
    "a text": ("generate_until", 0, (0, 1), "mine wants a text, .* multiple_choice"),
}


@pytest.mark.parametrize("what", REQUESTS)
def test_what_a_head_cannot_answer_is_refused(what: str) -> None:
    kind, choice, classes, said = REQUESTS[what]
    head = Head("mine", ("text",), classes)
    with pytest.raises(RecipeError, match=said):
        head.check(Instance(kind, {}, ("", ""), choice, ("mine", 0, 1)))


def test_rows_without_the_columns_are_refused(one_family: Mapping[str, str], score: Any) -> None:
    own = json.dumps({"name": "cola", "columns": ["text"]})
    given = {"method": "average_merging", "models": one_family["cola"], "task": own}
    with pytest.raises(DataError, match=r"no text in 'text'; it has sentence, label.*columns: \["):
        score(given, tasks=["cola"])


def test_texts_are_cut_at_what_the_model_reads(one_family: Mapping[str, str]) -> None:
    lm = MergedClassifiers(**glue(one_family))
    long = [("w1 " * 100,), ("w1 " * 200,)]
    first, second = (lm._run("cola", [text])[0] for text in long)  # rows of one batch may round
    assert first == second  # differently, as a CPU sums them in its own order
    model, tokenizer = lm._models.for_task("cola")
    tokenizer.model_max_length = int(1e30)
    assert lm._run("cola", long[:1])[0] != first  # 38 tokens: positions of RoBERTa begin at 2
    assert torch.isfinite(torch.tensor(lm._run("cola", long))).all()
    assert model.config.max_position_embeddings == 40
