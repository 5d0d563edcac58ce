"""Files that were damaged or made up: what the safetensors library refuses, we refuse; no more."""

from __future__ import annotations

import copy
import json
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from damaged_bytes import damaged
from safetensors import safe_open

from merge_plugins.weights import StoredTensor
from merge_plugins.weights.headers import read_header
from merge_plugins.weights.stored import DTYPES

Attempt = Callable[[Callable[[], Any]], Any]
Stream = Callable[[int], Iterator[Random]]
SIZES = {
    "F64": 8,
    "F32": 4,
    "BF16": 2,
    "I64": 8,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "C64": 8,
    "F4": 1,
}
NAMES = ("w", "model.norm.weight", "é\n", "", "__metadata__", "a" * 300, "\0")
STRANGE = (
    *(None, True, -1, 0.0, 4.0, 1e300, 2**63, 2**64, 10**30, "", "F32", "4", [], [[]], {}),
    *([0], [0, 1, 2], [-2, -2], [True], [4.0], [1, -1], [2**63, 2], [2**32, 2**32], {"a": 1}),
)
RAW = (
    b"",
    b"[",
    b"{}",
    b"\xef\xbb\xbf{}",
    b"null",
    b'"w"',
    b"[" * 5000,
    b'{"a":' * 5000,
    b"\xff{}",
)


Entries = list[tuple[str, Any]]


def file_of(random: Random) -> bytes:
    """Draw a file: usually valid but for one fault, at times none or several."""
    entries: Entries = []
    start = 0
    for _ in range(random.randrange(4)):
        dtype = random.choice([*SIZES])
        shape = [random.choice((0, 1, 2, 3)) for _ in range(random.randrange(4))]
        stop = start + int(torch.Size(shape).numel() * SIZES[dtype])
        entry = {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
        name = random.choice(NAMES) if random.random() < 0.2 else f"w{len(entries)}"
        entries.append((name, entry))
        start = stop
    body = random.randbytes(start)
    for fault in random.choices(FAULTS, k=random.choice((0, 1, 1, 1, 2))):
        body = fault(random, entries, body)
    random.shuffle(entries)
    # by hand, as a dict holds each name once
    pairs = (f"{json.dumps(name)}:{json.dumps(entry)}" for name, entry in entries)
    header = f"{{{','.join(pairs)}}}".encode()
    if random.random() < 0.05:
        header = random.choice(RAW)
    if random.random() < 0.05:
        header = header.decode(errors="ignore").encode(
            random.choice(("utf-16-le", "utf-32", "utf-7"))
        )
    header += b" " * random.choice((0, 0, 1, 7))
    length = len(header)
    if random.random() < 0.05:
        length = random.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1))
    return struct.pack("<Q", max(0, length)) + header + body


def last(entries: Entries) -> list[dict[str, Any]]:
    """The last tensor, if it is still one."""
    tensors = [entry for _, entry in entries if isinstance(entry, dict) and len(entry) >= 3]
    return [entry for entry in tensors if isinstance(entry.get("data_offsets"), list)][-1:]


def moved(random: Random, entries: Entries, body: bytes) -> bytes:
    """Move a tensor: overlaps, gaps, offsets before the start or beyond the end."""
    for entry in last(entries):
        by = random.choice((-100, -16, -8, -4, -1, 1, 4, 16, 2**40))
        for side in random.choice(((0,), (1,), (0, 1))):
            if entry["data_offsets"][side:] and isinstance(entry["data_offsets"][side], int):
                entry["data_offsets"][side] += by
    return body


def longer(random: Random, _: Entries, body: bytes) -> bytes:
    return body + bytes(random.choice((1, 8, 100)))


def shorter(random: Random, _: Entries, body: bytes) -> bytes:
    return body[: -random.choice((1, 8, 100))]


def twice(random: Random, entries: Entries, body: bytes) -> bytes:
    entries += entries[-1:]
    return body


def strange(random: Random, entries: Entries, body: bytes) -> bytes:
    """Put another kind of value somewhere."""
    for entry in last(entries):
        key = random.choice((*entry, "more"))
        value = copy.deepcopy(random.choice(STRANGE))
        if isinstance(entry.get(key), list) and entry[key] and random.random() < 0.5:
            entry[key][random.randrange(len(entry[key]))] = value
        else:
            entry[key] = value
    return body


def without(random: Random, entries: Entries, body: bytes) -> bytes:
    for entry in last(entries):
        entry.pop(random.choice([*entry]))
    return body


def metadata(random: Random, entries: Entries, body: bytes) -> bytes:
    entries.append(("__metadata__", random.choice(({}, {"format": "pt"}, *STRANGE))))
    return body


FAULTS = (moved, longer, shorter, twice, strange, without, metadata)


def theirs(file: Path) -> dict[str, bytes | None] | None:
    """Read a file with the library: bytes by name, None for a dtype we do not merge; or None."""
    try:
        with safe_open(file, "pt") as opened:
            found: dict[str, bytes | None] = {}
            for name in opened.keys():  # noqa: SIM118 - no mapping
                tensor = opened.get_tensor(name)
                torch.empty(tensor.shape)  # empty ones of 2**64 columns can be read, and no more
                known = opened.get_slice(name).get_dtype() in DTYPES
                found[name] = raw(tensor) if known else None
            return found
    except Exception:
        return None


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def agreed(file: Path, attempt: Attempt, outcomes: Counter[str]) -> None:
    """Read a file in both ways and compare."""
    expected = theirs(file)
    found: dict[str, StoredTensor] | None = attempt(lambda: read_header(file))
    if expected is None:
        outcomes["refused by safetensors"] += 1
        assert found is None
    elif None in expected.values():
        outcomes["of a dtype that cannot be merged"] += 1
        assert found is None
    else:
        assert found is not None
        assert {name: raw(stored.view()) for name, stored in found.items()} == expected


def test_made_up_files(
    stream: Stream, attempt: Attempt, outcomes: Counter[str], tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    for random in stream(1000):
        file.write_bytes(file_of(random))
        agreed(file, attempt, outcomes)
    assert outcomes["accepted"] >= outcomes.total() // 20, "or nothing is compared"


def test_damaged_files(
    stream: Stream, attempt: Attempt, outcomes: Counter[str], tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    header = {
        "__metadata__": {"format": "pt"},
        "model.norm.weight": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]},
        "lm_head.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [8, 32]},
    }
    text = json.dumps(header).encode()
    whole = struct.pack("<Q", len(text)) + text + bytes(range(32))
    for random in stream(1000):
        file.write_bytes(damaged(random, whole))
        agreed(file, attempt, outcomes)
    assert outcomes["accepted"] >= outcomes.total() // 20


@pytest.mark.parametrize("n_bytes", [0, 1, 7, 8, 9, 10])
def test_hardly_a_file(
    n_bytes: int, attempt: Attempt, outcomes: Counter[str], tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\x02\0\0\0\0\0\0\0{}"[:n_bytes])
    agreed(file, attempt, outcomes)
