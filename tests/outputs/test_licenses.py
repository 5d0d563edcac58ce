"""A merge is under the terms of its parents, and the card names the one that asks most."""

from __future__ import annotations

from pathlib import Path

import pytest

from merge_plugins.outputs.licenses import License, license_of, strictest

IN_ORDER = (
    *("cc-by-nc-nd-4.0", "cc-by-nc-4.0", "other", "llama3.1", "agpl-3.0", "gpl-3.0"),
    *("cc-by-sa-4.0", "lgpl-3.0", "apache-2.0"),
)


@pytest.mark.parametrize("place", range(len(IN_ORDER)))
def test_what_asks_most_is_found(place: int) -> None:
    found = strictest(License(word) for word in reversed(IN_ORDER[place:]))
    assert found == License(IN_ORDER[place])


@pytest.mark.parametrize(
    ("word", "like"),
    [
        ("mit", "apache-2.0"),
        ("bsd-3-clause-clear", "cc-by-4.0"),
        ("gemma", "llama2"),
        ("bigscience-openrail-m", "openrail++"),
        ("my-own-terms", "other"),
        ("intel-research", "cc-by-nc-sa-4.0"),
    ],
)
def test_some_ask_the_same(word: str, like: str) -> None:
    assert License(word).rank == License(like).rank


def test_nothing_is_the_strictest_of_nothing() -> None:
    assert strictest([]) is None


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ("license: Apache-2.0", License("apache-2.0")),
        ("license: [mit, gpl-3.0]", License("gpl-3.0")),
        (
            "license: other\nlicense_name: mine\nlicense_link: LICENSE",
            License("other", "mine", "LICENSE"),
        ),
        ("license: unknown", None),
        ("license: 3", None),
        ("tags: [merge]", None),
        ("license: [", None),
    ],
    ids=["one", "several", "own", "unknown", "number", "none", "damaged"],
)
def test_a_card_states_a_license(front: str, expected: License | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# A model\n")
    assert license_of(str(tmp_path)) == expected


def test_a_model_without_a_card_states_none(tmp_path: Path) -> None:
    assert license_of(str(tmp_path)) is None
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    assert license_of(str(tmp_path)) is None
