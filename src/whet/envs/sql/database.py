"""A SQLite database that a model may query: reading only, and never for long.

Everything a statement could do beyond reading is refused by SQLite's authorizer (ATTACH, writes, pragmas that set
something, loading extensions), and the number of steps of SQLite's virtual machine is bounded, so that an endless
recursive query ends, at the same place every time. What depends on anything but the data (`random()`, the time of day)
is refused as well, so that an episode can be repeated.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from whet.errors import EnvError

MILLION = 1_000_000
CHECK_EVERY = 10_000
"""Virtual-machine steps between two looks at the limits."""
CELL = 100_000
"""Bytes that a value may have, also on the way."""
ROWS = 10_000
"""Rows that a result may have; one with more is refused."""
BYTES = 4 * MILLION
"""Characters of text and bytes that a result may hold in all."""

Value = int | float | str | bytes | None
Row = tuple[Value, ...]

_CLOCKS = ("date", "time", "datetime", "julianday", "strftime", "unixepoch")
_OUTSIDE = {"now", "localtime", "utc"}
_REFUSED = {"random", "randomblob", "load_extension", "fts3_tokenizer", "current_date", "current_time", "current_timestamp"}
_PRAGMAS = {"table_info", "table_xinfo", "foreign_key_list"}
"""Pragmas that only tell; none of them has a form that sets something."""


class QueryError(Exception):
    """A query that was refused, failed or was stopped; the message is made for whoever wrote the query."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a query returned: all of its rows, in order."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


class Database:
    """One database, open for reading. `limit` is how many million virtual-machine steps a query may take.

    Besides that, a query is stopped after `seconds`, for the work that SQLite does not count as steps; the limit on
    steps is the one that is meant to be met.
    """

    def __init__(self, connection: sqlite3.Connection, *, limit: float, seconds: float = 10.0) -> None:
        self._connection = connection
        self._steps, self._seconds = int(limit * MILLION), seconds
        self._taken, self._deadline = 0, 0.0
        self._denied = ""
        self._stopped = ""
        connection.text_factory = _decode
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, CELL)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        for name in _CLOCKS:
            connection.create_function(name, -1, self._clock(name), deterministic=True)
        connection.execute("pragma query_only = on")
        connection.execute("pragma trusted_schema = off")
        connection.set_authorizer(self._authorize)
        connection.set_progress_handler(self._progress, CHECK_EVERY)

    @classmethod
    def memory(cls, script: str, rows: Mapping[str, Iterable[Sequence[Value]]], *, limit: float) -> Database:
        """A database in memory, from the statements that make its tables and each table's rows."""
        connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        connection.executescript(script)
        for table, values in rows.items():
            values = [tuple(row) for row in values]
            if values:
                connection.executemany(f"insert into {quoted(table)} values ({', '.join('?' * len(values[0]))})", values)
        return cls(connection, limit=limit)

    @classmethod
    def file(cls, path: Path, *, limit: float, seconds: float = 10.0) -> Database:
        """A database file, opened so that neither it nor its directory is touched. Raises EnvError where it cannot be read."""
        try:
            uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
            connection = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None)
            connection.execute("select count(*) from sqlite_master").fetchone()
        except sqlite3.Error as error:
            raise EnvError(f"the database {path} cannot be read: {error}") from error
        return cls(connection, limit=limit, seconds=seconds)

    def run(self, sql: str) -> Result:
        """The result of one SELECT. Raises QueryError where it is refused, fails, takes too long or returns too much."""
        self._taken, self._deadline = 0, time.monotonic() + self._seconds
        self._denied = self._stopped = ""
        rows: list[Row] = []
        size = 0
        try:
            cursor = self._connection.execute(sql)
            if cursor.description is None:
                raise QueryError("this is no query; expected one SELECT statement")
            for row in cursor:
                size += sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)
                if len(rows) == ROWS or size > BYTES:
                    cursor.close()
                    raise QueryError(f"the result is too large; expected at most {ROWS} rows and {BYTES // MILLION} MB")
                rows.append(row)
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise QueryError(self._stopped or self._denied or str(error)) from None
        except (ValueError, OverflowError) as error:  # NUL characters, lone surrogates
            raise QueryError(str(error)) from None
        return Result(tuple(str(column[0]) for column in cursor.description), tuple(rows))

    def close(self) -> None:
        """Close the connection; harmless when called twice."""
        self._connection.close()

    def _authorize(self, action: int, first: str | None, second: str | None, schema: str | None, via: str | None) -> int:
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION:
            if (second or "").lower() not in _REFUSED:
                return sqlite3.SQLITE_OK
            self._denied = f"the function {second} may not be used here"
        elif action == sqlite3.SQLITE_PRAGMA:
            if (first or "").lower() in _PRAGMAS:
                return sqlite3.SQLITE_OK
            self._denied = f"the pragma {first} may not be used here"
        else:
            self._denied = "the database can only be read; expected one SELECT statement"
        return sqlite3.SQLITE_DENY

    def _clock(self, name: str) -> Callable[..., Value]:
        """SQLite's function of dates `name`, refused where it would ask the machine for the time or the time zone."""
        at = 1 if name == "strftime" else 0  # where the time stands among the arguments; without one, SQLite takes now

        def function(*arguments: Value) -> Value:
            if len(arguments) <= at or any(str(argument).strip().lower() in _OUTSIDE for argument in arguments):
                self._denied = f"{name} may not be used with the present time or the time zone here"
                raise ValueError(self._denied)
            found: Value = _calendar.connection.execute(f"select {name}({', '.join('?' * len(arguments))})", arguments).fetchone()[0]
            return found

        return function

    def _progress(self) -> bool:
        """Whether to stop the query that runs."""
        self._taken += CHECK_EVERY
        if self._taken > self._steps or time.monotonic() > self._deadline:
            self._stopped = "the query takes too long and was stopped"
        return bool(self._stopped)


def quoted(name: str) -> str:
    """A table's or column's name for use in SQL."""
    return '"' + name.replace('"', '""') + '"'


def _decode(data: bytes) -> str:
    return data.decode("utf-8", errors="ignore")  # some databases of Spider hold text that is no UTF-8


class _Calendar(threading.local):
    """SQLite's own functions of dates, on a connection where they are not replaced; one for each thread."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:")


_calendar = _Calendar()
