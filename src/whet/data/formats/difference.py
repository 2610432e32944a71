"""What must be done to one JSON value to get another: how records keep what a format cannot say.

A difference is JSON itself, one of

    ["=", value]                      this value instead
    ["{", {key: difference}, [key]]   these entries changed (or new), and those gone
    ["[", {index: difference}]        these elements changed
    ["~", start, end, [value]]        between the first `start` and the last `end` elements stands this

Values are compared as JSON: 1, 1.0 and true are three different values, and the order of keys means nothing.
"""

from __future__ import annotations

import json
from typing import Any

Difference = list[Any]


def difference(old: Any, new: Any) -> Difference | None:
    """What turns `old` into `new`; None where they are the same."""
    if old == new and _text(old) == _text(new):
        return None
    if isinstance(old, dict) and isinstance(new, dict):
        changed = {key: inner for key in old if key in new and (inner := difference(old[key], new[key])) is not None}
        changed |= {key: ["=", new[key]] for key in new if key not in old}
        gone = [key for key in old if key not in new]
        return ["{", changed, gone] if changed or gone else None
    if isinstance(old, list) and isinstance(new, list):
        return _lists(old, new)
    return ["=", new] if _text(old) != _text(new) else None


def _lists(old: list[Any], new: list[Any]) -> Difference | None:
    start = end = 0
    most = min(len(old), len(new))
    while start < most and difference(old[start], new[start]) is None:
        start += 1
    while end < most - start and difference(old[-1 - end], new[-1 - end]) is None:
        end += 1
    if len(old) == len(new):
        inner = range(start, len(old) - end)
        if not inner:
            return None
        if all(isinstance(new[i], (dict, list)) for i in inner):
            return ["[", {str(i): found for i in inner if (found := difference(old[i], new[i])) is not None}]
    return ["~", start, end, new[start : len(new) - end]]


def apply(old: Any, change: Difference | None) -> Any:
    """`old` with a difference made to it; the arguments stay as they are. Raises ValueError where the difference does not fit."""
    if change is None:
        return old
    try:
        kind = change[0]
        if kind == "=":
            return change[1]
        if kind == "{":
            kept = {key: value for key, value in old.items() if key not in change[2]}
            return kept | {key: apply(old.get(key), inner) for key, inner in change[1].items()}
        if kind == "[":
            result = list(old)
            for index, inner in change[1].items():
                result[int(index)] = apply(old[int(index)], inner)
            return result
        if kind == "~":
            start, end = change[1], len(old) - change[2]
            if not 0 <= start <= end:
                raise IndexError(f"{len(old)} elements")
            return [*old[:start], *change[3], *old[end:]]
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"a difference does not fit what it is made to ({error!r})") from error
    raise ValueError(f"{change!r:.80} is no difference")


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
