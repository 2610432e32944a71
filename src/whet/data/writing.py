"""Records into a file that appears only when it is complete: JSON lines, a list of JSON, Parquet, a saved data set."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from whet.errors import ConfigError, missing_extra
from whet.runs.files import sync_directory, writing

Write = Callable[[Any], None]
SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
_ROWS = 1024
"""Rows of Parquet in a group."""


@contextlib.contextmanager
def open_target(path: Path) -> Iterator[Write]:
    """What takes records, one after another, for a file of a kind that its suffix names; without one, a saved data set.

    The file stands under its name when the block has ended without an error, and not before. Parquet takes episodes.
    Raises ConfigError for another suffix; MissingExtra where a package is missing; StorageError where it cannot be written.
    """
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    if suffix and suffix not in SUFFIXES:
        raise ConfigError(f"{path} has the suffix {suffix!r}; expected one of {', '.join(SUFFIXES)}, or none for a data set")
    temporary = path.with_name(f".{path.name}.tmp")
    make = _parquet if suffix == ".parquet" else _dataset if not suffix else _json
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with make(temporary, suffix) as write:
                yield write
            if path.is_dir():
                shutil.rmtree(path)
            os.replace(temporary, path)
            sync_directory(path.parent)
    except BaseException:
        _remove(temporary)
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def to_text(record: Any) -> bytes:
    """A record as a line of UTF-8; in ASCII where it holds half of a surrogate pair, which UTF-8 cannot."""
    try:
        return json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(record).encode("ascii")


@contextlib.contextmanager
def _json(path: Path, suffix: str) -> Iterator[Write]:
    in_list = suffix.startswith(".json") and not suffix.startswith(".jsonl")
    with open(path, "wb") as raw:
        file = cast(IO[bytes], gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)) if suffix.endswith(".gz") else raw
        first = True

        def write(record: Any) -> None:
            nonlocal first
            before = (b"[\n" if first else b",\n") if in_list else b""
            file.write(before + to_text(record) + (b"" if in_list else b"\n"))
            first = False

        yield write
        if in_list:
            file.write(b"[]\n" if first else b"\n]\n")
        if file is not raw:
            file.close()
        raw.flush()
        os.fsync(raw.fileno())


@contextlib.contextmanager
def _parquet(path: Path, suffix: str) -> Iterator[Write]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise missing_extra("pyarrow", "parquet", "a Parquet file") from None
    from whet.data import parquet

    schema = parquet.schema()
    rows: list[dict[str, Any]] = []
    with pq.ParquetWriter(path, schema, compression="zstd") as file:

        def flush() -> None:
            if rows:
                file.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows.clear()

        def write(episode: Any) -> None:
            rows.append(parquet.row_of(episode))
            if len(rows) >= _ROWS:
                flush()

        yield write
        flush()


@contextlib.contextmanager
def _dataset(path: Path, suffix: str) -> Iterator[Write]:
    """By way of JSON lines, so that `datasets` finds the same types as in a file that anybody else gives it."""
    try:
        import datasets
    except ImportError:
        raise missing_extra("datasets", "parquet", "a saved data set") from None
    _remove(path)
    path.mkdir()
    lines, cache = path / "lines.jsonl", path / "cache"
    with _json(lines, ".jsonl") as write:
        yield write
    if not lines.stat().st_size:
        raise ConfigError("no record is to be written, and an empty data set has no columns")
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset("json", data_files=str(lines), split="train", cache_dir=str(cache))
        found.save_to_disk(str(path / "made"))
    finally:
        if shown:
            datasets.enable_progress_bars()
    del found
    shutil.rmtree(cache)
    lines.unlink()
    made = path / "made"
    for part in made.iterdir():
        os.replace(part, path / part.name)
    made.rmdir()
