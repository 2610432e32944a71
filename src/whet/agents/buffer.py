"""An action buffer that is read from the conversation alone: a turn that plans calls names them in its text and makes the first.

The turns that make the others say that they are from the buffer. Any other turn between them abandons what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from whet.tools.function import Tool
from whet.transcript import calls_in, line
from whet.types import ToolCall, Turn, chain

BUFFER = "from the buffer"
_CALLS = "\ncalls:\n"


def planning(head: str, calls: Sequence[ToolCall]) -> Turn:
    """A turn that plans these calls (at least one) and makes the first. `head` must not be empty."""
    named = "\n".join(action_of(_turn("", call)) for call in calls)
    return _turn(f"{head}{_CALLS}{named}", calls[0])


def from_buffer(call: ToolCall) -> Turn:
    """A turn that makes the buffer's next call."""
    return _turn(BUFFER, call)


def head_of(turn: Turn) -> str:
    """What a turn that plans calls says before them; empty for any other turn."""
    head, planned, _ = turn.content.partition(_CALLS)
    return head if planned else ""


def buffered(turns: Sequence[Turn], tools: Sequence[Tool]) -> list[ToolCall]:
    """The calls that are still to be made: those of the turn that planned last, less one for each turn from there on."""
    for taken, turn in enumerate(reversed([turn for turn in turns if turn.trained])):
        if head_of(turn):
            return calls_in(turn.content.partition(_CALLS)[2], tools)[taken + 1 :]
        if turn.content != BUFFER:
            break
    return []


def acted(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The conversation as if each call had been one's own idea: turns that plan or are from the buffer are their calls alone."""
    return chain([replace(turn, content="") if turn.trained and (head_of(turn) or turn.content == BUFFER) else turn for turn in turns])


def valid(turn: Turn, tools: Sequence[Tool]) -> bool:
    """Whether a turn makes calls, and all of them of known tools with arguments that these accept."""
    known = {tool.name: tool for tool in tools}
    for call in turn.tool_calls:
        if call.error or call.name not in known:
            return False
        try:
            known[call.name].check(call.arguments)
        except ValueError:
            return False
    return bool(turn.tool_calls)


def valid_calls(calls: Sequence[ToolCall], tools: Sequence[Tool]) -> list[ToolCall]:
    """Those that are valid and can be read again from a turn that plans them."""
    return [call for call in calls if valid(turn := _turn("", call), tools) and len(calls_in(action_of(turn), tools)) == 1]


def action_of(turn: Turn) -> str:
    """A turn's calls as a transcript writes them, without its thoughts."""
    return line(replace(turn, content=""))


def _turn(content: str, call: ToolCall) -> Turn:
    return Turn(role="assistant", content=content, tool_calls=(replace(call, id="call_0"),), finish="stop")
