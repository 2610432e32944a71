"""A catalogue of small APIs over a database, and what people ask of it, in words that are not the APIs' names."""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from whet.envs.search import NAMES
from whet.envs.words import THINGS
from whet.types import SPLITS, Split


@dataclass(frozen=True, kw_only=True)
class API:
    """One API. Its descriptions and the queries for it are what a person would write; none of the queries has its name."""

    name: str
    takes: Mapping[str, str]
    """Argument -> kind of what it names."""
    gives: str
    """Kind of the result."""
    says: str
    """What its full description says."""
    asks: tuple[str, ...] = ()
    """Queries, with a place for each argument."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """What it takes, in order."""
        return tuple(self.takes.values())


def _of(kind: str, name: str, gives: str, says: str, *asks: str) -> API:
    return API(name=name, takes={kind: kind}, gives=gives, says=says, asks=asks)


APIS: dict[str, API] = {
    api.name: api
    for api in (
        _of("person", "phone", "number", "Where to call somebody.", "How can I call {0}?", "How do I talk to {0}?"),
        _of("person", "age", "number", "How old somebody is.", "How old is {0}?", "How long has {0} been here?"),
        _of("person", "boss", "person", "Who gives somebody work.", "Who does {0} work for?", "Who has work for {0}?"),
        _of("person", "doctor", "person", "Who helps with a cold.", "Who will help {0}?", "Who is there when {0} has a cold?"),
        _of("person", "home", "city", "Where somebody is at night.", "Where does {0} live?", "Where is {0} at night?"),
        _of("item", "price", "number", "What must be paid.", "What does {0} cost?", "How much must I pay for {0}?"),
        _of("item", "shelf", "number", "Where to find it.", "Where do I find {0}?", "Where does {0} stand?"),
        _of("item", "count", "number", "How many are left.", "How many of {0} are left?", "Is there another of {0}?"),
        _of("item", "shop", "city", "Where to buy it.", "Where can I buy {0}?", "Who would sell me {0}?"),
        _of("city", "train", "number", "When to leave.", "When can I ride to {0}?", "When must I leave for {0}?"),
        _of("city", "sun", "weather", "How the day will be.", "Do I need a coat in {0}?", "Is it warm in {0}?"),
        _of("city", "guard", "person", "Who keeps watch.", "Who keeps watch over {0}?", "Who is at the gate of {0}?"),
        _of("city", "road", "city", "What comes next.", "What is next to {0}?", "What comes behind {0}?"),
        API(
            name="ticket", takes={"start": "city", "end": "city"}, gives="number", says="What a ride takes.",
            asks=("How much is it from {0} to {1}?", "How many hours from {0} to {1}?"),
        ),
        API(name="add", takes={"first": "number", "last": "number"}, gives="number", says="Two numbers as one."),
    )
}  # fmt: skip
TOGETHER = ("price", "price", "add")
"""Two prices and what they are together, and the queries for it."""
SUMS = ("What do {0} and {1} cost as one?", "How much must I pay for {0} and {1}?")
THAT = {"person": "that one", "city": "that city"}
"""How a query speaks of a result of the call before."""
HELD = ("doctor", "count", "train", "shelf")
"""APIs that may be held out, the first one first."""
WEATHER = ("rain", "snow", "wind", "cloud", "ice")
_PEOPLE = 64
PEOPLE: dict[Split, tuple[str, ...]] = {split: NAMES[split][:_PEOPLE] for split in SPLITS}
CITIES: dict[Split, tuple[str, ...]] = {split: NAMES[split][_PEOPLE:] for split in SPLITS}
ITEMS: dict[Split, tuple[str, ...]] = {s: tuple(t for t in THINGS[s] if t not in APIS and t not in WEATHER) for s in SPLITS}


@dataclass(frozen=True, kw_only=True)
class Database:
    """Who and what there is in a task, and what the APIs say about it."""

    entities: Mapping[str, tuple[str, ...]]
    """Kind -> names."""
    tables: Mapping[str, Mapping[tuple[str, ...], str]]
    """API -> arguments -> result."""

    @classmethod
    def drawn(cls, rng: random.Random, split: Split, people: int = 10, cities: int = 6, items: int = 8) -> Database:
        """With as many of each; nobody is his own boss, and no city next to itself."""
        drawn = {"person": (PEOPLE, people), "city": (CITIES, cities), "item": (ITEMS, items)}
        entities = {kind: tuple(rng.sample(names[split], n)) for kind, (names, n) in drawn.items()}
        values = entities | {"weather": WEATHER}
        tables: dict[str, dict[tuple[str, ...], str]] = {}
        for api in APIS.values():
            if api.name == "add":
                continue
            numbers = tuple(map(str, range(10, 50 if api.name == "price" else 100)))
            keys: Iterable[tuple[str, ...]] = itertools.permutations(entities[api.kinds[0]], len(api.takes))
            pool = numbers if api.gives == "number" else values[api.gives]
            tables[api.name] = {key: rng.choice([value for value in pool if value not in key]) for key in keys}
        return cls(entities=entities, tables=tables)

    def call(self, api: str, arguments: Sequence[str]) -> str:
        """The result. Raises ValueError, which says what is wrong, for arguments of which nothing is known."""
        if api == "add":
            try:
                return str(sum(map(int, arguments)))
            except ValueError:
                raise ValueError(f"no number in {' and '.join(arguments)[:60]}") from None
        for kind, name in zip(APIS[api].kinds, arguments):
            if name not in self.entities[kind]:
                raise ValueError(f"no {kind} {name[:40]}")
        found = self.tables[api].get(tuple(arguments))
        if found is None:
            raise ValueError(f"no {api} {' '.join(arguments)}")
        return found


@dataclass(frozen=True, slots=True)
class Call:
    """A call that a query needs, with its result."""

    api: str
    arguments: tuple[str, ...]
    result: str

    @property
    def named(self) -> dict[str, str]:
        """The arguments by their names."""
        return dict(zip(APIS[self.api].takes, self.arguments))


@dataclass(frozen=True, slots=True)
class Query:
    """What somebody wants, and the calls that find it out, each after those whose results it takes."""

    text: str
    calls: tuple[Call, ...] = ()

    @property
    def answer(self) -> str | None:
        """The last result; None for a query that nothing is known about."""
        return self.calls[-1].result if self.calls else None


def make_query(rng: random.Random, data: Database, calls: tuple[int, int], allowed: Callable[[tuple[str, ...]], bool]) -> Query:
    """A query that needs `calls` calls (from, to), with which APIs are `allowed` (asked about the names of all, in order)."""
    fitting = [plan for n in range(calls[0], calls[1] + 1) for plan in plans(n) if allowed(plan)]
    n = rng.choice(sorted({len(plan) for plan in fitting}))
    others = [plan for plan in fitting if len(plan) == n and plan != TOGETHER]
    together = n == len(TOGETHER) and TOGETHER in fitting and (not others or rng.random() < 0.3)
    plan = TOGETHER if together else rng.choice(others)
    kinds = ("item", "item") if plan == TOGETHER else APIS[plan[0]].kinds
    names: list[str] = []
    for kind in kinds:
        names.append(rng.choice([name for name in data.entities[kind] if name not in names]))
    return Query(_worded(rng, plan, names), _made(data, plan, names))


def reworded(rng: random.Random, query: Query) -> str:
    """The same query in other words, where there are any."""
    plan = tuple(call.api for call in query.calls)
    names = [call.arguments[0] for call in query.calls[:2]] if plan == TOGETHER else query.calls[0].arguments
    others = [text for text in (_worded(random.Random(i), plan, names) for i in range(8)) if text != query.text]
    return rng.choice(others) if others else query.text


def understood(text: str, data: Database) -> Query:
    """A query in the words that `make_query` uses, with its calls; without any where it is worded or about something otherwise."""
    plan, names = _read(text.strip()) or ((), [])
    known = ("item", "item") if plan == TOGETHER else APIS[plan[0]].kinds if plan else ()
    if not plan or any(name not in data.entities[kind] for name, kind in zip(names, known)):
        return Query(text)
    return Query(text, _made(data, plan, names))


@functools.cache
def plans(n: int) -> list[tuple[str, ...]]:
    """The names of APIs that may follow from one another, in order."""
    chains: list[tuple[str, ...]] = [(name,) for name, api in APIS.items() if api.asks]
    for _ in range(n - 1):
        chains = [
            (*chain, name) for chain in chains for name, api in APIS.items() if name not in chain and api.kinds == (APIS[chain[-1]].gives,)
        ]
    return [*chains, *([TOGETHER] if n == len(TOGETHER) else [])]


def _worded(rng: random.Random, plan: tuple[str, ...], names: Sequence[str]) -> str:
    """`Who does Rosa work for, where does that one live, and is it warm in that city?`"""
    if plan == TOGETHER:
        return rng.choice(SUMS).format(*names)
    clauses = [rng.choice(APIS[plan[0]].asks).format(*names)]
    for api in plan[1:]:
        clauses.append(_lowered(rng.choice(APIS[api].asks)).format(*(THAT[kind] for kind in APIS[api].kinds)))
    *before, last = (clause.rstrip("?") for clause in clauses)
    return f"{', '.join(before)}, and {last}?" if before else f"{last}?"


def _made(data: Database, plan: tuple[str, ...], names: Sequence[str]) -> tuple[Call, ...]:
    """The calls of a plan about these names."""
    if plan == TOGETHER:
        prices = [Call("price", (name,), data.call("price", (name,))) for name in names]
        numbers = tuple(price.result for price in prices)
        return (*prices, Call("add", numbers, data.call("add", numbers)))
    calls: list[Call] = []
    for api in plan:
        arguments = (calls[-1].result,) if calls else tuple(names)
        calls.append(Call(api, arguments, data.call(api, arguments)))
    return tuple(calls)


def _read(text: str) -> tuple[tuple[str, ...], list[str]] | None:
    """The plan of a query, and what it is about."""
    for form in SUMS:
        if found := _match(form, text):
            return TOGETHER, found
    plan, names = list[str](), list[str]()
    for clause in re.split(r", and |, ", text.rstrip("?")):
        for name, api in APIS.items():
            forms = [_lowered(form) if plan else form for form in api.asks]
            found = next((found for form in forms if (found := _match(form, f"{clause}?"))), [])
            if found and (not plan or found == [THAT.get(APIS[plan[-1]].gives)]):
                plan, names = [*plan, name], names or found
                break
        else:
            return None
    return tuple(plan), names


def _lowered(text: str) -> str:
    return text if text.startswith("I ") else text[0].lower() + text[1:]


def _match(form: str, text: str) -> list[str]:
    """What stands in the places of a form; empty where the text has another form."""
    pattern = re.escape(form).replace(r"\{0\}", "(.+)").replace(r"\{1\}", "(.+)")
    found = re.fullmatch(pattern, text)
    return list(found.groups()) if found else []
