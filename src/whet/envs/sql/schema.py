"""Tables as an agent is told about them, and a question with everything that is needed to judge an answer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from whet.envs.sql.compare import ordered, same_rows, without_distinct
from whet.envs.sql.database import Database, QueryError, Result
from whet.errors import EnvError


@dataclass(frozen=True, slots=True)
class Column:
    """A column; `target` is what it refers to, as in `teacher.id`."""

    name: str
    kind: str
    primary: bool = False
    target: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table's name and columns."""

    name: str
    columns: tuple[Column, ...]

    def __str__(self) -> str:
        """One line, such as `book(id, name, teacher_id -> teacher.id)`."""
        return f"{self.name}({', '.join(c.name + (f' -> {c.target}' if c.target else '') for c in self.columns)})"

    def details(self) -> str:
        """A line for each column, with its type."""
        return "\n".join(
            f"{c.name} {c.kind}{' primary key' if c.primary else ''}{f' -> {c.target}' if c.target else ''}" for c in self.columns
        )


@dataclass(frozen=True)
class Question:
    """A question over a database, its gold query, and the instances of the database that an answer is judged on."""

    text: str
    gold: str
    tables: tuple[Table, ...]
    shown: Database
    """The instance that the agent may query."""
    others: Callable[[], Iterable[Database]]
    """Further instances of the same schema, whose content differs, one after the other."""
    owned: tuple[Database, ...] = ()
    """Databases that are closed with the question."""
    keep_distinct: bool = True
    """Whether DISTINCT counts; the official evaluation of Spider takes it out of both queries."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """For the episode's tags."""

    def judge(self, sql: str) -> str:
        """`right`, or what is wrong with the query as an answer.

        Right means the same rows as the gold query on every instance. Raises EnvError where the gold query fails.
        """
        gold = self.gold if self.keep_distinct else without_distinct(self.gold)
        mine = sql if self.keep_distinct else without_distinct(sql)
        for i, database in enumerate(itertools.chain([self.shown], self.others())):
            expected = self.answer_on(database, gold)
            try:
                found = database.run(mine)
            except QueryError as error:
                return f"error: {error}"
            if not same_rows(expected.rows, found.rows, in_order=ordered(gold)):
                return "another result on another instance" if i else "another result"
        return "right"

    def answer_on(self, database: Database, gold: str = "") -> Result:
        """What the gold query returns. Raises EnvError where it fails."""
        try:
            return database.run(gold or self.gold)
        except QueryError as error:
            raise EnvError(f"the gold query {self.gold!r} fails: {error}; if it takes too long, raise the option limit") from error

    def close(self) -> None:
        """Close the databases; harmless when called twice."""
        for database in self.owned:
            database.close()
