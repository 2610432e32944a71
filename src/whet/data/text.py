"""An episode as text for people."""

from __future__ import annotations

import json
from collections.abc import Iterator

from whet.data.formats.base import reasoning_of
from whet.data.provenance import facts
from whet.types import Episode, ToolCall, Turn

_CONTROLS = {i: f"\\x{i:02x}" for i in (*range(9), 11, 12, *range(14, 32), 127, *range(128, 160))}
"""What could steer a terminal is shown instead of done."""


def lines_of(episode: Episode, *, longest: int = 2000) -> Iterator[str]:
    """Provenance, then the turns; of each turn at most `longest` characters."""
    yield f"== {plain(episode.id)}"
    for name, text in facts(episode).items():
        yield f"   {name:<12}{plain(text)}"
    if episode.error:
        yield f"   {'error':<12}{plain(episode.error)}"
    thoughts = reasoning_of(episode)
    for i, turn in enumerate(episode.turns):
        yield f"-- {i + 1} {_head(turn, i)}"
        if i in thoughts:
            yield _indented(f"(thought) {_cut(plain(thoughts[i]), longest)}")
        if turn.content:
            yield _indented(_cut(plain(turn.content), longest))
        for call in turn.tool_calls:
            yield _indented(_cut(plain(_call(call)), longest))


def plain(text: str) -> str:
    """Text with its control characters spelled out, except for newlines and tabs."""
    return text.replace("\r\n", "\n").translate(_CONTROLS).replace("\r", "\\r").encode("utf-8", "backslashreplace").decode()


def _head(turn: Turn, index: int) -> str:
    facts = [f"{turn.role} {turn.name}" if turn.name else turn.role]
    if turn.parent != (index - 1 if index else None):
        facts.append("begins anew" if turn.parent is None else f"goes on from {turn.parent + 1}")
    if turn.tokens:
        facts.append(f"{len(turn.tokens):,} tokens")
    if turn.finish == "length":
        facts.append("cut off")
    if turn.reward:
        facts.append(f"reward {turn.reward:+g}")
    return plain(", ".join(facts))


def _call(call: ToolCall) -> str:
    if call.error is not None:
        return f"-> {call.name or '?'}: {call.error}"
    given = (f"{key}={json.dumps(value, ensure_ascii=False, default=repr)}" for key, value in call.arguments.items())
    return f"-> {call.name}({', '.join(given)})"


def _indented(text: str) -> str:
    return "\n".join(f"   {line}" for line in text.split("\n"))


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]} [{len(text) - longest:,} characters more]"
