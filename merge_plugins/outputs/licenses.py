"""Read the licenses of models off their cards, and find the one that asks most."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download, metadata_load
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

CARD = "README.md"
LONGEST = 1 << 20
"""Bytes of a card that is read."""
UNKNOWN = "unknown"
"""The hub's word for a license that nobody knows."""
PERMISSIVE = re.compile(
    r"(apache|afl|artistic|bsd|bsl|cc0|cc-by|cdla-permissive|ecl|isc|mit|ms-pl|ncsa|odc-by|pddl"
    r"|postgresql|unlicense|wtfpl|zlib)(-[\d.]+)?(-clause)?(-clear)?"
)
RESTRICTIVE = tuple(
    map(
        re.compile,
        (
            r".*-nd\b.*",  # no derivatives, which a merge is
            r".*-nc\b.*|.*noncommercial.*|.*research.*|apple-amlr",
            r"other",
            r".*rail.*|llama.*|gemma|deepfloyd.*|tii-falcon.*|apple-ascl",  # uses are limited
            r"agpl.*",
            r"gpl.*|osl.*",
            r"cc-by-sa.*|odbl|gfdl|cdla-sharing.*",
            r"lgpl.*|mpl.*|epl.*|eupl.*",
        ),
    )
)
"""The hub's names of licenses, those first that ask most of whoever passes a model on."""


@dataclass(frozen=True)
class License:
    """What a card says of a license."""

    id: str
    name: str | None = None
    link: str | None = None
    """Of a license that the hub calls ``other``."""

    def __str__(self) -> str:
        return f"{self.id} ({self.name})" if self.name else self.id

    @property
    def rank(self) -> int:
        """Place among licenses, 0 for what asks most; one of no name known here is an ``other``."""
        for place, pattern in enumerate(RESTRICTIVE):
            if pattern.fullmatch(self.id):
                return place
        known = PERMISSIVE.fullmatch(self.id)
        return len(RESTRICTIVE) if known else RESTRICTIVE.index(OTHER)


OTHER = next(pattern for pattern in RESTRICTIVE if pattern.fullmatch("other"))


def license_of(ref: str) -> License | None:
    """Read the license of a folder or a hub id off its card; None where it states none."""
    card = _card(ref)
    if card is None or card.stat().st_size > LONGEST:
        return None
    try:
        front: Mapping[str, Any] = metadata_load(card) or {}
    except (UnicodeDecodeError, ValueError, yaml.YAMLError):
        return None
    given = front.get("license")
    stated = [word.lower() for word in (given if isinstance(given, list) else [given])
              if isinstance(word, str) and word.lower() != UNKNOWN]  # fmt: skip
    about = (front.get("license_name"), front.get("license_link"))
    name, link = (value if isinstance(value, str) else None for value in about)
    return strictest(License(word, name, link) for word in stated)


def strictest(licenses: Iterable[License]) -> License | None:
    """Return the license that asks most, the first of equals; None of none."""
    return min(licenses, key=lambda one: one.rank, default=None)


def _card(ref: str) -> Path | None:
    """Find the card of a model: in its folder, else on the hub."""
    local = Path(ref).expanduser() / CARD
    if Path(ref).is_absolute() or local.parent.is_dir():
        return local if local.is_file() else None
    repo, _, revision = ref.partition("@")
    try:
        return Path(hf_hub_download(repo, CARD, revision=revision or None))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        return None  # it has none, or none that can be had now
