"""Records to episodes and back without loss, for any format.

A format's own `read` and `write` translate what both sides know. The rest is carried along as a difference:

- What of a record its episode does not say is kept in the episode (`tags["original"]`), and put back when the episode is
  written in that format again, as long as nothing in it that the format knows was changed.
- What of an episode its record does not say is kept in the place that the format leaves to extensions. Where there is no
  such place, or it is not wanted, it is lost, and the loss has a name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from whet.data.formats.base import Format, Origin, RecordError, origin_of, sourced
from whet.data.formats.difference import apply, difference
from whet.errors import CheckpointError
from whet.runs.codec import decode, encode, to_json
from whet.types import Episode, chain

ORIGINAL = "original"
_VERSION = 1
_EPISODE = {
    **dict.fromkeys(("id", "task"), "identity (id and task)"),
    **dict.fromkeys(("stop", "reason", "success", "reward", "error"), "outcome"),
    **dict.fromkeys(("policy", "seed"), "provenance"),
    "cost": "costs",
}
_TURN = {
    **dict.fromkeys(("tokens", "versions"), "tokens"),
    "logprobs": "log-probs",
    "reward": "rewards of turns",
    "cost": "costs",
    **dict.fromkeys(("temperature", "finish"), "provenance"),
    **dict.fromkeys(("role", "content"), "text"),
    **dict.fromkeys(("tool_calls", "name", "call_id"), "tool calls as they were"),
    "parent": "forks",
}
_TAGS = {"schemas": "tool schemas", "reasoning": "reasoning", ORIGINAL: "further fields of the original record"}


def load(form: Format, record: Any, origin: Origin) -> tuple[Episode, ...]:
    """The episodes of a record. Raises RecordError where it is not in the format."""
    if form.whole:
        return form.read(record, origin)
    extension, standard = _take(form, record)
    if extension is None:
        episodes = form.read(standard, origin)
    else:
        episodes = _extended(form.read(standard, Origin()), extension)
        episodes = tuple(sourced(e, origin.source) for e in episodes)
    ours = form.write([linear(e) for e in episodes])
    rest = difference(ours, standard)
    head, *tail = episodes
    if rest is None:
        if ORIGINAL in head.tags and head.tags[ORIGINAL].get("format") == form.name:
            head = _without_original(head)
    else:
        head = _tagged(head, **{ORIGINAL: {"format": form.name, "of": _digest(ours), "rest": rest}})
    return (head, *tail)


def dump(form: Format, episodes: Sequence[Episode], *, bare: bool = False) -> tuple[Any, frozenset[str]]:
    """The record of these episodes (one, or as many as the format's records hold), and the names of what it loses.

    With `bare` nothing stands in the format's place for extensions. Raises RecordError for episodes that the format cannot
    express at all.
    """
    if form.whole:
        return form.write(episodes), frozenset()
    standard = form.write([linear(e) for e in episodes])
    original = episodes[0].tags.get(ORIGINAL)
    record = standard
    if isinstance(original, dict) and original.get("format") == form.name and original.get("of") == _digest(standard):
        record = apply(standard, original["rest"])
        episodes = [_without_original(episodes[0]), *episodes[1:]]
    if form.extension and not bare:
        bases = form.read(record, Origin())
        inner = [difference(_plain(base), _plain(e)) for base, e in zip(bases, episodes, strict=True)]
        return _put(form, record, {"version": _VERSION, "episodes": inner}), frozenset()
    bases = form.read(record, origin_of(episodes[0]))
    lost = {name for base, e in zip(bases, episodes, strict=True) for name in _lost(_plain(base), _plain(e))}
    return record, frozenset(lost)


def linear(episode: Episode) -> Episode:
    """The episode itself, or, where it has forks, its last walk."""
    if not forked(episode):
        return episode
    return replace(episode, turns=chain(episode.walks()[-1]))


def walks(episode: Episode) -> list[Episode]:
    """An episode for each walk of this one; only itself where it has no forks."""
    if not forked(episode):
        return [episode]
    return [replace(episode, id=f"{episode.id}/walk{i}", turns=chain(walk)) for i, walk in enumerate(episode.walks())]


def forked(episode: Episode) -> bool:
    """Whether the turns are anything but one conversation in order."""
    return any(turn.parent != at for turn, at in zip(episode.turns, [None, *range(len(episode.turns))]))


def _plain(episode: Episode) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(encode(episode))
    return found


def _extended(bases: Sequence[Episode], extension: Any) -> tuple[Episode, ...]:
    try:
        if extension["version"] != _VERSION:
            raise ValueError(f"it is of version {extension['version']}, and this whet reads version {_VERSION}")
        changes = extension["episodes"]
        return tuple(decode(to_json(apply(_plain(base), change))) for base, change in zip(bases, changes, strict=True))
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        raise RecordError(f"what whet kept in the record's extension does not fit the record any more ({error}); remove it") from error


def _take(form: Format, record: Any) -> tuple[Any, Any]:
    """The extension (None where there is none), and the record without it."""
    if not form.extension or not isinstance(record, dict):
        return None, record
    key, *rest = form.extension
    if not rest:
        if record.get(key) is None:
            return None, record
        found = record[key]
        if form.as_text:
            try:
                found = json.loads(found)
            except (TypeError, ValueError) as error:
                raise RecordError(f"{key} is not what whet put there ({error}); remove it") from error
        return found, {k: v for k, v in record.items() if k != key}
    place = record.get(key)
    if not isinstance(place, dict) or rest[0] not in place:
        return None, record
    found, left = place[rest[0]], {k: v for k, v in place.items() if k != rest[0]}
    kept = {k: v for k, v in record.items() if k != key} | ({key: left} if left else {})
    if not left and isinstance(found, dict) and "instead" in found:
        kept[key] = found["instead"]
    return found, kept


def _put(form: Format, record: dict[str, Any], extension: Any) -> dict[str, Any]:
    key, *rest = form.extension
    if not rest:
        return {**record, key: to_json(extension) if form.as_text else extension}
    place = record.get(key)
    if (key in record and not place) or not isinstance(place, (dict, type(None))):
        return {**record, key: {rest[0]: {**extension, "instead": place}}}
    return {**record, key: {**(place or {}), rest[0]: extension}}


def _lost(base: dict[str, Any], episode: dict[str, Any]) -> set[str]:
    """Names of what is in the episode and not in what its record would be read as. Defaults are in neither."""
    lost = {name for key, name in _EPISODE.items() if key in episode and base.get(key) != episode[key]}
    tags, known = episode.get("tags", {}), base.get("tags", {})
    lost |= {_TAGS.get(key, "provenance") for key in tags if known.get(key) != tags[key]}
    theirs, ours = base["turns"], episode["turns"]
    if len(theirs) != len(ours):
        lost.add("text")
    for old, new in zip(theirs, ours):
        lost |= {_TURN[key] for key in new if old.get(key) != new[key]}
    return lost


def _digest(record: Any) -> str:
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode("ascii"), digest_size=8).hexdigest()


def _tagged(episode: Episode, **tags: Any) -> Episode:
    return replace(episode, tags={**episode.tags, **tags})


def _without_original(episode: Episode) -> Episode:
    return replace(episode, tags={key: value for key, value in episode.tags.items() if key != ORIGINAL})
