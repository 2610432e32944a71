"""Formats of trajectories, one file each, loaded when they are used.

`load(format, record, origin)` gives the episodes of a record, `dump(format, episodes)` the record of episodes and what it
loses. How records lie in files is another matter (`whet.data.records`).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from whet.data.formats.base import Format, Origin, RecordError
from whet.data.formats.exact import dump, load
from whet.errors import did_you_mean

__all__ = ["Format", "Origin", "RecordError", "detect", "dump", "get", "load", "names"]

_HOME = {
    "whet": "own:FORMAT",
    "atif": "atif:FORMAT",
    "adp": "adp:FORMAT",
    "sharegpt": "sharegpt:FORMAT",
    "trl-preference": "trl:PREFERENCE",
    "trl-completion": "trl:COMPLETION",
    "trl": "trl:MESSAGES",
    "openai": "openai:FORMAT",
}
"""In the order in which a record is held against them."""


def names() -> tuple[str, ...]:
    return tuple(sorted(_HOME))


def get(name: str) -> Format:
    """The format of this name. Raises RecordError for a name that is none."""
    if name not in _HOME:
        raise RecordError(f"unknown format {name!r}. {did_you_mean(name, _HOME)}")
    module, _, attribute = _HOME[name].partition(":")
    found: Format = getattr(importlib.import_module(f"whet.data.formats.{module}"), attribute)
    return found


def detect(records: Sequence[Any]) -> Format | None:
    """The format that records of one file seem to be in, by their keys; None where it is none of these."""
    return next((form for name in _HOME if any((form := get(name)).recognises(record) for record in records)), None)
