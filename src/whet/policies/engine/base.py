"""What the scheduler and the models behind it share: a session's tokens, and what a model must be able to do with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch


@dataclass(eq=False, slots=True)
class Session:
    """One conversation as the engine holds it. The first `length` of `tokens` are in the cache, the others are not yet.

    `row` and `cache` belong to the decoder: where it keeps the keys and values.
    """

    key: object
    tokens: list[int] = field(default_factory=list)
    length: int = 0
    row: int | None = None
    cache: Any = None
    used: int = 0
    """When it last took part, in engine steps; the least recently used idle session is evicted first."""


class Decoder(Protocol):
    """A model with a cache for many sessions."""

    context: int
    """Tokens that a session can hold, prompt and answer together."""
    vocab_size: int

    def capacity(self, length: int) -> int:
        """How many sessions fit into the cache's memory when the longest has this length; at least 1."""
        ...

    def place(self, session: Session) -> None:
        """Give the session a place in the cache, with nothing in it."""
        ...

    def drop(self, session: Session) -> None:
        """Take the place away; the session's `length` becomes 0."""
        ...

    def truncate(self, session: Session, length: int) -> None:
        """Forget what the cache holds beyond `length` tokens."""
        ...

    def match(self, tokens: Sequence[int]) -> tuple[Session | None, int, int]:
        """The session to copy a prefix of `tokens` from, how much of it is cached, and how much some session will have.

        The last number counts tokens that a placed session has but has not computed yet. (None, 0, 0) where nothing is
        in common, or where this decoder does not copy.
        """
        ...

    def copy(self, source: Session, target: Session, length: int) -> None:
        """Fill `target`, which is empty, with the first `length` cached tokens of `source`."""
        ...

    def chunk(self, length: int) -> int:
        """How many prompt tokens one step should take in at most when the longest session has this length."""
        ...

    def forward(self, sessions: Sequence[Session], counts: Sequence[int]) -> torch.Tensor:
        """Take the next `counts[i] >= 1` uncached tokens of each session into the cache and advance its `length`.

        Returns float32 logits [len(sessions), vocab] that follow the last token taken of each.
        """
        ...

    def close(self, *, healthy: bool = True) -> None:
        """No session is left: give the cache's memory back (or, if not healthy, throw it away)."""
        ...
