"""The episodes of a run in SQLite (write-ahead log, so that a reader never waits for the writer), as compressed JSON."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from whet.errors import CheckpointError
from whet.runs.codec import decode, encode
from whet.runs.files import writing
from whet.types import SCHEMA_VERSION, Episode

_SCHEMA = """
create table if not exists meta (key text primary key, value text not null);
create table if not exists episodes (
    row integer primary key,
    tag text not null,
    task text not null,
    reward real not null,
    success integer not null,
    stop text not null,
    data blob not null
);
create index if not exists episodes_by_tag on episodes (tag, row);
"""
_PAGE = 256


class TagSummary(NamedTuple):
    """The episodes under one tag. Means are over those without an error, None where there are none."""

    tag: str
    n: int
    errors: int
    success: float | None
    reward: float | None


class EpisodeStore:
    """Episodes in the order they were saved, each under a tag. Without a path they are kept in memory.

    Raises CheckpointError for a file that is no store, or one of another schema version; StorageError where a write fails.
    """

    def __init__(self, path: Path | None, *, read_only: bool = False) -> None:
        self.path = path
        self._lock = threading.Lock()
        name = ":memory:" if path is None else f"file:{_quote(path)}{'?mode=ro' if read_only else ''}"
        with writing(path or Path(":memory:")):
            self._db = sqlite3.connect(name, uri=True, check_same_thread=False, timeout=30)
        try:
            if read_only:
                self._db.execute("select 1 from meta").fetchone()
            else:
                self._create()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise CheckpointError(f"{path} cannot be opened as an episode store: {error}") from error
        found = self._db.execute("select value from meta where key = 'schema'").fetchone()
        if found is None or found[0] != str(SCHEMA_VERSION):
            self._db.close()
            raise CheckpointError(
                f"{path} has schema version {found[0] if found else 'none'}, but this whet reads version {SCHEMA_VERSION}. "
                "Read it with the version of whet that wrote it (config.json names it)."
            )

    def _create(self) -> None:
        # the name of the file alone tells a full disk from a damaged database
        with writing(self.path or Path(":memory:")):
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = normal")
            self._db.executescript(_SCHEMA)
            self._db.execute("insert or ignore into meta values ('schema', ?)", (str(SCHEMA_VERSION),))
            self._db.commit()

    def save(self, episodes: Iterable[Episode], tag: str) -> None:
        """Add episodes: all of them or, on StorageError, none."""
        rows = [(tag, e.task.id, e.reward, e.success, e.stop.value, _pack(e)) for e in episodes]
        with self._lock, writing(self.path or Path(":memory:")):
            try:
                self._db.executemany("insert into episodes (tag, task, reward, success, stop, data) values (?, ?, ?, ?, ?, ?)", rows)
                self._db.commit()
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.rollback()
                raise

    def load(self, tag: str | None = None) -> Iterator[Episode]:
        """Episodes of a tag (None: of all), oldest first, a page at a time. Saving meanwhile is allowed."""
        at = 0
        while True:
            with self._lock:
                page = self._db.execute(
                    "select row, data from episodes where row > ? and (? is null or tag = ?) order by row limit ?", (at, tag, tag, _PAGE)
                ).fetchall()
            if not page:
                return
            at = page[-1][0]
            for _, data in page:
                yield _unpack(data)

    def tags(self) -> list[TagSummary]:
        """What each tag holds, in the order in which the tags first came up."""
        with self._lock:
            rows = self._db.execute(
                "select tag, count(*), sum(stop = 'error'), avg(case when stop != 'error' then success end), "
                "avg(case when stop != 'error' then reward end) from episodes group by tag order by min(row)"
            ).fetchall()
        return [TagSummary(*row) for row in rows]

    def select(self, tag: str, *, success: bool | None = None, ok: bool = True, limit: int = 3) -> list[Episode]:
        """The last `limit` episodes of a tag by outcome, newest first; `ok=False` takes those that failed with an error."""
        with self._lock:
            rows = self._db.execute(
                "select data from episodes where tag = ? and (stop = 'error') = ? and (? is null or success = ?) order by row desc limit ?",
                (tag, not ok, success, success, limit),
            ).fetchall()
        return [_unpack(data) for (data,) in rows]

    @property
    def position(self) -> int:
        """The last row; what `rollback` takes."""
        with self._lock:
            return int(self._db.execute("select coalesce(max(row), 0) from episodes").fetchone()[0])

    def rollback(self, position: int) -> None:
        """Forget the episodes saved after `position`. Raises CheckpointError where fewer than that are there."""
        if position > self.position:
            raise CheckpointError(f"{self.path} holds {self.position} episodes but {position} were committed; the file was damaged")
        with self._lock, writing(self.path or Path(":memory:")):
            self._db.execute("delete from episodes where row > ?", (position,))
            self._db.commit()

    def sync(self) -> None:
        """Move everything from the write-ahead log into the database file, and make it survive a power cut."""
        if self.path is not None:
            with self._lock, writing(self.path):
                self._db.execute("pragma wal_checkpoint(passive)")

    def close(self) -> None:
        with self._lock:
            self._db.close()


def _pack(episode: Episode) -> bytes:
    """Log-probs are most of it, and digits shrink to a fraction even at the fastest level."""
    return zlib.compress(encode(episode).encode("ascii"), 1)


def _unpack(data: bytes) -> Episode:
    try:
        text = zlib.decompress(data).decode("ascii")
    except (zlib.error, ValueError, TypeError) as error:
        raise CheckpointError(f"a stored episode is damaged ({error}); was the file written by another version of whet?") from error
    return decode(text)


def _quote(path: Path) -> str:
    """A path inside an SQLite URI."""
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
