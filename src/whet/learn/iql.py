"""Implicit Q-learning (arXiv:2110.06169) as options, and logged episodes as its steps, without torch; `learn.critic` learns from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from whet.config import at_least
from whet.errors import ConfigError
from whet.transcript import line, transcript
from whet.types import Episode, Turn


@dataclass(frozen=True, kw_only=True)
class IQL:
    """How a critic is made. Defaults: Retrospex's code."""

    tau: float = 0.7
    """The expectile: 0.5 is the mean of what was done, near 1 the best of it."""
    gamma: float = 0.99
    alpha: float = 0.005
    """How far the target follows in a step (Polyak)."""
    lr: float = 1e-4
    steps: int = 20_000
    batch_size: int = 128
    embedding: int = 64
    hidden: int = 128
    window: int = 1
    """Exchanges of a state that the critic reads besides its opening, the last ones."""
    longest: int = 256
    """Tokens of a state that it reads, the last ones."""

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch_size", "embedding", "hidden", "window", "longest")
        at_least(self, 0, "lr")
        for name in ("tau", "gamma", "alpha"):
            if not 0 < getattr(self, name) <= 1 or (name == "tau" and self.tau == 1):
                raise ConfigError(f"{name} is {getattr(self, name)}; expected a number in (0, 1], for tau less than 1")


@dataclass(frozen=True, kw_only=True)
class Transition:
    """A step of a logged episode, as texts."""

    state: str
    action: str
    reward: float
    following: str
    """The state that it led to; of the last step, nothing."""
    done: bool


def transitions(episodes: Sequence[Episode], window: int = 1) -> list[Transition]:
    """Every step of these episodes. One that was cut off ends like any other: nobody knows how it would go on.

    Where no single step was paid, as in imported episodes, the last one is paid the episode's reward.
    """
    found = []
    for episode in episodes:
        turns = episode.turns
        at = [i for i, turn in enumerate(turns) if turn.trained]
        late = 0.0 if any(turn.reward for turn in turns) else episode.reward
        for i, following in zip(at, [*at[1:], None], strict=True):
            after = "" if following is None else state_of(turns[:following], window)
            state, action = state_of(turns[:i], window), action_of(turns[i])
            reward = turns[i].reward + (late if following is None else 0.0)
            found.append(Transition(state=state, action=action, reward=reward, following=after, done=following is None))
    return found


def state_of(turns: Sequence[Turn], window: int = 1) -> str:
    """A conversation as the critic reads it: what was asked first, and the last `window` actions with what was observed after them."""
    at = [i for i, turn in enumerate(turns) if turn.trained]
    begin = [turn for turn in turns[: at[0] if at else len(turns)] if turn.role != "system"]
    return transcript([*begin, *(turns[at[-min(window, len(at))] :] if at else ())])


def action_of(turn: Turn) -> str:
    """An action as the critic reads it: the calls without what was thought before them, or else what was said."""
    return line(dataclasses.replace(turn, content="") if turn.tool_calls else turn)
