"""``data: task:NAME`` is the training split of an lm-eval task, as lm-eval itself words it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from merge_plugins import Recipe, digest, load_merged, save
from merge_plugins.api import Example
from merge_plugins.cli import main
from merge_plugins.engine import open_merge
from merge_plugins.errors import DataError, RecipeError, UntrustedCodeError
from merge_plugins.recipe import Data

CAPITALS = [
    {"country": "Thailand", "choices": ["Bangkok", "Hanoi"], "label": 0},
    {"country": "Vietnam", "choices": ["Rome", "Hanoi"], "label": 1},
]
SUMS = [{"question": f"{a} + {b} =", "answer": str(a + b)} for a in range(3) for b in range(2)]
GENERATE = (
    "output_type: generate_until\n"
    'doc_to_text: "{{question}}"\n'
    'doc_to_target: "{{answer}}"\n'
    "metric_list: [{metric: exact_match}]\n"
)
TRAINING = {
    "choice": (
        CAPITALS,
        "output_type: multiple_choice\n"
        'doc_to_text: "The capital of {{country}} is"\n'
        "doc_to_choice: choices\n"
        "doc_to_target: label\n",
    ),
    "generate": (SUMS, GENERATE),
    "rolling": (
        [{"text": "the quick brown fox"}, {"text": "a small test"}],
        "output_type: loglikelihood_rolling\n"
        'doc_to_text: ""\n'
        'doc_to_target: "{{text}}"\n'
        "metric_list: [{metric: bits_per_byte}]\n",
    ),
    "which_context": (
        [{"a": "It rained", "b": "It shone", "end": "so we got wet.", "right": 0}],
        "output_type: multiple_choice\n"
        "doc_to_text: right\n"
        'doc_to_choice: "{{[a, b]}}"\n'
        'doc_to_target: "{{end}}"\n',
    ),
}
EXAMPLES = {
    "choice": Example("The capital of Vietnam is", " Hanoi", 1),
    "generate": Example("0 + 1 =", " 1"),
    "rolling": Example("a small test"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of tasks with a training split, and some without one."""
    folder = tmp_path_factory.mktemp("trained")

    def write(name, rows, settings, splits):
        files = {}
        for split, part in splits.items():
            files[split] = str(folder / f"{name}-{split}.jsonl")
            Path(files[split]).write_text("".join(f"{json.dumps(row)}\n" for row in part(rows)))
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ntag: several\ndataset_path: json\n"
            f"dataset_kwargs: {{data_files: {json.dumps(files)}, cache_dir: {folder / 'cache'}}}\n"
            f"{settings}metadata: {{version: 1.0}}\n"
        )

    both = {"train": lambda rows: rows, "test": lambda rows: rows[:1]}
    for name, (rows, settings) in TRAINING.items():
        write(name, rows, f"training_split: train\ntest_split: test\n{settings}", both)
    rows, settings = TRAINING["generate"]
    write("only_test", rows, f"test_split: test\n{settings}", both)
    write("scored_on_train", rows, f"training_split: train\ntest_split: train\n{settings}", both)
    write("validated", rows, f"training_split: t\nvalidation_split: t\n{settings}", {"t": list})
    return str(folder)


@pytest.mark.parametrize("task", EXAMPLES)
def test_examples_are_prompts_and_answers_of_the_training_split(task, trained):
    found = Data(task=task, include_path=trained, trust_remote_code=True).examples()
    assert len(found) == len(TRAINING[task][0])
    assert found[1] == EXAMPLES[task]


def test_a_task_that_scores_contexts_has_the_right_one_as_its_prompt(trained):
    data = Data(task="which_context", include_path=trained, trust_remote_code=True)
    (found,) = data.examples()
    assert found == Example("It rained", " so we got wet.")


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("only_test", "task only_test has no training split; name another task"),
        ("scored_on_train", "no training split but the one it is scored on, train; name"),
        ("validated", "no training split but the one it is scored on, t; name"),
        ("several", "several is a group of lm-eval tasks; name one of them"),
        ("choise", "no harness here has a task 'choise'; check data:"),
    ],
)
def test_what_is_scored_is_never_calibrated_on(task, said, trained, family):
    data = {"task": task, "include_path": trained}
    recipe = Recipe.from_mapping(
        {"merge_method": "regmean_merging", "models": [family.math, family.code], "data": data}
    )
    for trust_remote_code in (False, True):
        with pytest.raises(DataError, match=said):
            open_merge(recipe.trusting(trust_remote_code))


CODE = """
task: evil
dataset_path: json
dataset_kwargs: {data_files: {train: rows.jsonl, test: rows.jsonl}}
training_split: train
test_split: test
doc_to_target: answer
metric_list: [{metric: exact_match}]
"""
TEMPLATE = "{{ cycler.__init__.__globals__.os.makedirs('CANARY', 511, True) }}"
RUNS = {
    "a function": "doc_to_text: !function evil.text\n",
    "a function of an included file": "include: other/part.yaml\n",
    "a template": f'doc_to_text: "{TEMPLATE}"\n',
    "a metric": "doc_to_text: question\nmetric_list: [{metric: FOLDER/metric}]\n",
    "a class": "doc_to_text: question\nclass: !function evil.Task\n",
    "a dataset": "doc_to_text: question\ndataset_kwargs: {trust_remote_code: true}\n",
}


@pytest.fixture
def hostile(tmp_path):
    """A function that writes a task which leaves a canary when its code runs; its recipe."""
    canary = tmp_path / "canary"

    def write(what, family):
        tasks = tmp_path / "tasks"
        (tasks / "other").mkdir(parents=True)
        (tasks / "metric").mkdir()
        code = f"import pathlib; pathlib.Path({str(canary)!r}).mkdir()\ntext = Task = str\n"
        for name in ("evil.py", "other/evil.py", "metric/metric.py"):
            (tasks / name).write_text(code)
        (tasks / "other" / "part.yaml").write_text("doc_to_text: !function evil.text\n")
        line = RUNS[what].replace("CANARY", str(canary)).replace("FOLDER", str(tasks))
        settings = {key for key in ("dataset_kwargs", "metric_list") if key in line}
        kept = (each for each in CODE.splitlines(True) if each.partition(":")[0] not in settings)
        (tasks / "evil.yaml").write_text("".join(kept) + line)
        (tasks / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in SUMS))
        recipe = {
            "merge_method": "fisher_merging",
            "models": [family.math, family.code],
            "data": {"task": "evil", "include_path": "tasks", "limit": 2},
        }
        (tmp_path / "merge.yaml").write_text(json.dumps(recipe))
        return tmp_path / "merge.yaml"

    write.canary = canary
    return write


@pytest.mark.parametrize("what", RUNS)
def test_code_beside_a_recipe_never_runs_in_check_and_nowhere_without_leave(
    what, hostile, family, tmp_path, capsys
):
    recipe = str(hostile(what, family))
    assert main(["check", recipe]) == 0
    said = capsys.readouterr().out
    assert "No digest, as check runs no code that came along: data: task evil" in said
    assert f"comes with code, from {tmp_path}" in said
    for command in (["plan"], ["save", "out"], ["mount", "out"]):
        name, *folder = command
        assert main([name, recipe, *(str(tmp_path / each) for each in folder)]) == 1
        assert "pass --trust-remote-code" in capsys.readouterr().err
    for call in (open_merge, load_merged, digest):
        with pytest.raises(UntrustedCodeError, match=r"pass --trust-remote-code"):
            call(Recipe.load(recipe))
    assert not hostile.canary.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["a function", "a function of an included file", "a template"])
def test_code_beside_a_recipe_runs_with_leave(what, hostile, family, tmp_path, monkeypatch):
    recipe = str(hostile(what, family))
    monkeypatch.chdir(tmp_path / "tasks")  # where the rows are
    main(["plan", recipe, "--trust-remote-code"])
    assert hostile.canary.is_dir()


def test_a_recipe_cannot_give_itself_leave(hostile, family):
    file = hostile("a function", family)
    recipe = json.loads(file.read_text())
    recipe["data"]["trust_remote_code"] = True
    with pytest.raises(RecipeError, match="no key 'trust_remote_code'; there are path, task"):
        Recipe.from_mapping(recipe, file.parent)


@pytest.mark.parametrize("method", ["fisher_merging", "regmean_merging"])
def test_a_calibrated_merge_answers_like_the_same_merge_on_disk(
    method, trained, family, evaluate, tmp_path
):
    given = {
        "method": method,
        "models": f"{family.math}+{family.code}",
        "data": json.dumps({"task": "generate", "include_path": trained, "batch_size": 4}),
    }
    trusting = {**given, "trust_remote_code": True}
    merged = evaluate("merged", trusting, tasks=["tiny_choice", "tiny_generate"])
    save(Recipe.from_model_args(given), tmp_path / "saved", trust_remote_code=True)
    stock = evaluate(
        "hf", {"pretrained": str(tmp_path / "saved")}, tasks=["tiny_choice", "tiny_generate"]
    )
    assert merged.answers == stock.answers
    assert merged.scores == stock.scores
