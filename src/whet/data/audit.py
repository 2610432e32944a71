"""What filters did: how many episodes each kept and dropped, why, and what that made of the mixture."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from whet.data.provenance import DIMENSIONS, dimension
from whet.runs import EpisodeStore
from whet.types import Episode

_PREFIX = "audit/"


class Drop(NamedTuple):
    """An episode that a filter (its index) dropped."""

    filter: int
    episode: str
    reason: str
    """`kind`, or `kind: detail`."""


@dataclass
class Mixture:
    """How many episodes there are of each source, environment, actor and outcome."""

    n: int = 0
    counts: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in DIMENSIONS})

    def add(self, episode: Episode) -> None:
        self.n += 1
        for name, counter in self.counts.items():
            counter[dimension(episode, name)] += 1

    def shares(self, name: str) -> dict[str, float]:
        """The share of each value of a dimension, the largest first."""
        return {value: n / self.n for value, n in self.counts[name].most_common()}

    def to_json(self) -> dict[str, Any]:
        return {"n": self.n, **{name: dict(counter.most_common()) for name, counter in self.counts.items()}}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Mixture:
        return cls(record["n"], {name: Counter(record[name]) for name in DIMENSIONS})


@dataclass
class Step:
    """What one filter did."""

    name: str
    reasons: Counter[str] = field(default_factory=Counter)
    """Episodes dropped, by the kind of reason."""
    after: Mixture = field(default_factory=Mixture)
    """What was left."""

    @property
    def dropped(self) -> int:
        return sum(self.reasons.values())


@dataclass
class Audit:
    """An account of some filters, complete when what they passed on has been read to its end."""

    steps: list[Step]
    before: Mixture = field(default_factory=Mixture)
    drops: list[Drop] = field(default_factory=list)
    """In the order in which they were dropped; `take_drops` empties it."""

    @classmethod
    def of(cls, names: Sequence[str]) -> Audit:
        return cls([Step(name) for name in names])

    @property
    def after(self) -> Mixture:
        return self.steps[-1].after if self.steps else self.before

    def drop(self, step: int, episode: Episode, reason: str) -> None:
        self.steps[step].reasons[reason.partition(":")[0]] += 1
        self.drops.append(Drop(step, episode.id, reason))

    def take_drops(self) -> list[Drop]:
        taken, self.drops = self.drops, []
        return taken

    def summary(self) -> dict[str, Any]:
        """JSON-able, for a run's log: `run.event("filter", **audit.summary())`. Ids of dropped episodes are in `drops`."""
        steps = [
            {"name": s.name, "kept": s.after.n, "dropped": s.dropped, "reasons": dict(s.reasons.most_common()), "after": s.after.to_json()}
            for s in self.steps
        ]
        return {"before": self.before.to_json(), "filters": steps}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Audit:
        steps = [Step(s["name"], Counter(s["reasons"]), Mixture.from_json(s["after"])) for s in record["filters"]]
        return cls(steps, Mixture.from_json(record["before"]))

    def lines(self) -> Iterator[str]:
        """The account as text."""
        yield f"{self.before.n:,} episodes, of which {self.after.n:,} were kept"
        for step in self.steps:
            yield f"  {step.name}: dropped {step.dropped:,}, kept {step.after.n:,}"
            for reason, n in step.reasons.most_common():
                yield f"      {n:>9,}  {reason}"
        for name in DIMENSIONS:
            yield from self._moved(name)

    def _moved(self, name: str) -> Iterator[str]:
        """The shares of a dimension before and after, where there is more than one value."""
        before, after = self.before.shares(name), self.after.shares(name) if self.after.n else {}
        if len(before) < 2:
            return
        yield f"  share by {name}"
        for value, share in before.items():
            n, left = self.before.counts[name][value], self.after.counts[name][value]
            yield f"      {share:>7.1%} -> {after.get(value, 0.0):>6.1%}  {value} ({n:,} -> {left:,})"


def save(store: EpisodeStore, audit: Audit, number: int, about: dict[str, Any]) -> None:
    """Keep an audit in a store, with what else is to be known of it; the drops not yet taken are kept, too."""
    store.save_drops((number, *drop) for drop in audit.take_drops())
    store.note(f"{_PREFIX}{number}", json.dumps({"about": about, **audit.summary()}))


def load(store: EpisodeStore) -> list[tuple[int, dict[str, Any], Audit]]:
    """The audits of a store, oldest first: number, what else is known, and the audit without its drops."""
    found = sorted((int(key.removeprefix(_PREFIX)), json.loads(text)) for key, text in store.notes(_PREFIX).items())
    return [(number, record.pop("about"), Audit.from_json(record)) for number, record in found]
