"""Conversations as plain text: what reflectors, judges and people read."""

from __future__ import annotations

from collections.abc import Sequence

from whet.types import Turn


def line(turn: Turn) -> str:
    """A turn without its role: what was said, and the calls that were made."""
    calls = [f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})" for call in turn.tool_calls]
    return " ".join([turn.content, *calls]).strip()


def transcript(turns: Sequence[Turn], *, opening: bool = True) -> str:
    """A line `role: text` for each turn; without `opening`, only from the first assistant turn on."""
    first = 0 if opening else next((i for i, turn in enumerate(turns) if turn.trained), len(turns))
    return "\n".join(f"{turn.role}: {line(turn)}" for turn in turns[first:])
