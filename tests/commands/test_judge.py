"""`merge-plugins judge` against a judge on loopback that errs, babbles and is interrupted."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from loopback import Judge

from harness_adapters.commands import judge
from harness_adapters.commands.secret import Secrets
from merge_plugins.cli import main
from merge_plugins.errors import DataError, MergeError

pytest.importorskip("openai")

FILTERS = {"strict-match": [0, 1, 0, 1, 0, 0, 1, 0], "flexible-extract": [1, 1, 0, 1, 0, 1, 1, 0]}
RIGHT = [True, True, False, True, False, True, True, False]
QUESTIONS = [f"What is {n} plus {{n}}?" for n in range(8)]  # braces are no fields of a template


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """What lm-eval logs for eight documents and two filters."""
    file = tmp_path / "samples_gsm8k.jsonl"
    lines = [
        json.dumps(
            {
                "doc_id": i,
                "doc": {"question": question, "answer": f"so #### {2 * i}"},
                "target": f"so #### {2 * i}",
                "resps": [[f"I think {2 * i if RIGHT[i] else -1}"]],
                "filter": name,
                "exact_match": scores[i],
            }
        )
        for name, scores in FILTERS.items()
        for i, question in enumerate(QUESTIONS)
    ]
    file.write_text("\n".join(lines))
    return file


def question(body: dict[str, Any]) -> int:
    """Which of QUESTIONS a request is about."""
    text = body["messages"][1]["content"]
    return next(i for i, asked in enumerate(QUESTIONS) if asked in text)


def fair(body: dict[str, Any]) -> str:
    return "It is so. [[A]]" if RIGHT[question(body)] else "It is not. [[B]]"


@pytest.fixture
def run(samples: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command on the samples; return what it printed."""

    def run(server: Judge | None, *more: str, status: int = 0) -> str:
        url = [] if server is None else ["--base-url", server.url]
        assert main(["judge", str(samples), "--model", "gpt-judge", *url, *more]) == status
        said = capsys.readouterr()
        return said.out + said.err

    return run


def verdicts(samples: Path) -> list[dict[str, Any]]:
    lines = samples.with_suffix(".verdicts.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def table(said: str) -> dict[str, str]:
    """First word of each line of the summary, and the rest."""
    names = ("accuracy", *FILTERS, "ungraded")
    lines = (line.partition(" ") for line in said.splitlines())
    return {name: rest.strip() for name, _, rest in lines if name in names}


def test_accuracy_has_a_standard_error_and_the_filters_beside_it(run: Callable[..., str]) -> None:
    with Judge(fair) as server:
        said = run(server)
    stderr = math.sqrt(5 / 8 * 3 / 8 / 7)
    assert table(said) == {
        "accuracy": f"0.6250 ± {stderr:.4f}  (5 of 8 graded)",
        "strict-match": "0.3750  (exact match, 8 documents)",
        "flexible-extract": "0.6250  (exact match, 8 documents)",
        "ungraded": "0 documents: none",
    }
    assert said.startswith("8 documents, 0 judged before: 8 calls of gpt-judge at 127.0.0.1")


def test_each_document_is_asked_once_in_dellas_words_at_temperature_0(
    run: Callable[..., str],
) -> None:
    with Judge(fair) as server:
        run(server)
    assert sorted(map(question, server.calls)) == list(range(8))
    body = min(server.calls, key=question)
    system, user = (message["content"] for message in body["messages"])
    assert (body["model"], body["temperature"]) == ("gpt-judge", 0)
    assert system.endswith(
        'format:"[[A]]" if the response is correct , "[[B]]" if the response is wrong.'
    )
    assert user == (
        "Question: What is 0 plus {n}?\nReference Solution: so #### 0\n\n"
        "Response: I think 0\n\nFinal Verdict:<verdict>."
    )


@pytest.mark.parametrize(
    ("reply", "correct"),
    [
        ("[[A]]", True),
        ("Wrong, because 3 < 4.\n[[B]].", False),
        ("", None),
        ("A", None),
        ("[[A]] or [[B]]", None),
        ("[[A]] [[A]]", None),
        ("[[C]]", None),
    ],
)
def test_a_verdict_is_exactly_one_tag(reply: str, correct: bool | None) -> None:
    assert judge.verdict(reply) is correct


def test_errors_and_babble_are_asked_again(run: Callable[..., str], samples: Path) -> None:
    before: dict[int, Iterator[str | int]] = {
        0: iter([500, 503, 429]),
        1: iter(["hm", "[[A]] if right, [[B]] if not"]),
        2: iter(["hm", 500, "hm"]),
    }

    def moody(body: dict[str, Any]) -> str | int:
        return next(before.get(question(body), iter(())), fair(body))

    with Judge(moody) as server:
        said = run(server)
    assert table(said)["accuracy"].startswith("0.6250")
    assert len(server.calls) == 8 + 3 + 2 + 3
    assert {line["doc_id"]: line["tries"] for line in verdicts(samples)} == {
        0: 1, 1: 3, 2: 3, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1,
    }  # fmt: skip


def test_a_row_without_a_verdict_is_reported_not_dropped(
    run: Callable[..., str], samples: Path
) -> None:
    with Judge(lambda body: "hm" if question(body) == 3 else fair(body)) as server:
        said = run(server)
        assert len(server.calls) == 7 + judge.TRIES
        assert run(server).startswith("8 documents, 8 judged before: 0 calls")
        assert len(server.calls) == 7 + judge.TRIES
    assert table(said)["ungraded"] == "1 documents: 3"
    assert table(said)["accuracy"].endswith("(4 of 7 graded)")
    (kept,) = (line for line in verdicts(samples) if line["correct"] is None)
    assert (kept["doc_id"], kept["judge"], kept["tries"]) == (3, "hm", 5)


def test_a_row_that_the_server_refuses_is_reported_and_asked_again_next_time(
    run: Callable[..., str], samples: Path
) -> None:
    with Judge(lambda body: 400 if question(body) == 6 else fair(body)) as server:
        said = run(server)
    assert table(said)["ungraded"] == "1 documents: 6"
    assert "6: BadRequestError" in said
    assert len(verdicts(samples)) == 7
    with Judge(fair) as other:  # another address is another judge
        assert run(other, "--out", str(samples.with_name("v"))).startswith(
            "8 documents, 0 judged before: 8 calls"
        )


def test_no_verdict_at_all_is_a_failure(run: Callable[..., str]) -> None:
    with Judge(lambda body: "hm") as server:
        assert "(0 of 0 graded)" in run(server, "--limit", "1", status=1)


def test_a_second_run_makes_no_calls_and_another_model_all(
    run: Callable[..., str], samples: Path
) -> None:
    with Judge(fair) as server:
        first = run(server)
        again = run(server)
        assert len(server.calls) == 8
        assert again.startswith("8 documents, 8 judged before: 0 calls")
        assert table(again) == table(first)
        run(server, "--model", "gpt-other")
        run(server, "--max-tokens", "100")
        run(server, "--temperature", "0.5")
        assert len(server.calls) == 32
    assert len(verdicts(samples)) == 32


def test_a_changed_answer_is_judged_anew(run: Callable[..., str], samples: Path) -> None:
    with Judge(fair) as server:
        run(server)
        samples.write_text(samples.read_text().replace("I think -1", "No idea"))
        assert run(server).startswith("8 documents, 5 judged before: 3 calls")
        assert len(server.calls) == 11


def test_a_line_that_a_killed_run_left_unfinished_is_asked_again(
    run: Callable[..., str], samples: Path
) -> None:
    with Judge(fair) as server:
        run(server)
        file = samples.with_suffix(".verdicts.jsonl")
        file.write_bytes(file.read_bytes()[:-30])
        assert run(server).startswith("8 documents, 7 judged before: 1 calls")
    assert sorted(line["doc_id"] for line in verdicts(samples)) == list(range(8))


COMMAND = (
    "import signal, sys; from merge_plugins.cli import main; "
    "signal.signal(signal.SIGINT, signal.default_int_handler); "  # background jobs ignore it
    "sys.exit(main())"
)


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_an_interrupted_run_keeps_its_verdicts_and_the_next_goes_on(
    samples: Path, run: Callable[..., str]
) -> None:
    enough = threading.Event()

    def slow(body: dict[str, Any]) -> str:
        if len(server.calls) == 4:
            enough.set()
        time.sleep(3 if enough.is_set() else 0.3)  # the signal must come in between
        return fair(body)

    with Judge(slow) as server:
        words = ["judge", str(samples), "--model", "gpt-judge", "--base-url", server.url]
        child = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *words, "--workers", "2"],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert enough.wait(120)
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130
        assert child.stderr is not None
        with child.stderr:
            assert "Traceback" not in child.stderr.read()
        asked, kept = len(server.calls), len(verdicts(samples))
        assert 2 <= kept == asked < 8  # what was under way is kept too
        server.answer = fair
        assert run(server).startswith(f"8 documents, {kept} judged before: {8 - kept} calls")
        assert len(server.calls) == 8


def test_the_key_comes_from_the_environment_and_goes_nowhere_but_to_the_judge(
    run: Callable[..., str], samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "sk-never-write-this-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    with Judge(lambda body: 400 if question(body) == 1 else fair(body)) as server:
        said = run(server)  # the server sends the key back in its error
        server.answer = lambda body: 401
        samples.write_text(samples.read_text().replace("I think", "I say"))
        said += run(server, status=1)
    assert server.keys == {f"Bearer {secret}"}
    assert "$OPENAI_API_KEY" in said
    assert secret not in said
    written = [file.read_text() for file in samples.parent.rglob("*") if file.is_file()]
    assert len(written) == 2
    assert not any(secret in text for text in written)


def shown(secret: str, text: str) -> int:
    """How many characters in a row of a secret stand in a text."""
    pieces = (secret[i:j] for i in range(len(secret)) for j in range(i + 1, len(secret) + 1))
    return max((len(piece) for piece in pieces if piece in text), default=0)


SECRET = "sk-Qw3rTyUiOpAsDfGhJkLzXcVbNm/1+234567890%="


@pytest.mark.parametrize("before", [0, 150, 220, 225, 230, 260, 299])
def test_no_part_of_a_key_is_in_an_error_however_long(
    before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    error = RuntimeError("Error code: 400 - " + "x" * before + "Incorrect API key: " + SECRET)
    assert shown(SECRET, judge._message(error, Secrets.of(None))) < 8


@pytest.mark.parametrize(
    "reply",
    [
        f"[[A]] {SECRET}",
        f"[[A]] {SECRET[:20]}***",
        f"[[A]] {SECRET[10:]} and {SECRET[5:13]}",
        f"[[A]] {SECRET[:9]}{SECRET[:20]}{SECRET}",
        f"[[A]] http://x/?key={quote(SECRET, safe='')}",
        f"[[A]] {json.dumps(SECRET)}",
    ],
)
def test_a_reply_that_echoes_the_key_is_kept_without_it(
    reply: str, run: Callable[..., str], samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with Judge(lambda body: reply) as server:
        said = run(server)
    assert "1.0000" in said
    assert all(line["judge"].startswith("[[A]] ") for line in verdicts(samples))
    kept = samples.with_suffix(".verdicts.jsonl").read_text() + said
    for spelling in (SECRET, quote(SECRET, safe="")):
        assert shown(spelling, kept) < 8


def test_a_password_in_the_address_is_hidden_too(
    run: Callable[..., str], samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = "correct-horse-battery"
    with Judge(lambda body: f"[[A]] {password}") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url.replace("//", f"//me:{password}@"))
        said = run(None)
    assert password not in said + samples.with_suffix(".verdicts.jsonl").read_text()


@pytest.mark.parametrize(
    "wrong", ["sk-schlüssel", "sk-1 2", "sk-12\n", " sk-12", "sk\r\nX: y", "☃"]
)
@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "OPENAI_ORG_ID"])
def test_a_key_that_no_header_can_hold_is_refused_before_anything_is_sent(
    name: str, wrong: str, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, wrong)
    with Judge(fair) as server:
        said = run(server, status=1)
        assert not server.calls
    place = next(i for i, c in enumerate(wrong, 1) if not "!" <= c <= "~")
    assert f"{name}: character {place} of {len(wrong)} is a space, a line break or no ASC" in said
    assert wrong.strip() not in said


@pytest.mark.parametrize("wrong", ["127.0.0.1:8000", "ftp://host/v1", "http://[", "http://h:port"])
def test_an_address_that_is_none_is_refused(wrong: str, run: Callable[..., str]) -> None:
    said = run(None, "--base-url", wrong, status=1)
    assert "is one like http://127.0.0.1:8000/v1" in said


def test_without_a_key_or_an_address_nothing_is_sent(run: Callable[..., str]) -> None:
    assert "set the environment variable OPENAI_API_KEY" in run(None, status=1)


def test_what_would_befall_every_row_stops_the_run(
    run: Callable[..., str], samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Judge(lambda body: 401) as server:
        said = run(server, "--workers", "1", status=1)
        assert len(server.calls) == 1
    assert "AuthenticationError" in said
    assert "the same command goes on from there" in said
    with Judge(fair) as gone:
        pass
    monkeypatch.setattr(judge, "RETRIES", 0)  # the client waits longer before each
    assert "APIConnectionError" in run(gone, "--workers", "1", status=1)
    assert not samples.with_suffix(".verdicts.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [], "no samples"),
        (lambda lines: ["[1"], "Expecting"),
        (lambda lines: ["[]"], "line 1 is no logged GSM8K sample"),
        (lambda lines: [lines[0].replace("question", "problem")], "KeyError: 'question'"),
        (lambda lines: lines[:-1], "not every document has every filter"),
        (lambda lines: [*lines, lines[0]], "comes twice"),
        (lambda lines: [lines[0], lines[8].replace("I think", "No,")], "another answer above"),
        (lambda lines: [lines[0].replace("]]", ', "two"]]')], "no logged GSM8K sample"),
    ],
)
def test_a_file_that_is_not_logged_samples_is_refused(
    samples: Path, change: Callable[[Sequence[str]], list[str]], said: str
) -> None:
    samples.write_text("\n".join(change(samples.read_text().splitlines())))
    with pytest.raises(DataError, match=said.replace("[", r"\[")):
        judge.main([str(samples), "--model", "x", "--base-url", "http://127.0.0.1:9/v1"])


def test_a_file_of_something_else_is_not_added_to(samples: Path) -> None:
    with pytest.raises(DataError, match="no file of verdicts"):
        judge.main([str(samples), "--model", "x", "--base-url", "http://h", "--out", str(samples)])
    with pytest.raises(MergeError, match="--workers is 1 or more"):
        judge.main([str(samples), "--model", "x", "--workers", "0"])


def test_it_reads_what_lm_eval_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = pytest.importorskip("lm_eval.evaluator")
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    from merge_plugins.demo import family
    from merge_plugins.demo.skills import held_out

    rows = [{"question": row.prompt, "answer": row.answer} for row in held_out("math", 6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "sums.yaml").write_text(
        f"""
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}, cache_dir: {tmp_path}/cache}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
generation_kwargs: {{until: ["\\n"], do_sample: false, max_gen_toks: 24}}
filter_list:
  - {{name: whole, filter: [{{function: take_first}}]}}
  - name: sum
    filter: [{{function: regex, regex_pattern: "= (-?[0-9]+)"}}, {{function: take_first}}]
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
    )
    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)  # seconds of pip and git
    found = evaluator.simple_evaluate(
        "hf",
        {"pretrained": str(family()["math"])},
        tasks=["sums"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        device="cpu",
        bootstrap_iters=0,
    )
    tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
    tracker.save_results_aggregated(results=dict(found, samples=None), samples=found["samples"])
    tracker.save_results_samples(task_name="sums", samples=found["samples"]["sums"])
    (file,) = (tmp_path / "out").rglob("samples_sums_*.jsonl")
    rows_read = judge.read_samples(file)
    assert [row.response for row in rows_read] == [row["answer"] for row in rows]
    assert [row.scores for row in rows_read] == [{"whole": 1.0, "sum": 0.0}] * 6
