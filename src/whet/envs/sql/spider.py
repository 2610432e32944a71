"""Questions of a directory in Spider's format (Yu et al., arXiv 1809.08887), which the user names.

    DIR/tables.json, DIR/train_spider.json, DIR/train_others.json, DIR/dev.json, DIR/database/DB/DB.sqlite
    DIR/test_tables.json, DIR/test.json, DIR/test_database/DB/DB.sqlite        (in newer releases)

Scored as the official test-suite evaluation does: on every `.sqlite` file in a database's directory, which is one in
Spider itself and many where the test suites were put there; without DISTINCT; where the gold query has an ORDER BY, the
rows' order counts.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from whet.envs.sql.database import Database
from whet.envs.sql.schema import Column, Question, Table
from whet.errors import ConfigError, EnvError
from whet.seeding import derive_seed
from whet.types import SPLITS, Split, Task

FILES: Mapping[Split, tuple[str, ...]] = {
    "train": ("train_spider.json", "train_others.json"),
    "dev": ("dev.json",),
    "test": ("test.json",),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A question of one of the files."""

    file: str
    index: int
    database: str
    question: str
    sql: str


class Spider:
    """The questions of `directory`; `splits` as in `SQL`. Raises ConfigError where the directory is not in the format."""

    def __init__(self, directory: Path, splits: Literal["official", "databases"], limit: float) -> None:
        self._directory, self._limit = directory, limit
        self._splits: Mapping[Split, Sequence[Entry]] = _by_database(directory) if splits == "databases" else _entries(directory)

    def tasks(self, env: str, split: Split, n: int, start: int) -> list[Task]:
        """The split's questions in the order of its files; none where the directory has no file for the split."""
        return [
            Task(
                id=f"{env}/spider/{entry.file}/{entry.index}",
                env=env,
                split=split,
                seed=derive_seed("task", env, "spider", entry.file, entry.index),
                data={"file": entry.file, "index": entry.index},
            )
            for entry in self._splits[split][start : start + n]
        ]

    def question(self, task: Task) -> Question:
        """The question of a task, over a fresh connection to its database. Raises EnvError where either is missing."""
        entry = _entry(self._directory, task)
        test = entry.file == "test.json" and (self._directory / "test_database").is_dir()
        folder = self._directory / ("test_database" if test else "database") / entry.database
        main = folder / f"{entry.database}.sqlite"
        known = _tables(self._directory, "test_tables.json" if test else "tables.json")
        if entry.database not in known or not main.is_file():
            what = f"file {main}" if entry.database in known else f"entry of {entry.database!r} in its tables.json"
            raise EnvError(f"task {task.id!r} of {self._directory} needs the database {entry.database!r}, but there is no {what}")
        shown = Database.file(main, limit=self._limit)

        def others() -> Iterator[Database]:
            for path in sorted(folder.glob("*.sqlite")):
                if path != main:
                    database = Database.file(path, limit=self._limit)
                    try:
                        yield database
                    finally:
                        database.close()

        return Question(
            text=entry.question,
            gold=plain(entry.sql),
            tables=known[entry.database],
            shown=shown,
            others=others,
            owned=(shown,),
            keep_distinct=False,
            about={"database": entry.database},
        )


def plain(sql: str) -> str:
    """The query as SQLite reads it: Spider writes some operators with a blank inside, and takes 2020 for the present year."""
    for wrong, right in (("> =", ">="), ("< =", "<="), ("! =", "!=")):
        sql = sql.replace(wrong, right)
    return re.sub(r"year\s*\(\s*curdate\s*\(\s*\)\s*\)\s*", "2020", sql, flags=re.IGNORECASE)


@functools.cache
def _entries(directory: Path) -> Mapping[Split, tuple[Entry, ...]]:
    """The official splits. Raises ConfigError where the directory has no questions or no tables."""
    if not (directory / "tables.json").is_file():
        found = sorted(p.name for p in directory.iterdir()) if directory.is_dir() else []
        told = f"it holds {', '.join(found[:8]) or 'nothing'}" if directory.is_dir() else "there is no such directory"
        raise ConfigError(f"spider is {str(directory)!r}; expected a directory with tables.json, dev.json and database/, but {told}")
    splits = {split: tuple(entry for name in names for entry in _read(directory, name)) for split, names in FILES.items()}
    if not any(splits.values()):
        raise ConfigError(
            f"spider is {str(directory)!r}, which has none of {', '.join(name for names in FILES.values() for name in names)}"
        )
    return splits


def _read(directory: Path, name: str) -> Iterator[Entry]:
    path = directory / name
    for index, item in enumerate(_json(path) if path.is_file() else ()):
        try:
            yield Entry(name, index, item["db_id"], item["question"], item["query"])
        except (KeyError, TypeError) as error:
            raise ConfigError(f"item {index} of {path} is not in Spider's format: expected db_id, question and query") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error


def _entry(directory: Path, task: Task) -> Entry:
    file, index = task.data.get("file"), task.data.get("index")
    for entries in _entries(directory).values():
        for entry in entries:
            if (entry.file, entry.index) == (file, index):
                return entry
    raise EnvError(f"task {task.id!r} is no question of {directory}; list the tasks again")


@functools.cache
def _by_database(directory: Path) -> Mapping[Split, tuple[Entry, ...]]:
    """All questions, divided by database: 70% of the databases for train, 15% each for dev and test, at least one."""
    everything = [entry for entries in _entries(directory).values() for entry in entries]
    names = sorted({entry.database for entry in everything}, key=lambda name: derive_seed("spider", name))
    if len(names) < len(SPLITS):
        raise ConfigError(f"splits=databases needs at least {len(SPLITS)} databases; {directory} has {len(names)}")
    held = max(1, round(0.15 * len(names)))
    parts = {"test": names[:held], "dev": names[held : 2 * held], "train": names[2 * held :]}
    return {split: tuple(entry for entry in everything if entry.database in parts[split]) for split in SPLITS}


@functools.cache
def _tables(directory: Path, name: str) -> Mapping[str, tuple[Table, ...]]:
    """Database -> its tables, from tables.json."""
    path = directory / name
    return {item["db_id"]: _schema(item, path) for item in _json(path)}


def _schema(item: Mapping[str, Any], path: Path) -> tuple[Table, ...]:
    try:
        tables, columns = item["table_names_original"], item["column_names_original"]
        kinds = item["column_types"]
        primary = {key for keys in item["primary_keys"] for key in (keys if isinstance(keys, list) else [keys])}
        targets = {source: f"{tables[columns[target][0]]}.{columns[target][1]}" for source, target in item["foreign_keys"]}
        return tuple(
            Table(
                name,
                tuple(
                    Column(column, kinds[i], i in primary, targets.get(i, "")) for i, (owner, column) in enumerate(columns) if owner == at
                ),
            )
            for at, name in enumerate(tables)
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is not in Spider's format: {type(error).__name__} {error} in {item.get('db_id')!r}") from error
