"""`merge-plugins new-method` writes a package that installs, and passes its own test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from merge_plugins.cli import main
from merge_plugins.commands.new_method import class_name
from merge_plugins.plugins import registry

RULES = "A,B,C4,E,F,I,N,PT,SIM,UP,W"


def run(*words: object, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert main(["new-method", "mean_change"]) == 0
    return tmp_path / "merge-mean-change"


def test_it_installs_and_passes_its_own_test(written: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    uv = Path(sys.executable).with_name("uv")
    install = ("pip", "install", "--no-deps", "--no-index", "--no-build-isolation", "--quiet")
    target = ("--python", sys.executable, "--target", site, written)
    subprocess.run([uv, *install, *target], check=True)
    assert [file.name for file in site.glob("*.py")] == ["merge_mean_change.py"]
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    pytest_words = ("-q", "-p", "no:cacheprovider", "-W", "error", written)
    passed = run("pytest", *pytest_words, PYTHONPATH=path, PYTEST_ADDOPTS="")
    assert "2 passed" in passed


def test_it_is_tidy(written: Path) -> None:
    ruff = Path(sys.executable).with_name("ruff")
    options = ("--isolated", "--line-length", "100")
    for words in (("check", "--select", RULES), ("format", "--check")):
        subprocess.run([ruff, *words, *options], cwd=written, check=True)


def test_it_says_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-method", "mean_change"]) == 0
    first, tried, installed = capsys.readouterr().out.splitlines()
    assert first.startswith("merge-mean-change/merge_mean_change.py: the maths.")
    assert installed == "  pip install -e 'merge-mean-change[test]' && pytest merge-mean-change"
    assert tried.split()[0] == "merge-plugins"
    try:
        assert main(tried.split()[1:]) == 0
    finally:
        registry().unload("merge_mean_change.py")
    shown = capsys.readouterr().out
    assert "weight of each model in the mean; one per model" in shown
    assert "plugin: merge_mean_change.py " in shown


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My-Method", "no word of Python, like my_method; got 'My-Method'"),
        ("2x", "a method's name is lower-case letters, digits and _"),
        ("class", "no word of Python; got 'class'"),
        ("ties", "there is a method ties already, of merge_plugins.methods.task_vectors; choose"),
        ("plugins", "there is a module merge_plugins already; choose another name"),
    ],
)
def test_a_name_that_is_none_or_taken_is_refused(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new-method", name, str(tmp_path / "new")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_folder_with_files_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").touch()
    assert main(["new-method", "mean_change", str(tmp_path)]) == 1
    assert "exists and is not empty" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mean_change", "MeanChange"), ("slot", "SlotMethod"), ("none", "NoneMethod"), ("x2", "X2")],
)
def test_the_class_has_a_name_of_its_own(name: str, expected: str) -> None:
    assert class_name(name) == expected
