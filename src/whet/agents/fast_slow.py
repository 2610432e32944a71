"""A fast module that acts, and a slow one that takes over for a few actions where the fast one is in trouble (SwiftSage, arXiv:2305.17390).

The slow module (Sage) is asked twice: for a plan, and for calls by which it is carried out. They fill an action buffer
(`agents.buffer`) that the next turns are taken from. Who acted when can be read from the conversation alone, and what has gone
wrong from its observations, by patterns.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from whet.agents.buffer import BUFFER, acted, action_of, buffered, from_buffer, head_of, planning, valid, valid_calls
from whet.config import at_least
from whet.policies.base import Policy, Sampling
from whet.policies.workflow import Desk, Workflow
from whet.tools.function import Tool
from whet.transcript import calls_in
from whet.types import Turn

PLAN = (
    "Before going on, think about it: What is needed, and where can it be had? Which subgoals are there, which of them are reached, "
    "and which is next? Did anything go wrong so far, and how can it be put right?"
)
GROUND = "{plan}\n\nBy this plan, write the next calls, at most {n}, each alone on a line in the form name(argument='value')."
SAGE = "sage"
Actor = Literal["swift", "sage", "buffer"]


@dataclass(frozen=True, kw_only=True)
class Switch:
    """When the slow module takes over. Defaults: the authors' code."""

    early: int = 10
    """Actions at the beginning in which the fast module is not thought to be stuck."""
    window: int = 5
    """Actions within which a reward, or the slow module, has put things right."""
    repeats: int = 3
    """Actions back to which another one just like it is a sign of being stuck."""
    failures: int = 2
    """Failed actions since the slow module was asked, after which it is asked whatever the fast one proposes."""
    in_a_row: int = 2
    """Times that the slow module is asked one after the other at most."""
    failed: tuple[str, ...] = ("^error: ", "^No tool call found")
    """Patterns of observations that tell of a failure or of something unexpected (regular expressions)."""
    critical: tuple[str, ...] = ()
    """Patterns of actions, written name(argument='value'), that must not be wrong: the slow module decides on the first of them."""
    ahead: int = 5
    """Calls that the slow module plans at a time, at most."""

    def __post_init__(self) -> None:
        at_least(self, 0, "early")
        at_least(self, 1, "window", "repeats", "failures", "in_a_row", "ahead")


@dataclass(frozen=True)
class Step:
    """An action of the conversation and what came of it."""

    by: Actor
    turn: Turn
    observed: tuple[Turn, ...]

    @property
    def action(self) -> str:
        """The calls alone."""
        return action_of(self.turn)


@dataclass(frozen=True, kw_only=True)
class FastSlow(Switch, Workflow):
    """Swift acts, unless its buffer holds calls of Sage's or the switch rules call for Sage."""

    swift: Policy
    sage: Policy

    async def act(self, desk: Desk) -> Turn:
        steps = steps_of(desk.turns)
        if self.failures_since(steps) < self.failures:
            if buffer := buffered(desk.turns, desk.tools):
                return from_buffer(buffer[0])
        elif self.sages_in_a_row(steps) < self.in_a_row and (turn := await self._ask_sage(desk)):
            return turn
        proposed = await desk.ask("swift", acted(desk.turns), tools=desk.tools)
        if self.trusts(proposed, steps, desk.tools):
            return proposed
        return await self._ask_sage(desk) or proposed

    def trusts(self, proposed: Turn, steps: Sequence[Step], tools: Sequence[Tool]) -> bool:
        """Whether Swift's proposal is taken, rather than asking Sage."""
        if self.sages_in_a_row(steps) >= self.in_a_row:
            return True
        if not valid(proposed, tools) or self.is_critical(proposed, steps):
            return False
        recent = steps[-self.window :]
        return (
            len(steps) < self.early
            or any(step.by == "sage" for step in recent)
            or any(step.turn.reward > 0 for step in recent)
            or action_of(proposed) not in [step.action for step in steps[-self.repeats :]]
        )

    def is_critical(self, proposed: Turn, steps: Sequence[Step]) -> bool:
        """Whether this is an action that must not be wrong, the first one of the episode."""
        return _matches(self.critical, action_of(proposed)) and not any(_matches(self.critical, step.action) for step in steps)

    def failures_since(self, steps: Sequence[Step]) -> int:
        """Failed actions, from the one in which Sage was last asked."""
        at = max((i for i, step in enumerate(steps) if step.by == "sage"), default=0)
        return sum(any(_matches(self.failed, turn.content) for turn in step.observed) for step in steps[at:])

    def sages_in_a_row(self, steps: Sequence[Step]) -> int:
        """How often Sage was asked since Swift last acted."""
        return sum(step.by == "sage" for step in itertools.takewhile(lambda step: step.by != "swift", reversed(steps)))

    async def _ask_sage(self, desk: Desk) -> Turn | None:
        """Plan, ground, and take the first call; None where no call could be read."""
        greedy = Sampling(temperature=0.0)
        turns = acted(desk.turns)
        plan = await desk.ask("sage", _and(turns, PLAN), sampling=greedy, max_tokens=1024)
        order = GROUND.format(plan=f"Your plan:\n{plan.content}", n=self.ahead)
        grounded = await desk.ask("sage", _and(turns, order), sampling=greedy, max_tokens=1024)
        calls = valid_calls(calls_in(grounded.content, desk.tools), desk.tools)[: self.ahead]
        return planning(SAGE, calls) if calls else None


def steps_of(turns: Sequence[Turn]) -> list[Step]:
    """The actions of a conversation, who each was of, and what was observed after it."""
    steps: list[Step] = []
    for turn in turns:
        if turn.trained:
            by: Actor = "sage" if head_of(turn) == SAGE else "buffer" if turn.content == BUFFER else "swift"
            steps.append(Step(by, turn, ()))
        elif steps:
            steps[-1] = replace(steps[-1], observed=(*steps[-1].observed, turn))
    return steps


def _and(turns: Sequence[Turn], request: str) -> tuple[Turn, ...]:
    return (*turns, Turn(role="user", content=request))


def _matches(patterns: Sequence[str], text: str) -> bool:
    return any(re.search(pattern, text) for pattern in patterns)
