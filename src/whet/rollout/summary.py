"""What a method logs about the episodes of a step, so that a run over several environments shows the curve of each."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from whet.types import Episode, Group


def success_rates(episodes: Iterable[Episode | Group]) -> dict[str, float]:
    """The share of episodes that succeeded: `success` and, where they are of several environments, `success/NAME` of each.

    Episodes that failed to run do not count; an environment all of whose episodes failed has no entry.
    """
    everything = (episode for item in episodes for episode in (item.episodes if isinstance(item, Group) else (item,)))
    return means("success", ((episode.task.env, episode.success) for episode in everything if episode.ok))


def means(name: str, values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The mean of (environment, value) pairs under `name` and, where there are several, that of each under `name/ENVIRONMENT`."""
    by_env: dict[str, list[float]] = {}
    for env, value in values:
        by_env.setdefault(env, []).append(value)
    if not by_env:
        return {}
    each = {f"{name}/{env}": fmean(found) for env, found in sorted(by_env.items())} if len(by_env) > 1 else {}
    return {name: fmean(value for found in by_env.values() for value in found), **each}
