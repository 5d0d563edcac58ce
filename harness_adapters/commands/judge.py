"""Grade logged answers with a language model, as in DELLA: `merge-plugins judge`.

Reads the file that ``lm_eval --log_samples`` wrote for GSM8K, requests a verdict on each answer
from a judge behind any OpenAI-compatible address, and prints the accuracy with its standard error
beside the scores of lm-eval's own filters. Each verdict is written as it arrives, so a stopped run
continues where it was, and a repeated one sends no requests.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from harness_adapters.commands.samples import Row, Verdicts, read_samples
from harness_adapters.commands.secret import KEY, Secrets
from merge_plugins.cli import takes
from merge_plugins.errors import MergeError
from merge_plugins.installing import to_install

SYSTEM = (
    "You are a helpful assistant, that evaluates models by the quality of their answers to math "
    "questions.To do so, I will give you the instructions (prompts) given to the models, and the "
    "response of the model and a reference solution. Please evaluate the models based on "
    "mathematical correctness by referring to the reference solution.Be as objective as possible. "
    "After providing your explanation, output your final verdict by strictly following this "
    'format:"[[A]]" if the response is correct , "[[B]]" if the response is wrong.'
)
USER = (
    "Question: {question}\nReference Solution: {solution}\n\nResponse: {response}\n\n"
    "Final Verdict:<verdict>."
)
"""DELLA's prompts to the byte, missing spaces included."""
TRIES = 5
"""Requests per answer, at most, if replies have no verdict, or two."""
RETRIES = 5
"""Retries of a request that failed in transit; the client waits longer each time."""


@dataclass(frozen=True)
class Asker:
    """Request verdicts from the judge."""

    client: Any
    model: str
    options: Mapping[str, Any]
    """Further fields of a request: temperature and, optionally, max_tokens."""
    secrets: Secrets = field(default_factory=Secrets)

    def messages(self, row: Row) -> list[dict[str, str]]:
        """Build the chat messages of the request for one row."""
        text = USER.format(question=row.question, solution=row.solution, response=row.response)
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]

    def key(self, row: Row) -> str:
        """Hash all that a verdict depends on: address, model, options and messages."""
        asked = [str(self.client.base_url), self.model, dict(self.options), self.messages(row)]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def ask(self, row: Row) -> dict[str, Any]:
        """Request the verdict on one row; ``correct`` is None after `TRIES` unclear replies."""
        correct, tries, text = None, 0, ""
        while correct is None and tries < TRIES:
            reply = self.client.chat.completions.create(
                model=self.model, messages=self.messages(row), **self.options
            )
            text = (reply.choices[0].message.content if reply.choices else None) or ""
            correct, tries = verdict(text), tries + 1
        return {
            "key": self.key(row),
            "doc_id": row.doc_id,
            "correct": correct,
            "model": self.model,
            "tries": tries,
            "judge": self.secrets.hide(text),
        }


def verdict(text: str) -> bool | None:
    """Parse a judge's reply: True for [[A]], False for [[B]], None unless there is exactly one."""
    tags = re.findall(r"\[\[([AB])\]\]", text)
    return tags[0] == "A" if len(tags) == 1 else None


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("samples", type=Path, metavar="SAMPLES", help="samples_gsm8k….jsonl")
    parser.add_argument("--model", required=True, help="the judge, as its server calls it")
    parser.add_argument("--base-url", help="default: $OPENAI_BASE_URL, else OpenAI's")
    parser.add_argument("--out", type=Path, help="verdicts; default: SAMPLES….verdicts.jsonl")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N documents")
    parser.add_argument("--workers", type=int, default=8, help="requests at once (8)")
    parser.add_argument("--temperature", type=float, default=0.0, help="(0)")
    parser.add_argument("--max-tokens", type=int, help="of a reply; default: the server's limit")


@takes(_arguments, group="scores")
def main(options: argparse.Namespace) -> int:
    """Grade logged answers to GSM8K with a language model."""
    for name in ("limit", "workers", "max_tokens"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise MergeError(f"--{name.replace('_', '-')} is 1 or more; got {value}")
    rows = read_samples(options.samples)[: options.limit]
    limit = {} if options.max_tokens is None else {"max_tokens": options.max_tokens}
    request = {"temperature": options.temperature, **limit}
    address = options.base_url or os.environ.get("OPENAI_BASE_URL")
    secrets = Secrets.of(address)
    asker = Asker(_client(address), options.model, request, secrets)
    verdicts = Verdicts(options.out or options.samples.with_suffix(".verdicts.jsonl"))
    todo = {key: row for row in rows if (key := asker.key(row)) not in verdicts.known}
    n_known = sum(asker.key(row) in verdicts.known for row in rows)
    print(
        f"{len(rows)} documents, {n_known} judged before: {len(todo)} calls of {asker.model} at "
        f"{urlsplit(str(asker.client.base_url)).hostname}, up to {TRIES} for each where a reply is "
        f"no verdict; into {verdicts.file}",
        flush=True,
    )
    with asker.client:
        failed = _ask_all(asker, todo, verdicts, options.workers)
    summary = summarise(rows, [verdicts.known.get(asker.key(row)) for row in rows])
    _show(summary, failed)
    return 0 if summary["graded"] else 1


def _client(address: str | None) -> Any:
    try:
        import openai
    except ImportError as exc:
        raise MergeError(f"{exc}: {to_install('judge')}") from exc
    key = os.environ.get(KEY)
    if not key and not address:
        raise MergeError(
            f"the judge needs a key: set the environment variable {KEY}; or name a server that "
            "needs none with --base-url http://127.0.0.1:8000/v1"
        )
    return openai.OpenAI(base_url=address, api_key=key or "none", max_retries=RETRIES)


def _ask_all(
    asker: Asker, todo: Mapping[str, Row], verdicts: Verdicts, workers: int
) -> dict[int, str]:
    """Request every verdict and keep it; return the error messages by document.

    Raises `MergeError` at once for an error that would affect all other rows as well.
    """
    import openai

    hopeless = (
        openai.APIConnectionError,
        openai.AuthenticationError,
        openai.NotFoundError,
        openai.PermissionDeniedError,
        openai.RateLimitError,
    )
    failed: dict[int, str] = {}
    stop = threading.Event()

    def one(row: Row) -> None:
        if stop.is_set():
            return
        try:
            verdicts.add(asker.ask(row))
        except openai.OpenAIError as exc:
            if isinstance(exc, hopeless):
                stop.set()
                raise
            failed[row.doc_id] = _message(exc, asker.secrets)
        progress.update()

    with (
        tqdm(total=len(todo), desc="Judging", unit="row", disable=not todo) as progress,
        ThreadPoolExecutor(workers) as pool,
    ):
        runs = [pool.submit(one, row) for row in todo.values()]
        try:
            done, _ = wait(runs, return_when=FIRST_EXCEPTION)
            for run in done:
                run.result()
        except openai.OpenAIError as exc:
            raise MergeError(
                f"the judge cannot be asked: {_message(exc, asker.secrets)}. "
                f"{len(verdicts.known)} verdicts are in {verdicts.file}; the same command goes on "
                "from there"
            ) from exc
        finally:  # requests in flight are paid for: the pool waits for their verdicts
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
    return failed


def _message(exc: BaseException, secrets: Secrets) -> str:
    """Shorten an error to one line, without the key that a server may have sent back."""
    return secrets.hide(f"{type(exc).__name__}: {exc}").splitlines()[0][:300]


def summarise(rows: Sequence[Row], verdicts: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """Compute accuracy over graded rows, its standard error, counts, and the filters' scores.

    ``verdicts``: the verdict on each row, if there is one. Scores of filters are over all rows.
    """
    correct = [None if one is None else one["correct"] for one in verdicts]
    graded = [one for one in correct if one is not None]
    n, share = len(graded), sum(graded) / len(graded) if graded else math.nan
    filters = {name: sum(row.scores[name] for row in rows) / len(rows) for name in rows[0].scores}
    return {
        "documents": len(rows),
        "graded": n,
        "right": sum(graded),
        "accuracy": share,
        "stderr": math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else math.nan,
        "ungraded": [row.doc_id for row, one in zip(rows, correct, strict=True) if one is None],
        "filters": filters,
    }


def _show(summary: Mapping[str, Any], failed: Mapping[int, str]) -> None:
    filters: Mapping[str, float] = summary["filters"]
    wide = max(map(len, ("accuracy", *filters)))
    share = f"{summary['accuracy']:.4f} ± {summary['stderr']:.4f}"
    print(f"{'accuracy':{wide}}  {share}  ({summary['right']} of {summary['graded']} graded)")
    for name, score in filters.items():
        print(f"{name:{wide}}  {score:.4f}  (exact match, {summary['documents']} documents)")
    ungraded = ", ".join(map(str, summary["ungraded"])) or "none"
    print(f"{'ungraded':{wide}}  {len(summary['ungraded'])} documents: {ungraded}")
    for doc_id, why in failed.items():
        print(f"{'':{wide}}  {doc_id}: {why}; asked again next time")
