"""Windows and macOS, as far as Linux can show it: each thing that they lack is taken away.

Nothing was run there. What differs besides is in docs/architecture.md, under "Other systems".
"""

from __future__ import annotations

import argparse
import ast
import ctypes
import errno
import fcntl
import io
import mmap
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nearness
import pytest
import torch
from plain_llamas import plain_llamas

import merge_plugins.__main__
from harness_adapters import execution
from merge_plugins import MergeError, Recipe, folders, memory, merged_tensors, mount, save
from merge_plugins.memory import HUGE, new_memory
from merge_plugins.outputs import card
from merge_plugins.search import locks
from merge_plugins.search.workers import Candidate, Claims

ROOT = Path(__file__).parents[1]
FILES = Path("/proc/self/fd")
pytestmark = pytest.mark.skipif(not FILES.exists(), reason="open files are listed in /proc")


def in_use(path: Path) -> list[str]:
    """Regular files at or below a path that this process has open or mapped."""
    found = [str(each.readlink()) for each in FILES.iterdir() if each.is_symlink()]
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    found += [line.split(maxsplit=5)[5] for line in maps if line.endswith((".safetensors", ".bin"))]
    return [f for f in found if Path(f) == path or (path in Path(f).parents and Path(f).is_file())]


def refusing(change: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse a change of what is open, as Windows does."""

    def checked(path: Any, *args: Any, dir_fd: int | None = None, **given: Any) -> Any:
        where = (FILES / str(dir_fd)).readlink() if dir_fd is not None else Path.cwd()
        used = in_use(where / os.fspath(path))
        if used:
            raise PermissionError(errno.EACCES, f"{used} is in use", os.fspath(path))
        named = {} if dir_fd is None else {"dir_fd": dir_fd}
        return change(path, *args, **named, **given)

    return checked


def locking(handle: int, mode: int, n_bytes: int) -> None:
    """Lock bytes of a file as Windows does: nobody else may read them then."""
    assert (mode, n_bytes) == (2, 1)
    assert os.lseek(handle, 0, os.SEEK_CUR) > os.fstat(handle).st_size
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise PermissionError(*exc.args) from exc


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take away what Windows does not have, and let it keep what is open."""
    for module in (folders, locks):
        monkeypatch.setattr(module, "fcntl", None)
    fake = SimpleNamespace(locking=locking, LK_NBLCK=2)
    monkeypatch.setattr(locks, "msvcrt", fake, raising=False)
    for owner, names in {
        os: ("preadv", "sched_getaffinity", "O_NOFOLLOW", "O_NONBLOCK"),
        mmap: ("MADV_DONTNEED", "MADV_HUGEPAGE", "MAP_PRIVATE", "MAP_ANONYMOUS"),
    }.items():
        for name in names:
            monkeypatch.delattr(owner, name)
    monkeypatch.setattr(shutil, "_use_fd_functions", False)  # its own, by O_NONBLOCK from 3.13 on
    for name in ("rename", "replace", "unlink", "remove"):
        refuses = refusing(getattr(os, name))
        monkeypatch.setattr(os, name, refuses)
        if hasattr(pathlib, "_NormalAccessor"):  # Python 3.10 keeps the functions of os there
            kept = staticmethod(refuses)
            monkeypatch.setattr(pathlib._NormalAccessor, name, kept, raising=False)
    monkeypatch.chdir(tmp_path)


def test_the_check_itself_finds_what_is_open_and_mapped(windows: None, tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"1")
    with file.open("rb") as handle:
        mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        with pytest.raises(PermissionError):
            file.rename(tmp_path / "b")
    with pytest.raises(PermissionError):
        file.unlink()
    mapped.close()
    file.unlink()


def merge(root: Path, method: str = "task_arithmetic", **more: Any) -> Recipe:
    models = {"base_model": str(root / "base"), "models": [str(root / "a"), str(root / "b")]}
    return Recipe.from_mapping({"merge_method": method, **models, **more})


def test_a_merge_is_saved_mounted_and_read(windows: None, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    recipe = merge(plain_llamas(tmp_path / "models"))
    here = merged_tensors(recipe)
    save(recipe, tmp_path / "saved")
    mount(recipe, tmp_path / "mounted")
    again = merged_tensors(
        Recipe.from_mapping({"merge_method": "passthrough", "models": [str(tmp_path / "saved")]})
    )
    assert here.keys() == again.keys()
    assert all(torch.equal(here[name][...], again[name][...]) for name in here)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "mounted", "saved"]
    with pytest.raises(MergeError, match="exists and is not empty"):
        save(recipe, tmp_path / "saved")


def test_a_failed_run_leaves_nothing(windows: None, tmp_path: Path) -> None:
    def fail() -> None:
        with folders.complete_or_nothing(tmp_path / "out") as unfinished:
            (unfinished / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not [*tmp_path.iterdir()]


def test_statistics_are_kept_and_read_again(
    windows: None, own_cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    root = plain_llamas(tmp_path / "models")
    recipe = merge(root, "regmean_merging", data=str(root / "texts.jsonl"))
    first = {name: tensor[...] for name, tensor in merged_tensors(recipe).items()}
    (kept, *_) = (tmp_path / "cache" / "statistics").iterdir()
    stamp = kept.stat().st_mtime_ns
    again = merged_tensors(recipe)
    assert all(torch.equal(first[name], again[name][...]) for name in first)
    assert kept.stat().st_mtime_ns == stamp
    assert not [*(tmp_path / "cache").rglob(".*")]


def test_a_search_runs_and_claims_are_kept_apart(windows: None, tmp_path: Path) -> None:
    root, folder = nearness.write_models(tmp_path / "models"), tmp_path / "search"
    trials = [*nearness.run(nearness.study(root, folder, budget={"trials": 5}))]
    assert len(trials) == 5
    assert not [*(folder / "running").iterdir()]
    claims = Claims(folder / "running")
    claim = claims.claim(Candidate(7, "defaults", {}, "0" * 12, {}))
    assert [candidate.number for candidate in claims.running()] == [7]
    assert claims.abandoned() is None
    claim.drop()
    assert claims.running() == []
    left = claims.abandoned()
    assert left is not None
    assert left.candidate.attempts == 2
    left.release()
    (folder / "running" / "000008.json").write_text('{"number": 8, "ori')
    assert claims.abandoned() is None
    assert not [*(folder / "running").iterdir()]


def test_memory_is_laid_out_without_huge_pages(windows: None) -> None:
    made = new_memory([HUGE], torch.float32, torch.device("cpu"))
    assert made.shape == (HUGE,)


def test_a_system_without_malloc_trim_returns_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    memory._trim.cache_clear()
    try:
        memory.return_memory()
        assert memory._trim() is None
    finally:
        memory._trim.cache_clear()


def test_models_on_another_drive_stay_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def relpath(path: str, start: Path) -> str:
        if "/d/" in path:
            raise ValueError("path is on mount 'd:', start on mount 'c:'")
        return "..\\a"

    recipe = Recipe.from_mapping({"merge_method": "linear", "models": ["/c/a", "/d/b"]})
    monkeypatch.setattr(card.os.path, "relpath", relpath)
    assert "model: /d/b" in card.portable(recipe, tmp_path)


def test_programs_are_not_written_where_they_cannot_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    given = argparse.Namespace(score=True, allow_code_execution=True)
    execution.check_consent(given)
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        with pytest.raises(MergeError, match="leave it out here"):
            execution.check_consent(given)


def test_a_file_of_few_characters_takes_what_a_command_prints(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain_llamas(tmp_path)
    short = f"method=linear,models={tmp_path / 'a'}:1"
    output = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "argv", ["merge-plugins", "save", short, str(tmp_path / "a→b")])
    assert merge_plugins.__main__.main() == 0
    output.seek(0)
    assert output.read() == f"{tmp_path}/a\\u2192b\n"


def without_encoding(file: Path) -> Iterator[int]:
    """Lines that read or write text in whatever encoding a system prefers."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and _takes_text(node):
            yield node.lineno


def _takes_text(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in named:
        return False
    if name in ("run", "Popen", "check_output", "check_call"):
        return bool({"text", "universal_newlines"} & named.keys())
    modes = [*call.args[isinstance(call.func, ast.Name) :], named.get("mode")]
    mode = next((m.value for m in modes if isinstance(m, ast.Constant)), None)
    if name in ("NamedTemporaryFile", "TemporaryFile", "fdopen"):
        return "b" not in str(mode or "b" * (name != "fdopen"))
    if name == "open":
        return not call.args or (isinstance(mode, str) and "b" not in mode)
    return (name == "read_text" and not call.args) or (name == "write_text" and len(call.args) == 1)


def test_text_is_utf_8_everywhere() -> None:
    code = [*(ROOT / "merge_plugins").rglob("*.py"), *(ROOT / "harness_adapters").rglob("*.py")]
    code += (ROOT / "tasks").rglob("*.py")
    found = {f"{file.relative_to(ROOT)}:{n}" for file in code for n in without_encoding(file)}
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "p.read_text()",
        "p.write_text(t)",
        "p.open()",
        'p.open("w")',
        'open(p, "a")',
        "run(c, text=1)",
    ],
)
def test_a_line_without_an_encoding_is_found(line: str, tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text(f"{line}\np.open('rb')\np.write_text(t, encoding='utf-8')\n")
    assert [*without_encoding(file)] == [1]
