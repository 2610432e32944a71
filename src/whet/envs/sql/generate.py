"""Databases and questions made from a seed, each with several instances to judge an answer on."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

from whet.envs.search import NAMES
from whet.envs.sql.database import Database, QueryError, Row, Value
from whet.envs.sql.families import FAMILIES, Entity, Family
from whet.envs.sql.questions import LEVELS, NUMBERS, Asked, Cast, Draw
from whet.envs.sql.schema import Column, Question, Table
from whet.errors import EnvError
from whet.seeding import derive_seed
from whet.types import Split

OWNERS, THINGS, KINDS = 6, 12, 4
"""Names that a question's databases draw from: of owners, of things, and of the kinds of each."""
Data = dict[str, list[Row]]


def make_question(seed: int, split: Split, level: int, instances: int, limit: float) -> Question:
    """The question of this seed and level over `instances` databases of one schema.

    The instance that is shown gives a short answer that is not empty, and not all instances give the same one.
    """
    for attempt in range(100):
        rng = random.Random(derive_seed(seed, "question", attempt))
        family = rng.choice(FAMILIES[split])
        cast = _cast(rng, NAMES[split], family)
        asked = rng.choice(LEVELS[level])(Draw(rng, family, cast))
        found = [_instance(derive_seed(seed, "data", attempt, i), family, cast, asked, limit, shown=i == 0) for i in range(instances)]
        databases = [database for database in found if database is not None]
        if len(databases) == instances and (instances == 1 or len({database.run(asked.sql).rows for database in databases}) > 1):
            return Question(
                text=asked.text,
                gold=asked.sql,
                tables=tables(family, asked),
                shown=databases[0],
                others=functools.partial(iter, databases[1:]),
                owned=tuple(databases),
                about={"level": level},
            )
        for database in databases:
            database.close()
    raise EnvError(f"no question of level {level} was found for seed {seed}; this is a defect of whet")


def tables(family: Family, asked: Asked) -> tuple[Table, ...]:
    """The tables that a question needs. Where it needs one only and asks for no id, rows have neither ids nor links."""
    linked = len(asked.tables) > 1
    found = []
    for entity in (family.thing, family.owner):
        columns = [Column("name", "text"), Column(entity.kind, "text"), *(Column(n, "integer") for n in entity.numbers)]
        if linked or asked.ids:
            columns.insert(0, Column("id", "integer", primary=True))
        if linked and entity is family.thing:
            columns.append(Column(f"{family.owner.table}_id", "integer", target=f"{family.owner.table}.id"))
        found.append(Table(entity.table, tuple(columns)))
    link = Column(f"{family.thing.table}_id", "integer", target=f"{family.thing.table}.id")
    found.append(Table(family.event, (link, Column(family.measure, "integer"))))
    return tuple(table for table in found if table.name in asked.tables)


def _cast(rng: random.Random, names: Sequence[str], family: Family) -> Cast:
    drawn = iter(rng.sample(names, OWNERS + THINGS + 2 * KINDS))

    def take(n: int) -> tuple[str, ...]:
        return tuple(next(drawn) for _ in range(n))

    rows = {family.owner.table: take(OWNERS), family.thing.table: take(THINGS)}
    return Cast(rows, {family.owner.table: take(KINDS), family.thing.table: take(KINDS)})


def _instance(seed: int, family: Family, cast: Cast, asked: Asked, limit: float, shown: bool) -> Database | None:
    """A database on which the question has one answer, and a short one where it is shown; None where none was found."""
    script = ";\n".join(f"create table {t.name} ({', '.join(f'{c.name} {c.kind}' for c in t.columns)})" for t in tables(family, asked))
    for attempt in range(30):
        data = _populate(random.Random(derive_seed(seed, attempt)), family, cast, asked)
        database = Database.memory(script, data, limit=limit)
        if _sound(database, asked, shown):
            return database
        database.close()
    return None


def _sound(database: Database, asked: Asked, shown: bool) -> bool:
    try:
        if asked.untied and len({row[0] for row in database.run(asked.untied).rows}) < 2:
            return False
        rows = database.run(asked.sql).rows
    except QueryError as error:
        raise EnvError(f"the query {asked.sql!r} fails: {error}; this is a defect of whet") from error
    return not shown or (1 <= len(rows) <= asked.most and all(value not in (None, 0) for row in rows for value in row))


def _populate(rng: random.Random, family: Family, cast: Cast, asked: Asked) -> Data:
    owners = _names(rng, cast.rows[family.owner.table], rng.randint(4, OWNERS), family.owner, asked)
    things = _names(rng, cast.rows[family.thing.table], rng.randint(6, 10), family.thing, asked)
    linked = len(asked.tables) > 1
    data: Data = {}
    for entity, names in ((family.owner, owners), (family.thing, things)):
        ids = list(range(1, len(names) + 1)) if linked else _ids(rng, len(names), entity, asked)
        kinds = [rng.choice(cast.kinds[entity.table]) for _ in names]
        numbers = {column: _numbers(rng, len(names), entity, column, asked) for column in entity.numbers}
        for table, column, value in asked.numbers:
            if asked.kind and table == entity.table and value in numbers[column]:
                kinds[numbers[column].index(value)] = asked.kind
        columns: list[Sequence[Value]] = [ids] if linked or asked.ids else []
        columns += [names, kinds, *numbers.values()]
        if linked and entity is family.thing:
            columns.append([rng.randint(1, len(owners)) for _ in names])
        data[entity.table] = list(zip(*columns))
    data[family.event] = [(rng.randint(1, len(things)), rng.choice(NUMBERS)) for _ in range(rng.randint(8, 14))]
    return {table: rows for table, rows in data.items() if table in asked.tables}


def _names(rng: random.Random, names: Sequence[str], n: int, of: Entity, asked: Asked) -> list[str]:
    """`n` of the names in any order, among them those that the question is about."""
    needed = [name for table, name in asked.names if table == of.table]
    free = [name for name in names if name not in needed]
    drawn = needed + rng.sample(free, n - len(needed))
    rng.shuffle(drawn)
    return drawn


def _ids(rng: random.Random, n: int, of: Entity, asked: Asked) -> list[int]:
    """Different ids, among them those that the question is about."""
    needed = [number for table, number in asked.ids if table == of.table]
    drawn = needed + rng.sample([number for number in NUMBERS if number not in needed], n - len(needed))
    rng.shuffle(drawn)
    return drawn


def _numbers(rng: random.Random, n: int, of: Entity, column: str, asked: Asked) -> list[int]:
    """Different numbers, so that there is one highest; mostly with the number that the question compares with."""
    drawn = rng.sample(NUMBERS, n)
    for table, name, value in asked.numbers:
        if (table, name) == (of.table, column) and value not in drawn and rng.random() < 0.75:
            drawn[rng.randrange(n)] = value
    return drawn
