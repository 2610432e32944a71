"""Records as JSON and back. Fields that hold their default are left out, so a stored turn is about as long as its text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from whet.errors import CheckpointError
from whet.types import Cost, Episode, Stop, Task, ToolCall, Turn


def encode(episode: Episode) -> str:
    """One line of ASCII JSON. `decode` gives an equal episode, as long as `tags` and `Task.data` survive JSON."""
    record = _changed(episode)
    record["task"] = _changed(episode.task)
    record["turns"] = [_turn(turn) for turn in episode.turns]
    if "cost" in record:
        record["cost"] = _changed(episode.cost)
    return to_json(record)


def decode(text: str) -> Episode:
    """The episode of an encoded line. Raises CheckpointError where it is none of this version of whet."""
    try:
        record = json.loads(text)
        record["task"] = Task(**record["task"])
        record["turns"] = tuple(_to_turn(turn) for turn in record["turns"])
        record["stop"] = Stop(record["stop"])
        if "cost" in record:
            record["cost"] = Cost(**record["cost"])
        return Episode(**record)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"a stored episode cannot be read ({error}): {text[:120]!r}. Was it written by another version of whet?"
        ) from error


def cost_to_json(cost: Cost) -> dict[str, float]:
    """The fields of a cost that are not zero."""
    return _changed(cost)


def to_json(value: object) -> str:
    """Compact ASCII JSON (which also holds lone surrogates and NUL). Arrays become lists; other unknown objects their `repr`."""
    return json.dumps(value, default=plain, separators=(",", ":"))


def plain(value: Any) -> Any:
    """A JSON-able stand-in for numpy and torch values, mappings, sets and records; `repr` of anything else."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    return repr(value)


def _defaults(cls: Any) -> tuple[tuple[str, Any], ...]:
    found = []
    for f in fields(cls):
        default = f.default if f.default is not MISSING else f.default_factory() if f.default_factory is not MISSING else MISSING
        found.append((f.name, default))
    return tuple(found)


_DEFAULTS: dict[type, tuple[tuple[str, Any], ...]] = {cls: _defaults(cls) for cls in (Task, ToolCall, Turn, Episode, Cost)}


def _changed(record: object) -> dict[str, Any]:
    return {name: value for name, default in _DEFAULTS[type(record)] if (value := getattr(record, name)) != default}


def _turn(turn: Turn) -> dict[str, Any]:
    record = _changed(turn)
    if turn.tool_calls:
        record["tool_calls"] = [_changed(call) for call in turn.tool_calls]
    if "cost" in record:
        record["cost"] = _changed(turn.cost)
    return record


def _to_turn(record: dict[str, Any]) -> Turn:
    for name in ("tokens", "logprobs"):
        if name in record:
            record[name] = tuple(record[name])
    if "versions" in record:
        record["versions"] = tuple((version, n) for version, n in record["versions"])
    if "tool_calls" in record:
        record["tool_calls"] = tuple(ToolCall(**call) for call in record["tool_calls"])
    if "cost" in record:
        record["cost"] = Cost(**record["cost"])
    return Turn(**record)
