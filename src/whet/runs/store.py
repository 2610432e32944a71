"""Episodes in SQLite (write-ahead log, so that a reader never waits for the writer), as compressed JSON.

A run keeps its episodes so, and so does `whet data`, which adds what must be as safe as the episodes: notes (how far a file
was imported) and what filters dropped.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from whet.errors import CheckpointError, ConfigError
from whet.runs.codec import decode, encode, to_json
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
create table if not exists drops (audit integer not null, filter integer not null, episode text not null, reason text not null);
"""
_PAGE = 256


class TagSummary(NamedTuple):
    """The episodes under one tag. Means are over those without an error, None where there are none."""

    tag: str
    n: int
    errors: int
    success: float | None
    reward: float | None


class Note(NamedTuple):
    """A value to be written under a key, in one transaction with episodes, if it still was `before` (None: if there was none)."""

    key: str
    before: str | None
    after: str


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
        self.add([(tag, episode) for episode in episodes])

    def add(self, tagged: Iterable[tuple[str, Episode]], note: Note | None = None) -> None:
        """Add episodes, each under its tag, and write a note: everything or nothing.

        Raises StorageError where it cannot be written; ConfigError where the note is not what it was, because another process
        has written it.
        """
        rows = [(tag, e.task.id, e.reward, e.success, e.stop.value, _pack(e)) for tag, e in tagged]
        with self._writing():
            if note is not None:
                self._set(note)
            self._db.executemany("insert into episodes (tag, task, reward, success, stop, data) values (?, ?, ?, ?, ?, ?)", rows)

    def _set(self, note: Note) -> None:
        found = self._db.execute("select value from meta where key = ?", (note.key,)).fetchone()
        if (found[0] if found else None) != note.before:
            raise ConfigError(f"{self.path}: {note.key!r} is being written by another process. Wait for it, or stop it.")
        self._db.execute("insert or replace into meta values (?, ?)", (note.key, note.after))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction that other writers wait for."""
        with self._lock, writing(self.path or Path(":memory:")):
            try:
                self._db.execute("begin immediate")
                yield
                self._db.commit()
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.rollback()
                raise

    def load(self, tag: str | None = None) -> Iterator[Episode]:
        """Episodes of a tag (None: of all), oldest first, a page at a time. Saving meanwhile is allowed."""
        return (episode for _, _, episode in self.rows(tag))

    def rows(self, tag: str | None = None, *, after: int = 0) -> Iterator[tuple[int, str, Episode]]:
        """As `load`, from behind row `after` on: the row, the tag and the episode."""
        while True:
            with self._lock:
                page = self._db.execute(
                    "select row, tag, data from episodes where row > ? and (? is null or tag = ?) order by row limit ?",
                    (after, tag, tag, _PAGE),
                ).fetchall()
            if not page:
                return
            after = page[-1][0]
            for row, its_tag, data in page:
                yield row, its_tag, _unpack(data)

    def numbers(self, tag: str | None = None, *, by_task: bool = False) -> array[int]:
        """The rows of a tag's episodes (None: of all): in their order, or `by_task`, so that those of a task stand together."""
        order = "min(row) over (partition by task), row" if by_task else "row"
        with self._lock:
            found = self._db.execute(f"select row from episodes where ? is null or tag = ? order by {order}", (tag, tag))
            return array("q", (row for (row,) in found))

    def at(self, rows: Sequence[int]) -> list[tuple[str, Episode]]:
        """The tags and episodes in these rows, in this order. Raises CheckpointError where there is none."""
        found: dict[int, tuple[str, bytes]] = {}
        for start in range(0, len(rows), _PAGE):
            page = rows[start : start + _PAGE]
            with self._lock:
                places = ",".join("?" * len(page))
                for row, tag, data in self._db.execute(f"select row, tag, data from episodes where row in ({places})", tuple(page)):
                    found[row] = (tag, data)
        missing = [row for row in rows if row not in found]
        if missing:
            raise CheckpointError(f"{self.path} has no row {missing[0]}; it was changed meanwhile")
        return [(found[row][0], _unpack(found[row][1])) for row in rows]

    def count(self, tag: str | None = None) -> int:
        """How many episodes there are under a tag (None: in all)."""
        with self._lock:
            return int(self._db.execute("select count(*) from episodes where ? is null or tag = ?", (tag, tag)).fetchone()[0])

    def find(self, name: str) -> Iterator[Episode]:
        """The episodes whose id or whose task's id this is, oldest first. Ids are looked for by reading everything."""
        needle, after = _needle(name), 0
        while True:
            with self._lock:
                page = self._db.execute("select row, data from episodes where row > ? order by row limit ?", (after, _PAGE)).fetchall()
            if not page:
                return
            after = page[-1][0]
            for _, data in page:
                if needle in zlib.decompress(data) and name in ((episode := _unpack(data)).id, episode.task.id):
                    yield episode

    # -- notes and drops ---------------------------------------------------------------------------------------------

    def notes(self, prefix: str) -> dict[str, str]:
        """What was noted under the keys that begin with `prefix`, by key."""
        with self._lock:
            found = self._db.execute("select key, value from meta where substr(key, 1, ?) = ? order by key", (len(prefix), prefix))
            return dict(found.fetchall())

    def note(self, key: str, value: str) -> None:
        """Write a note, whatever stood there."""
        with self._writing():
            self._db.execute("insert or replace into meta values (?, ?)", (key, value))

    def save_drops(self, drops: Iterable[tuple[int, int, str, str]]) -> None:
        """Keep what filters dropped: the number of the audit, that of its filter, the episode's id and the reason."""
        with self._writing():
            self._db.executemany("insert into drops values (?, ?, ?, ?)", drops)

    def drops(self, audit: int) -> Iterator[tuple[int, str, str]]:
        """What was dropped under an audit: filter, episode and reason."""
        with self._lock:
            known = self._db.execute("select 1 from sqlite_master where name = 'drops'").fetchone()
            found: Any = self._db.execute("select filter, episode, reason from drops where audit = ?", (audit,)) if known else ()
        yield from found

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


def _needle(text: str) -> bytes:
    """As a string stands in an encoded episode."""
    return to_json(text).encode("ascii")


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
