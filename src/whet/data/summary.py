"""What a set of episodes holds, counted as it goes by."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from whet.data.provenance import dimension
from whet.types import Cost, Episode

_COUNTED = ("source", "env", "actor", "policy", "split", "outcome")
_LENGTHS = {"turns": "turns", "answers": "turns of the assistant", "characters": "characters", "tokens": "tokens"}


@dataclass
class Summary:
    """Counts, lengths and costs. Costs are those of the episodes; tokens those that turns hold."""

    n: int = 0
    counts: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in (*_COUNTED, "stop")})
    rewards: dict[str, list[float]] = field(default_factory=dict)
    """By outcome: sum and number."""
    cost: Cost = Cost()
    lengths: dict[str, array[int]] = field(default_factory=lambda: {name: array("q") for name in _LENGTHS})
    unreadable: int = 0
    """Calls that could not be read."""
    calls: int = 0

    def add(self, episode: Episode) -> None:
        self.n += 1
        for name in _COUNTED:
            self.counts[name][dimension(episode, name)] += 1
        self.counts["stop"][f"{episode.stop.value} ({episode.reason})" if episode.reason else episode.stop.value] += 1
        rewards = self.rewards.setdefault(dimension(episode, "outcome"), [0.0, 0])
        rewards[0], rewards[1] = rewards[0] + episode.reward, rewards[1] + 1
        self.cost = self.cost + episode.cost
        self.lengths["turns"].append(len(episode.turns))
        self.lengths["answers"].append(episode.n_actions)
        self.lengths["characters"].append(sum(len(turn.content) for turn in episode.turns))
        self.lengths["tokens"].append(sum(len(turn.tokens) for turn in episode.turns))
        calls = [call for turn in episode.turns for call in turn.tool_calls]
        self.calls, self.unreadable = self.calls + len(calls), self.unreadable + sum(call.error is not None for call in calls)

    def to_json(self) -> dict[str, Any]:
        """JSON-able, with everything that `lines` shows."""
        return {
            "episodes": self.n,
            **{name: dict(counter.most_common()) for name, counter in self.counts.items()},
            "reward": {name: total / n for name, (total, n) in self.rewards.items()},
            "lengths": {name: self._spread(name) for name in _LENGTHS if self.n},
            "calls": {"all": self.calls, "unreadable": self.unreadable},
            "cost": {name: getattr(self.cost, name) for name in self.cost.__slots__},
        }

    def _spread(self, name: str) -> dict[str, float]:
        values = np.frombuffer(self.lengths[name], dtype=np.int64)
        low, middle, high, top = np.quantile(values, (0.0, 0.5, 0.95, 1.0)).tolist()
        return {"mean": float(values.mean()), "min": low, "median": middle, "95%": high, "max": top}

    def lines(self, most: int = 12) -> Iterator[str]:
        """The summary as text; of each dimension the `most` frequent values."""
        yield f"{self.n:,} episodes"
        if not self.n:
            return
        for name, counter in self.counts.items():
            yield f"  by {name}"
            for value, n in counter.most_common(most):
                reward = self.rewards.get(value) if name == "outcome" and value not in ("unknown", "error") else None
                mean = f", mean reward {reward[0] / reward[1]:.3f}" if reward else ""
                yield f"      {n:>11,}  {n / self.n:>6.1%}  {value}{mean}"
            if len(counter) > most:
                yield f"      {sum(n for _, n in counter.most_common()[most:]):>11,}  {'':>6}  in {len(counter) - most:,} others"
        yield f"  lengths{'':<18}{'mean':>11}{'min':>9}{'median':>9}{'95%':>9}{'max':>11}"
        for name, title in _LENGTHS.items():
            spread = self._spread(name)
            if spread["max"]:
                values = f"{spread['mean']:>11,.1f}" + "".join(
                    f"{spread[key]:>{w},.0f}" for key, w in (("min", 9), ("median", 9), ("95%", 9), ("max", 11))
                )
                yield f"      {title:<22}{values}"
        if self.calls:
            yield f"  {self.calls:,} tool calls, of which {self.unreadable:,} could not be read"
        costs = ", ".join(f"{value:,.6g} {name.replace('_', ' ')}" for name in self.cost.__slots__ if (value := getattr(self.cost, name)))
        yield f"  cost: {costs or 'not recorded'}"
