"""Rows of several sources in one stream: by sampling probability, by weights, with rehearsal.

What is drawn follows from the seed and the number of the draw alone, so that a pass can be taken up again anywhere.

    batches   mixed(agent, general, 16, eta=0.2, seed=run.seed("sft", epoch))      AgentTuning, arXiv:2310.12823
              weighted({"web": a, "code": b}, 16, draws=4096, seed=0, rank=0)      AgentOhana, arXiv:2402.15506
    rows      rehearsal(new, old, keep=200, seed=0)                                STE, arXiv:2403.04746
"""

from __future__ import annotations

import itertools
import math
import random
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from whet.data.stores import Stored
from whet.errors import ConfigError
from whet.runs import EpisodeStore
from whet.seeding import derive_seed
from whet.types import Split

RowT = TypeVar("RowT")
_PAGE = 256


def draw(
    sizes: Sequence[int], weights: Sequence[float], *, n: int, seed: int = 0, rank: int = 0, start: int = 0
) -> Iterator[tuple[int, int]]:
    """`n` draws, each a source and a row of it, from number `start` on: the source by the weights, its rows in shuffled passes.

    A row comes again only when all others of its source have come as often. `rank` gives another process draws of its own,
    independent of this one's. Raises ConfigError for weights that are negative or all zero, a source without rows and a
    weight above zero, or lengths that differ.
    """
    if len(sizes) != len(weights):
        raise ConfigError(f"there are {len(sizes)} sources and {len(weights)} weights; expected one for each")
    if any(not 0 <= w < math.inf for w in weights) or not sum(weights):
        raise ConfigError(f"the weights are {list(weights)}; expected numbers of at least 0, not all 0")
    for i, (size, weight) in enumerate(zip(sizes, weights)):
        if weight and not size:
            raise ConfigError(f"source {i} has the weight {weight:g} and no rows; leave it out, or give it some")
    return _drawn(tuple(sizes), list(itertools.accumulate(weights)), n, derive_seed("mixing", seed, rank), start)


def _drawn(sizes: tuple[int, ...], limits: list[float], n: int, seed: int, start: int) -> Iterator[tuple[int, int]]:
    choose = random.Random(seed)
    taken = [0] * len(sizes)
    passes: dict[int, tuple[int, list[int]]] = {}
    for number in range(start + n):
        at = choose.random() * limits[-1]
        source = next(i for i, limit in enumerate(limits) if at < limit)
        if number >= start:
            turn, place = divmod(taken[source], sizes[source])
            if source not in passes or passes[source][0] != turn:
                order = list(range(sizes[source]))
                random.Random(derive_seed(seed, source, turn)).shuffle(order)
                passes[source] = (turn, order)
            yield source, passes[source][1][place]
        taken[source] += 1


def mixed(
    agent: Sequence[RowT],
    general: Sequence[RowT],
    size: int,
    *,
    eta: float = 0.2,
    epochs: int = 1,
    seed: int = 0,
    rank: int = 0,
    start: int = 0,
) -> Iterator[list[RowT]]:
    """Batches in which each row is from the agent's set with probability `eta`, else from the general one (AgentTuning).

    So the loss over a batch estimates eta * E_agent + (1 - eta) * E_general; 0.2 is the paper's. In an epoch the agent's set
    is gone through once on average: it has len(agent) / eta rows (with eta = 0, the general set once). The last batch may be
    smaller. `start` leaves out that many batches, which does not change those after them; `rank` as for `weighted`. Raises
    ConfigError for eta outside of [0, 1], and what `draw` raises.
    """
    if not 0 <= eta <= 1:
        raise ConfigError(f"eta is {eta!r}; expected a probability in [0, 1]")
    per_epoch = round(len(agent) / eta) if eta else len(general)
    return _batches([agent, general], [eta, 1 - eta], epochs * per_epoch, size, seed, rank, start)


def weighted(
    sources: Mapping[str, Sequence[RowT]],
    size: int,
    *,
    weights: Mapping[str, float] | None = None,
    draws: int | None = None,
    seed: int = 0,
    rank: int = 0,
    start: int = 0,
) -> Iterator[list[RowT]]:
    """Batches of rows drawn from sources by their weights, all the same unless given, so that no large source dominates.

    Processes of a data-parallel run each give their `rank`: their draws are independent of one another (AgentOhana). There
    are `draws` draws, by default as many as there are rows; `start` leaves out that many batches. Raises ConfigError for
    weights that are not of these sources, and what `draw` raises.
    """
    given = dict.fromkeys(sources, 1.0) if weights is None else dict(weights)
    if set(given) != set(sources):
        raise ConfigError(f"there are weights for {', '.join(given) or 'nothing'}; expected one for each of {', '.join(sources)}")
    rows = list(sources.values())
    n = sum(map(len, rows)) if draws is None else draws
    return _batches(rows, [given[name] for name in sources], n, size, seed, rank, start)


def _batches(
    rows: Sequence[Sequence[RowT]], weights: Sequence[float], n: int, size: int, seed: int, rank: int, start: int
) -> Iterator[list[RowT]]:
    if size < 1 or start < 0:
        raise ConfigError(f"batch size is {size} and start is {start}; expected at least 1 and 0")
    first = min(n, start * size)
    found = draw([len(some) for some in rows], weights, n=n - first, seed=seed, rank=rank, start=first)
    drawn = (rows[source][row] for source, row in found)
    return iter(lambda: list(itertools.islice(drawn, size)), [])


def rehearsal(new: Sequence[RowT], *old: Sequence[RowT], keep: int, seed: int = 0) -> list[RowT]:
    """All new rows and, of each older set, `keep` different ones (all where there are fewer), in the order in which they came.

    What was learned before is not forgotten (STE trains each round on the tools of earlier rounds and general data beside
    the new ones). Raises ConfigError for a negative `keep`.
    """
    if keep < 0:
        raise ConfigError(f"keep is {keep}; expected 0 or more")
    rows = list(new)
    for i, some in enumerate(old):
        chosen = random.Random(derive_seed("rehearsal", seed, i)).sample(range(len(some)), min(keep, len(some)))
        rows += [some[at] for at in sorted(chosen)]
    return rows


def continual(parts: Sequence[Sequence[RowT]], general: Sequence[RowT] = (), *, keep: int, seed: int = 0) -> list[list[RowT]]:
    """The rows of each round of continual learning: its part, and from the second on `keep` of every earlier part and of `general`.

    Raises ConfigError for a negative `keep`.
    """
    return [rehearsal(part, *parts[:i], *([general] if i else []), keep=keep, seed=derive_seed(seed, i)) for i, part in enumerate(parts)]


@dataclass
class Drawn:
    """What a mixture took of one store."""

    name: str
    weight: float
    rows: int
    """Episodes that it could take."""
    draws: int = 0

    @property
    def passes(self) -> float:
        """How often each of its episodes is in the mixture, on average."""
        return self.draws / self.rows if self.rows else 0.0


def mix_stores(
    sources: Sequence[Stored],
    weights: Sequence[float],
    out: EpisodeStore,
    *,
    n: int | None = None,
    seed: int = 0,
    split: Split = "train",
    on_page: Callable[[int, int], None] | None = None,
) -> list[Drawn]:
    """Fill a store with `n` episodes drawn from others by weight, each under the name of the store that it is from.

    By default as many as can be drawn on average before the first store has been gone through. Only episodes of the split that
    did not fail with an error are drawn. Raises ConfigError for sources that are no stores, and what `draw` raises.
    """
    rows = [_rows(source, split) for source in sources]
    account = [Drawn(source.name, weight, len(some)) for source, weight, some in zip(sources, weights, rows, strict=True)]
    if n is None:
        total = sum(weights)
        n = min((int(len(some) * total / weight) for some, weight in zip(rows, weights) if weight), default=0)
    found = draw([len(some) for some in rows], weights, n=n, seed=seed)
    done = 0
    while page := list(itertools.islice(found, _PAGE)):
        taken: dict[tuple[int, int], Any] = {}
        for source in {source for source, _ in page}:
            wanted = sorted({rows[source][at] for of, at in page if of == source})
            taken |= {(source, row): episode for row, (_, episode) in zip(wanted, _store(sources[source]).at(wanted))}
        out.add((sources[of].name, sources[of].known(taken[of, rows[of][at]])) for of, at in page)
        for of, _ in page:
            account[of].draws += 1
        done += len(page)
        if on_page:
            on_page(done, n)
    return account


def _store(source: Stored) -> EpisodeStore:
    if source.store is None:
        raise ConfigError(f"{source.path} is read in its order only; import it into a store first (whet data import)")
    return source.store


def _rows(source: Stored, split: Split) -> array[int]:
    return array("q", (row for row, _, episode in _store(source).rows() if episode.ok and episode.task.split == split))
