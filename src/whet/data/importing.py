"""Files into a store: a page at a time, so that a file may be larger than memory, and a killed import goes on where it was.

How far a file has been read is noted in the store, in the transaction that adds its episodes.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from whet.data import formats
from whet.data.formats import Format, Origin, RecordError
from whet.data.formats.base import shown, sourced
from whet.data.records import Item, Place, Source, open_source
from whet.errors import ConfigError, StorageError
from whet.runs import EpisodeStore
from whet.runs.store import Note
from whet.types import Episode

PAGE = 256
"""Records in a transaction."""
_REASONS = 100
"""Malformed records whose reasons are kept."""
_PREFIX = "import/"
_UNREADABLE = (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError)


@dataclass
class Report:
    """What has come of a file, earlier imports of it included."""

    source: str
    """The file's name in the store."""
    format: str = ""
    place: Place = Place()
    episodes: int = 0
    bad: int = 0
    """Records that could not be read."""
    reasons: list[tuple[int, str]] = field(default_factory=list)
    """Of the first of these: line (or row) and reason."""
    mark: str = ""
    """Tells the file from another one in its place."""
    fresh: int = 0
    """Episodes that this call added."""
    resumed: bool = False
    """Whether it went on where an earlier call had stopped."""
    torn: int = 0
    """1 where the file ends within a record. That one is looked at again when the file has grown."""

    def to_json(self) -> str:
        return json.dumps({key: value for key, value in asdict(self).items() if key not in ("source", "fresh", "resumed", "torn")})

    @classmethod
    def from_json(cls, source: str, text: str) -> Report:
        record = json.loads(text)
        reasons = [(line, why) for line, why in record.pop("reasons")]
        return cls(source=source, place=Place(**record.pop("place")), reasons=reasons, **record)


def imports(store: EpisodeStore) -> list[Report]:
    """What has been imported into a store, by file."""
    return [Report.from_json(key.removeprefix(_PREFIX), text) for key, text in store.notes(_PREFIX).items()]


def import_file(
    store: EpisodeStore,
    path: str | os.PathLike[str],
    origin: Origin = Origin(),
    *,
    format: str | None = None,
    tag: str | None = None,
    on_bad: Callable[[int, str], None] | None = None,
    on_page: Callable[[Source, Report], None] | None = None,
) -> Report:
    """Add a file's episodes to a store, going on where an earlier import of the same file stopped.

    `origin` says what is taken for granted of episodes; its source is the file's name unless given. The format is what the
    first records look like unless given. Episodes are saved under `tag`, by default the source; those of another store keep
    theirs. A record that cannot be read is reported to `on_bad`, with its line and the reason, counted, and left out;
    `on_page` is called after each page.

    Raises ConfigError for a file that cannot be read at all, of an unknown format, or that is not the one that was imported
    under this name; StorageError where the store cannot be written. What was added before stays.
    """
    source = open_source(Path(path))
    origin = replace(origin, source=origin.source or Path(path).resolve().name)
    key = _PREFIX + origin.source
    noted = store.notes(key).get(key)
    report = _begin(source, origin.source, noted)
    form = formats.get(format or report.format) if format or report.format else None
    try:
        for page in _pages(source, report.place):
            form = form or _detected(source, page)
            report.format = form.name
            tagged = [(item.tag or tag or origin.source, e) for item in page for e in _episodes(item, form, origin, report, on_bad)]
            report.place = page[-1].after
            report.fresh, report.episodes = report.fresh + len(tagged), report.episodes + len(tagged)
            report.mark = source.mark(report.place.offset)
            text = report.to_json()
            store.add(tagged, Note(key, noted, text))
            noted = text
            if on_page:
                on_page(source, report)
    except StorageError as error:
        why = error.__cause__ or error
        raise StorageError(
            f"{store.path} could not be written: {why}. What was imported before is intact; free some space, then give the same "
            "command again: it goes on from there."
        ) from error
    return report


def _begin(source: Source, name: str, noted: str | None) -> Report:
    if noted is None:
        return Report(name)
    report = Report.from_json(name, noted)
    report.resumed = True
    if report.place.offset > source.size > 0 or source.mark(report.place.offset) != report.mark:
        raise ConfigError(
            f"{source.path} is not the file that was imported as {name!r} before, or what was read of it has changed. "
            "Give it another name (--source NAME) to import it beside the other one."
        )
    return report


def _pages(source: Source, place: Place) -> Any:
    items = source.read(place)
    while page := list(itertools.islice(items, PAGE)):
        yield page


def _detected(source: Source, page: Sequence[Item]) -> Format:
    readable = [item for item in page if item.error is None]
    if readable and isinstance(readable[0].record, Episode):
        return formats.get("whet")
    if (form := formats.detect([item.record for item in readable])) is not None:
        return form
    if not readable:
        raise ConfigError(
            f"{source.path}, {source.unit} {page[0].line}: {page[0].error}. None of the first {len(page)} records is readable."
        )
    first = readable[0].record
    what = f"has the keys {', '.join(map(repr, first)) or '(none)'}" if isinstance(first, dict) else f"is {shown(first)}"
    raise ConfigError(
        f"{source.path}, {source.unit} {readable[0].line}: the record {what}, as in none of the formats {', '.join(formats.names())}. "
        "Name the format (--format) to learn what it lacks."
    )


def _episodes(item: Item, form: Format, origin: Origin, report: Report, on_bad: Callable[[int, str], None] | None) -> Sequence[Episode]:
    """The episodes of an item; none, and a note in the report, where it cannot be read."""
    if isinstance(item.record, Episode):
        return (sourced(item.record, origin.source),)
    why = item.error
    if why is None:
        try:
            return formats.load(form, item.record, replace(origin, number=item.after.number))
        except RecordError as error:
            why = str(error)
        except _UNREADABLE as error:  # whatever else is wrong with it, the others are to be read
            why = f"not readable as {form.name}: {error!r}"
    if item.again:
        report.torn = 1
    else:
        report.bad += 1
        if len(report.reasons) < _REASONS:
            report.reasons.append((item.line, why))
    if on_bad:
        on_bad(item.line, why)
    return ()
