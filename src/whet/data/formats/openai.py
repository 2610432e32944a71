"""OpenAI's chat format, with tools: `{"messages": [...], "tools": [...]}`, a line of JSON or an element of a list.

Arguments are kept as the text they were, parts of a content as the parts they were. There is no place for anything that is
not part of a conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from whet.data.formats.base import Format, Origin, RecordError, answered, entry, reasoning_of, said, schemas_of
from whet.data.formats.messages import read_messages, read_tools, write_messages
from whet.types import Episode


def _read(record: Any, origin: Origin) -> tuple[Episode, ...]:
    if isinstance(record, dict) and "role" in record:
        raise RecordError('this is a message; expected a conversation, such as {"messages": [this message, ...]}')
    turns, reasoning = read_messages(entry(record, "messages", list, "", "a list of messages"), "messages")
    if not turns:
        raise RecordError("messages is empty; expected at least one message")
    schemas = read_tools(record.get("tools"))
    if not schemas and isinstance(record.get("functions"), list):  # the older form
        schemas = [{"type": "function", "function": function} for function in record["functions"]]
    return (origin.episode(answered(turns, ids=False), tags=said(schemas, reasoning)),)


def _write(episodes: Sequence[Episode]) -> dict[str, Any]:
    (episode,) = episodes
    record: dict[str, Any] = {"messages": write_messages(episode.turns, reasoning_of(episode), arguments="text")}
    return record | ({"tools": schemas} if (schemas := schemas_of(episode)) else {})


FORMAT = Format(
    name="openai",
    title="OpenAI's chat messages with tools",
    recognises=lambda record: isinstance(record, dict) and isinstance(record.get("messages"), list),
    read=_read,
    write=_write,
)
