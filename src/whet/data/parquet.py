"""Episodes as Parquet: a row each, with columns that can be queried, and nothing lost.

`pip install 'whet[parquet]'`. Where a row cannot be put into typed columns as it is (text that is not UTF-8, integers beyond
64 bits), the column `record` holds the episode as JSON, and is what is read; otherwise it is null.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from whet.runs.codec import encode, to_json
from whet.types import SCHEMA_VERSION, Episode

if TYPE_CHECKING:
    import pyarrow as pa

_KEY = b"whet"
_JSON = ("tool_calls", "versions", "cost")
"""Of turns: what stands in its column as JSON text."""
_REST = ("task", "seed", "cost", "tags", "error")
"""Of episodes: what the column `rest` holds as JSON text. Columns for parts of it are there to be queried, and not read."""


def schema() -> pa.Schema:
    """The columns. Raises ImportError without pyarrow."""
    import pyarrow as pa

    text, number, count = pa.string(), pa.float64(), pa.int64()
    turn = {
        "role": text,
        "content": text,
        "tool_calls": text,
        "name": text,
        "call_id": text,
        "tokens": pa.list_(count),
        "logprobs": pa.list_(number),
        "versions": text,
        "temperature": number,
        "finish": text,
        "reward": number,
        "parent": count,
        "cost": text,
    }
    columns = {
        "id": text,
        "env": text,
        "task": text,
        "split": text,
        "actor": text,
        "policy": text,
        "source": text,
        "stop": text,
        "reason": text,
        "reward": number,
        "success": pa.bool_(),
        "prompt_tokens": count,
        "sampled_tokens": count,
        "seconds": number,
        "money": number,
        "turns": pa.list_(pa.struct(turn)),
        "rest": text,
        "record": text,
    }
    return pa.schema(columns, metadata={_KEY: str(SCHEMA_VERSION)})


def is_own(found: pa.Schema) -> bool:
    """Whether a file's schema is that of episodes, of this version of the records."""
    return (found.metadata or {}).get(_KEY) == str(SCHEMA_VERSION).encode()


def row_of(episode: Episode) -> dict[str, Any]:
    """The row of an episode."""
    text = encode(episode)
    record = json.loads(text)
    task, cost, tags = episode.task, episode.cost, episode.tags
    asked = {"env": task.env, "task": task.id, "split": task.split, "actor": tags.get("actor", "self"), "source": tags.get("source", "")}
    row: dict[str, Any] = {key: _utf8(str(value)) for key, value in asked.items()}
    row |= {"stop": record["stop"], "reward": episode.reward, "success": episode.success}
    row |= {"prompt_tokens": cost.prompt_tokens, "sampled_tokens": cost.sampled_tokens, "seconds": cost.seconds, "money": cost.money}
    row |= {key: _utf8(getattr(episode, key)) for key in ("id", "reason", "policy")}
    row["rest"] = to_json({key: record[key] for key in _REST if key in record})
    fits = _fits(record)
    return row | {"turns": [_turn(turn) for turn in record["turns"]] if fits else [], "record": None if fits else text}


def record_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What `row_of` was given, as a record of whet's own format."""
    version: dict[str, Any] = {"whet": SCHEMA_VERSION}
    if row["record"] is not None:
        return {**version, **json.loads(row["record"])}
    turns = [_from_turn(turn) for turn in row["turns"]]
    plain = {key: row[key] for key in ("id", "stop", "reason", "reward", "success", "policy")}
    return {**version, **plain, "turns": turns, **json.loads(row["rest"])}


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    return {key: to_json(value) if key in _JSON else value for key, value in turn.items()}


def _from_turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    return {key: json.loads(value) if key in _JSON else value for key, value in turn.items() if value is not None}


def _fits(record: Mapping[str, Any]) -> bool:
    """Whether typed columns give this record back."""
    numbers = [n for turn in record["turns"] for n in (*turn.get("tokens", ()), turn.get("parent") or 0)]
    texts = [record["id"], record.get("reason", ""), record.get("policy", ""), *(v for turn in record["turns"] for v in _texts(turn))]
    floats = [record.get("reward", 0.0), *(p for turn in record["turns"] for p in turn.get("logprobs", ()))]
    floats += [turn[key] for turn in record["turns"] for key in ("temperature", "reward") if key in turn]
    return (
        all(-(2**63) <= n < 2**63 for n in numbers)
        and all(isinstance(value, float) for value in floats)
        and all(_utf8(text) == text for text in texts)
    )


def _texts(turn: Mapping[str, Any]) -> list[str]:
    return [turn[key] for key in ("role", "content", "name", "call_id", "finish") if key in turn]


def _utf8(text: str) -> str:
    """Text without halves of surrogate pairs, which columns cannot hold."""
    return text.encode("utf-8", "replace").decode()


def without_nulls(row: Mapping[str, Any], fields: Any) -> dict[str, Any]:
    """A row of anybody's: columns and structs have a null wherever a record had no such key."""
    kept = {}
    for field in fields:
        if (value := row[field.name]) is not None:
            kept[field.name] = _typed(value, field.type)
    return kept


def _typed(value: Any, kind: Any) -> Any:
    import pyarrow.types as types

    if getattr(kind, "extension_name", "") == "arrow.json" and isinstance(value, str):
        return json.loads(value)
    if types.is_struct(kind) and isinstance(value, dict):
        return without_nulls(value, [kind.field(i) for i in range(kind.num_fields)])
    if (types.is_list(kind) or types.is_large_list(kind)) and isinstance(value, list):
        return [_typed(element, kind.value_type) for element in value]
    return value
