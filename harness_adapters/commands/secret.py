"""Check the judge's key before it is sent, and hide it in all that is printed or kept."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from itertools import groupby
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from merge_plugins.errors import MergeError

KEY = "OPENAI_API_KEY"
SENT = (KEY, "OPENAI_ORG_ID", "OPENAI_PROJECT_ID")
"""Environment variables that the client sends as headers."""
PART = 8
"""Characters in a row that count as a part of a key."""


@dataclass(frozen=True)
class Secrets:
    """Texts to hide: a key, and what an address holds beside host and path."""

    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, address: str | None) -> Secrets:
        """Collect what is secret of the environment's key and of a judge's address.

        Raises `MergeError`, without the secret, for what cannot be sent.
        """
        for name in SENT:
            _check(name, os.environ.get(name, ""))
        found = [os.environ.get(KEY)]
        if address:
            try:
                parts = urlsplit(address)
                known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
            except ValueError:
                known = None
            if not known:
                raise MergeError(
                    "the judge's address (--base-url, $OPENAI_BASE_URL) is one like "
                    "http://127.0.0.1:8000/v1"
                )
            found += [parts.username, parts.password]
            found += [value for _, value in parse_qsl(parts.query)]
        return cls(tuple(text for text in found if text))

    def hide(self, text: str) -> str:
        """Replace secrets in a text, and parts of them of `PART` characters and more."""
        covered = [False] * len(text)
        for secret in {spelling for text in self.texts for spelling in _spellings(text)}:
            n = min(PART, len(secret))
            parts = {secret[i : i + n] for i in range(len(secret) - n + 1)}
            for start in range(len(text) - n + 1):
                if text[start : start + n] in parts:
                    covered[start : start + n] = [True] * n
        runs = groupby(zip(text, covered, strict=True), key=lambda pair: pair[1])
        return "".join(
            f"${KEY}" if is_secret else "".join(character for character, _ in run)
            for is_secret, run in runs
        )


def _spellings(secret: str) -> set[str]:
    """List how a text may be sent back: as it is, in an address, in JSON."""
    return {secret, unquote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1]}


def _check(name: str, value: str) -> None:
    wrong = next((i for i, character in enumerate(value) if not "!" <= character <= "~"), None)
    if wrong is not None:
        raise MergeError(
            f"{name}: character {wrong + 1} of {len(value)} is a space, a line break or no ASCII, "
            "which no key has; copy it again"
        )
