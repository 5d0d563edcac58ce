"""The leaderboard's and Twin-Merging's groups: names, shots, metrics, through lm-eval itself."""

from __future__ import annotations

from pathlib import Path

import datasets
import lm_eval.tasks
import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from harness_adapters.lm_eval.discovery import task_folders
from merge_plugins.demo import family

ARC = {"question": "Q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}
HELLASWAG = {"activity_label": "X", "ctx_a": "a", "ctx_b": "b", "endings": ["c", "d", "e", "f"]}
TRUTH = {"choices": ["yes", "no"], "labels": [1, 0]}
BBQ = {
    **{"example_id": 0, "question_index": "1", "category": "Age", "context_condition": "ambig"},
    **{"question_polarity": "neg", "context": "Two met.", "question": "Who?", "label": 2},
    **{"ans0": "Ann", "ans1": "Bo", "ans2": "Unknown", "question_type": "Age"},
    "answer_info": {
        "ans0": ["Ann", "old"],
        "ans1": ["Bo", "nonOld"],
        "ans2": ["Unknown", "unknown"],
    },
    "additional_metadata": {
        **{"subcategory": "None", "stereotyped_groups": ["old"], "version": "a"},
        **{"source": "", "corr_ans0": None, "corr_ans1": None, "full_cond": None},
        **{"label_type": "name", "known_stereotyped_race": [], "known_stereotyped_var2": None},
    },
}
HUB = {
    "allenai/ai2_arc": ARC,
    "Rowan/hellaswag": {**HELLASWAG, "ind": 1, "label": "0", "split": "v", "ctx": "a b"},
    "cais/mmlu": {"question": "Q", "choices": ["a", "b", "c", "d"], "answer": 1},
    "truthfulqa/truthful_qa": {"question": "Q", "mc1_targets": TRUTH, "mc2_targets": TRUTH},
    "allenai/winogrande": {"sentence": "a _ b", "option1": "x", "option2": "y", "answer": "1"},
    "openai/gsm8k": {"question": "Q", "answer": "#### 1"},
    "oskarvanderwal/bbq": BBQ,
    "abisee/cnn_dailymail": {"article": "A cat sat.", "highlights": "A cat sat.", "id": "1"},
}
"""A row of each data set that lm-eval's tasks name, in the columns they read."""
SPLITS = ("train", "validation", "test", "dev")


FOLDERS = (
    *("arc", "bbq", "cnn_dailymail", "gsm8k", "hellaswag", "mmlu/default", "truthfulqa"),
    "winogrande",
)
"""Where lm-eval keeps the tasks of both groups; it reads all its folders in half a minute."""


@pytest.fixture(scope="module", autouse=True)
def _rows_for_the_hub():
    """Give lm-eval 26 rows wherever it asks the hub."""

    def rows(path, name=None, **_):
        split = datasets.Dataset.from_list([{**HUB[path], "number": n} for n in range(26)])
        return datasets.DatasetDict(dict.fromkeys(SPLITS, split))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", rows)
        yield


@pytest.fixture(scope="module")
def manager():
    theirs = [str(Path(lm_eval.tasks.__file__).parent / folder) for folder in FOLDERS]
    return TaskManager(include_path=[*theirs, *task_folders()], include_defaults=False)


@pytest.fixture(scope="module")
def board(manager):
    """The leaderboard's results for the demo's base, of one row each."""
    return simple_evaluate(
        model="hf",
        model_args={"pretrained": str(family()["base"]), "max_length": 2048, "dtype": "float32"},
        tasks=["open_llm_leaderboard_v1"],
        task_manager=manager,
        gen_kwargs="max_gen_toks=4",
        limit=1,
        batch_size=32,
        device="cpu",
        bootstrap_iters=0,
    )


def test_the_leaderboard_has_its_six_tasks_its_shots_and_its_metrics(board):
    shots = board["n-shot"]
    subjects = [task for task in board["configs"] if task.startswith("mmlu_")]
    assert len(subjects) == 57
    assert {shots[task] for task in subjects} == {5}
    shown = {
        "arc_challenge": (25, "acc_norm,none"),
        "hellaswag": (10, "acc_norm,none"),
        "truthfulqa_mc2": (0, "acc,none"),
        "winogrande": (5, "acc,none"),
        "gsm8k": (5, "exact_match,strict-match"),
    }
    members = set(board["group_subtasks"]["open_llm_leaderboard_v1"])
    assert members == {*shown, "mmlu_mean_of_subjects"}
    for task, (n_shots, metric) in shown.items():
        assert shots[task] == n_shots
        assert metric in board["results"][task]
    (sample,) = board["samples"]["arc_challenge"]
    assert sample["arguments"][0][0].count("Question:") == 26


def test_mmlu_is_the_plain_mean_of_its_subjects(board):
    found = board["results"]
    scores = [found[task]["acc,none"] for task in board["configs"] if task.startswith("mmlu_")]
    mean = found["mmlu_mean_of_subjects"]["acc,none"]
    assert mean == pytest.approx(sum(scores) / len(scores))


def test_twin_mergings_four_are_lm_evals_with_rouge_2_only(manager):
    loaded = manager.load(["twin_merging"])
    four = {"mmlu_mean_of_subjects", "truthfulqa_mc1", "bbq", "cnn_dailymail_abisee"}
    assert set(loaded["group_map"]["twin_merging"]) == four
    summaries = loaded["tasks"]["cnn_dailymail_abisee"]
    (doc, *_) = summaries.test_docs()
    assert summaries.process_results(doc, ["A cat sat."]) == {"rouge2": 1.0}
    assert list(summaries.aggregation()) == ["rouge2"]
    assert loaded["tasks"]["mmlu_anatomy"].config.num_fewshot == 5


def test_rouge_2_of_a_summary():
    from harness_adapters.tasks.twin_merging.utils import rouge2

    row = {"highlights": "the cats sat on the mat"}
    assert rouge2(row, ["The cat sat on the mat"]) == {"rouge2": 1.0}
    assert rouge2(row, ["the cats sat"])["rouge2"] == pytest.approx(2 * 1 * 0.4 / 1.4)
    assert rouge2(row, [""]) == {"rouge2": 0.0}
