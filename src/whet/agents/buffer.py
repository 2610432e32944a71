"""An action buffer that is read from the conversation alone: a turn that plans steps names them in its text and takes the first.

A step is a call with a thought before it, if there is one. The turns that take the others say that they are from the buffer. Any
other turn between them abandons what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from whet.tools.function import Tool
from whet.transcript import calls_in, line
from whet.types import ToolCall, Turn, chain

BUFFER = "from the buffer"
_CALLS = "\ncalls:\n"


def planning(head: str, steps: Sequence[Turn]) -> Turn:
    """A turn that plans these steps (`steps_in`; at least one) and takes the first. `head` must not be empty."""
    return replace(steps[0], content=f"{head}{_CALLS}{chr(10).join(map(line, steps))}")


def from_buffer(step: Turn) -> Turn:
    """A turn that takes the buffer's next step."""
    return replace(step, content=f"{BUFFER}\n{step.content}".strip())


def head_of(turn: Turn) -> str:
    """What a turn that plans says before its steps; empty for any other turn."""
    head, planned, _ = turn.content.partition(_CALLS)
    return head if planned else ""


def is_from_buffer(turn: Turn) -> bool:
    """Whether a turn takes a step that another one planned."""
    return turn.content.partition("\n")[0] == BUFFER


def buffered(turns: Sequence[Turn], tools: Sequence[Tool]) -> list[Turn]:
    """The steps that are still to be taken: those of the turn that planned last, less one for each turn from there on."""
    for taken, turn in enumerate(reversed([turn for turn in turns if turn.trained])):
        if head_of(turn):
            lines = turn.content.partition(_CALLS)[2].splitlines()[taken + 1 :]
            return [step for text in lines if (step := _read(text, tools))]
        if not is_from_buffer(turn):
            break
    return []


def acted(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The conversation as if each step had been an idea of that turn: without plans, and without a word of the buffer."""
    return chain([replace(turn, content=_thought(turn)) if turn.trained else turn for turn in turns])


def _thought(turn: Turn) -> str:
    if head_of(turn):
        return turn.content.partition(_CALLS)[2].partition("\n")[0].removesuffix(action_of(turn)).strip()
    return turn.content.partition("\n")[2] if is_from_buffer(turn) else turn.content


def steps_in(turn: Turn, tools: Sequence[Tool]) -> list[Turn]:
    """A turn as steps of a call each, the first with its thought on one line; without those that could not be planned.

    These are calls that no tool takes, or that would be another one when they are read from a turn that plans them.
    """
    thoughts = [" ".join(turn.content.split()), *[""] * len(turn.tool_calls)]
    steps = [_turn(thought, call) for thought, call in zip(thoughts, turn.tool_calls)]
    return [step for step in steps if valid(step, tools) and _read(line(step), tools) == step]


def _read(text: str, tools: Sequence[Tool]) -> Turn | None:
    found = calls_in(text, tools)
    step = _turn("", found[-1]) if found else None
    return replace(step, content=text.removesuffix(action_of(step)).strip()) if step else None


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


def action_of(turn: Turn) -> str:
    """A turn's calls as a transcript writes them, without its thoughts."""
    return line(replace(turn, content=""))


def _turn(content: str, call: ToolCall) -> Turn:
    return Turn(role="assistant", content=content, tool_calls=(replace(call, id="call_0"),), finish="stop")
