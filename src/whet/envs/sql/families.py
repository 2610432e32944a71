"""What the generated databases are about: families of tables, disjoint between train, dev and test.

A family is things of some kind, their owners, and events that happen to the things:

    book(id, name, shelf, price, age, teacher_id), teacher(id, name, school, age), loan(book_id, days)

`shelf` and `school` hold names (the kind), `price`, `age` and `days` numbers. No table of one split occurs in
another; plain columns such as `price` do. Words are short and common, so that a small model can spell them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from whet.types import SPLITS, Split


@dataclass(frozen=True, slots=True)
class Entity:
    """A table whose rows have a name: one column of names of something else, and one or two of numbers."""

    table: str
    kind: str
    numbers: tuple[str, ...]

    @property
    def plural(self) -> str:
        return "people" if self.table == "person" else "bosses" if self.table == "boss" else f"{self.table}s"


@dataclass(frozen=True, slots=True)
class Family:
    """Things, their owners, and events of the things, each with a number."""

    thing: Entity
    owner: Entity
    event: str
    measure: str

    @property
    def tables(self) -> tuple[str, str, str]:
        return (self.thing.table, self.owner.table, self.event)


_WORDS: dict[Split, str] = {
    "train": """
        book shelf price age, teacher school age, loan days
        horse field age price, farm village water, race points
        ship sea age cost, king island age, trip days
        cake shop price sugar, sister street age, sale cost
        car road price oil, doctor city age, repair hours
        lamp room price light, house street light, test hours
        coat hall price wool, tailor market age, fitting hours
        boat lake cost age, guard village age, rent cost
        clock wall price age, bank city money, visit hours
        bird tree age seed, girl garden age, song minutes
        picture room price paint, partner school age, offer cost
        dog garden age milk, brother street age, walk minutes
    """,
    "dev": """
        train bridge age cost, boss city age, halt minutes
        cow hill age milk, neighbour village age, exam hours
        ring box price gold, queen island age, dance hours
        phone desk price age, store street light, talk minutes
        tent forest price cost, friend school age, night cost
        pie shelf price salt, cousin road age, party guests
    """,
    "test": """
        plane field age oil, rival city age, flight hours
        goat river age wool, boy village age, fair points
        chair hall price wood, person street age, delivery days
        drum room price cost, school city money, concert hours
        kite park price wind, village lake water, contest points
        vase shelf price water, shop market light, auction offers
    """,
}


def _families(lines: str) -> tuple[Family, ...]:
    families = []
    for line in lines.strip().splitlines():
        thing, owner, event = ([*part.split()] for part in line.split(","))
        families.append(Family(Entity(thing[0], thing[1], tuple(thing[2:])), Entity(owner[0], owner[1], tuple(owner[2:])), *event))
    return tuple(families)


FAMILIES: Mapping[Split, tuple[Family, ...]] = {split: _families(_WORDS[split]) for split in SPLITS}
