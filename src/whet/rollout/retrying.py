"""Another attempt at tasks that were attempted before, by somebody who is shown the first one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from whet.agents import Agent
from whet.envs.base import EnvFactory
from whet.rollout.runner import Recorder, rollout
from whet.seeding import derive_seed
from whet.types import Episode


def retried(
    agent: Agent[Any],
    env: EnvFactory,
    attempts: Sequence[Episode],
    note: Callable[[Episode], str],
    *,
    seed: int = 0,
    run: Recorder | None = None,
    tag: str = "",
) -> list[Episode]:
    """Another episode of each attempt's task, in their order, with `note(attempt)` as the first note before what is asked.

    Several attempts at one task are retried one after another, under `tag`, `tag.1`, `tag.2` and so on. Raises as `rollout` does.
    """
    rounds: list[dict[str, int]] = []
    for i, attempt in enumerate(attempts):
        place = next((r for r in rounds if attempt.task.id not in r), None)
        if place is None:
            rounds.append(place := {})
        place[attempt.task.id] = i
    found: dict[int, Episode] = {}
    for number, places in enumerate(rounds):
        notes = {id: (note(attempts[i]), *agent.memory.get("", ()), *agent.memory.get(id, ())) for id, i in places.items()}
        tasks = [attempts[i].task for i in places.values()]
        name, draw = (tag, seed) if number == 0 else (f"{tag}.{number}", derive_seed(seed, number))
        found |= dict(zip(places.values(), rollout(agent.replace(memory=notes), env, tasks, seed=draw, run=run, tag=name)))
    return [found[i] for i in range(len(attempts))]
