"""What the generated databases are about: families of tables, disjoint between train, dev and test.

A family is things of some kind, their owners, and events that happen to the things:

    book(id, name, shelf, price, weight, teacher_id), teacher(id, name, school, age), loan(book_id, days)

`shelf` and `school` hold names (the kind), `price`, `weight`, `age` and `days` numbers. No table of one split occurs in
another; plain columns such as `price` do.
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
        return f"{self.table}s"


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
        book shelf price weight, teacher school age, loan days
        horse field age speed, farm village size, race points
        ship sea length speed, king island age, trip days
        cake shop price sugar, cook street age, sale cost
        car road price speed, driver city age, repair hours
        lamp room price light, house street height, test hours
        coat hall price length, tailor market age, fitting hours
        boat lake length age, doctor village salary, rent cost
        clock tower height age, bank city size, visit hours
        song radio length number, singer city age, show guests
        picture wall price height, painter school age, offer cost
        dog garden age weight, girl street height, walk minutes
    """,
    "dev": """
        train line length speed, station city height, halt minutes
        cow barn weight milk, farmer valley age, exam hours
        ring box price weight, queen castle age, dance hours
        phone desk price weight, office tower size, talk minutes
        tent camp height price, club forest size, night cost
        film cinema length cost, studio city age, screening guests
    """,
    "test": """
        plane gate length speed, pilot country age, flight hours
        goat hill weight age, herder valley height, fair points
        chair room height price, carpenter street age, delivery days
        wine cellar age price, vineyard region size, tasting guests
        drum stage weight price, band town size, concert hours
        kite beach length price, boy school height, contest points
    """,
}


def _families(lines: str) -> tuple[Family, ...]:
    families = []
    for line in lines.strip().splitlines():
        thing, owner, event = ([*part.split()] for part in line.split(","))
        families.append(Family(Entity(thing[0], thing[1], tuple(thing[2:])), Entity(owner[0], owner[1], tuple(owner[2:])), *event))
    return tuple(families)


FAMILIES: Mapping[Split, tuple[Family, ...]] = {split: _families(_WORDS[split]) for split in SPLITS}
