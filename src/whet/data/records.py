"""Records in files, one after another, however long the file is: JSON lines, a list of JSON, Parquet, a saved data set, a store.

Each record comes with the place behind it, from which reading can be taken up again, and a record that cannot be read comes
as its error, with the line.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from whet.errors import CheckpointError, ConfigError, missing_extra

MOST = 1 << 28
"""Bytes of one record; more is taken for damage."""
_CHUNK = 1 << 20
_HEAD = 1 << 16
_TAIL = 1 << 12
_ROWS = 256
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Place:
    """How far a file has been read."""

    offset: int = 0
    """Bytes, as they are when unpacked; of Parquet, data sets and stores rows."""
    line: int = 1
    """Where the next byte stands."""
    number: int = 0
    """Records so far, those that could not be read included."""


@dataclass(frozen=True, slots=True)
class Item:
    """A record, or why there is none, and the place behind it."""

    line: int
    after: Place
    record: Any = None
    error: str | None = None
    again: bool = False
    """Whether the file ends within this record, so that `after` stands before it: it is to be looked at again."""
    tag: str | None = None
    """Of a record out of a store: the tag that it had there."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that is read record by record."""

    path: Path
    size: int
    """What `Place.offset` comes to in the end, as far as can be told."""
    read: Callable[[Place], Iterator[Item]]
    mark: Callable[[int], str]
    """What the file begins with, and what it holds before an offset: it differs where another file has taken its place."""
    unit: str = "line"
    """What an item's `line` counts."""


def open_source(path: Path) -> Source:
    """The records of a file, by its suffix: .jsonl, .json (a list, or one record), both also .gz; .parquet; .db; or a directory.

    A directory is a run, or what `Dataset.save_to_disk` wrote. Raises ConfigError where there is no such file or nothing
    that can be read so; MissingExtra where that needs a package.
    """
    if not path.exists():
        raise ConfigError(f"there is no {path}")
    if path.is_dir():
        if (path / "episodes.db").exists():
            return _stored(path / "episodes.db")
        return _dataset(path)
    kind = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    if kind in (".jsonl", ".ndjson", ".json"):
        read = _lines if kind != ".json" else _elements
        size = path.stat().st_size if path.suffix != ".gz" else 0
        return Source(path=path, size=size, read=lambda start: read(path, start), mark=lambda offset: _mark(path, offset))
    if kind == ".parquet":
        return _parquet(path)
    if kind == ".db":
        return _stored(path)
    raise ConfigError(f"{path} has the suffix {path.suffix!r}; expected .jsonl, .json, .parquet, .db, or a directory")


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else open(path, "rb")


def _mark(path: Path, offset: int) -> str:
    if path.suffix == ".gz":  # looking back would mean to unpack everything again
        with open(path, "rb") as packed:
            return f"{path.stat().st_size}/{hashlib.blake2b(packed.read(_HEAD), digest_size=16).hexdigest()}"
    with open(path, "rb") as file:
        head = file.read(min(_HEAD, offset))
        file.seek(max(0, offset - _TAIL))
        tail = file.read(min(_TAIL, offset))
    return hashlib.blake2b(head + b"\0" + tail, digest_size=16).hexdigest()


# -- JSON ----------------------------------------------------------------------------------------------------------------


def _parsed(data: bytes, line: int, after: Place, *, before: Place | None = None) -> Item:
    """The item of some JSON. Where it is not readable and `before` is given, that is where it is to be looked at again."""
    try:
        return Item(line, after, record=json.loads(data))
    except UnicodeDecodeError as error:
        why = f"not UTF-8 (byte {error.start} of the record)"
    except json.JSONDecodeError as error:
        around = repr(error.doc[max(0, error.pos - 20) : error.pos + 20])
        why = f"not JSON (line {line + error.lineno - 1}, column {error.colno}): {error.msg}: {around}"
    except (ValueError, RecursionError) as error:
        why = f"not readable JSON: {error}"
    return Item(line, before or after, error=why, again=before is not None)


def _lines(path: Path, start: Place) -> Iterator[Item]:
    """A record for each line that is not blank."""
    with _open(path) as file:
        file.seek(start.offset)
        at = start
        while raw := file.readline(MOST):
            size, whole = len(raw), raw.endswith(b"\n") or len(raw) < MOST
            while not whole:
                rest = file.readline(MOST)
                size, whole = size + len(rest), rest.endswith(b"\n") or len(rest) < MOST
                raw = b""
            text = raw.removeprefix(_BOM) if at.offset == 0 else raw
            blank = size <= MOST and not text.strip()
            line, before, at = at.line, at, Place(at.offset + size, at.line + 1, at.number + (not blank))
            if size > MOST:
                yield Item(line, at, error=f"the line has {size:,} bytes; at most {MOST:,} are read as one record")
            elif not blank:
                yield _parsed(text, line, at, before=None if raw.endswith(b"\n") else before)


_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{},]|[^\s\[\]{},"]+', re.DOTALL)
_SPACE = re.compile(rb"\s*")
_COMMAS = re.compile(rb"[\s,]*")
_OPENS, _CLOSES = (b"[", b"{"), (b"]", b"}")


class _Window:
    """A part of a file that moves on. `data[at:]` is what comes next; it begins at `offset` in the file, in line `line`."""

    def __init__(self, file: IO[bytes], offset: int, line: int) -> None:
        self.file, self.offset, self.line = file, offset, line
        self.data = b""
        self.at = 0
        self.ended = False

    def more(self) -> bool:
        """Read on; false at the end of the file."""
        rest = self.data[self.at :]
        found = self.file.read(max(_CHUNK, len(rest)))  # doubling keeps a long record from being looked at for each chunk
        self.data, self.at, self.ended = rest + found, 0, not found
        return not self.ended

    def take(self, size: int) -> bytes:
        taken = self.data[self.at : self.at + size]
        self.line += taken.count(b"\n")
        self.offset += size
        self.at += size
        return taken

    def skip(self, what: re.Pattern[bytes]) -> bytes:
        """Move behind what the pattern takes, and return the next byte; nothing at the end of the file."""
        while True:
            found = what.match(self.data, self.at)
            assert found is not None
            self.take(len(found[0]))
            if self.at < len(self.data) or not self.more():
                return self.data[self.at : self.at + 1]

    def extent(self) -> int | None:
        """Bytes of the value that comes next, whether or not it is sound; None where it does not end."""
        size = depth = 0
        while True:
            for token in _TOKEN.finditer(self.data, self.at + size):
                text = token[0]
                if token.end() == len(self.data) and not self.ended and text not in _CLOSES:
                    break  # it may go on
                if depth == 0 and text in (b",", *_CLOSES):
                    return token.start() - self.at
                depth += (text in _OPENS) - (text in _CLOSES)
                size = token.end() - self.at
                if depth == 0:
                    return size
            if self.ended or len(self.data) - self.at > MOST:
                return None
            self.more()


def _elements(path: Path, start: Place) -> Iterator[Item]:
    """A record for each element of a list; where the file holds one value and no list, that value."""
    with _open(path) as file:
        file.seek(start.offset)
        window, at = _Window(file, start.offset, start.line), start
        if start.offset == 0:
            while len(window.data) < len(_BOM) and window.more():
                pass
            if window.data.startswith(_BOM):
                window.take(len(_BOM))
            if (first := window.skip(_SPACE)) != b"[":
                if first:
                    yield _single(window)
                return
            window.take(1)
        while (first := window.skip(_COMMAS)) not in (b"]", b""):
            line, size = window.line, window.extent()
            if size is None:
                most = "the end of the file" if window.ended else f"{MOST:,} bytes"
                yield Item(line, at, error=f"the record has no end before {most}; what follows is not read", again=True)
                return
            data = window.take(max(size, 1))
            at = Place(window.offset, window.line, at.number + 1)
            yield _parsed(data, line, at)
        if not first:
            yield Item(window.line, at, error="the list has no end: the file is cut off here", again=True)


def _single(window: _Window) -> Item:
    while len(window.data) < MOST and window.more():
        pass
    line, data = window.line, window.take(len(window.data) - window.at)
    return _parsed(data, line, Place(window.offset, window.line, 1))


# -- Parquet, data sets, stores -----------------------------------------------------------------------------------------


def _parquet(path: Path) -> Source:
    from whet.data import parquet

    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise missing_extra("pyarrow", "parquet", "a Parquet file") from None
    try:
        with pq.ParquetFile(path) as file:
            rows, schema = file.metadata.num_rows, file.schema_arrow
            marks = f"{rows}/{file.metadata.num_row_groups}/{path.stat().st_size}"
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as Parquet: {error}") from error
    as_record = parquet.record_of if parquet.is_own(schema) else lambda row: parquet.without_nulls(row, schema)

    def read(start: Place) -> Iterator[Item]:
        with pq.ParquetFile(path) as file:
            at = 0
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if at + size <= start.offset:
                    at += size
                    continue
                for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group]):
                    for row in batch.to_pylist():
                        at += 1
                        if at > start.offset:
                            yield Item(at, Place(at, at + 1, at), record=as_record(row))

    return Source(path=path, size=rows, read=read, mark=lambda offset: marks, unit="row")


def _dataset(path: Path) -> Source:
    from whet.data import parquet

    try:
        import datasets
    except ImportError:
        raise missing_extra("datasets", "parquet", "a saved data set") from None
    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is neither a run nor a data set that `Dataset.save_to_disk` wrote ({error})") from error
    if isinstance(found, dict):
        parts = ", ".join(str(path / name) for name in found)
        raise ConfigError(f"{path} holds several data sets; name one: {parts}")
    schema = found.features.arrow_schema
    marks = f"{len(found)}/{hashlib.blake2b(str(schema).encode(), digest_size=8).hexdigest()}"

    def read(start: Place) -> Iterator[Item]:
        for at in range(start.offset, len(found)):
            yield Item(at + 1, Place(at + 1, at + 2, at + 1), record=parquet.without_nulls(found[at], schema))

    return Source(path=path, size=len(found), read=read, mark=lambda offset: marks, unit="row")


def _stored(path: Path) -> Source:
    from whet.runs import EpisodeStore

    store = EpisodeStore(path, read_only=True)

    def read(start: Place) -> Iterator[Item]:
        number = start.number
        for row, tag, episode in store.rows(after=start.offset):
            number += 1
            yield Item(row, Place(row, row + 1, number), record=episode, tag=tag)

    def mark(offset: int) -> str:
        try:
            (_, first), (_, last) = store.at([next(iter(store.numbers()), 0), offset])
        except CheckpointError:  # a run that was resumed may have lost its last rows
            return ""
        return hashlib.blake2b(f"{first.id}\0{last.id}\0{first.seed}\0{last.seed}".encode(errors="replace"), digest_size=16).hexdigest()

    return Source(path=path, size=store.position, read=read, mark=mark, unit="row")
