"""Rows from the user's folder, and what is said when they are not there; programs that run."""

from __future__ import annotations

import gzip
import json
import time

import pytest

from harness_adapters.tasks import benchmarks
from harness_adapters.tasks.local_data import VARIABLE, Source, load
from harness_adapters.tasks.scoring.execution import runs
from merge_plugins.errors import DataError

SOURCE = Source("deep/rows.jsonl", "org/rows", "0123456789abcdef", "test", columns=("a", "b"))
ROWS = [{"a": 1, "b": "บริบท"}, {"a": 2, "b": "\u2028"}]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "deep").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n"),
        ("rows.jsonl", json.dumps(ROWS)),
        ("rows.jsonl.gz", "\r\n".join(map(json.dumps, ROWS))),
    ],
)
def test_rows_of_a_file_below_the_folder(folder, name, content):
    data = content.encode()
    (folder / "deep" / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert load(SOURCE) == ROWS


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"has no deep/rows\.jsonl: expected there.*org/rows@01234567 \(test\)"),
        ("", "has no rows"),
        ('{"a": 1}', "row 1 has no 'b'; expected the columns .* a, b"),
        ("3\n", "row 1 is not a JSON object"),
        ("{'a': 1}", "is not JSON, one object per line"),
    ],
)
def test_a_bad_file_is_named_with_what_was_expected(folder, content, said):
    if content is not None:
        (folder / "deep" / "rows.jsonl").write_text(content)
    with pytest.raises(DataError, match=said):
        load(SOURCE)


def test_without_a_hub_the_message_says_which_file_would_do(monkeypatch, tmp_path):
    import datasets

    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(DataError, match=r"openai/gsm8k@740312ad.*gsm8k_test\.jsonl, set MERGE_"):
        benchmarks.gsm8k()


@pytest.mark.parametrize("names", [("instruction", "output"), ("problem", "solution")])
def test_math_rows_may_have_the_seeds_or_the_hubs_column_names(folder, names):
    row = dict(zip(names, ("1 + 1?", "\\boxed{2}"), strict=True))
    (folder / "MATH_test.jsonl").write_text(json.dumps({**row, "level": "1"}))
    assert benchmarks.math() == [{"question": "1 + 1?", "answer": "\\boxed{2}"}]


def test_math_rows_of_another_kind_are_refused(folder):
    (folder / "MATH_test.jsonl").write_text('{"question": "1 + 1?"}')
    with pytest.raises(DataError, match="'problem' and 'solution'; the first has 'question'"):
        benchmarks.math()


@pytest.mark.parametrize(
    ("program", "ends"),
    [
        ("assert 1 + 1 == 2", True),
        ("assert 1 + 1 == 3", False),
        ("def f(:", False),
        ("exit()", False),
        ("import os; os._exit(0)", False),
        ("input()", False),
        ("big = bytearray(8 * 2**30)", False),
        ("open('big', 'wb').write(bytes(2**25))", False),
        ("import os; assert not {'HF_TOKEN', 'OPENAI_API_KEY'} & set(os.environ)", True),
        ("import os; assert os.listdir() == []", True),
        ("assert __name__ != '__main__'", True),
    ],
)
def test_a_program_runs_to_its_end_or_not(program, ends, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert runs(program, seconds=30) is ends


def test_a_program_that_takes_too_long_is_stopped_with_all_it_started(tmp_path):
    file = tmp_path / "alive"
    child = f"import time; time.sleep(2); open({str(file)!r}, 'w')"
    start = time.monotonic()
    program = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])"
    assert not runs(program, seconds=0.5)
    assert time.monotonic() - start < 2
    time.sleep(2.5 - (time.monotonic() - start))
    assert not file.exists()


HUMANEVAL = {
    "task_id": "HumanEval/900",
    "prompt": 'def double(x):\n    """Twice x."""\n',
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(3) == 6\n",
}
MBPP = {"task_id": 900, "text": "Double x.", "test_list": ["assert double(3) == 6"]}


@pytest.mark.parametrize(
    ("completion", "solved"),
    [
        ("```python\ndef double(x):\n\treturn 2 * x\n```", True),
        ("def double(x):\n    return x\n", False),
        ("    return 2 * x\n", False),  # the protocol strips a bare body's indentation
    ],
)
def test_a_problem_is_solved_when_its_tests_pass(completion, solved):
    assert benchmarks.solves_humaneval(HUMANEVAL, completion) is solved
    assert benchmarks.solves_mbpp(MBPP, completion) is solved


def test_the_reference_solutions_of_mbpp_solve_it(monkeypatch):
    from pathlib import Path

    shared = Path(__file__).parents[3] / "shared" / "data"
    if not (shared / benchmarks.MBPP.file).is_file():
        pytest.skip("MBPP is not in this checkout")
    monkeypatch.setenv(VARIABLE, str(shared))
    rows = benchmarks.mbpp()[:5]
    assert all(benchmarks.solves_mbpp(row, f"```python\n{row['code']}\n```") for row in rows)
    assert not any(benchmarks.solves_mbpp(row, "pass") for row in rows)
