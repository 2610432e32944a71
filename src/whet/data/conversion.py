"""Episodes that were prompted for in one way, as if they had been acted in another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from whet.types import Episode, Turn, chain


def to_react(episode: Episode, *, told: str = "") -> Episode:
    """The episode in the form of ReAct: in each turn a thought and an action. For one without forks.

    `told` is what its policy was told besides, behind the system prompt; it goes. In an episode with tool calls, turns that
    only say something are thoughts: they stand before the thought of the next turn that acts, and what the environment
    answered to them goes, too. Thoughts that no action follows are left out. Turns whose text changes, and what was sampled
    behind them, lose their tokens and log-probs.
    """
    turns = tuple(_untold(episode.turns, told))
    if any(turn.tool_calls for turn in turns):
        turns = tuple(_merged(turns))
    if turns == episode.turns:
        return episode
    return dataclasses.replace(episode, turns=chain([dataclasses.replace(t, tokens=(), logprobs=(), versions=()) for t in turns]))


def _untold(turns: Sequence[Turn], told: str) -> Iterator[Turn]:
    for turn in turns:
        if told and turn.role == "system" and turn.content.endswith(told):
            content = turn.content.removesuffix(told).rstrip("\n")
            if content:
                yield dataclasses.replace(turn, content=content)
        else:
            yield turn


def _merged(turns: Sequence[Turn]) -> Iterator[Turn]:
    thoughts: list[str] = []
    for turn in turns:
        if turn.trained and not turn.tool_calls:
            thoughts.append(turn.content)
        elif turn.trained:
            yield dataclasses.replace(turn, content="\n".join(part for part in (*thoughts, turn.content) if part))
            thoughts = []
        elif not thoughts:
            yield turn
