"""Episodes that a method gathers once and then learns from: a teacher's, or those of several actors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from whet.agents import Agent
from whet.envs.base import EnvFactory
from whet.rollout.runner import Recorder, rollout
from whet.types import Episode, Task


class Phases(Recorder, Protocol):
    """What collecting needs of a run (`whet.runs.Run`)."""

    def seed(self, *names: object) -> int: ...
    def steps(self, n: int, *, name: str) -> Iterator[int]: ...
    def load_episodes(self, tag: str) -> Iterator[Episode]: ...


def collect(agent: Agent[Any], env: EnvFactory, tasks: Sequence[Task], *, n: int = 1, run: Phases, tag: str) -> list[Episode]:
    """`rollout` as a phase of a run, under `tag`, which also makes its seed; episodes that failed to run are left out.

    They are asked for once: a run that is resumed later reads them back. So that both give the same, they are in the order of
    their ids. None are asked for once the run's budget is spent. Raises as `rollout` does.
    """
    episodes: list[Episode] | None = None
    for _ in run.steps(1, name=tag):
        episodes = rollout(agent, env, tasks, n=n, seed=run.seed(tag), run=run, tag=tag)
    if episodes is None:
        episodes = list(run.load_episodes(tag))
    return sorted((episode for episode in episodes if episode.ok), key=lambda episode: episode.id)
