"""The questions over generated databases, in six levels; each is a sentence, the query that answers it, and what it needs.

    1 look up a value by its row's id   2 filter rows   3 count, total, average, extremes   4 join   5 group   6 nested queries

Constants are drawn before the data; `pins` says which of them must occur in the data for the question to be about
something, so that `>` and `>=`, for one, give different results on some instance.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from whet.envs.sql.families import Entity, Family

NUMBERS = range(10, 100)
"""Values of every number column."""


@dataclass(frozen=True)
class Cast:
    """The names that may occur in a database: rows' names and values of the kind columns, by table."""

    rows: Mapping[str, tuple[str, ...]]
    kinds: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Asked:
    """A question. `tables` are those it needs; the database has no others."""

    text: str
    sql: str
    tables: tuple[str, ...]
    names: tuple[tuple[str, str], ...] = ()
    """(table, name of a row) that must exist."""
    ids: tuple[tuple[str, int], ...] = ()
    """(table, id of a row) that must exist."""
    numbers: tuple[tuple[str, str, int], ...] = ()
    """(table, column, value) that should occur in most instances."""
    kind: str = ""
    """What the kind column of the rows with those numbers should hold, where the question asks for both."""
    untied: str = ""
    """A query whose first two rows must differ, so that there is one answer."""
    most: int = 8
    """Rows that the answer may have on the instance that the agent sees."""


class Draw:
    """The random choices of one question over a family."""

    def __init__(self, rng: random.Random, family: Family, cast: Cast) -> None:
        self.rng, self.family, self.cast = rng, family, cast
        self.thing, self.owner = family.thing, family.owner
        self.link = f"{family.owner.table}_id"

    def entity(self) -> Entity:
        return self.rng.choice((self.thing, self.owner))

    def name(self, of: Entity) -> str:
        return self.rng.choice(self.cast.rows[of.table])

    def kind(self, of: Entity) -> str:
        return self.rng.choice(self.cast.kinds[of.table])

    def number(self, of: Entity) -> str:
        return self.rng.choice(of.numbers)

    def column(self, of: Entity) -> str:
        return self.rng.choice((of.kind, *of.numbers))

    def comparison(self) -> tuple[str, str, int]:
        """Words, operator and a number."""
        words, operator = self.rng.choice((("above", ">"), ("below", "<"), ("of at least", ">="), ("of at most", "<=")))
        return words, operator, self.rng.randint(25, 75)

    def join(self) -> str:
        return f"from {self.thing.table} t join {self.owner.table} o on t.{self.link} = o.id"


Maker = Callable[[Draw], Asked]


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _lookup(d: Draw) -> Asked:
    e = d.entity()
    number, column = d.rng.choice(NUMBERS), d.rng.choice(("name", e.kind, *e.numbers))
    sql = f"select {column} from {e.table} where id = {number}"
    return Asked(f"What is the {column} of {e.table} {number}?", sql, (e.table,), ids=((e.table, number),))


def _lookup_by_name(d: Draw) -> Asked:
    e = d.entity()
    name, column = d.name(e), d.column(e)
    sql = f"select {column} from {e.table} where name = '{name}'"
    return Asked(f"What is the {column} of {name}?", sql, (e.table,), names=((e.table, name),))


def _of_kind(d: Draw) -> Asked:
    e = d.entity()
    c = d.kind(e)
    return Asked(f"Which {e.plural} have the {e.kind} {c}?", f"select name from {e.table} where {e.kind} = '{c}'", (e.table,))


def _compared(d: Draw) -> Asked:
    e = d.entity()
    n, (words, operator, k) = d.number(e), d.comparison()
    sql = f"select name from {e.table} where {n} {operator} {k}"
    return Asked(f"Which {e.plural} have {_a(n)} {words} {k}?", sql, (e.table,), numbers=((e.table, n, k),))


def _both(d: Draw) -> Asked:
    e = d.entity()
    c, n, (words, operator, k) = d.kind(e), d.number(e), d.comparison()
    sql = f"select name from {e.table} where {e.kind} = '{c}' and {n} {operator} {k}"
    return Asked(f"Which {e.plural} have the {e.kind} {c} and {_a(n)} {words} {k}?", sql, (e.table,), numbers=((e.table, n, k),), kind=c)


def _two_columns(d: Draw) -> Asked:
    e = d.entity()
    c, n = d.kind(e), d.number(e)
    sql = f"select name, {n} from {e.table} where {e.kind} = '{c}'"
    return Asked(f"What are the name and the {n} of each {e.table} with the {e.kind} {c}?", sql, (e.table,))


def _count(d: Draw) -> Asked:
    e = d.entity()
    c = d.kind(e)
    return Asked(f"How many {e.plural} have the {e.kind} {c}?", f"select count(*) from {e.table} where {e.kind} = '{c}'", (e.table,))


_AGGREGATES = (("average", "avg"), ("total", "sum"), ("highest", "max"), ("lowest", "min"))


def _aggregate(d: Draw) -> Asked:
    e = d.entity()
    n, (word, function), c = d.number(e), d.rng.choice(_AGGREGATES), d.kind(e)
    if d.rng.random() < 0.5:
        return Asked(f"What is the {word} {n} of all {e.plural}?", f"select {function}({n}) from {e.table}", (e.table,))
    sql = f"select {function}({n}) from {e.table} where {e.kind} = '{c}'"
    return Asked(f"What is the {word} {n} of the {e.plural} with the {e.kind} {c}?", sql, (e.table,))


def _extreme(d: Draw) -> Asked:
    e = d.entity()
    n, (word, direction) = d.number(e), d.rng.choice((("highest", "desc"), ("lowest", "asc")))
    sql = f"select name from {e.table} order by {n} {direction} limit 1"
    return Asked(f"Which {e.table} has the {word} {n}?", sql, (e.table,))


def _different(d: Draw) -> Asked:
    e = d.entity()
    sql = f"select count(distinct {e.kind}) from {e.table}"
    return Asked(f"How many different {e.kind} names do the {e.plural} have?", sql, (e.table,))


def _sorted(d: Draw) -> Asked:
    e = d.entity()
    n, (words, direction) = d.number(e), d.rng.choice((("highest to the lowest", "desc"), ("lowest to the highest", "asc")))
    sql = f"select name from {e.table} order by {n} {direction}"
    return Asked(f"What are the names of the {e.plural}, from the {words} {n}?", sql, (e.table,), most=10)


def _of_owner(d: Draw) -> Asked:
    name, column = d.name(d.thing), d.column(d.owner)
    sql = f"select o.{column} {d.join()} where t.name = '{name}'"
    names = ((d.thing.table, name),)
    return Asked(f"What is the {column} of the {d.owner.table} of {name}?", sql, d.family.tables[:2], names=names)


def _owned_by_kind(d: Draw) -> Asked:
    c = d.kind(d.owner)
    sql = f"select t.name {d.join()} where o.{d.owner.kind} = '{c}'"
    return Asked(f"Which {d.thing.plural} belong to {d.owner.plural} with the {d.owner.kind} {c}?", sql, d.family.tables[:2])


def _count_owned(d: Draw) -> Asked:
    name = d.name(d.owner)
    sql = f"select count(*) {d.join()} where o.name = '{name}'"
    return Asked(f"How many {d.thing.plural} belong to {name}?", sql, d.family.tables[:2], names=((d.owner.table, name),))


def _event_join(d: Draw) -> str:
    return f"join {d.family.event} e on e.{d.thing.table}_id = t.id"


def _total_of_events(d: Draw) -> Asked:
    name, (word, function) = d.name(d.thing), d.rng.choice(_AGGREGATES[1:])
    sql = f"select {function}(e.{d.family.measure}) from {d.thing.table} t {_event_join(d)} where t.name = '{name}'"
    text = f"What is the {word} number of {d.family.measure} of the {d.family.event}s of {name}?"
    return Asked(text, sql, d.family.tables, names=((d.thing.table, name),))


def _total_of_owner(d: Draw) -> Asked:
    name = d.name(d.owner)
    sql = f"select sum(e.{d.family.measure}) {d.join()} {_event_join(d)} where o.name = '{name}'"
    text = f"What is the total number of {d.family.measure} of all {d.family.event}s of {d.thing.plural} that belong to {name}?"
    return Asked(text, sql, d.family.tables, names=((d.owner.table, name),))


def _count_by_kind(d: Draw) -> Asked:
    e = d.entity()
    sql = f"select {e.kind}, count(*) from {e.table} group by {e.kind}"
    return Asked(f"How many {e.plural} are there for each {e.kind}?", sql, (e.table,))


def _aggregate_by_kind(d: Draw) -> Asked:
    e = d.entity()
    n, (word, function) = d.number(e), d.rng.choice(_AGGREGATES)
    sql = f"select {e.kind}, {function}({n}) from {e.table} group by {e.kind}"
    return Asked(f"What is the {word} {n} of the {e.plural} for each {e.kind}?", sql, (e.table,))


def _kinds_with_many(d: Draw) -> Asked:
    e = d.thing
    k = d.rng.choice((1, 2))
    sql = f"select {e.kind} from {e.table} group by {e.kind} having count(*) > {k}"
    return Asked(f"Which {e.kind} names have more than {k} {e.plural if k > 1 else e.table}?", sql, (e.table,))


def _count_by_owner(d: Draw) -> Asked:
    sql = f"select o.name, count(*) {d.join()} group by o.id, o.name"
    text = f"How many {d.thing.plural} belong to each {d.owner.table}? Leave out {d.owner.plural} without any."
    return Asked(text, sql, d.family.tables[:2])


def _owner_with_most(d: Draw) -> Asked:
    grouped = f"{d.join()} group by o.id, o.name order by count(*) desc limit"
    text = f"Which {d.owner.table} has the most {d.thing.plural}?"
    return Asked(text, f"select o.name {grouped} 1", d.family.tables[:2], untied=f"select count(*) {grouped} 2")


def _above_average(d: Draw) -> Asked:
    e = d.entity()
    n, (words, operator) = d.number(e), d.rng.choice((("above", ">"), ("below", "<")))
    sql = f"select name from {e.table} where {n} {operator} (select avg({n}) from {e.table})"
    return Asked(f"Which {e.plural} have {_a(n)} {words} the average?", sql, (e.table,))


def _owners_without(d: Draw) -> Asked:
    c = d.kind(d.thing)
    inner = f"select {d.link} from {d.thing.table} where {d.thing.kind} = '{c}'"
    sql = f"select name from {d.owner.table} where id not in ({inner})"
    return Asked(f"Which {d.owner.plural} have no {d.thing.table} with the {d.thing.kind} {c}?", sql, d.family.tables[:2])


def _highest_of_kind(d: Draw) -> Asked:
    e = d.entity()
    c, n, (word, function) = d.kind(e), d.number(e), d.rng.choice(_AGGREGATES[2:])
    sql = f"select name from {e.table} where {e.kind} = '{c}' and {n} = (select {function}({n}) from {e.table} where {e.kind} = '{c}')"
    return Asked(f"Which of the {e.plural} with the {e.kind} {c} has the {word} {n}?", sql, (e.table,))


def _owners_with_both(d: Draw) -> Asked:
    first, second = d.rng.sample(d.cast.kinds[d.thing.table], 2)
    inner = f"select {d.link} from {d.thing.table} where {d.thing.kind} = "
    sql = f"select name from {d.owner.table} where id in ({inner}'{first}') and id in ({inner}'{second}')"
    kind = d.thing.kind
    text = f"Which {d.owner.plural} have both {_a(d.thing.table)} with the {kind} {first} and one with the {kind} {second}?"
    return Asked(text, sql, d.family.tables[:2])


def _owners_of_high(d: Draw) -> Asked:
    n, (words, operator, k) = d.number(d.thing), d.comparison()
    sql = f"select count(*) from {d.owner.table} where id in (select {d.link} from {d.thing.table} where {n} {operator} {k})"
    text = f"How many {d.owner.plural} have at least one {d.thing.table} with {_a(n)} {words} {k}?"
    return Asked(text, sql, d.family.tables[:2], numbers=((d.thing.table, n, k),))


def _same_kind(d: Draw) -> Asked:
    e = d.entity()
    name = d.name(e)
    sql = f"select name from {e.table} where {e.kind} = (select {e.kind} from {e.table} where name = '{name}') and name <> '{name}'"
    return Asked(f"Which other {e.plural} have the same {e.kind} as {name}?", sql, (e.table,), names=((e.table, name),))


LEVELS: Mapping[int, Sequence[Maker]] = {
    1: (_lookup,),
    2: (_lookup_by_name, _of_kind, _compared, _both, _two_columns),
    3: (_count, _aggregate, _extreme, _different, _sorted),
    4: (_of_owner, _owned_by_kind, _count_owned, _total_of_events, _total_of_owner),
    5: (_count_by_kind, _aggregate_by_kind, _kinds_with_many, _count_by_owner, _owner_with_most),
    6: (_above_average, _owners_without, _highest_of_kind, _owners_with_both, _owners_of_high, _same_kind),
}
"""Level -> the kinds of questions it has, each as likely as the others."""
