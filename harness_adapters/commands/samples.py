"""Read and write the judge's files: lm-eval's logged samples, and the verdicts on them."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merge_plugins.errors import DataError, MergeError


@dataclass
class Row:
    """One question with a model's response and its scores by lm-eval's filters."""

    doc_id: int
    question: str
    solution: str
    response: str
    scores: dict[str, float] = field(default_factory=dict)
    """``exact_match`` by filter."""


def read_samples(file: Path) -> list[Row]:
    """Read lm-eval's log, one line per document and filter, into one row per document."""
    rows: dict[int, Row] = {}
    for number, sample in _lines(file):
        try:
            logged = Row(
                sample["doc_id"],
                sample["doc"]["question"],
                sample["target"],
                *_one_response(sample["resps"]),
            )
            filtered = sample.get("filter", "none")
            score = float(sample["exact_match"])
        except (KeyError, TypeError, ValueError) as exc:
            raise DataError(
                f"{file}: line {number} is no logged GSM8K sample, {type(exc).__name__}: {exc}; "
                "name a samples_*.jsonl file that lm_eval --log_samples wrote"
            ) from exc
        row = rows.setdefault(logged.doc_id, logged)
        if (row.question, row.response) != (logged.question, logged.response):
            raise DataError(
                f"{file}: line {number}: document {row.doc_id} has another answer above"
            )
        if filtered in row.scores:
            raise DataError(f"{file}: line {number}: document {row.doc_id}, {filtered} comes twice")
        row.scores[filtered] = score
    if not rows:
        raise DataError(f"{file} holds no samples")
    kinds = {tuple(row.scores) for row in rows.values()}
    if len(kinds) > 1:
        raise DataError(f"{file}: not every document has every filter: {sorted(kinds)}")
    return list(rows.values())


def _one_response(resps: Any) -> tuple[str]:
    ((response,),) = resps  # of one request, one answer: repeats: 1
    if not isinstance(response, str):
        raise TypeError(f"resps holds {response!r:.40}")
    return (response,)


def _lines(file: Path) -> list[tuple[int, Any]]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
        return [(i, json.loads(line)) for i, line in enumerate(lines, 1) if line.strip()]
    except (OSError, ValueError) as exc:
        raise DataError(f"{file}: {exc}") from exc


class Verdicts:
    """A file of verdicts, one per line; each is appended as soon as it is known."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._mend()
        lines = _lines(file) if file.exists() else []
        if not all(isinstance(line, dict) and {"key", "correct"} <= {*line} for _, line in lines):
            raise DataError(f"{file} is no file of verdicts; name another one with --out")
        self.known = {line["key"]: line for _, line in lines}

    def _mend(self) -> None:
        """Cut a last line that a killed run left unfinished."""
        content = self.file.read_bytes() if self.file.exists() else b""
        if content and not content.endswith(b"\n"):
            with self.file.open("r+b") as handle:
                handle.truncate(content.rfind(b"\n") + 1)

    def add(self, verdict: Mapping[str, Any]) -> None:
        """Append a verdict to the file, then to `known`."""
        line = json.dumps(verdict, ensure_ascii=False) + "\n"
        with self._lock:
            try:
                with self.file.open("a", encoding="utf-8") as handle:
                    handle.write(line)
            except OSError as exc:
                raise MergeError(f"{self.file}: a verdict was not written: {exc}") from exc
            self.known[verdict["key"]] = verdict
