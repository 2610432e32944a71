"""ShareGPT: `{"conversations": [{"from": "human", "value": ...}], "system": ..., "tools": ...}`.

There is no specification; this is the dialect of LLaMA-Factory's documentation, which knows tools: calls stand in turns from
`function_call` as JSON, results in turns from `observation`, tools as JSON text. An answer that says something and calls
has its calls in the text, as `<tool_call>{...}</tool_call>`. There is no place for anything else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from whet.data.formats.base import Format, Origin, RecordError, answered, entry, expect, said, schemas_of
from whet.data.formats.messages import call_of, read_tools
from whet.policies.chat import read_calls
from whet.types import Episode, Role, ToolCall, Turn

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
    "function_response": "tool",
}
_NAMES: dict[Role, str] = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


def _read(record: Any, origin: Origin) -> tuple[Episode, ...]:
    said_by = entry(record, "conversations", list, "", "a list of {'from', 'value'}")
    turns = [_turn(message, f"conversations[{i}]") for i, message in enumerate(said_by)]
    system = record.get("system")
    if system is not None and expect(system, str, "system", "a string"):
        turns.insert(0, Turn(role="system", content=system))
    if not turns:
        raise RecordError("conversations is empty; expected at least one message")
    given = record.get("id")
    return (origin.episode(answered(turns), id=given if isinstance(given, str) else "", tags=said(_schemas(record.get("tools")))),)


def _turn(message: Any, where: str) -> Turn:
    speaker = entry(message, "from", str, where, f"one of {', '.join(_ROLES)}")
    if speaker not in _ROLES:
        raise RecordError(f"{where}.from is {speaker!r}; expected one of {', '.join(_ROLES)}")
    value = entry(message, "value", str, where, "a string")
    role = _ROLES[speaker]
    if speaker == "function_call":
        return Turn(role=role, tool_calls=_calls(value, where), finish="stop")
    if role == "assistant":
        text, calls = read_calls(value) if "<tool_call>" in value else (value, ())
        return Turn(role=role, content=text, tool_calls=calls, finish="stop")
    return Turn(role=role, content=value)


def _calls(value: str, where: str) -> tuple[ToolCall, ...]:
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        return (ToolCall(name="", id="call_0", error=f"the tool call is not valid JSON: {error}"),)
    calls = []
    for i, call in enumerate(found if isinstance(found, list) else [found]):
        name = entry(call, "name", str, f"{where}.value", "the function's name")
        calls.append(call_of(name, call.get("arguments"), f"call_{i}", f"{where}.value"))
    return tuple(calls)


def _schemas(tools: Any) -> list[Any]:
    found = read_tools(tools)
    return [{"type": "function", "function": tool} if isinstance(tool, dict) and "function" not in tool else tool for tool in found]


def _write(episodes: Sequence[Episode]) -> dict[str, Any]:
    (episode,) = episodes
    turns = list(episode.turns)
    record: dict[str, Any] = {}
    if turns and turns[0].role == "system" and turns[0].content:
        record["system"] = turns.pop(0).content
    record["conversations"] = [{"from": _speaker(turn), "value": _value(turn)} for turn in turns]
    schemas = schemas_of(episode)
    if schemas:
        bare = [tool["function"] if isinstance(tool, dict) and set(tool) == {"type", "function"} else tool for tool in schemas]
        record["tools"] = json.dumps(bare, ensure_ascii=False)
    return record


def _speaker(turn: Turn) -> str:
    return "function_call" if turn.tool_calls and not turn.content else _NAMES[turn.role]


def _value(turn: Turn) -> str:
    if not turn.tool_calls:
        return turn.content
    calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in turn.tool_calls]
    if not turn.content:
        return json.dumps(calls if len(calls) > 1 else calls[0], ensure_ascii=False)
    written = [f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls]
    return "\n".join([turn.content, *written])


FORMAT = Format(
    name="sharegpt",
    title="ShareGPT conversations, with tools as LLaMA-Factory has them",
    recognises=lambda record: isinstance(record, dict) and isinstance(record.get("conversations"), list),
    read=_read,
    write=_write,
)
