"""The site of docs/: what its build cannot see. The build itself is in .ci/run."""

from __future__ import annotations

import re
from pathlib import Path

import merge_plugins
from merge_plugins.recipe import keys

DOCS = Path(__file__).parents[2] / "docs"
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)]+)\)")


def test_every_public_name_is_explained() -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmerge_plugins\.(\w+)", page))
    assert set(merge_plugins.__all__) - {"__version__", "MergeError"} <= named
    assert "MergeError" in page


def test_every_key_of_a_recipe_is_explained() -> None:
    page = (DOCS / "recipes.md").read_text(encoding="utf-8")
    table = page.partition("## Keys")[2].partition("## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, flags=re.M)
    assert sorted(re.findall(r"`(\w+)`", " ".join(cells))) == sorted(keys.TOP)


def test_every_page_is_in_the_menu() -> None:
    menu = (DOCS / "site" / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {file.name for kind in ("*.md", "*.ipynb") for file in DOCS.glob(kind)}
    assert pages == {name for name in pages if f": {name}\n" in menu}


def test_every_picture_can_be_made_anew() -> None:
    script = Path(__file__).with_name("pictures.py").read_text(encoding="utf-8")
    shown = {name for page in DOCS.glob("*.md") for name in PICTURE.findall(page.read_text())}
    there = {str(file.relative_to(DOCS)) for file in DOCS.rglob("*.png")}
    assert shown == there
    assert {name for name in shown if f'"{name}"' in script} == shown
