"""Graders: functions from an episode to a number. A method that learns from reward takes one.

The environment's own is the default. Others are rules about how the episode went, and combinations; a grader only ever
sees episodes that count (`Episode.ok`), so that a failure of infrastructure can never become a reward.

    grader = weighted((1.0, environment), (-0.1, tool_failures))
    better = grpo(agent, data, env=env, run=run, cfg=cfg, grader=grader)
"""

from __future__ import annotations

from collections.abc import Callable

from whet.envs.base import FAILED
from whet.types import Episode, Stop

Grader = Callable[[Episode], float]


def environment(episode: Episode) -> float:
    """What the environment paid, summed over the turns."""
    return episode.reward


def tool_failures(episode: Episode) -> float:
    """Share of the tool calls that were malformed, unknown, had bad arguments, failed or were given up: in [0, 1], 0 without calls.

    Calls are counted by their outcome where the rollout noted that (`Episode.tags["tools"]`), since a tool may well give a
    text that begins like a failure. Otherwise, as in imported episodes, by how their observation begins.
    """
    calls = sum(len(turn.tool_calls) for turn in episode.turns if turn.trained)
    outcomes = episode.tags.get("tools")
    if outcomes is not None:
        failed = sum(n for outcome, n in outcomes.items() if outcome != "ok")
    else:
        failed = sum(turn.role == "tool" and turn.content.startswith(FAILED) for turn in episode.turns)
    return failed / calls if calls else 0.0


def partial_credit(credit: float = 0.1) -> Grader:
    """The environment's reward, but no less than `credit` for an episode that the environment ended (ReFT, arXiv 2401.08967).

    So an answer that is wrong, but could be graded, is worth more than none: one that was cut off by a limit.
    """

    def grade(episode: Episode) -> float:
        return max(episode.reward, credit) if episode.stop is Stop.TERMINATED else episode.reward

    return grade


def weighted(*parts: tuple[float, Grader]) -> Grader:
    """The weighted sum of several graders."""

    def grade(episode: Episode) -> float:
        return sum(weight * grader(episode) for weight, grader in parts)

    return grade
