"""whet's own records: an episode as stores keep it, and the version of the records, a line of JSON each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from whet.data.formats.base import Format, Origin, RecordError, expect, sourced
from whet.errors import CheckpointError
from whet.runs.codec import decode, encode, to_json
from whet.types import SCHEMA_VERSION, SPLITS, Episode


def _read(record: Any, origin: Origin) -> tuple[Episode, ...]:
    fields = dict(expect(record, dict, "the record", "an object"))
    version = fields.pop("whet", None)
    if version != SCHEMA_VERSION:
        raise RecordError(f"whet is {version!r}; expected {SCHEMA_VERSION}, the version of the records that this whet reads")
    try:
        episode = decode(to_json(fields))
    except CheckpointError as error:
        raise RecordError(f"the episode cannot be read: {error.__cause__!r}") from error
    if episode.task.split not in SPLITS:
        raise RecordError(f"task.split is {episode.task.split!r}; expected one of {', '.join(SPLITS)}")
    return (sourced(episode, origin.source),)


def _write(episodes: Sequence[Episode]) -> dict[str, Any]:
    (episode,) = episodes
    return {"whet": SCHEMA_VERSION, **json.loads(encode(episode))}


FORMAT = Format(
    name="whet",
    title="whet's own lines, with everything that an episode holds",
    recognises=lambda record: isinstance(record, dict) and "whet" in record and isinstance(record.get("turns"), list),
    read=_read,
    write=_write,
    forks=True,
    whole=True,
)
