"""Chat messages, as OpenAI, TRL and Hugging Face templates have them, to turns and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from whet.data.formats.base import RecordError, entry, expect, shown
from whet.types import Role, ToolCall, Turn

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


def read_messages(messages: Any, where: str) -> tuple[list[Turn], dict[int, str]]:
    """Turns, and what the assistant thought (`reasoning_content`) by the turn's index. Raises RecordError."""
    turns, reasoning = [], {}
    for i, message in enumerate(expect(messages, list, where, "a list of messages")):
        turns.append(_turn(message, f"{where}[{i}]"))
        if isinstance(message.get("reasoning_content"), str):
            reasoning[i] = message["reasoning_content"]
    return turns, reasoning


def _turn(message: Any, where: str) -> Turn:
    role = entry(message, "role", str, where, f"one of {', '.join(_ROLES)}")
    if role not in _ROLES:
        raise RecordError(f"{where}.role is {role!r}; expected one of {', '.join(_ROLES)}")
    content = text_of(message.get("content"), f"{where}.content")
    if _ROLES[role] == "assistant":
        return Turn(role="assistant", content=content, tool_calls=_calls(message, where), finish="stop")
    if _ROLES[role] == "tool":
        call_id, name = _optional(message, "tool_call_id", where), _optional(message, "name", where)
        return Turn(role="tool", content=content, call_id=call_id, name=name)
    return Turn(role=_ROLES[role], content=content)


def _optional(message: Mapping[str, Any], key: str, where: str) -> str | None:
    found = message.get(key)
    return None if found is None else str(expect(found, str, f"{where}.{key}", "a string"))


def text_of(content: Any, where: str) -> str:
    """The text of a content: a string, null, or a list of parts, of which those without text are named (`[image_url]`)."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = []
    for i, part in enumerate(expect(content, list, where, "a string, a list of parts or null")):
        kind = entry(part, "type", str, f"{where}[{i}]", "the part's type, such as 'text'")
        parts.append(part["text"] if isinstance(part.get("text"), str) else f"[{kind}]")
    return "\n".join(parts)


def _calls(message: Mapping[str, Any], where: str) -> tuple[ToolCall, ...]:
    calls = message.get("tool_calls")
    if calls is None:  # the older form, with one call
        older = message.get("function_call")
        return () if older is None else (_call(older, "", f"{where}.function_call"),)
    found = []
    for i, call in enumerate(expect(calls, list, f"{where}.tool_calls", "a list of calls or null")):
        at = f"{where}.tool_calls[{i}]"
        call_id = _optional(expect(call, dict, at, "an object"), "id", at) or ""
        if "custom" in call and "function" not in call:
            custom = entry(call, "custom", dict, at, "an object")
            name = entry(custom, "name", str, f"{at}.custom", "a string")
            found.append(ToolCall(name=name, arguments={"input": custom.get("input")}, id=call_id))
        else:
            # some write the name and the arguments into the call itself
            function = call if "function" not in call and "name" in call else entry(call, "function", dict, at, "an object")
            found.append(_call(function, call_id, at))
    return tuple(found)


def _call(function: Any, call_id: str, where: str) -> ToolCall:
    name = entry(function, "name", str, where, "the function's name")
    return call_of(name, function.get("arguments"), call_id, where)


def call_of(name: str, arguments: Any, call_id: str, where: str) -> ToolCall:
    """A call whose arguments are an object, or the text of one; text that is none makes an unreadable call, as a policy's does."""
    if arguments is None or arguments == "":
        return ToolCall(name=name, id=call_id)
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            return ToolCall(name=name, id=call_id, error=f"the arguments are not valid JSON ({error}): {arguments[:200]}")
        if not isinstance(parsed, dict):
            return ToolCall(name=name, id=call_id, error=f"the arguments must be a JSON object, not {arguments[:200]}")
        return ToolCall(name=name, arguments=parsed, id=call_id)
    if not isinstance(arguments, dict):
        raise RecordError(f"{where}.arguments is {shown(arguments)}; expected an object, or its text")
    return ToolCall(name=name, arguments=arguments, id=call_id)


def read_tools(tools: Any) -> list[Any]:
    """Schemas of tools: a list, its text as JSON, or null. Raises RecordError."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError as error:
            raise RecordError(f"tools is a text that is not JSON ({error})") from None
    found: list[Any] = [] if tools is None else expect(tools, list, "tools", "a list of tools, its text, or null")
    return found


def write_messages(
    turns: Sequence[Turn], reasoning: Mapping[int, str], *, arguments: Literal["text", "object"], offset: int = 0
) -> list[dict[str, Any]]:
    """Turns as messages; `offset` is the index of the first one in its episode.

    With arguments as `text` (OpenAI) an assistant message that only calls has a null content, and a tool message names no tool;
    as `object` (Hugging Face's templates) the content is empty and the tool is named.
    """
    messages = []
    for i, turn in enumerate(turns, start=offset):
        as_text = arguments == "text"
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if i in reasoning:
            message["reasoning_content"] = reasoning[i]
        if turn.tool_calls:
            if as_text and not turn.content:
                message["content"] = None
            message["tool_calls"] = [_written(call, call.id or f"call_{i}_{n}", as_text) for n, call in enumerate(turn.tool_calls)]
        if turn.role == "tool":
            if turn.call_id is not None:
                message["tool_call_id"] = turn.call_id
            if turn.name is not None and not as_text:
                message["name"] = turn.name
        messages.append(message)
    return messages


def _written(call: ToolCall, call_id: str, as_text: bool) -> dict[str, Any]:
    values = dict(call.arguments)
    given = json.dumps(values, ensure_ascii=False) if as_text else values
    return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": given}}


def opening(turns: Sequence[Turn]) -> int:
    """How many turns come before the first of the assistant's."""
    return next((i for i, turn in enumerate(turns) if turn.role == "assistant"), len(turns))
