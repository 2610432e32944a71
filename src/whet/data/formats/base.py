"""What a format is, where a record comes from, and how a record's parts are checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from whet.errors import WhetError
from whet.types import Episode, Split, Stop, Task, Turn

Outcome = Literal["success", "failure", "unknown"]
UNKNOWN: Outcome = "unknown"


class RecordError(WhetError, ValueError):
    """A record that is not in its format, and what was expected; or episodes that a format cannot express."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where a record stands, and what is taken for granted of its episode where the record does not say."""

    source: str = ""
    """Name of the file or data set."""
    number: int = 0
    """Of the record in there, from 1."""
    env: str = ""
    split: Split = "train"
    actor: str = "imported"
    outcome: Outcome = UNKNOWN

    @property
    def name(self) -> str:
        """Id of an episode whose record has none, such as `shop.jsonl#17`."""
        return f"{self.source}#{self.number}" if self.source else ""

    def episode(self, turns: Sequence[Turn], *, id: str = "", tags: Mapping[str, Any] | None = None, **fields: Any) -> Episode:
        """An episode of these turns, without forks, of a task of its own."""
        turns = tuple(turn if turn.parent == at else replace(turn, parent=at) for turn, at in zip(turns, [None, *range(len(turns))]))
        success = self.outcome == "success"
        known: dict[str, Any] = {"success": success, "reward": float(success)} | fields
        about = {"actor": self.actor} | ({"source": self.source, "record": self.number} if self.source else {})
        about |= {"outcome": UNKNOWN} if self.outcome == UNKNOWN and "success" not in fields else {}
        name = self.name or id
        return Episode(
            id=id or name,
            task=Task(id=name, env=self.env, split=self.split),
            turns=turns,
            stop=Stop.TERMINATED,
            reason="imported",
            tags=about | dict(tags or {}),
            **known,
        )


def origin_of(episode: Episode) -> Origin:
    """The origin that an imported episode was made with; an empty one for any other."""
    tags = episode.tags
    if "record" not in tags:
        return Origin()
    outcome: Outcome = UNKNOWN if tags.get("outcome") == UNKNOWN else "success" if episode.success else "failure"
    task = episode.task
    return Origin(
        source=tags.get("source", ""),
        number=tags["record"],
        env=task.env,
        split=task.split,
        actor=tags.get("actor", "imported"),
        outcome=outcome,
    )


@dataclass(frozen=True, kw_only=True)
class Format:
    """How records of one format become episodes and back.

    `read` raises RecordError. `write` need not keep everything: what of an episode its record does not say stands in the
    record's extension, and what of a record its episode does not say stands in the episode (see `exact.py`).
    """

    name: str
    title: str
    recognises: Callable[[Any], bool]
    """Whether a record looks like one of these."""
    read: Callable[[Any, Origin], tuple[Episode, ...]]
    write: Callable[[Sequence[Episode]], Any]
    episodes: int = 1
    """How many a record holds: 2 of a preference, the better one first."""
    extension: tuple[str, ...] = ()
    """Keys that lead to the place where the format lets anyone put anything; empty where it has none."""
    as_text: bool = False
    """Whether that place holds a string."""
    forks: bool = False
    """Whether an episode with forks is one record; otherwise each of its walks is one."""
    whole: bool = False
    """Whether records are episodes as they are, so that there is nothing to carry along."""


def sourced(episode: Episode, source: str) -> Episode:
    """The episode, with this source where it names none."""
    return episode if "source" in episode.tags else replace(episode, tags={**episode.tags, "source": source})


# -- checks --------------------------------------------------------------------------------------------------------------


def expect(value: Any, kinds: type | tuple[type, ...], where: str, wanted: str) -> Any:
    """`value`, which must be of these types. Raises RecordError."""
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in (kinds if isinstance(kinds, tuple) else (kinds,))):
        raise RecordError(f"{where} is {shown(value)}; expected {wanted}")
    return value


def entry(record: Any, key: str, kinds: type | tuple[type, ...], where: str, wanted: str) -> Any:
    """`record[key]`, which must be there and of these types. Raises RecordError."""
    if key not in expect(record, dict, where or "the record", "an object"):
        raise RecordError(f"{f'{where} has' if where else 'there is'} no {key!r}; expected {wanted}")
    return expect(record[key], kinds, f"{where}.{key}" if where else key, wanted)


def shown(value: Any) -> str:
    """A value in an error message."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


# -- what several formats do with turns ----------------------------------------------------------------------------------


def links(turns: Sequence[Turn]) -> dict[int, tuple[int, int]]:
    """For each tool turn (its index) the call that it answers (index of the turn, and of the call in it).

    A call is found by the id that the tool turn names, or else, where it names none, by its place among the calls that wait.
    """
    found: dict[int, tuple[int, int]] = {}
    waiting: list[tuple[int, int]] = []
    for i, turn in enumerate(turns):
        if turn.role == "assistant":
            waiting = [(i, n) for n in range(len(turn.tool_calls))]
        elif turn.role == "tool":
            named = (place for place in waiting if turns[place[0]].tool_calls[place[1]].id == turn.call_id)
            place = next(named, None) if turn.call_id else waiting[0] if waiting else None
            if place is not None:
                waiting.remove(place)
                found[i] = place
    return found


def answered(turns: Sequence[Turn], *, ids: bool = True, names: bool = True) -> list[Turn]:
    """Turns in which each tool turn names the call that it answers and the tool, where it can be known."""
    result = list(turns)
    for i, (at, n) in links(turns).items():
        call = turns[at].tool_calls[n]
        call_id = turns[i].call_id or (call.id or None if ids else None)
        result[i] = replace(turns[i], call_id=call_id, name=turns[i].name or (call.name or None if names else None))
    return result


def call_ids(turns: Sequence[Turn], *, across: bool) -> dict[tuple[int, int], str]:
    """An id for each call (index of the turn, and of the call in it), unique in its turn, or `across` all of them.

    Those that calls have already are kept as far as they are unique.
    """
    places = {(i, n): call.id for i, turn in enumerate(turns) for n, call in enumerate(turn.tool_calls)}
    taken: set[tuple[int, str]] = set()
    ids: dict[tuple[int, int], str] = {}
    for (i, n), given in places.items():
        scope = 0 if across else i
        name = given if given and (scope, given) not in taken else f"call_{i}_{n}"
        while (scope, name) in taken:
            name += "_"
        taken.add((scope, name))
        ids[i, n] = name
    return ids


def schemas_of(episode: Episode) -> list[Any]:
    """The schemas of the tools that the episode's prompt showed, in OpenAI's form; empty where they are not known."""
    found = episode.tags.get("schemas")
    return list(found) if isinstance(found, (list, tuple)) else []


def reasoning_of(episode: Episode) -> dict[int, str]:
    """What was thought before a turn and is not part of its text, by the turn's index."""
    found = episode.tags.get("reasoning")
    return {int(i): text for i, text in found.items() if str(i).isdecimal()} if isinstance(found, Mapping) else {}


def said(schemas: Sequence[Any] = (), reasoning: Mapping[int, str] | None = None) -> dict[str, Any]:
    """The tags for these."""
    tags: dict[str, Any] = {"schemas": list(schemas)} if schemas else {}
    return tags | ({"reasoning": {str(i): text for i, text in reasoning.items()}} if reasoning else {})
