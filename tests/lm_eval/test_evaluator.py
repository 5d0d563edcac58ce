"""`Evaluator` scores one recipe after another as separate runs of lm-eval would."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from functools import partialmethod

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval_options import RUN
from transformers import AutoTokenizer

from harness_adapters.lm_eval import Evaluator
from harness_adapters.lm_eval.live import LiveLM
from harness_adapters.lm_eval.prompting import Generators
from merge_plugins import Recipe
from merge_plugins.errors import CheckpointError, MergeError

FIRST_METRICS = {
    "tiny_choice": "acc",
    "tiny_generate": "exact_match",
    "tiny_rolling": "word_perplexity",
}
GOALS = dict.fromkeys(FIRST_METRICS)


@pytest.fixture
def evaluator(tasks, evaluate):  # which lets tiny models have one thread
    """Build an evaluator on the tiny tasks; close it at the end."""
    built = []

    def build(wanted=None, **options):
        defaults = {"include_path": str(tasks), "device": "cpu", "bootstrap_iters": 0}
        built.append(Evaluator(GOALS if wanted is None else wanted, **{**defaults, **options}))
        return built[-1]

    yield build
    for each in built:
        each.close()


def recipe(family, first=0.6, **changes) -> Recipe:
    models = f"{family.math}:{first}+{family.code}:{round(1 - first, 3)}"
    return Recipe.from_model_args(family.recipe(**{"models": models, **changes}))


SOME = (
    *("default", "a large batch", "batch_size auto", "a chat template", "a system prompt"),
    *("no bos, short context", "bfloat16, eager attention", "parallelize", "sampling"),
    "a setting of the model's config",
)


@pytest.mark.parametrize("name", SOME)
def test_the_next_merge_has_the_answers_of_a_run_of_its_own(name, evaluate, evaluator, family):
    model_args, options = RUN[name]
    alone = evaluate("merged", family.recipe(**model_args), limit=2, **options)
    ours = evaluator(model_args=model_args, limit=2, **options)
    other, wanted = recipe(family, 0.1), recipe(family)
    before = ours.results(other)
    model = ours.live(other).model
    found = ours.results(wanted)
    assert (ours.live(wanted).model is model) == (name != "parallelize")  # else offloaded
    assert before["samples"] != found["samples"] == alone.results["samples"]
    for key in ("results", "higher_is_better", "n-shot", "n-samples", "versions"):
        assert found[key] == alone.results[key]
    for key in ("model_sha", "merge", "model_num_parameters", "model_dtype"):
        assert found["config"][key] == alone.results["config"][key]


def test_standard_errors_are_those_of_the_command(here, evaluator, family):
    words = (f"{key}={value}" for key, value in family.recipe().items())
    options = ("--model", "merged", "--model_args", ",".join(words), "--device", "cpu")
    alone = here("lm_eval", *options, "--tasks", ",".join(GOALS))
    ours = evaluator(bootstrap_iters=100000)
    ours.score(recipe(family, 0.1))
    assert ours.results(recipe(family))["results"] == alone.scores
    for name, found in ours.score(recipe(family)).items():
        metric = FIRST_METRICS[name]
        assert found.value == alone.scores[name][f"{metric},none"]
        stderr = alone.scores[name][f"{metric}_stderr,none"]
        assert found.stderr == (None if stderr == "N/A" else stderr)
    assert found.stderr is None  # one of them is bootstrapped of too few documents


def test_documents_are_the_values_of_the_samples(evaluator, family):
    ours = evaluator({"tiny_choice": {"metric": "acc_norm"}, "tiny_rolling": None}, limit=3)
    found = ours.score(recipe(family))
    samples = ours.results(recipe(family))["samples"]["tiny_choice"]
    assert found["tiny_choice"].documents == {
        f"tiny_choice/{sample['doc_id']}": sample["acc_norm"] for sample in samples
    }
    assert ours.documents["tiny_choice"] == (*found["tiny_choice"].documents,)
    assert len(ours.documents["tiny_choice"]) == 3
    assert not ours.documents["tiny_rolling"]
    assert not found["tiny_rolling"].documents


def test_some_documents_have_the_values_they_have_among_all(evaluator, family):
    """Each keeps its few-shot examples, which lm-eval's own ``--samples`` would draw anew."""
    ours = evaluator(["tiny_choice", "tiny_generate"], num_fewshot=2)
    everything = ours.results(recipe(family))
    some = {"tiny_choice": ["tiny_choice/3", "tiny_choice/1"], "tiny_generate": ["tiny_generate/4"]}
    found = ours.score(recipe(family), some)
    assert found.keys() == some.keys()
    assert found["tiny_choice"].documents.keys() == {*some["tiny_choice"]}
    for name, samples in ours.results(recipe(family), some)["samples"].items():
        assert len(samples) == len(some[name])
        for sample in samples:
            assert sample == everything["samples"][name][sample["doc_id"]]
            document = found[name].documents[f"{name}/{sample['doc_id']}"]
            assert document == sample[FIRST_METRICS[name]]


def test_a_goal_without_documents_is_scored_whole_when_it_is_named(evaluator, family):
    ours = evaluator(limit=1)
    whole = ours.score(recipe(family))
    some = {"tiny_choice": ["tiny_choice/0"], "tiny_rolling": [], "tiny_generate": []}
    assert ours.score(recipe(family), some) == {
        name: whole[name] for name in ("tiny_choice", "tiny_rolling")
    }


@pytest.fixture(scope="module")
def groups(tasks, tmp_path_factory):
    """Two groups of a task with three documents and one with two; and a tag of these."""
    folder = tmp_path_factory.mktemp("groups")
    rows = (tasks / "tiny_choice.jsonl").read_text().splitlines(keepends=True)
    written = (tasks / "tiny_choice.yaml").read_text()
    for group, by_size in (("by_size", "true"), ("by_task", "false")):
        parts = [f"{group}_{part}" for part in ("many", "few")]
        for name, some in zip(parts, (rows[:3], rows[2:]), strict=True):
            data = folder / f"{name}.jsonl"
            data.write_text("".join(some))
            task = written.replace("task: tiny_choice", f"task: {name}\ntag: tagged")
            task = task.replace(str(tasks / "tiny_choice.jsonl"), str(data))
            (folder / f"{name}.yaml").write_text(task)
        (folder / f"{group}.yaml").write_text(
            f"group: {group}\ntask: [{', '.join(parts)}]\n"
            f"aggregate_metric_list: [{{metric: acc, weight_by_size: {by_size}}}]\n"
        )
    (folder / "bare.yaml").write_text("group: bare\ntask: [by_size_few, by_size_many]\n")
    return folder


@pytest.mark.parametrize("name", ["by_size", "by_task"])
def test_a_group_is_aggregated_as_lm_eval_does(name, evaluator, family, groups):
    manager = TaskManager(include_path=str(groups), include_defaults=False)
    options = {"tasks": [name], "task_manager": manager, "device": "cpu"}
    alone = simple_evaluate("merged", family.recipe(), **options)["results"][name]
    ours = evaluator([name], include_path=str(groups), bootstrap_iters=100000)
    ours.score(recipe(family, 0.1))
    found = ours.score(recipe(family))[name]
    assert (found.value, found.stderr) == (alone["acc,none"], alone["acc_stderr,none"])
    assert (*found.documents,) == ours.documents[name]
    assert len(found.documents) == 5
    first = ours.documents[name][0]
    assert ours.score(recipe(family), {name: [first]})[name].documents == {
        first: found.documents[first]
    }


def test_a_merge_with_other_files_or_another_dtype_is_a_new_model(evaluator, family, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(family.base)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    options = {"wanted": ["tiny_generate"], "limit": 2, "apply_chat_template": True}
    chat = evaluator(**options)
    for changes in (
        {},
        {"tokenizer_source": str(tmp_path / "tokenizer")},
        {"out_dtype": "bfloat16"},
        {"base_model": family.math},
        {"method": "ties", "density": 0.5},
    ):
        wanted = recipe(family, **changes)
        fresh = evaluator(**options).results(wanted)
        found = chat.results(wanted)
        assert found["samples"] == fresh["samples"]
        assert found["config"] == fresh["config"]


def test_the_cache_of_answers_is_one_table_for_each_merge(evaluate, evaluator, family, tmp_path):
    cache = {"use_cache": str(tmp_path / "cache"), "limit": 2}
    ours = evaluator(**cache)
    scores = [ours.score(recipe(family, first)) for first in (0.1, 0.6, 0.1)]
    assert scores[0] == scores[2] != scores[1]
    with closing(sqlite3.connect(f"{cache['use_cache']}_rank0.db")) as database:
        query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'merged_%'"
        tables = [name for (name,) in database.execute(query)]
        counts = [database.execute(f'SELECT count(*) FROM "{n}"').fetchone() for n in tables]
    assert len(tables) == 2
    assert counts[0] == counts[1] != (0,)
    alone = evaluate("merged", family.recipe(), **cache)
    assert alone.results["results"]["tiny_choice"]["acc,none"] == scores[1]["tiny_choice"].value


def test_loading_a_merge_draws_nothing(family):
    """So that sampled answers are the same whether the model was there before it was seeded."""
    before = Generators.now()
    LiveLM.of(recipe(family), {"device": "cpu"}).become(recipe(family, 0.1))
    after = Generators.now()
    assert before.python == after.python
    assert str(before.numpy) == str(after.numpy)
    assert torch.equal(before.torch, after.torch)


def test_what_a_task_draws_to_make_its_requests_is_drawn_once(tasks, evaluator, evaluate, family):
    """A task may shuffle with the global generator, before answers are sampled."""
    folder = tasks.parent / "drawing"
    folder.mkdir()
    written = (tasks / "tiny_generate.yaml").read_text().replace("tiny_generate", "drawing", 1)
    written = written.replace('"{{question}}"', "!function draws.question")
    written = written.replace("do_sample: false", "do_sample: true, temperature: 0.9")
    (folder / "drawing.yaml").write_text(written)
    (folder / "draws.py").write_text(
        "import random, torch\n"
        "def question(doc):\n"
        "    return f'{random.random():.3f} {torch.rand(()):.3f} ' + doc['question']\n"
    )
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    options = {"tasks": ["drawing"], "task_manager": manager, "device": "cpu"}
    alone = simple_evaluate("merged", family.recipe(), **options)["samples"]
    ours = evaluator("drawing", include_path=str(folder))
    ours.score(recipe(family, 0.1))
    for _ in range(2):
        before = random.getstate()
        assert ours.results(recipe(family))["samples"] == alone
        assert random.getstate() == before  # the caller's own draws go on


def test_an_error_leaves_an_evaluator_that_works(evaluator, family, tmp_path):
    copied = tmp_path / "damaged"
    shutil.copytree(family.math, copied)
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    ours = evaluator(["tiny_choice"], limit=1)
    right = ours.score(recipe(family))
    with pytest.raises(CheckpointError):
        ours.score(recipe(family, models=f"{copied}:1+{family.code}:1"))
    with pytest.raises(MergeError, match="has no argument 'metod'"):
        evaluator(["tiny_choice"], model_args={"metod": 1}).score(recipe(family))
    assert ours.score(recipe(family)) == right


def test_scores_of_other_settings_are_of_another_identity(evaluator):
    def identity(**options):
        return evaluator(["tiny_choice"], **options).identity

    same = [identity(), identity(batch_size=4), identity(use_cache="x"), identity(model_args="")]
    assert len({*same}) == 1
    others = [
        *(
            {"limit": 1},
            {"num_fewshot": 1},
            {"fewshot_random_seed": 1},
            {"system_instruction": "."},
        ),
        *({"apply_chat_template": True}, {"model_args": "dtype=float16"}, {"torch_random_seed": 1}),
    ]
    assert len({*same, *(identity(**other) for other in others)}) == 1 + len(others)
    metric = evaluator({"tiny_choice": {"metric": "acc_norm"}}).identity
    assert metric not in same


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("tiny_choise", "no task 'tiny_choise'; did you mean 'tiny_choice'"),
        ({"tiny_choice": {"metrik": "acc"}}, "no setting 'metrik'; did you mean 'metric'"),
        ({"tiny_choice": {"metric": "acc_nrm"}}, "no metric 'acc_nrm'; did you mean 'acc_norm"),
        ({"tiny_choice": {"weight": -1}}, "weight is a number, 0 or more; got -1"),
        ({"tiny_choice": "acc"}, "settings of a task are a mapping; got 'acc'"),
        ("tagged", "tagged is a tag .* name its tasks: by_size_few, by_size_many"),
        ("bare", "no score of its own; name its tasks: by_size_few, by_size_many"),
        ("by_task,by_task_few", "Duplicate task 'by_task_few'"),
        ((), "no task named"),
    ],
)
def test_what_cannot_be_scored_is_said_before_a_model_is_loaded(
    wanted, message, evaluator, tasks, groups, monkeypatch
):
    alone = partialmethod(TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(TaskManager, "__init__", alone)
    with pytest.raises(MergeError, match=message):
        evaluator(wanted, include_path=[str(tasks), str(groups)])


def test_a_document_or_goal_that_is_not_there(evaluator, family):
    ours = evaluator(["tiny_choice"], limit=2)
    for documents in ({"tiny_choice": ["tiny_choice/2"]}, {"tiny_choise": ["tiny_choice/0"]}):
        with pytest.raises(MergeError, match=r"no (document|goal) 'tiny_ch"):
            ours.score(recipe(family), documents)


def test_settings_are_arguments_of_lm_eval_or_of_the_model(tasks):
    settings = {"dtype": "float16", "limit": 2, "batch_size": 3, "include_path": str(tasks)}
    with Evaluator.from_settings("tiny_choice", {**settings, "device": "cpu"}) as ours:
        assert ours._options == {"dtype": "float16", "batch_size": 3, "device": "cpu"}
        assert len(ours.documents["tiny_choice"]) == 2


def test_progress_bars_can_be_left_out(evaluator, family, capfd):
    shown = []
    for progress in (True, False):
        evaluator(limit=1, progress=progress).score(recipe(family))
        shown.append("Running loglikelihood requests" in capfd.readouterr().err)
    assert shown == [True, False]
