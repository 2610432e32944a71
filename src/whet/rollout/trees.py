"""Trees of episodes over turns: from promising states, all episodes of a task are continued in several ways (OPTIMA, arXiv:2410.08115).

A node is a beginning of an episode, up to an action and what was observed after it. Its value is the mean worth of all episodes
that went through it.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from whet.agents import Agent
from whet.config import at_least
from whet.data import actions
from whet.envs.base import EnvFactory
from whet.rollout.replay import Prefix
from whet.rollout.runner import Recorder, rollout
from whet.seeding import derive_seed
from whet.transcript import line
from whet.types import Episode, Task

Worth = Callable[[Sequence[Sequence[Episode]]], Sequence[Sequence[float]]]
"""The episodes of each task -> what each of them is worth."""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How a tree grows. Defaults: the authors' code; the number of expansions is unverified."""

    expansions: int = 8
    """Nodes of each task that are gone on from, the root among them."""
    ways: int = 3
    """Continuations of each."""
    near: float = 0.25
    """A node is passed over whose last action is so close to one's that was expanded: edit distance per character."""
    top: int = 10
    """The next is drawn among the best, by a softmax of their values."""

    def __post_init__(self) -> None:
        at_least(self, 1, "expansions", "ways", "top")
        at_least(self, 0, "near")


def grow(
    agent: Agent[Any],
    env: EnvFactory,
    tasks: Sequence[Task],
    worth: Worth,
    how: Growth = Growth(),
    *,
    seed: int = 0,
    run: Recorder | None = None,
    tag: str = "",
) -> list[list[Episode]]:
    """The episodes of each task's tree. Raises as `rollout` does, CannotReplay among others; what failed to run is left out."""
    trees: list[list[Episode]] = [[] for _ in tasks]
    expanded: list[list[str]] = [[] for _ in tasks]
    for step in range(how.expansions):
        rngs = [random.Random(derive_seed(seed, "node", step, i)) for i in range(len(tasks))]
        nodes = [chosen(tree, each, done, how, rng) for tree, each, done, rng in zip(trees, worth(trees), expanded, rngs, strict=True)]
        where = [i for i, node in enumerate(nodes) if node or not trees[i] for _ in range(how.ways)]
        label, drawn = f"{tag}{step}", derive_seed(seed, "expand", step)
        grown = rollout(agent, env, [tasks[i] for i in where], prefix=[nodes[i] for i in where], seed=drawn, run=run, tag=label)
        for i, episode in zip(where, grown, strict=True):
            trees[i] += [episode] if episode.ok else []
    return trees


def chosen(tree: Sequence[Episode], values: Sequence[float], expanded: list[str], how: Growth, rng: random.Random) -> Prefix | None:
    """The node that is gone on from next, which joins `expanded`; None where there is none that is new and does not end an episode."""
    through: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for i, episode in enumerate(tree):
        taken = actions(episode)
        for k in range(1, len(taken)):
            through[taken[:k]].append(i)
    nodes = []
    for taken, through_it in through.items():
        prefix = Prefix.of(tree[through_it[0]], actions=len(taken))
        said = line([turn for turn in prefix.turns if turn.trained][-1])
        if all(distance(said, other) >= how.near for other in expanded):
            nodes.append((fmean(values[i] for i in through_it), said, prefix))
    best = sorted(nodes, key=lambda node: -node[0])[: how.top]
    if not best:
        return None
    [(_, said, prefix)] = rng.choices(best, weights=[math.exp(value - best[0][0]) for value, _, _ in best])
    expanded.append(said)
    return prefix


def distance(a: str, b: str) -> float:
    """Levenshtein's edit distance, by the length of the longer text; 0 for two empty ones."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1] / max(len(a), len(b), 1)
