"""Keep answers in the file of lm-eval's ``--use_cache``, by merge, task and row.

lm-eval itself looks answers up by their prompts, which name neither. It is told that it has none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlitedict import SqliteDict

from harness_adapters.lm_eval.classifiers.rows import Texts


class Answers:
    """Logits of rows that were computed before; without a file, none are kept."""

    def __init__(self, database: SqliteDict | None, content: Mapping[str, Any]) -> None:
        """Use a table of a file; ``content`` is what answers depend on besides task and row."""
        self._database = database
        if database is None:
            return
        database.__class__ = Hidden
        database.tablename = f"classifiers_{_hash(content)[:32]}"
        database.conn.execute(
            f'CREATE TABLE IF NOT EXISTS "{database.tablename}" (key TEXT PRIMARY KEY, value BLOB)'
        )
        database.conn.commit()

    def find(self, task: str, row: Texts) -> list[float] | None:
        """Look up the logits of a row; None, if they are not known."""
        key = _hash([task, row])
        if self._database is None or not SqliteDict.__contains__(self._database, key):
            return None
        found: list[float] = SqliteDict.__getitem__(self._database, key)
        return found

    def keep(self, task: str, row: Texts, logits: Sequence[float]) -> None:
        """Keep the logits of a row."""
        if self._database is not None:
            SqliteDict.__setitem__(self._database, _hash([task, row]), [*logits])


class Hidden(SqliteDict):
    """A table that lm-eval finds empty, and in which it writes nothing."""

    def __contains__(self, key: object) -> bool:
        """Return False."""
        return False

    def __setitem__(self, key: object, value: object) -> None:
        """Do nothing."""


def _hash(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
