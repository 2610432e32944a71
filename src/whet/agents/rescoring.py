"""Actions of a policy that a critic scores again (Retrospex's dynamic action rescoring, arXiv:2505.11807).

    among k different actions that the policy takes, the one of the highest
    lambda_t norm(p(a)) + (1 - lambda_t) norm(Q(s, a) - V(s)),     lambda_t = max(b, d^t)

t is how many actions there were before; norm puts the lowest at 0 and the highest at 1. So the policy is believed in the beginning,
and the critic more and more, as the authors found it to be of use late in long episodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from whet.agents.buffer import valid
from whet.config import at_least
from whet.errors import ConfigError
from whet.policies.base import Policy
from whet.policies.workflow import Desk, Workflow
from whet.transcript import line
from whet.types import Turn


class Advantages(Protocol):
    """What says how much better than usual actions are; a workflow saves it by its `save` and finds it by its `load`."""

    def advantages(self, turns: Sequence[Turn], actions: Sequence[Turn]) -> list[float]:
        """Q - V of each of these actions after this conversation."""
        ...


@dataclass(frozen=True, kw_only=True)
class Rescoring:
    """How much the critic counts. Defaults: the authors' code for ScienceWorld."""

    k: int = 4
    """Actions that are compared at most: the policy is asked this many times, and what it repeats counts once."""
    decay: float = 0.97
    """The paper's d; 0.95 for ALFWorld, 0.9 for WebShop."""
    floor: float = 0.6
    """The paper's b; 0.5 for WebShop. 1 leaves the critic out."""
    temperature: float = 1.0
    """Of all answers but the first, which is as the agent's sampling says; at least."""

    def __post_init__(self) -> None:
        at_least(self, 1, "k")
        at_least(self, 0, "temperature")
        for name in ("decay", "floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected a number in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class Rescored(Rescoring, Workflow):
    """The policy proposes, and both score. Where calls are valid, those that are not are left out."""

    speaker: Policy
    critic: Advantages

    async def act(self, desk: Desk) -> Turn:
        sampling = desk.request.sampling
        warmer = sampling.at(max(sampling.temperature, self.temperature))
        asked = [
            await desk.ask("speaker", desk.turns, tools=desk.tools, sampling=warmer if i else sampling, tokens=True) for i in range(self.k)
        ]
        proposed = list({line(turn): turn for turn in asked}.values())
        proposed = [turn for turn in proposed if valid(turn, desk.tools)] or proposed
        t = sum(turn.trained for turn in desk.turns)
        likely = [math.exp(sum(turn.logprobs)) for turn in proposed]
        scores = rescored(likely, self.critic.advantages(desk.turns, proposed), max(self.floor, self.decay**t))
        return proposed[scores.index(max(scores))]


def rescored(likely: Sequence[float], advantages: Sequence[float], weight: float) -> list[float]:
    """The score of each action, by its probability and its advantage."""
    both = zip(normalised(likely), normalised(advantages), strict=True)
    return [weight * p + (1 - weight) * a for p, a in both]


def normalised(values: Sequence[float]) -> list[float]:
    """The values from 0 to 1; all 0 where they are equal."""
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]
