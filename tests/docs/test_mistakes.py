"""Every mistake on docs/mistakes.md is answered word for word as the page shows."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import huggingface_hub.constants
import pytest
import torch
from readme import README

from merge_plugins.cli import main
from merge_plugins.demo import family
from merge_plugins.errors import MergeError

PAGE = README.parent / "docs" / "mistakes.md"


class Mistake(NamedTuple):
    title: str
    files: dict[str, str]
    command: str
    answer: str


def mistakes() -> list[Mistake]:
    """Read the page: under each heading files, a command, and its answer."""
    found = []
    for section in re.split(r"^### ", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]:
        blocks = re.findall(r"^```(\w+)\n(.*?)\n```", section, flags=re.M | re.S)
        files = [text for language, text in blocks if language == "yaml"]
        (command,) = (text for language, text in blocks if language == "bash")
        (answer,) = (text for language, text in blocks if language == "text")
        named = {text.splitlines()[0].removeprefix("# "): text for text in files}
        found.append(Mistake(section.splitlines()[0], named, command, answer))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the page: the demo's models."""
    found = tmp_path_factory.mktemp("you")
    for name, path in family().items():
        shutil.copytree(path, found / "family" / name)
    return found


def test_the_page_has_the_twenty_commonest() -> None:
    titles = [mistake.title for mistake in mistakes()]
    assert len({*titles}) == len(titles) >= 20


@pytest.mark.filterwarnings("ignore::merge_plugins.errors.MergeWarning")
@pytest.mark.parametrize("mistake", mistakes(), ids=lambda mistake: mistake.title)
def test_a_mistake_is_answered_as_the_page_shows(
    mistake: Mistake,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "--device cuda" in mistake.command and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # as the variable does
    for name, text in mistake.files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(f"{text}\n", encoding="utf-8")
    program, *words = shlex.split(mistake.command)
    if program == "lm_eval":
        answer = refused_by_lm_eval(words, monkeypatch)
    else:
        assert main(words) == 1
        answer = capsys.readouterr().err
    for name in mistake.files:
        Path(name).unlink()
    answer = answer.replace(str(folder), "/home/you").replace(torch.__version__, "2.9.1+cpu")
    assert answer == f"{mistake.answer}\n"


def refused_by_lm_eval(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What ends lm-eval's command; tests/lm_eval/test_refusals.py runs it as a process."""
    from lm_eval._cli import HarnessCLI
    from lm_eval.api.registry import get_model

    monkeypatch.setattr(sys, "argv", ["lm_eval", *words])
    given = HarnessCLI().parse_args()
    with pytest.raises(MergeError) as refusal:
        get_model(given.model).create_from_arg_obj(given.model_args or {}, {"device": given.device})
    return f"merge-plugins: {refusal.value}\n"
