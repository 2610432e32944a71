"""What a beginning of an episode is worth: the mean outcome of completions by a fixed scorer (Monte Carlo).

    values = prefix_values(scorer, env, [(episode, k) for k in range(1, episode.n_actions + 1)], n=5)

All completions of all prefixes are one rollout. Prefixes that are the same are asked about once, and what sessions have in common is
computed once and copied (`policies.engine.scheduler`); the environment takes the actions of a prefix again for each completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from whet.agents import Agent
from whet.envs.base import EnvFactory
from whet.errors import ConfigError
from whet.rollout.replay import Prefix
from whet.rollout.runner import Recorder, rollout
from whet.types import Episode

Beginning = tuple[Episode, int]
"""The first actions of an episode without forks, and how many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """What a beginning is worth."""

    mean: float
    """Of the completions' rewards, what was paid for the beginning included."""
    n: int
    """Completions that the mean is over; 0 where the episode ended with the beginning, so that its own reward is the value."""
    error: float = 0.0
    """Standard error of the mean; 0 where it is exact, inf of a single completion."""


def prefix_values(
    scorer: Agent[Any],
    env: EnvFactory,
    beginnings: Sequence[Beginning],
    *,
    n: int,
    seed: int = 0,
    run: Recorder | None = None,
    tag: str = "",
) -> list[Value | None]:
    """The value of each beginning, by `n` completions of it; None where every completion failed to run.

    A beginning that is a whole episode is worth that episode's reward. Raises ConfigError for a number of actions that an episode does
    not have, and as `rollout` does, CannotReplay among others.
    """
    if n < 1:
        raise ConfigError(f"n is {n}; expected at least one completion of each beginning")
    prefixes = [Prefix.of(episode, actions=actions) for episode, actions in beginnings]
    keys = [_key(episode, prefix) for (episode, _), prefix in zip(beginnings, prefixes, strict=True)]
    first = {key: i for i, key in reversed(list(enumerate(keys))) if beginnings[i][1] < beginnings[i][0].n_actions}
    asked = sorted(first.values())
    tasks = [beginnings[i][0].task for i in asked]
    played = rollout(scorer, env, tasks, n=n, prefix=[prefixes[i] for i in asked], seed=seed, run=run, tag=tag)
    found = {keys[i]: _value(played[k * n : (k + 1) * n]) for k, i in enumerate(asked)}
    return [
        found[key] if actions < episode.n_actions else Value(mean=episode.reward, n=0)
        for key, (episode, actions) in zip(keys, beginnings, strict=True)
    ]


def _key(episode: Episode, prefix: Prefix) -> object:
    """What makes two beginnings the same: the task, and what was said in them."""
    return episode.task.id, tuple((turn.role, turn.content, repr(turn.tool_calls)) for turn in prefix.turns)


def _value(completions: Sequence[Episode]) -> Value | None:
    rewards = [episode.reward for episode in completions if episode.ok]
    if not rewards:
        return None
    error = stdev(rewards) / len(rewards) ** 0.5 if len(rewards) > 1 else float("inf")
    return Value(mean=fmean(rewards), n=len(rewards), error=error)
