"""The page of this project on PyPI: README.md and CHANGELOG.md, without links into a checkout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

FILES = "https://pypi.org/project/merge-plugins/#files"
INTO_THE_CHECKOUT = re.compile(r"\[([^\]]+)\]\((?!https?:|#)([^)#]+)[^)]*\)")
"""``[text](path)`` or ``[text](path#place)``."""


class Readme(MetadataHookInterface):
    """Fills in the dynamic field `readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the readme to the page's text."""
        readme, changes = (
            (Path(self.root) / name).read_text(encoding="utf-8")
            for name in ("README.md", "CHANGELOG.md")
        )
        note = f"Files that are named here come with the [source distribution]({FILES}).\n"
        text = "\n".join([INTO_THE_CHECKOUT.sub(_named, readme), note, changes])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def _named(link: re.Match[str]) -> str:
    """Write a link as its text, and the file's name if that is not the same."""
    text, path = link.groups()
    return f"`{path}`" if path.startswith(text) else f"{text} (`{path}`)"
