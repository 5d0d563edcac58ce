"""What `save` and `mount` copy stays inside the model's folder and inside the merge's."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from merge_plugins import MergeError, Recipe, mount, save
from merge_plugins.engine import MergedTensor

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
SECRET = "secret-0123456789"
Plan = Callable[[Path], None]


def module(path: object, **more: str) -> Plan:
    def write(model: Path) -> None:
        text = json.dumps([{"path": path, "type": "", **more}])
        (model / "modules.json").write_text(text.replace("ROOT", str(model.parent)))

    return write


def link(name: str, to: str) -> Plan:
    def write(model: Path) -> None:
        (model / name).unlink(missing_ok=True)
        (model / name).symlink_to(to)

    return write


def linked_folder(model: Path) -> None:
    (model / "1_Pooling").symlink_to("../leak")
    module("1_Pooling")(model)


HOSTILE: Mapping[str, Plan] = {
    "a module above": module("../leak"),
    "a module above, from within": module("sub/../../leak"),
    "a module at an absolute path": module("ROOT/leak"),
    "a module at the root": module("/"),
    "a module that is the folder": module("."),
    "a module that is a number": module(7),
    "a module with a zero byte": module("a\0b"),
    "a module that is a link": linked_folder,
    "no list of modules": lambda model: (model / "modules.json").write_text("7") and None,
    "a deep list": lambda model: (model / "modules.json").write_text("[" * 100_000) and None,
    "code": link("modeling.py", "../leak/f.txt"),
    "a tokenizer": link("tokenizer.model", "../leak/f.txt"),
    "a vocabulary": link("vocab.txt", "/etc/passwd"),
    "a template": link("chat_template.jinja", "../leak/f.txt"),
    "a generation config": link("generation_config.json", "../leak/f.json"),
    "a sentence config": lambda model: (
        module("")(model) or link("config_sentence_transformers.json", "../leak/f.txt")(model)
    ),
}


@pytest.mark.parametrize("write", [mount, save])
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_folder_is_refused_before_anything_is_merged(
    what: str,
    write: Callable[..., Path],
    llamas: Mapping[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Path(shutil.copytree(llamas["math"], tmp_path / "src" / "evil"))
    (tmp_path / "src" / "leak").mkdir()
    (tmp_path / "src" / "leak" / "f.txt").write_text(SECRET)
    (tmp_path / "src" / "leak" / "f.json").write_text(json.dumps({"auths": SECRET}))
    HOSTILE[what](model)
    models = [str(model), llamas["code"]]
    recipe = Recipe.from_mapping(
        {"merge_method": "linear", "models": models, "parameters": {"weight": 0.5}}
    )
    monkeypatch.setattr(MergedTensor, "on", None)
    allowed = {"trust_remote_code": True} if write is mount else {}
    (tmp_path / "dst").mkdir()
    with pytest.raises(MergeError, match=r"modules|leads|no list|folder"):
        write(recipe, tmp_path / "dst" / "out", **allowed)
    assert not list((tmp_path / "dst").iterdir())
