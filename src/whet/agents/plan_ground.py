"""A planner that names subgoals and a grounder that turns each into tool calls (Agent Lumos, arXiv:2311.05657).

A turn of such an episode is a subgoal with the calls that it was grounded to: its text is the subgoal, so everything that the two
modules are told can be written again from the conversation alone, for acting and for training.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from whet.errors import ConfigError
from whet.policies.base import Policy
from whet.policies.workflow import Desk, Workflow
from whet.types import Episode, ToolCall, Turn, chain

CALLS = 4
"""Calls that a subgoal may be grounded to, by which the grounder's tokens are bounded."""


@dataclass(frozen=True)
class PlanGround(Workflow):
    """Lumos-I names the next subgoal when the last one's results are known; Lumos-O (`iterative=False`) names all of them first."""

    planner: Policy
    grounder: Policy
    iterative: bool = True

    async def act(self, desk: Desk) -> Turn:
        done = [turn.content for turn in desk.turns if turn.trained]
        if self.iterative or not done:
            plan = await desk.ask("planner", to_planner(desk.turns), max_tokens=CALLS * desk.request.max_tokens)
            text = plan.content.strip()
        else:  # the plan stands in the first turn, whose own subgoal is its first line
            lines = done[0].splitlines()
            text = lines[min(len(done), len(lines) - 1)]
        asked = to_grounder(desk.turns, text.partition("\n")[0])
        grounded = await desk.ask("grounder", asked, tools=desk.tools, max_tokens=CALLS * desk.request.max_tokens)
        return Turn(role="assistant", content=text, tool_calls=grounded.tool_calls, finish=grounded.finish)


def to_planner(turns: Sequence[Turn], *, iterative: bool = True) -> tuple[Turn, ...]:
    """What the planner has seen and said: subgoals, and the results of each (of Lumos-O: all subgoals at once, no results)."""
    if not iterative:
        subgoals = "\n".join(turn.content for turn in turns if turn.trained)
        begin = list(itertools.takewhile(lambda turn: not turn.trained, turns))
        return chain((*begin, Turn(role="assistant", content=subgoals))) if subgoals else tuple(begin)
    told: list[Turn] = []
    for said, group in itertools.groupby(turns, key=lambda turn: turn.trained):
        if said:
            told += [Turn(role="assistant", content=turn.content) for turn in group]
        elif not told:
            told += group
        else:
            told.append(Turn(role="user", content="\n".join(turn.content for turn in group)))
    return chain(told)


def to_grounder(turns: Sequence[Turn], subgoal: str = "") -> tuple[Turn, ...]:
    """What the grounder has seen and done: each subgoal behind the results of the one before, and its calls.

    `subgoal` is the one to be grounded next; none in a finished episode.
    """
    told: list[Turn] = []
    for turn in turns:
        if turn.trained:
            first = turn.content.partition("\n")[0]
            told = [*ordered(told, f"Subgoal: {first}"), Turn(role="assistant", tool_calls=turn.tool_calls)]
        else:
            told.append(turn)
    return chain(ordered(told, f"Subgoal: {subgoal}") if subgoal else told)


def ordered(turns: Sequence[Turn], order: str) -> list[Turn]:
    """The conversation with an order behind it, on a line of its own."""
    if turns and turns[-1].role == "user":
        return [*turns[:-1], replace(turns[-1], content=f"{turns[-1].content}\n{order}")]
    return [*turns, Turn(role="user", content=order)]


def grounded(episode: Episode, subgoals: Sequence[str]) -> Episode:
    """An episode of single actions as one of subgoals: actions in a row that serve the same one become a turn.

    `subgoals` has one for each action. Raises ConfigError for an action that is no call: its text is the environment's, so a
    subgoal would have no place.
    """
    if any(turn.trained and not turn.tool_calls for turn in episode.turns):
        raise ConfigError(
            f"episode {episode.id!r} has an action without a tool call, and subgoals are grounded in calls; take an environment with tools"
        )
    named = iter(subgoals)
    begin = list(itertools.takewhile(lambda turn: not turn.trained, episode.turns))
    steps: list[tuple[str, list[Turn]]] = []
    for turn in episode.turns[len(begin) :]:
        if turn.trained and (not steps or (subgoal := next(named)) != steps[-1][0]):
            steps.append((subgoal if steps else next(named), []))
        steps[-1][1].append(turn)
    turns = [turn for subgoal, members in steps for turn in _merged(subgoal, members)]
    return replace(episode, turns=chain((*begin, *turns)))


def _merged(subgoal: str, members: Sequence[Turn]) -> list[Turn]:
    """One assistant turn with all calls of these, then all that came back; calls are numbered anew."""
    calls: list[ToolCall] = []
    results: list[Turn] = []
    for turn in members:
        if turn.trained:
            ids = {call.id: f"call_{len(calls) + i}" for i, call in enumerate(turn.tool_calls)}
            calls += [replace(call, id=ids[call.id]) for call in turn.tool_calls]
        else:
            results.append(replace(turn, call_id=ids.get(turn.call_id or "", turn.call_id)))
    reward = sum(turn.reward for turn in members)
    return [Turn(role="assistant", content=subgoal, tool_calls=tuple(calls), finish="stop", reward=reward), *results]
