"""Rewards for tasks from a file: by comparing the answer, by a function of the user's, or by a tool or URL of theirs.

Whatever grades an episode is handed what it names among: `answer` (what the agent gave), `expected` (the task's), `task`
(its id), `prompt`, `calls` (tool calls that were made: name, arguments, output), `rollout` (the attempt's id), and the
entries of the task's `data`. It gives a number, or an object with `reward` and perhaps `success`. A grader that fails is a
failure of infrastructure: it never becomes a reward.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from whet.errors import ConfigError, EnvError, did_you_mean

Match = Literal["exact", "loose", "number"]
_NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?|[-+]?\.\d+")


def matches(answer: str, expected: Any, how: Match) -> bool:
    """Whether an answer is the expected one, or one of them where `expected` is a list.

    `exact`: the same text but for space around it. `loose`: also but for case, punctuation at its ends and the amount of
    space. `number`: the last number in the answer is the same to one part in a million.
    """
    if isinstance(expected, list):
        return any(matches(answer, one, how) for one in expected)
    wanted = expected if isinstance(expected, str) else json.dumps(expected)
    if how == "number":
        given, right = _number(answer), _number(wanted)
        return given is not None and right is not None and math.isclose(given, right, rel_tol=1e-6, abs_tol=1e-9)
    return _bare(answer) == _bare(wanted) if how == "loose" else answer.strip() == wanted.strip()


def _number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _bare(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'`")


def read_grade(value: Any, by: str) -> tuple[float, bool]:
    """Reward and success from what a grader gave; success is a reward of at least 1 unless it says otherwise.

    Raises EnvError for anything that is no grade: a missing one never counts as zero.
    """
    given = value
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if isinstance(value, Mapping) and set(value) == {"result"}:
        value = value["result"]
    success: Any = None
    if isinstance(value, Mapping):
        value, success = value.get("reward"), value.get("success")
    elif isinstance(value, tuple) and len(value) == 2:
        value, success = value
    if not isinstance(value, (bool, int, float)) or not math.isfinite(value) or not isinstance(success, (bool, type(None))):
        raise EnvError(f"{by} graded with {given!r:.200}; expected a number, or an object with 'reward' and perhaps 'success'")
    return float(value), value >= 1.0 if success is None else success


def chosen(facts: Mapping[str, Any], names: Mapping[str, bool], by: str) -> dict[str, Any]:
    """The facts that `by` names; `names` says of each whether it is needed. Raises ConfigError where one that is needed is missing."""
    for name, needed in names.items():
        if needed and name not in facts:
            raise ConfigError(
                f"{by} wants {name!r}, which is not known of a task. {did_you_mean(name, facts)} Put it into the task's 'data'."
            )
    return {name: facts[name] for name in names if name in facts}


def wanted(schema: Mapping[str, Any]) -> dict[str, bool]:
    """The arguments of a tool's schema, and whether each is needed."""
    needed = schema.get("required", ())
    return {name: name in needed for name in schema.get("properties", {})}


async def call_function(function: Callable[..., Any], facts: Mapping[str, Any], by: str) -> Any:
    """What the function gives for the facts that it names; a plain one runs on a thread. Raises EnvError for what it raises."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        arguments = dict(facts)
    else:
        arguments = chosen(facts, {p.name: p.default is p.empty for p in parameters}, by)
    try:
        if inspect.iscoroutinefunction(function):
            return await function(**arguments)
        return await asyncio.to_thread(function, **arguments)
    except Exception as error:
        raise EnvError(f"{by} raised {type(error).__name__}: {error}") from error
