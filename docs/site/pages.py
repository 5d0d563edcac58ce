"""mkdocs hooks: add the pages outside of docs/, and rewrite links that lead there or into the code.

Pages link to each other and to files as they lie in the repository, so that they can be read there
too. On the site, a link to another page leads to that page, and one to a source file is its text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
OUTSIDE: Mapping[str, str] = {
    "index.md": "README.md",
    "benchmarks.md": "benchmarks/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
}
"""Pages that are files outside of docs/."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
"""``[text](path#place)``, a picture if it begins with ``!``."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside of docs/."""
    for page, path in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of a page."""
    here = page.file.src_uri
    if here == "index.md":
        page.meta["hide"] = ["navigation"]  # a menu of one line
    folder = (ROOT / OUTSIDE.get(here, f"docs/{here}")).parent
    pages = {(ROOT / path).resolve(): name for name, path in OUTSIDE.items()}

    def rewritten(link: re.Match[str]) -> str:
        picture, text, path, place = link.groups(default="")
        target = (folder / path).resolve()
        if target.is_relative_to(ROOT / "docs"):
            pages[target] = target.relative_to(ROOT / "docs").as_posix()
        if target in pages:
            path = os.path.relpath(pages[target], Path(here).parent)
            return f"{picture}[{text}]({path}{place})"
        return text if target.exists() else link[0]

    return LINK.sub(rewritten, markdown)
