"""Policies that act by code: a function, the environment's expert, chance, or a mixture. They make text, not tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from whet.errors import ConfigError, PolicyError
from whet.policies.base import Policy, Request
from whet.seeding import derive_seed
from whet.tools.function import Tool
from whet.types import Turn

if TYPE_CHECKING:
    from whet.envs.base import Action


def written_turn(action: Action) -> Turn:
    """An action as an assistant turn without tokens; calls without an id get `call_0`, `call_1` and so on."""
    calls = tuple(call if call.id else replace(call, id=f"call_{i}") for i, call in enumerate(action.tool_calls))
    return Turn(role="assistant", content=action.text, tool_calls=calls, finish="stop")


class _TextPolicy:
    """What policies without tokens have in common."""

    def observe(self, turns: Sequence[Turn], new: Sequence[Turn], tools: Sequence[Tool]) -> tuple[Turn, ...]:
        return tuple(new)

    def release(self, session: str) -> None:
        """Nothing is kept."""


@dataclass(frozen=True)
class ScriptedPolicy(_TextPolicy):
    """Acts by `function(request, rng)`, whose answer is an `Action` or plain text. `rng` is seeded by the request."""

    function: Callable[[Request, random.Random], Action | str]
    version: str = "script"
    actor: str = "script"

    async def generate(self, request: Request) -> Turn:
        answer = self.function(request, random.Random(request.seed))
        return Turn(role="assistant", content=answer, finish="stop") if isinstance(answer, str) else written_turn(answer)


@dataclass(frozen=True)
class ExpertPolicy(_TextPolicy):
    """Acts by `env.expert`. Raises PolicyError in an environment that has none."""

    version: str = "expert"
    actor: str = "expert"

    async def generate(self, request: Request) -> Turn:
        action = request.env.expert(random.Random(request.seed)) if request.env is not None else None
        if action is None:
            name = request.env.name if request.env is not None else "(none)"
            raise PolicyError(f"environment {name!r} has no expert here; define `expert(self, rng)` that returns the next Action")
        return written_turn(action)


@dataclass(frozen=True)
class RandomPolicy(_TextPolicy):
    """Acts by `env.random_action`: chance level. Raises PolicyError in an environment that cannot name its actions."""

    version: str = "random"
    actor: str = "random"

    async def generate(self, request: Request) -> Turn:
        action = request.env.random_action(random.Random(request.seed)) if request.env is not None else None
        if action is None:
            name = request.env.name if request.env is not None else "(none)"
            raise PolicyError(f"environment {name!r} names no random actions; define `random_action(self, rng)` that returns an Action")
        return written_turn(action)


@dataclass(frozen=True)
class RolePolicy(_TextPolicy):
    """Speaks a role by the environment's own script (`Env.role`). Raises PolicyError in an environment without one for it."""

    role: str

    @property
    def version(self) -> str:
        return f"script:{self.role}"

    actor = "script"

    async def generate(self, request: Request) -> Turn:
        env = request.env
        answer = env.role(self.role, request.turns, random.Random(request.seed)) if env is not None else None
        if answer is None:
            name = env.name if env is not None else "(none)"
            raise PolicyError(
                f"environment {name!r} has no script for the role {self.role!r}; let a model play it (a model's directory, "
                "openai:MODEL@URL), or define `role(self, role, turns, rng)` there"
            )
        return Turn(role="assistant", content=answer, finish="stop") if isinstance(answer, str) else written_turn(answer)


class MixedPolicy:
    """Acts by `a` with probability `p` in each turn, else by `b`: a noisy expert, or a learner that is put right.

    `a` reads the conversation, so it is the one that may work on tokens; what `b` writes is read by `a`, too.
    """

    def __init__(self, a: Policy, b: Policy, p: float, *, name: str = "") -> None:
        """`name` is the version, unless the parts' versions are to make one. Raises ConfigError unless p is in [0, 1]."""
        if not 0 <= p <= 1:
            raise ConfigError(f"p is {p!r}; expected a probability in [0, 1]")
        self.a, self.b, self.p = a, b, p
        self.version = name or f"{p:g}*{a.version}+{1 - p:g}*{b.version}"
        self.actor = "mixed"

    def observe(self, turns: Sequence[Turn], new: Sequence[Turn], tools: Sequence[Tool]) -> tuple[Turn, ...]:
        return self.a.observe(turns, new, tools)

    async def generate(self, request: Request) -> Turn:
        if random.Random(derive_seed("mixed", request.seed)).random() < self.p:
            return await self.a.generate(request)
        turn = await self.b.generate(request)
        return turn if turn.tokens else self.a.observe(request.turns, (turn,), request.tools)[0]

    def release(self, session: str) -> None:
        self.a.release(session)
        self.b.release(session)
