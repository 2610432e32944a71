"""TRL's datasets: `messages` for `SFTTrainer`, prompt and completion, and preferences for `DPOTrainer`, conversational.

Tools stand in a column of their own, as JSON text, which TRL reads; arguments of calls are objects, as chat templates want
them. Texts instead of messages (TRL's standard form) are read as one message each. What a record has no column for stands as
text in the column `whet`, which trainers leave out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from whet.data.formats.base import Format, Origin, Outcome, RecordError, answered, entry, expect, reasoning_of, said, schemas_of
from whet.data.formats.messages import opening, read_messages, read_tools, write_messages
from whet.runs.codec import to_json
from whet.types import Episode, Turn


def _read_messages(record: Any, origin: Origin) -> tuple[Episode, ...]:
    if isinstance(record, dict) and "text" in record and "messages" not in record:
        raise RecordError("the record has only 'text', in which nobody can tell who said what; expected 'messages'")
    turns, reasoning = read_messages(entry(record, "messages", list, "", "a list of messages"), "messages")
    if not turns:
        raise RecordError("messages is empty; expected at least one message")
    return (origin.episode(_linked(turns), tags=said(read_tools(record.get("tools")), reasoning)),)


def _write_messages(episodes: Sequence[Episode]) -> dict[str, Any]:
    (episode,) = episodes
    return {"messages": _messages(episode, 0, len(episode.turns))} | _tools(episode)


def _read_completion(record: Any, origin: Origin) -> tuple[Episode, ...]:
    turns, reasoning = _conversation(record, "prompt", "completion")
    if isinstance(record.get("label"), bool):
        origin = replace(origin, outcome="success" if record["label"] else "failure")
    return (origin.episode(turns, tags=said(read_tools(record.get("tools")), reasoning)),)


def _write_completion(episodes: Sequence[Episode]) -> dict[str, Any]:
    (episode,) = episodes
    start = _prompt_of(episode)
    record = {"prompt": _messages(episode, 0, start), "completion": _messages(episode, start, len(episode.turns))}
    return record | _tools(episode)


def _read_preference(record: Any, origin: Origin) -> tuple[Episode, ...]:
    pair = []
    sides: tuple[tuple[str, Outcome], ...] = (("chosen", "success"), ("rejected", "failure"))
    for key, outcome in sides:
        turns, reasoning = _conversation(record, "prompt", key)
        of_side = replace(origin, outcome=outcome).episode(turns, tags=said(read_tools(record.get("tools")), reasoning))
        pair.append(replace(of_side, id=f"{of_side.id}/{key}"))
    return tuple(pair)


def _write_preference(episodes: Sequence[Episode]) -> dict[str, Any]:
    chosen, rejected = episodes
    start = _shared(chosen, rejected)
    record = {"prompt": _messages(chosen, 0, start)}
    for key, episode in (("chosen", chosen), ("rejected", rejected)):
        record[key] = _messages(episode, start, len(episode.turns))
    return record | _tools(chosen)


def _shared(chosen: Episode, rejected: Episode) -> int:
    """How many turns the two begin with. Raises RecordError where their prompts differ."""
    a, b = _prompt_of(chosen), _prompt_of(rejected)
    if _messages(chosen, 0, a) != _messages(rejected, 0, b):
        raise RecordError("the best and the worst of the task have different prompts, so they are no preference")
    return a


def _prompt_of(episode: Episode) -> int:
    start = opening(episode.turns)
    if not 0 < start < len(episode.turns):
        raise RecordError("they have no answer" if start else "they have no prompt: they begin with the assistant")
    return start


def _conversation(record: Any, first: str, second: str) -> tuple[list[Turn], dict[int, str]]:
    """Prompt and answer in one; a prompt that is left out is what the answer begins with."""
    expect(record, dict, "the record", "an object")
    turns, reasoning = _side(record[first], first, "user") if record.get(first) is not None else ([], {})
    more, thoughts = _side(entry(record, second, (str, list), "", "messages or a text"), second, "assistant")
    if not more:
        raise RecordError(f"{second} is empty; expected at least one message")
    return _linked([*turns, *more]), reasoning | {len(turns) + i: text for i, text in thoughts.items()}


def _side(value: Any, where: str, role: Any) -> tuple[list[Turn], dict[int, str]]:
    if isinstance(value, str):
        return [Turn(role=role, content=value, finish="stop" if role == "assistant" else "none")], {}
    return read_messages(value, where)


def _linked(turns: list[Turn]) -> list[Turn]:
    return answered(turns, ids=False, names=False)


def _messages(episode: Episode, start: int, end: int) -> list[dict[str, Any]]:
    return write_messages(episode.turns[start:end], reasoning_of(episode), arguments="object", offset=start)


def _tools(episode: Episode) -> dict[str, str]:
    schemas = schemas_of(episode)
    return {"tools": to_json(schemas)} if schemas else {}


def _recognises(record: Any) -> bool:
    """Messages that OpenAI's chat format does not have in this way: with objects as arguments, with tools as text."""
    if not isinstance(record, dict) or not isinstance(record.get("messages"), list):
        return False
    calls = [call for message in record["messages"] if isinstance(message, dict) for call in message.get("tool_calls") or ()]
    functions = [call.get("function", call) for call in calls if isinstance(call, dict)]
    objects = any(isinstance(f.get("arguments"), dict) for f in functions if isinstance(f, dict))
    return objects or isinstance(record.get("tools"), str) or isinstance(record.get("whet"), str)


def _has(*keys: str) -> Callable[[Any], bool]:
    return lambda record: isinstance(record, dict) and all(record.get(key) is not None for key in keys)


MESSAGES = Format(
    name="trl",
    title="TRL, language modelling: messages, for SFTTrainer",
    recognises=_recognises,
    read=_read_messages,
    write=_write_messages,
    extension=("whet",),
    as_text=True,
)
COMPLETION = Format(
    name="trl-completion",
    title="TRL, prompt and completion, for SFTTrainer",
    recognises=_has("prompt", "completion"),
    read=_read_completion,
    write=_write_completion,
    extension=("whet",),
    as_text=True,
)
PREFERENCE = Format(
    name="trl-preference",
    title="TRL, preferences, for DPOTrainer: of each task the best episode and the worst",
    recognises=_has("chosen", "rejected"),
    read=_read_preference,
    write=_write_preference,
    episodes=2,
    extension=("whet",),
    as_text=True,
)
