"""The alpaca-prompt tasks through lm-eval: prompts to the byte, scores that are known exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from memorised import PROBLEMS
from parrots import END, parrots

from harness_adapters.lm_eval.discovery import task_folders
from harness_adapters.tasks.local_data import VARIABLE
from harness_adapters.tasks.scoring import code, maths
from merge_plugins.demo import family

SHARED = Path(__file__).parents[3] / "shared" / "data"
TASKS = (
    *("gsm8k_cot_zeroshot_alpaca", "gsm8k_cot_zeroshot_alpaca_fixed", "gsm8k_alpaca_mergelm"),
    *("math_alpaca_mergelm", "humaneval_alpaca", "mbpp_alpaca"),
)
GSM8K = [
    {"question": "What is 9 + 9?", "answer": "It is <<9+9=18>>18.\n#### 18"},
    {"question": "How {many}?", "answer": "All.\n#### 1,234,567"},
    {"question": "How many\nto the first comma?", "answer": "Fewer.\n#### 1234"},
]
MATH = [
    {"instruction": "What is $2 + 3$?", "output": "The sum is $\\boxed{5}$."},
    {"instruction": "How many?", "output": "All $\\boxed{1,\\!234,\\!567}$ of them."},
    {"instruction": "In digits only?", "output": "It is $\\boxed{1234567}$."},
]
HUMANEVAL = [
    {
        "task_id": f"HumanEval/{number}",
        "prompt": f'def {name}(x):\n    """Return x {times}."""\n',
        "entry_point": name,
        "canonical_solution": f"    return {solution}\n",
        "test": f"def check(candidate):\n    assert candidate(3) == {result}\n",
    }
    for number, name, times, solution, result in [
        (900, "double", "twice", "2 * x", 6),
        (901, "cube", "to the third", "x**3", 27),
    ]
]
MBPP = PROBLEMS[:2]
DELLA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\\n\\n### Instruction:\\n What is 9 + 9? \\n\\n### Response: Let's think step by "
    "step"
)
ANSWER, NUMBER = "\nThe answer is: ", "1,234,567."
FENCE, PROGRAM = "\n```python\n", "def double(x):\n\treturn x + x"
KNOWN = {
    "left": [("by step.", ANSWER), ("by step", ANSWER), ("Response:", FENCE), (PROGRAM, "\n```")],
    "right": [(ANSWER, NUMBER), (NUMBER, END), (FENCE, PROGRAM), ("\n```", END)],
}
"""What follows the end of each prompt; only a merge of both experts says it to its end."""


def rows_file(folder: Path, name: str, rows: list[dict]) -> None:
    (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


@pytest.fixture(scope="module")
def manager():
    return TaskManager(include_path=list(task_folders()), include_defaults=False)


@pytest.fixture(scope="module")
def found(manager, tmp_path_factory):
    """Results, on rows of our own, of a merge that gives the same answer to every prompt."""
    models = parrots(tmp_path_factory.mktemp("models"), KNOWN).root
    data = tmp_path_factory.mktemp("data")
    rows_file(data, "gsm8k_test.jsonl", GSM8K)
    rows_file(data, "MATH_test.jsonl", MATH)
    rows_file(data, "HumanEval.jsonl", HUMANEVAL)
    rows_file(data, "mbpp.test.jsonl", MBPP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(data))
        patch.chdir(data)
        return simple_evaluate(
            model="merged",
            model_args={
                "method": "task_arithmetic",
                "base_model": str(models / "base"),
                "models": f"{models / 'left'}+{models / 'right'}",
            },
            tasks=list(TASKS),
            task_manager=manager,
            gen_kwargs="max_gen_toks=60",
            batch_size=4,
            device="cpu",
            bootstrap_iters=0,
            confirm_run_unsafe_code=True,
        )


@pytest.mark.parametrize(
    ("task", "scores"),
    [
        ("gsm8k_cot_zeroshot_alpaca", {"exact_match,strict-match": 1 / 3}),
        ("gsm8k_cot_zeroshot_alpaca_fixed", {"exact_match,strict-match": 1 / 3}),
        (
            "gsm8k_alpaca_mergelm",
            {"exact_match,none": 1 / 3, "exact_match_mergelm,none": 1 / 3},
        ),
        (
            "math_alpaca_mergelm",
            {"exact_match,none": 2 / 3, "exact_match_mergelm,none": 1 / 3},
        ),
        ("humaneval_alpaca", {"pass@1,none": 1 / 2}),
        ("mbpp_alpaca", {"pass@1,none": 1 / 2}),
    ],
)
def test_the_one_answer_is_right_where_each_reading_says_so(found, task, scores):
    assert {name: found["results"][task][name] for name in scores} == pytest.approx(scores)


def prompts(found, task):
    samples = {sample["doc_id"]: sample for sample in found["samples"][task]}
    return [samples[number]["arguments"][0][0] for number in sorted(samples)]


def test_the_prompts_are_the_published_ones(found):
    assert prompts(found, "gsm8k_cot_zeroshot_alpaca")[0] == DELLA
    assert prompts(found, "gsm8k_cot_zeroshot_alpaca_fixed")[0] == DELLA.replace("\\n", "\n")
    asked = [maths.prompt(row["question"]) for row in GSM8K]
    assert prompts(found, "gsm8k_alpaca_mergelm") == asked
    asked = [maths.prompt(row["instruction"]) for row in MATH]
    assert prompts(found, "math_alpaca_mergelm") == asked
    asked = [code.humaneval_prompt(row["prompt"]) for row in HUMANEVAL]
    assert prompts(found, "humaneval_alpaca") == asked
    assert prompts(found, "mbpp_alpaca") == [code.mbpp_prompt(row) for row in MBPP]


def test_generation_ends_where_the_seeds_ended_it(manager, monkeypatch, tmp_path):
    rows_file(tmp_path, "gsm8k_test.jsonl", GSM8K)
    rows_file(tmp_path, "MATH_test.jsonl", MATH)
    rows_file(tmp_path, "HumanEval.jsonl", HUMANEVAL)
    rows_file(tmp_path, "mbpp.test.jsonl", MBPP)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    tasks = manager.load(list(TASKS))["tasks"]
    settings = {name: dict(task.config.generation_kwargs) for name, task in tasks.items()}
    stops = list(maths.STOPS)
    della = {"until": ["Q:", "</s>", "<|im_end|>"], "max_gen_toks": 1000, "top_p": 1.0}
    assert settings == {
        "gsm8k_cot_zeroshot_alpaca": {**della, "do_sample": False},
        "gsm8k_cot_zeroshot_alpaca_fixed": {**della, "do_sample": False},
        "gsm8k_alpaca_mergelm": {"until": stops, "do_sample": False, "max_gen_toks": 1024},
        "math_alpaca_mergelm": {"until": stops, "do_sample": False, "max_gen_toks": 2048},
        "humaneval_alpaca": {"until": [], "do_sample": False, "max_gen_toks": 2048},
        "mbpp_alpaca": {"until": [], "do_sample": False, "max_gen_toks": 2048},
    }
    assert all(task.config.num_fewshot == 0 for task in tasks.values())


def evaluated(tasks, manager, **options):
    return simple_evaluate(
        model="merged",
        model_args={
            "method": "ties",
            "base_model": str(family()["base"]),
            "models": f"{family()['math']}+{family()['code']}",
            "weights": 1,
            "density": 0.5,
            "max_length": 2048,
            "dtype": "float32",  # on a CPU faster than their bfloat16
        },
        tasks=tasks,
        task_manager=manager,
        gen_kwargs="max_gen_toks=4",
        batch_size=25,
        device="cpu",
        bootstrap_iters=0,
        **options,
    )


@pytest.mark.parametrize("task", ["humaneval_alpaca", "mbpp_alpaca"])
def test_code_is_run_only_when_the_user_allows_it(manager, monkeypatch, tmp_path, task):
    rows_file(tmp_path, "HumanEval.jsonl", HUMANEVAL)
    rows_file(tmp_path, "mbpp.test.jsonl", MBPP)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="marked as unsafe"):
        evaluated([task], manager)


def test_fifty_real_rows_run_on_the_demo_family(manager, monkeypatch, tmp_path):
    if not SHARED.is_dir():
        pytest.skip("GSM8K and MBPP are not in this checkout")
    monkeypatch.setenv(VARIABLE, str(SHARED))
    monkeypatch.chdir(tmp_path)
    tasks = ["gsm8k_alpaca_mergelm", "mbpp_alpaca"]
    found = evaluated(tasks, manager, limit=50, confirm_run_unsafe_code=True)
    text = (SHARED / "mbpp.test.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert prompts(found, "mbpp_alpaca") == [code.mbpp_prompt(row) for row in rows[:50]]
    assert {task: len(samples) for task, samples in found["samples"].items()} == {
        "gsm8k_alpaca_mergelm": 50,
        "mbpp_alpaca": 50,
    }
