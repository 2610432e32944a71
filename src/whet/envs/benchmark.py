"""How a benchmark scores: which categories its tasks have, and by which rule its authors add them up.

An environment that plays a benchmark says so with a method:

    class Quiz(Env):
        def benchmark(self) -> Benchmark:
            return Benchmark(
                name="Quiz",
                sizes={"easy": 100, "hard": 50},
                groups=(Group(name="overall", parts={"easy": 1, "hard": 3}),),
                headline="overall",
            )

and each of its tasks names its category: `Task.data["category"]`. `whet.evals.benchmarks` does the sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from whet.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A weighted mean of categories and of groups that stand before it."""

    name: str
    parts: Mapping[str, float]
    """Category or group -> weight, above 0; weights need not add up to 1. Weights by size are those of `Benchmark.sizes`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """The scoring rules of a benchmark. Raises ConfigError for groups of parts that do not exist."""

    name: str
    sizes: Mapping[str, int]
    """Category -> how many tasks the benchmark has there, those that cannot be run here included."""
    groups: tuple[Group, ...] = ()
    headline: str = ""
    """The group (or category) that is the benchmark's one number; empty where it has none."""
    unavailable: Mapping[str, str] = field(default_factory=dict)
    """Category -> why it is not run here."""
    pass_k: bool = False
    """Whether it reports pass^k: the chance that k attempts at a task all succeed."""
    temperature: float | None = None
    """What the benchmark samples at, unless the user says otherwise; None leaves it to the agent."""
    reward: bool = False
    """Whether scores are mean rewards rather than success rates."""
    notes: tuple[str, ...] = ()
    """What a reader of the scores must know: the version, the mode that is reproduced, differences from the original."""

    def __post_init__(self) -> None:
        known = set(self.sizes)
        for group in self.groups:
            strangers = sorted(set(group.parts) - known)
            if strangers or not group.parts or group.name in known or not all(weight > 0 for weight in group.parts.values()):
                raise ConfigError(
                    f"group {group.name!r} of benchmark {self.name!r} has the parts {dict(group.parts)!r}; expected categories, or groups "
                    f"before it, with weights above 0, and a name of its own (known: {', '.join(sorted(known))})"
                )
            known.add(group.name)
        for what, names in (("headline", [self.headline] if self.headline else []), ("unavailable", list(self.unavailable))):
            if strangers := [name for name in names if name not in known]:
                raise ConfigError(f"{what} of benchmark {self.name!r} names {strangers[0]!r}; expected one of {', '.join(sorted(known))}")

    def categories(self, name: str) -> dict[str, float]:
        """What a category's or group's score is made of: category -> weight, adding up to 1."""
        groups = {group.name: group for group in self.groups}
        if name not in groups:
            return {name: 1.0}
        parts = groups[name].parts
        total = sum(parts.values())
        found: dict[str, float] = {}
        for part, weight in parts.items():
            for category, share in self.categories(part).items():
                found[category] = found.get(category, 0.0) + share * weight / total
        return found
