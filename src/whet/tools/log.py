"""Every tool call on record, and tools that answer from such a record.

One line of JSON for each call: who made it (episode, attempt, step), its name and arguments, the class of its outcome,
the seconds it took, what the model was shown, and how the episode ended where the call ended it. The first line of each
attempt holds the task. Lines are appended whole, so threads and processes may share a file.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from whet.errors import ConfigError, EnvError, StorageError
from whet.types import Task, ToolCall


class CallsDiverged(EnvError):
    """A call that is answered from a record is not the one that was recorded."""


@dataclass(frozen=True, kw_only=True)
class CallRecord:
    """A tool call and what came of it."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    """Why the model's text could not be read as a call, where it could not."""
    outcome: str = "ok"
    """`ok`, `malformed`, `unknown_tool`, `bad_arguments`, `tool_error`, `timeout`, `infrastructure`."""
    output: str = ""
    """What the model was shown; of an infrastructure error, its message."""
    seconds: float = 0.0
    cached: bool = False
    """Whether the result was one that had been kept (see `tool(pure=True)`)."""
    end: tuple[float, bool] | None = None
    """Reward and success, where the call ended the episode."""
    episode: str = ""
    rollout: str = ""
    """The attempt at the episode, of which there is no other in any process."""
    step: int = 0
    """Calls of one action have the same."""

    def same_call(self, call: ToolCall) -> bool:
        return (self.name, self.error, canonical(self.arguments)) == (call.name, call.error, canonical(call.arguments))

    def shown(self) -> str:
        return shown(ToolCall(name=self.name, arguments=self.arguments, error=self.error))


class Journal(Protocol):
    """What an environment tells about its calls, and asks before it makes one."""

    def answer(self, place: CallRecord, task: Task | None, index: int) -> CallRecord | None:
        """The record to serve instead of making call `index` of an attempt; None to make it. May raise CallsDiverged."""
        ...

    def write(self, record: CallRecord, task: Task | None, index: int) -> None:
        """A call was made."""
        ...


def canonical(arguments: Mapping[str, Any]) -> str:
    """Arguments as text that is equal for equal ones."""
    return json.dumps(arguments, sort_keys=True, ensure_ascii=False, default=_plain)


def shown(call: ToolCall) -> str:
    """A call for people: `search({"query": "Otto"})`."""
    arguments = canonical(call.arguments)
    text = f"{call.name}({arguments[:200]}{'...' if len(arguments) > 200 else ''})"
    return text if call.error is None else f"{text} (unreadable: {call.error[:80]})"


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)


class CallLog:
    """Appends records to a file. Raises StorageError where it cannot be written."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise StorageError(f"the log of tool calls {self.path} cannot be written: {error.strerror}") from error

    def answer(self, place: CallRecord, task: Task | None, index: int) -> CallRecord | None:
        return None

    def write(self, record: CallRecord, task: Task | None, index: int) -> None:
        line = {key: value for key, value in asdict(record).items() if value not in (None, "", {}, False)}
        line |= {"name": record.name, "seconds": round(record.seconds, 6), "step": record.step}
        if index == 0 and task is not None:
            line["task"] = {f.name: getattr(task, f.name) for f in fields(task)}
        data = json.dumps(line, ensure_ascii=True, default=_plain).encode() + b"\n"
        try:
            with self._lock:
                while data:  # a write to a full disk or through a signal may be a partial one
                    data = data[os.write(self._file, data) :]
        except OSError as error:
            raise StorageError(f"the log of tool calls {self.path} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1


@dataclass
class Attempt:
    """The recorded calls of one attempt at an episode."""

    episode: str
    rollout: str
    task: Task | None = None
    calls: list[CallRecord] = field(default_factory=list)

    @property
    def steps(self) -> list[list[CallRecord]]:
        """The calls, those of one action together."""
        found: dict[int, list[CallRecord]] = {}
        for record in self.calls:
            found.setdefault(record.step, []).append(record)
        return list(found.values())


def read_calls(path: str | Path) -> list[Attempt]:
    """The attempts in a log, in the order in which they began; a last line that was cut off is left out.

    Raises ConfigError where there is no such file or a line is no record.
    """
    attempts: dict[tuple[str, str], Attempt] = {}
    for number, line in _lines(Path(path)):
        try:
            entry = json.loads(line)
            task = Task(**entry.pop("task")) if "task" in entry else None
            end = entry.pop("end", None)
            record = CallRecord(**entry, end=None if end is None else (float(end[0]), bool(end[1])))
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"line {number} of {path} is no record of a tool call: {error}") from error
        attempt = attempts.setdefault((record.episode, record.rollout), Attempt(record.episode, record.rollout))
        attempt.task = attempt.task or task
        attempt.calls.append(record)
    return list(attempts.values())


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"no log of tool calls can be read from {path}: {error.strerror}") from error
    whole, _, _ = text.rpartition("\n")
    for number, line in enumerate(whole.split("\n"), start=1):
        if line:
            yield number, line


class Playback:
    """Answers calls from a log. Of an episode that was tried several times, the last attempt counts."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        attempts = read_calls(path)
        self._by_episode = {attempt.episode: attempt for attempt in attempts}
        self._by_task: dict[str, Attempt] = {}
        for attempt in attempts:
            if attempt.task is not None:
                self._by_task.setdefault(attempt.task.id, attempt)

    def answer(self, place: CallRecord, task: Task | None, index: int) -> CallRecord:
        """Raises CallsDiverged, naming the first call that is not as it was recorded."""
        attempt = self._by_episode.get(place.episode) or (self._by_task.get(task.id) if task is not None else None)
        who = f"episode {place.episode!r}" if place.episode else f"task {task.id!r}" if task is not None else "this episode"
        now = place.shown()
        if attempt is None:
            raise CallsDiverged(f"{who} is not in {self.path}, where its first call was looked for: {now}")
        if index >= len(attempt.calls):
            raise CallsDiverged(f"{who}: {len(attempt.calls)} calls are recorded in {self.path}, and call {index + 1} is {now}")
        record = attempt.calls[index]
        if not record.same_call(ToolCall(name=place.name, arguments=place.arguments, error=place.error)):
            raise CallsDiverged(f"{who}, call {index + 1}: recorded in {self.path} was {record.shown()}, now it is {now}")
        if record.outcome == "infrastructure":
            raise EnvError(f"{who}, call {index + 1}: recorded in {self.path} as failed: {record.output}")
        return record

    def write(self, record: CallRecord, task: Task | None, index: int) -> None:
        """Nothing: it is on record already."""
