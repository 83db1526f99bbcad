"""What became of every row: a SQLite file beside the shards.

A shard and the rows that it took are one transaction, so the ledger never knows of a shard that is
not there, nor of rows that are in none. A tar that it does not know was left by a kill, and is
written anew.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from data_prep.download.outcome import FAILED, FORGOTTEN
from data_prep.shards import Tally
from stack.data.index import ShardEntry
from stack.util.errors import UserError

LEDGER = "ledger.sqlite"

_PATIENCE = 30.0
"""Seconds to wait for another process's transaction."""

_PAGE = 10_000

_ERRNO = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_PERM: errno.EACCES,
}

_SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE shards (name TEXT PRIMARY KEY, entry TEXT NOT NULL, tally TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE rows (
    row INTEGER PRIMARY KEY, id INTEGER, url TEXT, phash TEXT, state TEXT NOT NULL, reason TEXT,
    status INTEGER, requests INTEGER NOT NULL, pass INTEGER NOT NULL, digest BLOB, shard TEXT
);
CREATE INDEX rows_state ON rows (state);
CREATE INDEX rows_digest ON rows (digest) WHERE digest IS NOT NULL;
"""


@dataclass(frozen=True)
class Record:
    """One row. `row` counts from 0 over the whole input, of which a part has its share; `requests`
    were made in the last pass, whose number is `passed`; `digest` is the sha256 of the bytes that
    a sample was made of."""

    row: int
    id: int | None
    url: str | None
    phash: str | None
    state: str
    reason: str | None
    status: int | None
    requests: int
    passed: int
    digest: bytes | None
    shard: str | None


def has_ledger(folder: Path) -> bool:
    """Whether a folder has a ledger. A kill in the first transaction leaves a file without one."""
    path = folder / LEDGER
    if not path.is_file():
        return False
    try:
        with closing(sqlite3.connect(path, timeout=_PATIENCE)) as found:
            return bool(found.execute("SELECT 1 FROM sqlite_master").fetchone())
    except sqlite3.DatabaseError:
        return True  # Garbled; whoever opens it will be told.


class Ledger:
    """Open a folder's ledger, or begin one.

    Args:
        about: what a ledger that is begun here says of its folder.

    Raises:
        UserError: there is none and `about` is not given, or it is garbled.
    """

    def __init__(self, folder: Path, about: dict[str, Any] | None = None) -> None:
        self.path = folder / LEDGER
        if about is None and not has_ledger(folder):
            raise UserError(f"{self.path}: no such file; not a folder that download has made")
        with self._told():
            self._db = sqlite3.connect(self.path, isolation_level=None, timeout=_PATIENCE)
            self._db.execute("PRAGMA synchronous = FULL")
            if about is not None:
                with self._transaction():
                    if not self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
                        self._begin(about)
            self.about = {
                name: json.loads(value)
                for name, value in self._db.execute("SELECT name, value FROM about")
            }

    def _begin(self, about: dict[str, Any]) -> None:
        for statement in filter(None, map(str.strip, _SCHEMA.split(";"))):
            self._db.execute(statement)
        for name, value in about.items():
            self._set(name, value)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors as the user's or the disk's."""
        try:
            yield
        except sqlite3.OperationalError as error:
            code = error.sqlite_errorcode & 0xFF
            if code == sqlite3.SQLITE_BUSY:
                raise UserError(f"{self.path}: in use by another process for too long") from None
            number = _ERRNO.get(code, errno.EIO)
            raise OSError(number, os.strerror(number), str(self.path)) from error
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{self.path}: not a whole ledger ({error}); restore it, or start the folder anew "
                "with --overwrite"
            ) from None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._told():
            self._db.execute("BEGIN EXCLUSIVE")
            try:
                yield
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _set(self, name: str, value: Any) -> None:
        self._db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (name, json.dumps(value)))

    def note(self, **facts: Any) -> None:
        """Change what `about` says."""
        with self._transaction():
            for name, value in facts.items():
                self._set(name, value)
        self.about |= facts

    def commit(self, records: Sequence[Record], shard: tuple[ShardEntry, Tally] | None) -> None:
        """Add, or bring up to date, rows and the shard that took some of them, all or nothing."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                map(astuple, records),
            )
            if shard:
                self._put(*shard)

    def _put(self, entry: ShardEntry, tally: Tally) -> None:
        values = (entry.name, entry.model_dump_json(), json.dumps(vars(tally)))
        self._db.execute("INSERT OR REPLACE INTO shards VALUES (?, ?, ?)", values)

    def forget(
        self, rows: Sequence[int], replaced: dict[str, tuple[ShardEntry, Tally] | None]
    ) -> None:
        """Mark rows as taken down, and put other shards, or none, in the place of theirs, whose
        names `about` then has as `replaced`."""
        names = [*self.about["replaced"], *replaced]
        with self._transaction():
            self._set("replaced", names)
            self._db.executemany(
                "UPDATE rows SET state = ?, reason = NULL, digest = NULL, shard = NULL, "
                "url = NULL, phash = NULL WHERE row = ?",
                ((FORGOTTEN, row) for row in rows),
            )
            for name, shard in replaced.items():
                self._db.execute("DELETE FROM shards WHERE name = ?", (name,))
                if shard:
                    self._put(*shard)
                    self._db.execute(
                        "UPDATE rows SET shard = ? WHERE shard = ?", (shard[0].name, name)
                    )
        self.about["replaced"] = names

    def shards(self) -> list[tuple[ShardEntry, Tally]]:
        """The shards, by name."""
        with self._told():
            found = self._db.execute("SELECT entry, tally FROM shards ORDER BY name").fetchall()
        return [(ShardEntry(**json.loads(entry)), _tally(tally)) for entry, tally in found]

    def has(self, digest: bytes) -> bool:
        """Whether a picture with these bytes is in a shard."""
        with self._told():
            found = self._db.execute("SELECT 1 FROM rows WHERE digest = ?", (digest,)).fetchone()
        return found is not None

    def last_row(self) -> int | None:
        """The last row that is known; all before it are, in the first pass."""
        with self._told():
            return self._db.execute("SELECT max(row) FROM rows").fetchone()[0]

    def to_retry(self, passed: int) -> list[int]:
        """Rows that failed before the pass with this number, in order."""
        query = "SELECT row FROM rows WHERE state = ? AND pass < ? ORDER BY row"
        with self._told():
            return [row for (row,) in self._db.execute(query, (FAILED, passed))]

    def states(self) -> Counter[str]:
        """How many rows are in each state."""
        with self._told():
            found = self._db.execute("SELECT state, count(*) FROM rows GROUP BY state").fetchall()
        return Counter(dict(found))

    def reasons(self) -> Counter[tuple[str, str]]:
        """How many rows have each state and reason, of those that have a reason."""
        query = "SELECT state, reason, count(*) FROM rows WHERE reason NOT NULL GROUP BY 1, 2"
        with self._told():
            found = self._db.execute(query).fetchall()
        return Counter({(state, reason): count for state, reason, count in found})

    def records(self) -> Iterator[Record]:
        """Every known row, in order; read a page at a time, so that others may write between."""
        query = "SELECT * FROM rows WHERE row > ? ORDER BY row LIMIT ?"
        last = -1
        while True:
            with self._told():
                page = self._db.execute(query, (last, _PAGE)).fetchall()
            yield from (Record(*values) for values in page)
            if len(page) < _PAGE:
                return
            last = page[-1][0]


def _tally(text: str) -> Tally:
    return Tally(**{name: Counter(counts) for name, counts in json.loads(text).items()})
