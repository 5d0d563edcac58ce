"""`merge-plugins demo` prints the tables of the README and of docs/methods.md."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from readme import README, SEARCH, SETUP, completed, rows, run, shown_after

from merge_plugins.cli import main


def test_the_demo_prints_what_the_readme_shows(tmp_path: Path) -> None:
    done = completed("merge-plugins demo", tmp_path)
    assert rows(done.stdout) == rows(shown_after(SETUP[0]))
    assert done.stderr == "", "outside of a repository git writes an error, if it is asked"


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("file", "is a file; name a new folder"),
        ("full", "exists and is not empty; name a new folder or remove it"),
        ("file/below", "was not written: "),
        ("/proc/nowhere", "was not written: "),
    ],
)
def test_the_models_are_copied_to_a_new_folder_or_not_at_all(
    target: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full" / "base").mkdir(parents=True)
    assert main(["demo", "--copy", str(tmp_path / target)]) == 1
    assert capsys.readouterr().err.startswith(f"merge-plugins: {tmp_path / target} {why}")
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "full", "base"}


def test_the_demo_merges_skills_that_no_expert_has_together() -> None:
    scores = rows(shown_after(SETUP[0]))
    skills = ("math", "code", "sea")
    for i, skill in enumerate(skills):
        assert scores[skill][i] >= 90
        assert all(scores[skill][j] <= 60 for j in range(3) if j != i)
    alone = max(scores[name][-1] for name in ("base", *skills))
    merges = [scores[name] for name in scores if name not in ("base", *skills)]
    assert len(merges) >= 4
    assert any(s[-1] >= alone + 15 and min(s[:-1]) >= 50 for s in merges)


def test_the_demo_of_every_method_scores_what_its_page_shows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (README.parent / "docs" / "methods.md").read_text(encoding="utf-8").split("\n## ")[0]
    assert main(["demo", "--all", "--limit", "1"]) == 0
    assert rows(capsys.readouterr().out).keys() == rows(page).keys()


def test_a_search_beats_every_method_on_experts_that_disagree() -> None:
    found = rows(shown_after(SEARCH))
    page = (README.parent / "docs" / "methods.md").read_text(encoding="utf-8")
    others = rows(page.split("## Experts that disagree")[1].replace("`", ""))
    assert len(others) >= 9
    defaults = [s[-1] for name, s in found.items() if name != "search" and not name.isdigit()]
    assert len(defaults) >= 5
    assert found["search"][-1] > max(defaults + [scores[0] for scores in others.values()])


@pytest.mark.skipif(
    not os.environ.get("MERGE_PLUGINS_LONG_TESTS"),
    reason="set MERGE_PLUGINS_LONG_TESTS=1: a minute on two cores",
)
def test_the_demo_of_a_search_prints_what_the_readme_shows(tmp_path: Path) -> None:
    expected, found = rows(shown_after(SEARCH)), rows(run(SEARCH, tmp_path))
    for name, scores in expected.items():  # another processor may round an answer differently
        if not name.isdigit():  # candidates, with their seconds
            assert found[name] == pytest.approx(scores, abs=5), name
