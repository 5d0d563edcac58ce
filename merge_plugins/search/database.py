"""Share a search among hosts without a common folder: lines and claims in PostgreSQL.

The locks are PostgreSQL's advisory locks, which end with the connection, as a file's lock ends with
its process. Each host keeps a copy of the ledger in its own folder, for reports.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from merge_plugins.errors import MergeError
from merge_plugins.installing import to_install
from merge_plugins.search.ledger import FOLDER, Ledger, Trial
from merge_plugins.search.workers import Candidate, Claim

TABLES = """
CREATE TABLE IF NOT EXISTS merge_search_lines
    (search text, n integer, line text NOT NULL, PRIMARY KEY (search, n));
CREATE TABLE IF NOT EXISTS merge_search_claims
    (search text, number integer, candidate text NOT NULL, PRIMARY KEY (search, number));
"""
CREATING = 0x6D65726765
"""The advisory lock of whoever creates the tables."""
LOST = "-c tcp_keepalives_idle=15 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
"""A host that vanished without closing its connection is noticed within half a minute."""


class Database:
    """One search in a database, by this process's connection."""

    def __init__(self, url: str, header: Mapping[str, Any]) -> None:
        try:
            import psycopg
        except ImportError as exc:
            hint = to_install("search-hosts")
            raise MergeError(f"--storage needs psycopg: {hint}") from exc
        try:
            self._connection = psycopg.connect(url, autocommit=True, options=LOST)
        except psycopg.Error as exc:
            why = " ".join(str(exc).split())
            raise MergeError(f"--storage: {why} Expected postgresql://user@host/name") from exc
        weakref.finalize(self, self._connection.close)  # and with it every lock
        same = {key: value for key, value in header.items() if key != FOLDER}
        digest = hashlib.sha256(json.dumps(same, sort_keys=True).encode())
        self.name = digest.hexdigest()[:16]
        """Searches of equal search.yaml and objective are one."""
        self._key = int.from_bytes(digest.digest()[:4], "big", signed=True)
        self.do("SELECT pg_advisory_lock(%s)", CREATING)
        self.do(TABLES)
        self.do("SELECT pg_advisory_unlock(%s)", CREATING)

    def do(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Execute a statement; return its rows."""
        found = self._connection.execute(statement.encode(), values or None)
        return found.fetchall() if found.description else []

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the search's lock."""
        self.do("SELECT pg_advisory_lock(%s, 0)", self._key)
        try:
            yield
        finally:
            self.do("SELECT pg_advisory_unlock(%s, 0)", self._key)

    def try_lock(self, number: int) -> bool:
        """Take a candidate's lock, unless it is another connection's."""
        ((taken,),) = self.do("SELECT pg_try_advisory_lock(%s, %s)", self._key, number + 1)
        return bool(taken)

    def unlock(self, number: int) -> None:
        """Give a candidate's lock up."""
        self.do("SELECT pg_advisory_unlock(%s, %s)", self._key, number + 1)


@dataclass
class DatabaseLedger(Ledger):
    """A ledger in a database, with a copy in this host's folder."""

    database: Database = field(kw_only=True)

    @classmethod
    def shared(cls, folder: Path, header: Mapping[str, Any], url: str) -> DatabaseLedger:
        """Open or create a search's ledger in a database, and bring the folder's copy up to date.

        Raises `MergeError` if the folder has another search.
        """
        Ledger.open(folder, header)
        ledger = cls(folder, database=Database(url, header))
        ledger.read()
        with ledger.lock():
            if not ledger.database.do(
                "SELECT 1 FROM merge_search_lines WHERE search = %s LIMIT 1", ledger.database.name
            ):
                for n, trial in enumerate(ledger.trials):  # begun without the database
                    ledger._insert(trial, n)
            ledger.read()
        return ledger

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the search's lock in the database, and the folder's."""
        with self.database.lock(), super().lock():
            yield

    def read(self) -> list[Trial]:
        """Copy what others appended to the folder; return all trials."""
        super().read()
        rows = self.database.do(
            "SELECT line FROM merge_search_lines WHERE search = %s AND n >= %s ORDER BY n",
            self.database.name,
            len(self.trials),
        )
        for (line,) in rows:
            self._cut()
            self._write(json.loads(line))
        return super().read() if rows else self.trials

    def append(self, trial: Trial) -> None:
        """Append a trial for all hosts; the lock must be held."""
        self.read()
        self._insert(trial, len(self.trials))
        self.read()

    def _insert(self, trial: Trial, n: int) -> None:
        line = json.dumps(trial.as_line())
        self.database.do(
            "INSERT INTO merge_search_lines VALUES (%s, %s, %s)", self.database.name, n, line
        )


@dataclass(frozen=True)
class DatabaseClaims:
    """The claims in a database. The ledger's lock must be held for every call."""

    database: Database

    def claim(self, candidate: Candidate) -> Claim:
        """Claim a candidate that nobody has."""
        taken = self.database.try_lock(candidate.number)
        assert taken, "whoever makes a claim holds the ledger's lock"
        return self._claimed(candidate)

    def running(self) -> list[Candidate]:
        """List what living processes are scoring."""
        found = []
        for candidate in self._all():
            if self.database.try_lock(candidate.number):
                self.database.unlock(candidate.number)
            else:
                found.append(candidate)
        return found

    def abandoned(self) -> Claim | None:
        """Take up what a process that is gone has left, counting one attempt more."""
        for candidate in self._all():
            if self.database.try_lock(candidate.number):
                return self._claimed(replace(candidate, attempts=candidate.attempts + 1))
        return None

    def _claimed(self, candidate: Candidate) -> Claim:
        database, number = self.database, candidate.number
        where = (database.name, number)

        def remove() -> None:
            database.do("DELETE FROM merge_search_claims WHERE search = %s AND number = %s", *where)

        remove()  # what an earlier attempt claimed
        line = json.dumps(asdict(candidate))
        database.do("INSERT INTO merge_search_claims VALUES (%s, %s, %s)", *where, line)
        return Claim(candidate, remove, lambda: database.unlock(number))

    def _all(self) -> list[Candidate]:
        rows = self.database.do(
            "SELECT candidate FROM merge_search_claims WHERE search = %s ORDER BY number",
            self.database.name,
        )
        return [Candidate(**json.loads(line)) for (line,) in rows]
