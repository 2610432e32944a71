"""SQL: questions over SQLite databases, answered with a query; made from seeds, or those of a checkout of Spider.

    book(name, shelf, price, weight)
    What is the price of Otto?           ->  answer("select price from book where name = 'Otto'")

A query is right when it returns the gold query's rows on every instance of the database, of which the agent sees one:
a query that is right by luck is wrong on another (test-suite accuracy, Zhong et al., arXiv 2010.02840).
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from whet.envs.base import Action, Env, Step
from whet.envs.search import call_of
from whet.envs.sql.database import QueryError, Result, Value, quoted
from whet.envs.sql.generate import make_question
from whet.envs.sql.questions import LEVELS
from whet.envs.sql.schema import Question
from whet.envs.sql.spider import Spider
from whet.errors import ConfigError, ToolError, did_you_mean
from whet.seeding import derive_seed
from whet.tools.function import Tool, describe, tool
from whet.types import Split, Task

__all__ = ["SQL"]

SHOWN_ROWS, SHOWN_CELL, SAMPLE = 20, 60, 3
"""Rows of a result, characters of a value and rows of a table's description that the agent is shown."""


class SQL(Env):
    """Answer questions over a SQLite database with a query.

    Options: `level` is how hard generated questions are, `1` (look a value up) to `6` (queries within queries) or a range;
    `answer` is what the agent gives in the end, a query (`sql`) or what it found (`value`); `schema` says whether the tables
    stand in the prompt or must be asked for (`prompt`, `tools`); `instances` is how many databases an answer is judged on;
    `spider` is a directory in Spider's format whose questions are asked instead, and `splits` whether its files are the
    splits (`official`) or its databases are divided (`databases`); `limit` is how many million steps of SQLite's virtual
    machine a query may take.
    """

    instructions = "Answer the question with one SQL query."
    max_turns = 6
    max_tokens = 128

    def __init__(
        self,
        level: str = "1-6",
        answer: Literal["sql", "value"] = "sql",
        schema: Literal["prompt", "tools"] = "prompt",
        instances: int = 4,
        spider: str = "",
        splits: Literal["official", "databases"] = "official",
        limit: float = 10.0,
    ) -> None:
        low, _, high = str(level).partition("-")
        if not (low.isdigit() and (high or low).isdigit() and 1 <= int(low) <= int(high or low) <= max(LEVELS)):
            raise ConfigError(f"level is {level!r}; expected a number from 1 to {max(LEVELS)} or a range such as '1-3'")
        if instances < 1:
            raise ConfigError(f"instances is {instances}; expected 1 or more databases to judge an answer on")
        if not limit > 0:
            raise ConfigError(f"limit is {limit}; expected a number of million steps above 0")
        if spider and answer == "value":
            raise ConfigError("answer=value is for generated questions; Spider is scored by the query (answer=sql)")
        self._spider = Spider(Path(spider).expanduser(), splits, limit) if spider else None
        self._level, self._levels = str(level), range(int(low), int(high or low) + 1)
        self._value, self._in_prompt, self._instances, self._limit = answer == "value", schema == "prompt", instances, limit
        self._seen_schema, self._answered, self._verdict = self._in_prompt, "", ""
        self._queried: Result | None = None
        self.question: Question | None = None
        if self._value:
            self.instructions = "Find the answer to the question with SQL queries."  # type: ignore[misc]
            self.answer = self._answer_value  # type: ignore[method-assign,assignment]

    @property
    def tools(self) -> tuple[Tool, ...]:
        """`schema` only where the prompt does not hold it; `answer` takes a query or a value."""
        found = [t for t in super().tools if t.name != "schema" or not self._in_prompt]
        if self._value:
            found = [replace(describe(SQL._answer_value), name="answer") if t.name == "answer" else t for t in found]
        return tuple(found)

    def tasks(self, split: Split, n: int, start: int = 0) -> list[Task]:
        """Of generated questions endlessly many, the levels in turn; of Spider those of the files."""
        if self._spider is not None:
            return self._spider.tasks(self.name, split, n, start)
        prefix = (self.name, self._level, split)
        return [
            Task(
                id="/".join(map(str, (*prefix, i))),
                env=self.name,
                split=split,
                seed=derive_seed("task", *prefix, i),
                data={"level": self._levels[i % len(self._levels)]},
            )
            for i in range(start, start + n)
        ]

    def reset(self, task: Task) -> str:
        if self._spider is not None:
            self.question = self._spider.question(task)
        else:
            level = int(task.data.get("level", self._levels[0]))
            self.question = make_question(task.seed, task.split, level, self._instances, self._limit)
        tables = "\n".join(map(str, self.question.tables))
        return f"{tables}\n{self.question.text}" if self._in_prompt else self.question.text

    def step(self, action: Action) -> Any:
        """As `Env.step`, with what a grader wants to know in `info`."""
        step = super().step(action)
        assert isinstance(step, Step)
        if not step.terminated or self.question is None:
            return step
        info = {"reason": "answered", "answer": self._answered[:2000], "gold": self.question.gold, "verdict": self._verdict}
        return replace(step, info=info | dict(self.question.about))

    @tool
    def schema(self) -> str:
        """List the tables and their columns."""
        self._seen_schema = True
        return "\n".join(map(str, self._asked.tables))

    @tool
    def describe(self, table: str) -> str:
        """Show the columns and some rows of a table."""
        known = {t.name: t for t in self._asked.tables}
        if table not in known:
            raise ToolError(f"no table {table[:40]!r}. {did_you_mean(table, known)}")
        try:
            rows = self._asked.shown.run(f"select * from {quoted(table)} limit {SAMPLE}")
        except QueryError as error:
            raise ToolError(str(error)) from None
        return f"{known[table].details()}\n\n{show(rows)}"

    @tool
    def query(self, sql: str) -> str:
        """Run a query and see its result."""
        try:
            self._queried = self._asked.shown.run(sql)
        except QueryError as error:
            raise ToolError(str(error)) from None
        return show(self._queried)

    @tool
    def answer(self, sql: str) -> str:
        """Give the query that answers the question."""
        self._answered, self._verdict = sql, self._asked.judge(sql)
        right = self._verdict == "right"
        return self.finish("", reward=float(right), success=right)

    def _answer_value(self, value: str) -> str:
        """Give the answer; several values are separated by commas, the columns of a row by |."""
        gold = self._asked.answer_on(self._asked.shown)
        right = same_value(gold, value, in_order="order by" in self._asked.gold)
        self._answered, self._verdict = value, "right" if right else "another value"
        return self.finish("", reward=float(right), success=right)

    @property
    def _asked(self) -> Question:
        assert self.question is not None, "reset comes first"
        return self.question

    def expert(self, rng: random.Random) -> Action:
        """The gold query; where a value is asked for, what it returns."""
        if not self._seen_schema:
            return call_of("", "schema")
        if not self._value:
            return call_of("", "answer", sql=self._asked.gold)
        gold = self._asked.answer_on(self._asked.shown)
        if self._queried != gold:
            return call_of("", "query", sql=self._asked.gold)
        return call_of("", "answer", value=write_value(gold))

    def random_action(self, rng: random.Random) -> Action:
        """Look at a table, or answer with a column of it, for all rows or those with some value in some column."""
        table = rng.choice(self._asked.tables)
        if rng.random() < 0.3:
            return call_of("", "describe", table=table.name)
        wanted, given = (rng.choice(table.columns).name for _ in range(2))
        sql = f"select {quoted(wanted)} from {quoted(table.name)}"
        try:
            rows = self._asked.shown.run(f"select distinct {quoted(given)} from {quoted(table.name)} limit 100").rows
        except QueryError:
            rows = ()
        value = rng.choice(rows)[0] if rows else None
        if self._value:
            return call_of("", "answer", value=_text(value))
        if isinstance(value, int | float | str) and rng.random() < 0.8:
            sql += f" where {quoted(given)} = " + (repr(value) if not isinstance(value, str) else "'" + value.replace("'", "''") + "'")
        return call_of("", "answer", sql=sql)

    def close(self) -> None:
        if self.question is not None:
            self.question.close()


def show(result: Result) -> str:
    """A result as the agent reads it: a line of columns, then a line for each row, the first ones of many."""
    if not result.rows:
        return "no rows"
    lines = [" | ".join(result.columns), *(" | ".join(_text(value)[:SHOWN_CELL] for value in row) for row in result.rows[:SHOWN_ROWS])]
    if len(result.rows) > SHOWN_ROWS:
        lines.append(f"({len(result.rows)} rows; the first {SHOWN_ROWS} are shown)")
    return "\n".join(lines)


def _text(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    return "null" if value is None else str(value)


def write_value(result: Result) -> str:
    """A result as an answer: values separated by commas, the columns of a row by |."""
    return ", ".join(" | ".join(_text(value) for value in row) for row in result.rows)


def same_value(gold: Result, answer: str, *, in_order: bool) -> bool:
    """Whether the answer has the gold rows: numbers to two places, names without regard to case, rows in any order
    unless the question asks for one."""
    theirs = [tuple(_plain(_text(value)) for value in row) for row in gold.rows]
    mine = [tuple(_plain(part) for part in row.split("|")) for row in answer.split(",")]
    return theirs == mine if in_order else sorted(theirs) == sorted(mine)


def _plain(text: str) -> str:
    """A value's text to compare by."""
    text = text.strip().strip("'\"").casefold()
    try:
        return _text(float(text))
    except ValueError:
        return text
