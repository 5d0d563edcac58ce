"""Pickles that were damaged or made up: plain tensors of this file come out, or a clear error."""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from damaged_bytes import damaged

from merge_plugins.weights import StoredTensor
from merge_plugins.weights.headers import read_header

Attempt = Callable[[Callable[[], Any]], Any]
Stream = Callable[[int], Iterator[Random]]
WEIGHTS = {"model.norm.weight": torch.arange(4.0).bfloat16(), "lm_head.weight": torch.eye(3)}


def saved(content: Any, *, old: bool = False) -> bytes:
    """Save anything as torch does, in its format of today or its old one."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


def with_pickle(whole: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Change the pickle in a file of today's format."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as before, zipfile.ZipFile(made, "w") as after:
        for record in before.infolist():
            content = before.read(record)
            if record.filename.endswith("data.pkl"):
                content = change(content)
            after.writestr(record.filename, content)
    return made.getvalue()


def read(file: Path) -> dict[str, bytes]:
    """Read every byte of every tensor."""
    found: dict[str, StoredTensor] = read_header(file)
    for name, stored in found.items():
        assert isinstance(name, str)
        view = stored.view()
        assert (view.layout, view.device.type, view.shape) == (torch.strided, "cpu", stored.shape)
        assert view.untyped_storage().nbytes() <= file.stat().st_size
    return {name: bytes(stored.view().untyped_storage()) for name, stored in found.items()}


def test_damaged_pickles(
    stream: Stream, attempt: Attempt, outcomes: Counter[str], tmp_path: Path
) -> None:
    file = tmp_path / "pytorch_model.bin"
    today, old = saved(WEIGHTS), saved(WEIGHTS, old=True)
    for random in stream(200):
        ways = (
            lambda random=random: with_pickle(today, lambda content: damaged(random, content)),
            lambda random=random: damaged(random, today),
            lambda random=random: damaged(random, old),
        )
        file.write_bytes(random.choice(ways)())
        attempt(lambda: read(file))
    assert outcomes["CheckpointError"]


class Unusual:
    """An object that no one needs to load."""


VALUES: tuple[Any, ...] = (
    *(None, 1, 1e300, "w", b"w", [], (), {}, {1}, [torch.ones(1)], {"w": torch.ones(1)}),
    *(
        torch.ones(()),
        torch.zeros(0),
        torch.ones(2, 3).T,
        torch.ones(1).expand(10),
        torch.arange(3),
    ),
    *(torch.eye(2).to_sparse(), torch.ones(2, dtype=torch.cfloat), torch.ones(1, device="meta")),
    *(torch.nn.Parameter(torch.ones(2)), torch.float32, torch.Size([2]), torch.device("cpu")),
    *(collections.OrderedDict(), torch.ones(2).to(torch.float8_e5m2), torch.ones(2).bool()),
    *(
        Path("a"),
        Unusual(),
        Unusual,
        print,
    ),
)


def test_pickles_of_anything(
    stream: Stream, attempt: Attempt, outcomes: Counter[str], tmp_path: Path
) -> None:
    file = tmp_path / "pytorch_model.bin"
    for random in stream(200):
        content: Any = {
            random.choice(("w", "v", 7, None, (1,), "\ud800")): random.choice(VALUES)
            for _ in range(random.randrange(3))
        }
        content = random.choice((content, content, content, random.choice(VALUES)))
        writer = random.choice((saved, saved, lambda c: saved(c, old=True), pickle.dumps))
        file.write_bytes(writer(content))
        attempt(lambda: read(file))
    assert outcomes["CheckpointError"]
    assert outcomes["accepted"]
