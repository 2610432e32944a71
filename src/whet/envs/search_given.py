"""Documents in the prompt of a Search question: pages that answer it, others, and such that lie."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence


def written(person: str, page: Mapping[str, str]) -> str:
    """A page as a document: the person, then a line for each fact."""
    return "\n".join([person, *(f"{relation} {value}" for relation, value in page.items())])


def documents(
    rng: random.Random, pages: Mapping[str, Mapping[str, str]], needed: Sequence[str], given: int, copies: int, lies: int
) -> tuple[str, ...]:
    """`copies` documents of each needed page and other people's pages up to `given`, then `lies` that contradict needed ones; shuffled.

    Each is a page with its lines in an order of its own. A lie has a needed page's person and relations, and everywhere another value.
    """
    truths = [person for person in needed for _ in range(copies)]
    others = [person for person in pages if person not in needed]
    chosen = [*truths, *rng.sample(others, max(0, given - len(truths)))]
    found = [written(person, _shuffled(rng, pages[person])) for person in chosen]
    found += [written(person, _shuffled(rng, _lie(rng, person, pages))) for person in rng.choices(needed, k=lies)]
    return tuple(rng.sample(found, len(found)))


def _lie(rng: random.Random, person: str, pages: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    page = pages[person]
    false = {}
    for relation, value in page.items():
        others = [name for name in pages if name not in (person, value)]
        false[relation] = str(rng.randint(10, 99)) if value.isdigit() else rng.choice(others)
    return false


def _shuffled(rng: random.Random, page: Mapping[str, str]) -> dict[str, str]:
    return dict(rng.sample(list(page.items()), len(page)))
