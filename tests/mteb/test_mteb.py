"""MTEB evaluates merges by recipe; an edited recipe is another revision. Needs MTEB itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from embedders import embedder

pytest.importorskip("mteb.mocks")  # mteb alone would be the folder of this file

import mteb
from mteb.mocks.mock_tasks import MockRerankingTask, MockSTSTask

from harness_adapters.ending import exit_status
from harness_adapters.mteb import register
from harness_adapters.mteb.__main__ import main
from merge_plugins.identity import digest
from merge_plugins.recipe import Recipe

pytestmark = pytest.mark.filterwarnings("ignore")  # what MTEB warns of is not ours to mend


@pytest.mark.parametrize(
    ("kind", "task"), [("embedder", MockSTSTask), ("reranker", MockRerankingTask)]
)
def test_an_edited_recipe_is_evaluated_anew(
    kind: str, task: Any, models: dict[str, list[str]], write: Any, tmp_path: Path
) -> None:
    cache, revisions = mteb.ResultCache(tmp_path / "cache"), []
    for weight in (0.0, 1.0):
        file = write(models[kind], weight)
        name = register(file)
        assert name == "merged/merge"
        meta = mteb.get_model_meta(name)
        assert meta.revision == digest(Recipe.load(file))
        found = mteb.evaluate(meta, [task()], cache=cache)
        assert found.model_revision == meta.revision
        assert len(found.task_results) == 1
        revisions.append(meta.revision)
    filed = {file.parent.name for file in (tmp_path / "cache").rglob("Mock*.json")}
    assert filed == {*revisions}
    assert len(filed) == 2


def test_mteb_s_mock_run_passes_for_an_embedder(
    models: dict[str, list[str]], write: Any, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mock-run", "-m", write(models["embedder"], 0.5)]) == 0
    assert "merged/merge` passed all expected checks" in capsys.readouterr().out
    report = (workplace / "mteb_mock_run_results.md").read_text()
    assert report.count("| text | ✓ | - |") >= 20
    assert "| skipped |" not in report.split("## Summary")[0]


def test_mteb_s_mock_run_passes_for_a_reranker_where_one_can(
    models: dict[str, list[str]], write: Any, workplace: Path
) -> None:
    """MTEB gives a CrossEncoder retrieval without candidates too, which its own wrapper refuses."""
    assert main(["mock-run", "-m", write(models["reranker"], 0.5)]) == 0
    report = (workplace / "mteb_mock_run_results.md").read_text().split("## Summary")[0]
    passed = [line for line in report.splitlines() if "| ✓ |" in line]
    failed = [line for line in report.splitlines() if "| ✗ |" in line]
    assert [line for line in passed if "Reranking" in line]
    assert not [line for line in failed if "Reranking" in line]
    assert all("requires top_ranked documents for reranking" in line for line in failed)


def test_a_recipe_that_is_wrong_stops_before_mteb(
    models: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = models["embedder"]
    embedder(two, ("cls", "normalize"))
    line = ["run", "-m", f"method=average_merging,models={one}+{two}", "-t", "STS12"]
    assert exit_status(lambda: main(line)) == 1
    assert "embed differently" in capsys.readouterr().err


def test_another_model_is_left_to_mteb() -> None:
    assert register("intfloat/multilingual-e5-small") == "intfloat/multilingual-e5-small"
