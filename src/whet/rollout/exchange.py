"""Conversations of two agents that hold half of the information each (`agents.exchange`): played, and as rows to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from whet.agents import Agent
from whet.agents.exchange import Exchange, viewed
from whet.data import to_examples
from whet.data.pairs import Contrast, to_pairs
from whet.data.rows import HasChat, cut
from whet.envs.base import EnvFactory
from whet.rollout.runner import Recorder, rollout
from whet.seeding import derive_seed
from whet.types import Episode, Example, Pair, Task


def talks(
    agent: Agent[Any],
    speakers: Sequence[Exchange],
    env: EnvFactory,
    tasks: Sequence[Task],
    *,
    n: int,
    seed: int = 0,
    run: Recorder | None = None,
    tag: str = "",
) -> list[list[Episode]]:
    """Of each task `n` conversations (rounded up to as many of each speaker); those that failed to run are left out."""
    groups: list[list[Episode]] = [[] for _ in tasks]
    each = -(-n // len(speakers))
    for k, speaker in enumerate(speakers):
        talking, drawn = agent.replace(policy=speaker), derive_seed(seed, "speaker", k)
        episodes = rollout(talking, env, tasks, n=each, seed=drawn, run=run, tag=f"{tag}{k}")
        for i, episode in enumerate(episodes):
            groups[i // each] += [episode] if episode.ok else []
    return groups


def both_rows(episode: Episode, policy: HasChat, env: EnvFactory) -> list[Example]:
    """A row of what each agent said, behind what it saw: the first agent's, and the second's if it spoke at all."""
    tools = env.of(episode.task).tools
    return [row for side in (0, 1) for row in to_examples(viewed(episode, side), policy, tools=tools)]


def said_pairs(contrasts: Sequence[Contrast], policy: HasChat, env: EnvFactory) -> list[Pair]:
    """Pairs of single things said, as the agent saw it that said them."""
    found = []
    for contrast in contrasts:
        side, before = contrast.start % 2, contrast.start // 2
        better, worse = (cut(viewed(episode, side), before + 1) for episode in (contrast.better, contrast.worse))
        found.append(replace(contrast, better=better, worse=worse, start=before, stop=before + 1))
    return to_pairs(found, policy, env)
