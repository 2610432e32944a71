"""What generates. A policy is an immutable handle with a version: the same handle always means the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from whet.errors import ConfigError
from whet.types import Turn

if TYPE_CHECKING:
    from whet.envs.base import Env
    from whet.tools.function import Tool


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How to draw tokens. `temperature=0` is greedy; log-probs are then those at temperature 1."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps all tokens."""
    max_tokens: int | None = None
    """Per turn; None takes the environment's."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError(f"temperature is {self.temperature}; expected 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; expected a number in (0, 1]")
        if self.top_k < 0 or (self.max_tokens is not None and self.max_tokens < 1):
            raise ConfigError(f"top_k is {self.top_k} and max_tokens is {self.max_tokens}; expected top_k >= 0 and max_tokens >= 1")

    def at(self, temperature: float) -> Sampling:
        """The same at another temperature."""
        return replace(self, temperature=temperature)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One turn asked of a policy."""

    turns: tuple[Turn, ...]
    """The conversation from its root; for policies on tokens each turn has been through `observe`."""
    tools: tuple[Tool, ...] = ()
    sampling: Sampling = Sampling()
    max_tokens: int = 64
    seed: int = 0
    """Of this turn: the same request with the same seed gives the same turn from local weights."""
    session: str = ""
    """The episode. A policy may keep a cache under this key until `release`."""
    env: Env | None = None
    """The live environment, for scripted policies and experts only; models never look at it."""


@runtime_checkable
class Policy(Protocol):
    """Anything that takes a conversation and gives the next assistant turn."""

    @property
    def version(self) -> str:
        """Names the weights (or the endpoint's model, or the script); recorded with every token."""
        ...

    def observe(self, turns: Sequence[Turn], new: Sequence[Turn], tools: Sequence[Tool]) -> tuple[Turn, ...]:
        """`new` turns that follow `turns`, as this policy reads them: with tokens, for a policy that works on tokens.

        The generation prompt (what a template puts before an answer) belongs to the last of them.
        """
        ...

    async def generate(self, request: Request) -> Turn:
        """The next assistant turn. Raises PolicyError where none can be had."""
        ...

    def release(self, session: str) -> None:
        """The episode is over: forget what was kept for it."""
        ...
