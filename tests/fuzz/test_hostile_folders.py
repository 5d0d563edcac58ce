"""Folders with hostile files: nothing runs, nothing leaks, and every refusal is a MergeError."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from merge_plugins import Recipe, mount, save

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")

Attempt = Callable[[Callable[[], Any]], Any]
Stream = Callable[[int], Iterator[random.Random]]
SECRET = "secret-0123456789"
COMPANIONS = (
    *("modeling.py", "tokenizer.py", "tokenizer.model", "vocab.txt", "merges.txt", "modules.json"),
    *("chat_template.jinja", "config_sentence_transformers.json", "generation_config.json"),
)
PLACES = (
    "..",
    "../leak",
    "/",
    ".",
    "",
    "sub",
    "sub/../../leak",
    "a\0b",
    "x" * 300,
    "LEAK",
    "\udcff",
)
KEYS = (
    *("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer", "AutoModelX", "AutoModel"),
    *("os", "A:\n    pass\nimport os\nos.mkdir('CANARY')\nclass B", "", "\0", "AutoModel\n"),
)
CODES = ("evil.C", "evil/repo--evil.C", 7, None, ["evil.C", None], {"a": 1}, "evil.C\nimport os")


def a_place(draw: random.Random, model: Path) -> Path:
    """Choose a path beside the weights, and remove what is there."""
    path = model / draw.choice(COMPANIONS)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    return path


def a_link(draw: random.Random, model: Path) -> None:
    path = a_place(draw, model)
    targets = (
        *("../leak/f.txt", "/etc/passwd", "/dev/zero", "nowhere", path.name, "..", "config.json"),
        f"../leak/{path.name}",
    )
    path.symlink_to(draw.choice(targets))


def a_pipe(draw: random.Random, model: Path) -> None:
    os.mkfifo(a_place(draw, model))


def a_folder(draw: random.Random, model: Path) -> None:
    (a_place(draw, model) / "within").mkdir(parents=True)


def modules(draw: random.Random, model: Path) -> None:
    place = draw.choice(PLACES).replace("LEAK", str(model.parent / "leak"))
    kind = draw.choice(("", "sentence_transformers.models.Pooling", "evil.Pool", 7))
    listed = [{"path": draw.choice((place, place, 7, None)), "type": kind}]
    if (model / "modules.json").is_dir():
        shutil.rmtree(model / "modules.json")
    (model / "modules.json").unlink(missing_ok=True)
    (model / "modules.json").write_text(json.dumps(draw.choice((listed, listed, {}, 7, None))))


def a_map(draw: random.Random, model: Path) -> None:
    file = model / draw.choice(("config.json", "tokenizer_config.json"))
    entries = {draw.choice(KEYS): draw.choice(CODES) for _ in range(draw.randrange(1, 4))}
    content = json.loads(file.read_text())
    content["auto_map"] = draw.choice((entries, entries, entries, [*entries], 7, "evil.C"))
    file.write_text(json.dumps(content))


CHANGES = (a_link, a_link, a_map, a_map, modules, a_pipe, a_folder)


def test_a_hostile_folder_runs_nothing_and_leaks_nothing(
    llamas: Mapping[str, str],
    stream: Stream,
    attempt: Attempt,
    outcomes: Counter[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    code = "import os\nos.mkdir('CANARY')\nclass C: pass\n"
    for draw in stream(24):
        sources = tmp_path / "src"
        shutil.rmtree(sources, ignore_errors=True)
        model = Path(shutil.copytree(llamas["math"], sources / "evil"))
        (model / "evil.py").write_text(code)
        (model / "sub").mkdir()
        (sources / "leak").mkdir()
        for name in ("f.txt", *COMPANIONS):  # also of a name that another model could share
            (sources / "leak" / name).write_text(SECRET)
        (sources / "leak" / "config.json").write_text('{"credHelpers": {}}')
        for change in draw.sample(CHANGES, draw.randrange(1, 3)):
            change(draw, model)
        before = {str(path) for path in tmp_path.rglob("*")}
        models = [{"model": name} for name in (str(model), llamas["code"])]
        recipe = {"merge_method": "linear", "models": models, "parameters": {"weight": 0.5}}
        out, write = tmp_path / "out", draw.choice((save, mount))
        found = attempt(lambda r=recipe, w=write, o=out: w(Recipe.from_mapping(r), o))
        new = {str(path) for path in tmp_path.rglob("*")} - before
        assert all(path.startswith(str(out)) for path in new)
        assert not (tmp_path / "cwd" / "CANARY").exists()
        for file in out.rglob("*"):
            assert not file.is_symlink()
            assert not file.is_file() or SECRET.encode() not in file.read_bytes()
        if found is not None and write is mount:
            assert [file.name for file in out.rglob("*.py")] == ["modeling_merge.py"]
            assert "CANARY" not in (out / "modeling_merge.py").read_text()
            outcomes["mounted"] += 1
        shutil.rmtree(out, ignore_errors=True)
