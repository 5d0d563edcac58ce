"""Rows of the South-East-Asian test sets, with the columns that Sailor's prompts name.

They come from Sailor's files where MERGE_PLUGINS_DATA is set (`merge-plugins sea-data` makes that
folder), else from the hub. M3Exam is on no hub in Sailor's wording and needs the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from harness_adapters.commands.sea_data import FILES
from harness_adapters.tasks.local_data import VARIABLE, Source, from_hub, load
from merge_plugins.errors import DataError

Row = dict[str, Any]
PREPARE = (
    "Prepare Sailor's own files: 'merge-plugins sea-data DIR', then "
    f"'export {VARIABLE}=DIR' (docs/tasks.md)."
)
MOST_OPTIONS = 5
# What XCOPA's "cause" and "effect" are called in a prompt.
ASKED = {
    "th": {"cause": "สาเหตุ", "effect": "ผล"},
    "id": {"cause": "menyebabkan", "effect": "memengaruhi"},
    "vi": {"cause": "gây ra", "effect": "tác dụng"},
}
TO_ARABIC = str.maketrans("๑๒๓๔๕", "12345")
CYRILLIC_B = "\N{CYRILLIC CAPITAL LETTER VE}"


class Hub(NamedTuple):
    """The same rows on the hub."""

    dataset: str
    revision: str
    split: str
    config: str
    left_out: tuple[range, ...] = ()
    """Numbers of rows that Sailor left out: paragraphs too long for it, and a few questions."""
    content: str = ""
    """SHA-256 of the rows that remain, as `fingerprint` has it."""


def _xquad(language: str, content: str, *left_out: int | range) -> Hub:
    numbers = tuple(n if isinstance(n, range) else range(n, n + 1) for n in left_out)
    revision = "51adfef1c1287aab1d2d91b5bead9bcfb9c68583"
    return Hub("google/xquad", revision, "validation", f"xquad.{language}", numbers, content)


def _xcopa(language: str, content: str) -> Hub:
    revision = "042f78955ba48e6404616762fa6e05e839c3907a"
    return Hub("cambridgeltl/xcopa", revision, "test", language, content=content)


def _belebele(language: str, content: str) -> Hub:
    revision = "7899cdfa4e1e0d733fd77c848e2c273cb1d32be2"
    return Hub("facebook/belebele", revision, "test", language, content=content)


HUB: Mapping[str, Hub] = {
    "xquad/xquad_th.json": _xquad(
        "th",
        "e63e2bc8887427a2089a793a3d6dd2c55ba4fc5e36a63f1364a7a8be2cd10ab4",
        *(21, range(400, 416), 464, 466, 470, range(545, 550), range(680, 685)),
        *(range(846, 851), 936, 1041, range(1174, 1178)),
    ),
    "xquad/xquad_vi.json": _xquad(
        "vi",
        "0892ff21bd8a3dc77b00bee07648fe509f84c09c626785fb385d38b6b280503a",
        21,
        56,
        110,
        range(400, 416),
        464,
        1041,
    ),
    "tydiqa_id/validation.jsonl": Hub(
        "google-research-datasets/tydiqa",
        "main",
        "validation",
        "secondary_task",
        content="9e359a78d23c513ee3f409f4da878c16231ef3be8a444251a0829ccf7722d703",
    ),
    "xcopa/th_test.jsonl": _xcopa(
        "th", "c4e93568f5dbe2eb9a908f751b08e3e85eb3263a981780d5be98e2392c6520c8"
    ),
    "xcopa/id_test.jsonl": _xcopa(
        "id", "fe6b25b1ca13b9c2cb2b0d559a9d80d2112800f6dc75cdad86051f4c8bc8b5ce"
    ),
    "xcopa/vi_test.jsonl": _xcopa(
        "vi", "7f8cd31ea54c5b48efc9862a2cb30e863235001d6ff36c136b45c2e6a189a2b7"
    ),
    "belebele/tha_Thai.jsonl": _belebele(
        "tha_Thai", "8a06084778d00a14ece7cd60821092c24dee8b4b896096e69e728ed4e1456c70"
    ),
    "belebele/ind_Latn.jsonl": _belebele(
        "ind_Latn", "1052422e941e808335061c53f6267afbde86d22a5384e4b28e4e3a6fdc23b267"
    ),
    "belebele/vie_Latn.jsonl": _belebele(
        "vie_Latn", "94b3b17b5c223bdbf8f0cb855296684526986ce6cd95b2b12d79d4aac498869c"
    ),
}


def rows(file: str) -> list[Row]:
    """Return the rows of one of Sailor's files, as a prompt and a score need them.

    Raises `DataError` where the data are missing; warns where the hub's rows are no longer those
    that Sailor scored.
    """
    hub = HUB.get(file)
    if VARIABLE in os.environ:
        source = Source(f"sea/{file}", *(hub[:3] if hub else ("Sailor's repository", "main", "")))
        return read(file, load(source))
    if hub is None:
        raise DataError(f"{file}: M3Exam as Sailor worded it is not on the hub. {PREPARE}")
    return scored(file, read(file, hub_rows(file)))


def hub_rows(file: str) -> list[Row]:
    """Return the rows of one of Sailor's files, as it has them, from the hub."""
    hub = HUB[file]
    source = Source(f"sea/{file}", *hub[:3], configs=(hub.config,))
    return as_sailor_has_them(hub, from_hub(source))


def read(file: str, given: Iterable[Row]) -> list[Row]:
    """Turn rows as a file of Sailor has them into rows as its prompts name them."""
    reader = next(reader for start, reader in READERS.items() if file.startswith(start))
    return [reader(row) for row in given]


def as_sailor_has_them(hub: Hub, given: Iterable[Row]) -> list[Row]:
    """Turn rows of the hub into rows as a file of Sailor has them."""
    left_out = {number for numbers in hub.left_out for number in numbers}
    kept = [row for number, row in enumerate(given) if number not in left_out]
    if hub.dataset == "google/xquad":  # the Thai paragraphs begin with a byte-order mark
        return [
            {**row, "context": row["context"].lstrip("\ufeff"), "answer": row["answers"]["text"][0]}
            for row in kept
        ]
    if hub.config == "secondary_task":
        indonesian = [row for row in kept if row["id"].startswith("indonesian")]
        return [{**row, "answer": row["answers"]["text"]} for row in indonesian]
    return kept


def scored(file: str, found: list[Row]) -> list[Row]:
    """Return the hub's rows, having said where they are not those that Sailor scored."""
    wanted = FILES[file].n_rows
    if len(found) != wanted:
        raise DataError(
            f"{HUB[file].dataset}: {len(found)} rows of {file}, Sailor scored {wanted}. {PREPARE}"
        )
    if fingerprint(found) != HUB[file].content:
        warnings.warn(
            f"{HUB[file].dataset} has changed: these {wanted} rows are not the ones that Sailor "
            f"scored. {PREPARE}",
            stacklevel=3,
        )
    return found


def fingerprint(found: list[Row]) -> str:
    """Return the SHA-256 of rows as `read` makes them."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _question(row: Row) -> Row:
    return {key: row[key] for key in ("context", "question", "answer")}


def _causal(asked: Mapping[str, str]) -> Callable[[Row], Row]:
    def read(row: Row) -> Row:
        kept = {key: row[key] for key in ("premise", "choice1", "choice2")}
        return {**kept, "question": asked[row["question"]], "answer": str(int(row["label"]))}

    return read


def _passage(row: Row) -> Row:
    kept = ("flores_passage", "question", *(f"mc_answer{n}" for n in (1, 2, 3, 4)))
    answer = "ABCD"[int(row["correct_answer_num"]) - 1]
    return {**{key: row[key] for key in kept}, "answer": answer}


def _thai_exam(row: Row) -> Row:
    answer = row["answer_text"].translate(TO_ARABIC)
    return {**_exam(row["question_text"], row["options"]), "answer": answer}


def _vietnamese_exam(row: Row) -> Row:
    # Two Cyrillic letters look like a B. Three texts keep the full stop of "A . Text".
    options = ["B" + o[1:] if o[0] == CYRILLIC_B else o for o in row["options"]]
    answer = row["answer_text"].replace(CYRILLIC_B, "B")
    texts = [text.removeprefix(".") for text in map(_text, options)]
    return {**_exam(row["question_text"], options, texts), "answer_text": answer}


def _javanese_exam(row: Row) -> Row:
    options = [o[0].upper() + o[1:] for o in row["options"]]
    question = row["question_text"].rstrip(". …")
    return {**_exam(question, options), "answer_text": row["answer_text"].upper()}


def _exam(question: str, options: list[str], texts: list[str] | None = None) -> Row:
    """Return a question with its options in one text and one by one, missing ones empty."""
    texts = list(map(_text, options)) if texts is None else texts
    texts += [""] * (MOST_OPTIONS - len(texts))
    columns = {f"options_{i}": text for i, text in enumerate(texts)}
    return {"question_text": question, "full_options": "\n".join(options), **columns}


def _text(option: str) -> str:
    """Return an option without its letter and full stop."""
    return option[2:].lstrip()


READERS: Mapping[str, Callable[[Row], Row]] = {
    "xquad/": _question,
    "tydiqa_id/": _question,
    **{f"xcopa/{language}": _causal(words) for language, words in ASKED.items()},
    "belebele/": _passage,
    "m3exam/thai": _thai_exam,
    "m3exam/vietnamese": _vietnamese_exam,
    "m3exam/javanese": _javanese_exam,
}
"""How a row is read, by how the name of its file begins."""
