"""The alpaca-prompt configs in OpenCompass: prompts, generations and scores are lm-eval's.

Skipped only where OpenCompass is not installed, and not even there with REQUIRE_OPENCOMPASS=1.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import pytest
from memorised import PROBLEMS
from parrots import END, parrots

if not os.environ.get("REQUIRE_OPENCOMPASS"):
    pytest.importorskip("opencompass.utils", exc_type=ModuleNotFoundError)

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from mmengine.config import Config as File
from opencompass.tasks import OpenICLEvalTask, OpenICLInferTask
from opencompass.utils.prompt import get_prompt_hash
from opencompass.utils.run import match_cfg_file

from harness_adapters.lm_eval.discovery import task_folders
from harness_adapters.opencompass import merged_model
from harness_adapters.tasks.local_data import VARIABLE
from harness_adapters.tasks.opencompass.alpaca import CONSENT, HumanevalEvaluator, MbppEvaluator
from harness_adapters.tasks.scoring import maths
from merge_plugins.demo import family
from merge_plugins.errors import MergeError

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "tasks" / "opencompass" / "configs"
SHARED = ROOT.parent / "shared" / "data"
NAMES = ("gsm8k_alpaca_mergelm", "math_alpaca_mergelm", "humaneval_alpaca", "mbpp_alpaca")
ROWS = {
    "gsm8k_test.jsonl": [
        {"question": "How {many}?", "answer": "All.\n#### 1,234,567"},
        {"question": "To the first comma?", "answer": "Fewer.\n#### 1234"},
        {"question": "None?", "answer": "None.\n#### 0"},
    ],
    "MATH_test.jsonl": [
        {"problem": "How many?", "solution": "All $\\boxed{1,\\!234,\\!567}$ of them."},
        {"problem": "In digits only?", "solution": "It is $\\boxed{1234567}$."},
    ],
    "HumanEval.jsonl": [
        {
            "task_id": "HumanEval/900",
            "prompt": 'def double(x):\n    """Return x twice."""\n',
            "entry_point": "double",
            "canonical_solution": "    return 2 * x\n",
            "test": "def check(candidate):\n    assert candidate(3) == 6\n",
        }
    ],
    "mbpp.test.jsonl": list(PROBLEMS[:2]),
}
ANSWER, NUMBER = "\nThe answer is: ", "1,234,567."
FENCE, PROGRAM = "\n```python\n", "def double(x):\n\treturn x + x"
KNOWN = {
    "left": [("by step.", ANSWER), ("Response:", FENCE), (PROGRAM, "\n```")],
    "right": [(ANSWER, NUMBER), (NUMBER, END), (FENCE, PROGRAM), ("\n```", END)],
}


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """Our rows; OpenCompass litters the folder it runs in."""
    for name, rows in ROWS.items():
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.setenv(CONSENT, "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def entries(names, **inferencer):
    found = []
    for name in names:
        file = File.fromfile(CONFIGS / "datasets" / name / f"{name}_gen.py")
        (entry,) = file[f"{name}_datasets"]
        entry.infer_cfg.inferencer |= inferencer
        found.append(entry)
    return found


def in_opencompass(models, method, names, folder, **inferencer):
    """Return each data set's predictions and results for a merge of two experts."""
    left, right = models
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(left.parent / "base"),
        "models": [{"model": str(left)}, {"model": str(right)}],
        "parameters": dict(method),
    }
    model = merged_model(recipe, max_seq_len=2048, dtype="float32")
    run = {"models": [model], "datasets": [entries(names, **inferencer)], "work_dir": str(folder)}
    OpenICLInferTask(File(run)).run()
    OpenICLEvalTask(File(run)).run()
    return {
        name: [
            json.loads((folder / kind / model["abbr"] / f"{name}.json").read_text())
            for kind in ("predictions", "results")
        ]
        for name in names
    }


def in_lm_eval(models, method, names, **options):
    left, right = models
    return simple_evaluate(
        model="merged",
        model_args={
            "method": "task_arithmetic",
            "base": str(left.parent / "base"),
            "models": f"{left}+{right}",
            "max_length": 4096,
            "dtype": "float32",
            **method,
        },
        tasks=list(names),
        task_manager=TaskManager(include_path=list(task_folders()), include_defaults=False),
        device="cpu",
        batch_size=1,
        bootstrap_iters=0,
        confirm_run_unsafe_code=True,
        **options,
    )


def assert_the_same(opencompass, lm_eval, n_rows):
    for name, (predictions, results) in opencompass.items():
        samples = lm_eval["samples"][name][:n_rows]
        for sample in samples:
            ours = predictions[str(sample["doc_id"])]
            assert sample["arguments"][0][0] == ours["origin_prompt"]
            assert sample["resps"][0][0] == ours["prediction"]
        measured = {
            key.removesuffix(",none"): 100 * value
            for key, value in lm_eval["results"][name].items()
            if key.endswith(",none") and "stderr" not in key
        }
        assert {key: results[key] for key in measured} == pytest.approx(measured)


@pytest.mark.parametrize("name", NAMES)
def test_the_suffix_is_the_hash_and_the_alias_its_config(name):
    alias = File.fromfile(CONFIGS / "datasets" / name / f"{name}_gen.py")
    (named,) = (CONFIGS / "datasets" / name).glob(f"{name}_gen_??????.py")
    whole = File.fromfile(named)
    assert [key for key in whole if key.endswith("_datasets")] == [f"{name}_datasets"]
    assert whole[f"{name}_datasets"] == alias[f"{name}_datasets"]
    assert get_prompt_hash(copy.deepcopy(whole[f"{name}_datasets"]))[:6] == named.stem[-6:]
    assert len(match_cfg_file([str(CONFIGS / "datasets")], [f"{name}_gen"])) == 1


def test_generation_ends_where_lm_evals_does():
    tasks = TaskManager(include_path=list(task_folders()), include_defaults=False).load(
        list(NAMES)
    )["tasks"]
    for name, entry in zip(NAMES, entries(NAMES), strict=True):
        wanted = tasks[name].config.generation_kwargs
        inferencer = entry.infer_cfg.inferencer
        assert inferencer.max_out_len == wanted["max_gen_toks"]
        assert list(inferencer.get("stopping_criteria", [])) == wanted["until"]
    assert list(entries(NAMES)[0].infer_cfg.inferencer.stopping_criteria) == list(maths.STOPS)


def test_both_harnesses_ask_answer_and_score_the_same(data):
    root = parrots(data / "models", KNOWN).root
    models = (root / "left", root / "right")
    ours = in_opencompass(models, {"lambda": 1.0}, NAMES, data / "out")
    assert ours["gsm8k_alpaca_mergelm"][1]["exact_match"] == pytest.approx(100 / 3)
    assert ours["math_alpaca_mergelm"][1]["exact_match"] == 100
    assert ours["math_alpaca_mergelm"][1]["exact_match_mergelm"] == 50
    assert ours["humaneval_alpaca"][1]["pass@1"] == 100
    assert ours["mbpp_alpaca"][1]["pass@1"] == 50
    assert_the_same(ours, in_lm_eval(models, {"lambda": 1.0}, NAMES), 3)


@pytest.mark.parametrize("evaluator", [HumanevalEvaluator, MbppEvaluator])
def test_code_is_run_only_when_the_user_allows_it(evaluator, monkeypatch):
    monkeypatch.delenv(CONSENT)
    with pytest.raises(MergeError, match=f"{CONSENT}=1"):
        evaluator().score(["pass"], [json.dumps(PROBLEMS[0])])


def test_predictions_without_a_row_are_an_error():
    assert "2 predictions" in MbppEvaluator().score(["a", "b"], ["{}"])["error"]


def test_fifty_real_rows_on_the_demo_family(data, monkeypatch):
    if not SHARED.is_dir():
        pytest.skip("GSM8K and MBPP are not in this checkout")
    for name in ("gsm8k_test.jsonl", "mbpp.test.jsonl"):
        lines = (SHARED / name).read_text(encoding="utf-8").splitlines()
        (data / name).write_text("\n".join(lines[:50]), encoding="utf-8")
    models = (family()["math"], family()["code"])
    names = ("gsm8k_alpaca_mergelm", "mbpp_alpaca")
    ours = in_opencompass(models, {"lambda": 0.5}, names, data / "out", max_out_len=3)
    theirs = in_lm_eval(models, {"lambda": 0.5}, names, gen_kwargs="max_gen_toks=3")
    assert {len(predictions) for predictions, _ in ours.values()} == {50}
    assert_the_same(ours, theirs, 50)
