"""Environments whose every tool call is put on record, or answered from a record.

env = record_calls(load_env("mcp:command=python server.py,tasks=tasks.jsonl"), "calls.jsonl")
rollout(agent, env, tasks)                              # calls.jsonl holds every call, with its outcome and its seconds

replayed = replay_calls(env, "calls.jsonl")             # the same agent again, with no tool running
print(diverging_calls(env, "calls.jsonl"))              # do the tools still answer as they did?
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.envs.base import Action, Env, EnvFactory
from whet.envs.calling import caller_of
from whet.errors import EnvError
from whet.tools.function import Tool
from whet.tools.log import Attempt, CallLog, CallRecord, Journal, Playback, read_calls
from whet.types import Split, Task, ToolCall


class Journaled(EnvFactory):
    """An environment whose objects tell a journal of their tool calls."""

    inner: EnvFactory
    journal: Journal

    def __init__(self, inner: EnvFactory, journal: Journal) -> None:
        object.__setattr__(self, "inner", inner)
        object.__setattr__(self, "journal", journal)
        super().__init__(inner.cls, inner.options, inner.spec)

    def __call__(self) -> Env:
        env = self.inner()
        caller_of(env).journal = self.journal
        return env

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def envs(self) -> tuple[str, ...]:
        return self.inner.envs

    @functools.cached_property
    def tools(self) -> tuple[Tool, ...]:
        return self.inner.tools

    def of(self, task: Task) -> EnvFactory:
        part = self.inner.of(task)
        return self if part is self.inner else Journaled(part, self.journal)

    def tasks(self, split: Split, n: int, start: int = 0) -> tuple[Task, ...]:
        return self.inner.tasks(split, n, start)


def record_calls(env: EnvFactory, path: str | Path) -> EnvFactory:
    """`env` with every tool call appended to the file (see `whet.tools.log`). Raises StorageError where it cannot be written."""
    return Journaled(env, CallLog(path))


def replay_calls(env: EnvFactory, path: str | Path) -> EnvFactory:
    """`env` with its tools answered from a record instead of being run, an end of the episode included.

    `reset` still runs. An episode is found by its id or, where that is not on record, by its task. The first call that is
    not as it was recorded fails the episode with a message that names it. Raises ConfigError for a file that is no record.
    """
    return Journaled(env, Playback(path))


@dataclass(frozen=True, kw_only=True, slots=True)
class Divergence:
    """The first call of a recorded attempt that now comes out differently."""

    attempt: str
    """The episode's id, or its task's."""
    call: int
    """Counted from 1."""
    recorded: str
    found: str
    made: str
    """The call itself."""

    def __str__(self) -> str:
        return f"{self.attempt}, call {self.call}: {self.made} gave {self.recorded:.200} when recorded, and now {self.found:.200}"


def diverging_calls(env: EnvFactory, path: str | Path) -> list[Divergence]:
    """Make the recorded calls again, each attempt in a new environment; where each first comes out differently.

    What is compared is the outcome, the text that the model was shown, and reward and success at the end. Attempts are
    followed up to their first timeout or infrastructure error, after which nothing can be expected of them. Raises EnvError
    for a record without tasks, and whatever the environment raises.
    """
    return asyncio.run(_diverging(env, read_calls(path)))


async def _diverging(env: EnvFactory, attempts: Iterable[Attempt]) -> list[Divergence]:
    found = []
    for attempt in attempts:
        if attempt.task is None:
            raise EnvError(f"the recorded calls of {attempt.episode or 'an episode'!r} name no task, so they cannot be made again")
        made: list[CallRecord] = []
        played = env.of(attempt.task)()
        caller_of(played).journal = _Memory(made)
        try:
            await _through(played.reset(attempt.task))
            for step in attempt.steps:
                if any(record.outcome in ("timeout", "infrastructure") for record in step):
                    break
                calls = tuple(ToolCall(name=r.name, arguments=r.arguments, error=r.error, id=f"call_{i}") for i, r in enumerate(step))
                await _through(played.step(Action(tool_calls=calls)))
                if difference := _difference(attempt, made):
                    found.append(difference)
                    break
        finally:
            await _through(played.close())  # type: ignore[func-returns-value]
    return found


async def _through(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _difference(attempt: Attempt, made: list[CallRecord]) -> Divergence | None:
    for i, (before, now) in enumerate(zip(attempt.calls, made)):
        told = [_what(record) for record in (before, now)]
        if told[0] != told[1]:
            name = attempt.episode or (attempt.task.id if attempt.task else "")
            return Divergence(attempt=name, call=i + 1, recorded=told[0], found=told[1], made=before.shown())
    return None


def _what(record: CallRecord) -> str:
    end = f" (ends with reward {record.end[0]:g}, success {record.end[1]})" if record.end else ""
    return f"{record.outcome} {record.output!r}{end}"


class _Memory:
    """A journal that is a list."""

    def __init__(self, records: list[CallRecord]) -> None:
        self._records = records

    def answer(self, place: CallRecord, task: Task | None, index: int) -> None:
        return None

    def write(self, record: CallRecord, task: Task | None, index: int) -> None:
        self._records.append(record)
