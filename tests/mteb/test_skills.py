"""Experts of the real MiniLM, merged: the table of docs/encoders.md. In the environment of MTEB."""

from __future__ import annotations

import pytest
import skilled_embedders
from readme import README, rows
from skilled_embedders import CHANCE, LANGUAGES

pytest.importorskip("mteb.mocks")  # a minute: not in the main environment

pytestmark = pytest.mark.filterwarnings("ignore")  # of others


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The folder of each language's expert."""
    return skilled_embedders.train_all(tmp_path_factory.mktemp("experts"))


@pytest.fixture(scope="module")
def table(experts: dict[str, str]) -> dict[str, list[float]]:
    return dict(skilled_embedders.table(experts))


def test_the_page_shows_what_comes(table: dict[str, list[float]]) -> None:
    page = (README.parent / "docs" / "encoders.md").read_text(encoding="utf-8")
    expected = rows(page.split("## Two languages in one model")[1].split("\n## ")[0])
    assert expected.keys() == table.keys()
    for name, scores in expected.items():  # another processor trains slightly other experts
        assert table[name] == pytest.approx(scores, abs=10), name


def test_good_merges_keep_both_skills_and_a_wreck_keeps_none(
    table: dict[str, list[float]],
) -> None:
    own = [table[language][i] for i, language in enumerate(LANGUAGES)]
    assert min(own) >= 95
    for i, language in enumerate(LANGUAGES):
        assert table[language][1 - i] <= 50  # an expert of one does not know the other
        assert table["MiniLM"][i] <= 20
    kept = {
        name: min(scores[i] / own[i] for i in range(2))
        for name, scores in table.items()
        if name not in ("MiniLM", *LANGUAGES, "wrecked")
    }
    assert len(kept) >= 8
    assert sum(share >= 0.95 for share in kept.values()) >= 5
    assert max(kept.values()) - min(kept.values()) > 0.1  # methods differ
    assert max(table["wrecked"][:2]) <= 3 * CHANCE
