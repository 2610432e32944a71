"""Environments of the library `verifiers` (Prime Intellect), played on its own server over its wire protocol; verifiers 0.4.

    load_env("verifiers:tasks=gsm8k.jsonl,url=tcp://127.0.0.1:5000")

The server runs the environment with its harness, tools and rewards; this process is the model that its agent asks (see
`whet.envs.verifiers_wire`). So the agent sees what the harness would send to a model: the prompt first, then the results of
tools and what users say. The protocol does not list tasks, because its client owns them: they come from a file with the JSON
of one `TaskData` per line, which the server's own Python writes:

    python -c "import verifiers.v1 as vf
    from verifiers.v1.utils.loaders import taskset_class
    cls = taskset_class('gsm8k')
    for task in cls(vf.TasksetConfig(id='gsm8k')): print(task.data.model_dump_json())" > gsm8k.jsonl

Their libraries decide how an episode goes on (sandboxes, containers, judges), so episodes count as replayable only where the
user says so.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whet.envs.base import FAILED, Action, Env, Step
from whet.envs.verifiers_wire import Asked, Ended, Play
from whet.errors import ConfigError, EnvError
from whet.seeding import derive_seed
from whet.tools.function import Tool
from whet.tools.schema import clean
from whet.types import Split, Task, Turn

SHARES: Mapping[Split, tuple[int, ...]] = {"train": tuple(range(8)), "dev": (8,), "test": (9,)}
"""Of ten lines of a file without splits, the places of each split's."""
FIRST = 540.0
"""Seconds until the first turn, in which the server prepares what the task needs; below `reset_timeout`."""


class Verifiers(Env):
    """Any environment on a `verifiers` server: its harness, tools and rewards, with whet's agent as its model.

    Options: `tasks` is a file of tasks, one JSON object per line; with `{split}` in its name, there is one for each split,
    otherwise eight of ten lines are train, one is dev and one is test. `url` is the server's address; `host` the address of
    this machine as the server sees it; `success_at` the reward from which an episode counts as solved; `timeout` how many
    seconds may pass between two turns; `replayable` says that the same actions lead to the same episode there.
    """

    inline = False
    replayable = False
    reset_timeout = 600.0

    def __init__(
        self,
        tasks: str,
        url: str = "tcp://127.0.0.1:5000",
        host: str = "127.0.0.1",
        success_at: float = 1.0,
        max_turns: int = 32,
        timeout: float = 300.0,
        replayable: bool = False,
    ) -> None:
        if not url.startswith(("tcp://", "ipc://")):
            raise ConfigError(f"url is {url!r}; expected the address of a verifiers server, such as tcp://127.0.0.1:5000")
        if max_turns < 1 or timeout <= 0:
            raise ConfigError(f"max_turns is {max_turns} and timeout {timeout}; expected 1 or more, and more than 0 seconds")
        self._file, self._url, self._host = tasks, url, host
        self._success_at, self._timeout = success_at, timeout
        self.max_turns = max_turns  # type: ignore[misc]
        self.replayable = replayable  # type: ignore[misc]
        self.step_timeout = timeout + 10  # type: ignore[misc]
        self._play: Play | None = None
        self._tools: tuple[Tool, ...] = ()
        self._sent: list[Mapping[str, Any]] = []
        self._ids: dict[str, str] = {}
        self._calls = 0

    def tasks(self, split: Split, n: int, start: int = 0) -> list[Task]:
        """The file's lines, in their order."""
        found = []
        for place, data in rows(self._file, split)[start : start + n]:
            seed = derive_seed("task", self.name, self._file, split, place)
            found.append(Task(id=f"{self.name}/{Path(self._file).stem}/{split}/{place}", env=self.name, split=split, seed=seed, data=data))
        return found

    @property
    def tools(self) -> tuple[Tool, ...]:
        """What the harness offers its model in this task; known once the episode has begun."""
        return self._tools

    def reset(self, task: Task) -> tuple[Turn, ...]:
        self.close()
        self._sent, self._ids, self._calls, self._over = [], {}, 0, False
        self._play = Play(self._url, self._host, dict(task.data), {})
        event = self._play.next(FIRST)
        if isinstance(event, Ended):
            raise EnvError(
                f"the verifiers server {self._url} ended {task.id!r} before its first turn: {_problem(event) or 'no reason given'}"
            )
        messages = list(event.body["messages"])
        system = [text_of(m) for m in messages if m["role"] in ("system", "developer")]
        self.instructions = "\n\n".join(system)  # type: ignore[misc]
        self._tools = tuple(_tool(told) for told in event.body.get("tools") or ())
        self._sent = messages
        return self._turns([m for m in messages if m["role"] not in ("system", "developer")])

    def step(self, action: Action) -> Step:
        """Answer the turn that the server asked for, and wait for the next one or the end."""
        if self._over:
            raise EnvError("the episode of 'Verifiers' is over; one object is one episode, so make another one")
        if self._play is None:
            raise EnvError("the environment 'verifiers' was not reset, or is closed")
        if any(call.error for call in action.tool_calls):
            # What is no tool call cannot be written as one; the agent is told, and the server is not.
            other = "not called, because another call was malformed"
            calls = action.tool_calls
            turns = (Turn(role="tool", name=c.name, call_id=c.id, content=f"{FAILED}{c.error or other}") for c in calls)
            return Step(observation=tuple(turns))
        said = self._message(action)
        self._play.answer(said)
        event = self._play.next(self._timeout)
        if isinstance(event, Ended):
            return self._end(event)
        return Step(observation=self._turns(self._new(event, said)) or "(no observation)")

    def _message(self, action: Action) -> dict[str, Any]:
        """An action as the assistant's message of a chat completion."""
        message: dict[str, Any] = {"role": "assistant", "content": action.text}
        calls = []
        for call in action.tool_calls:
            id = f"call_{self._calls}"  # theirs must be unique in the conversation
            self._calls += 1
            self._ids[id] = call.id
            calls.append({"id": id, "type": "function", "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments))}})
        return {**message, "tool_calls": calls} if calls else message

    def _new(self, asked: Asked, said: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """What the conversation has gained since the last turn. Raises EnvError where it is not the same conversation."""
        messages = list(asked.body["messages"])
        expected = [*self._sent, said]
        for i, (a, b) in enumerate(zip(expected, messages)):
            if (a["role"], text_of(a), _called(a)) != (b["role"], text_of(b), _called(b)):
                raise EnvError(
                    f"message {i} of the conversation became another one: {_short(a)} became {_short(b)}. Environments of several agents "
                    "and harnesses that rewrite what was said (compaction) cannot be played here."
                )
        if len(messages) < len(expected):
            raise EnvError(
                f"the conversation shrank from {len(expected)} to {len(messages)} messages; harnesses that do so cannot be played here"
            )
        if tuple(_tool(told) for told in asked.body.get("tools") or ()) != self._tools:
            raise EnvError("the harness changed its tools in the middle of the episode, which cannot be played here")
        self._sent = messages
        return messages[len(expected) :]

    def _turns(self, messages: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
        turns = []
        for message in messages:
            role = message["role"]
            if role == "assistant":
                raise EnvError("the server put an assistant's message into the conversation, which learning would take for the agent's own")
            call = str(message.get("tool_call_id"))
            turns.append(Turn(
                role="tool" if role == "tool" else "system" if role in ("system", "developer") else "user",
                content=text_of(message),
                name=message.get("name") if role == "tool" else None,
                call_id=self._ids.get(call, call) if role == "tool" else None,
            ))  # fmt: skip
        return tuple(turns)

    def _end(self, ended: Ended) -> Step:
        if problem := _problem(ended):
            raise EnvError(f"the episode failed on the verifiers server {self._url}: {problem}")
        if len(ended.traces) != 1:
            raise EnvError(f"the episode has the traces of {len(ended.traces)} agents; whet plays environments of one agent")
        (trace,) = ended.traces
        rewards = trace.get("rewards") or {}
        if not rewards or any(reward is None for reward in rewards.values()):
            raise EnvError(f"the episode ended without a reward ({rewards!r}); this would be a silent zero")
        total = sum(float(reward["score"]) * float(reward.get("weight", 1.0)) for reward in rewards.values())
        self._over = True
        condition = str(trace.get("stop_condition") or "terminated")
        truncated = condition.startswith("max_")
        info = {
            "reason": condition,
            "rewards": {name: float(reward["score"]) for name, reward in rewards.items()},
            "metrics": {name: value for name, value in (trace.get("metrics") or {}).items() if isinstance(value, (int, float))},
        }
        return Step(reward=total, terminated=not truncated, truncated=truncated, success=total >= self._success_at, info=info)

    def close(self) -> None:
        if self._play is not None:
            self._play.close()
            self._play = None


@functools.cache
def _lines(path: str) -> tuple[str, ...]:
    try:
        return tuple(line for line in Path(path).expanduser().read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the file of tasks {path!r} cannot be read: {error}") from error


def rows(path: str, split: Split) -> list[tuple[int, dict[str, Any]]]:
    """A split's lines with their places. Raises ConfigError where the file is absent or a line is no JSON object."""
    own = "{split}" in path
    found = []
    for place, line in enumerate(_lines(path.replace("{split}", split))):
        if own or place % 10 in SHARES[split]:
            try:
                data = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"line {place + 1} of {path!r} is no JSON: {error}") from error
            if not isinstance(data, dict):
                raise ConfigError(f"line {place + 1} of {path!r} is {type(data).__name__}; expected the object of one task")
            found.append((place, data))
    return found


def text_of(message: Mapping[str, Any]) -> str:
    """A message's text. Raises EnvError for pictures and sounds."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    parts = [part for part in content if part.get("type") in ("text", "input_text", "output_text")]
    if len(parts) != len(content):
        kinds = sorted({str(part.get("type")) for part in content if part not in parts})
        raise EnvError(f"a message has content of the type {kinds[0]!r}; whet's agents read text only")
    return "".join(str(part["text"]) for part in parts)


def _called(message: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or ()]


def _tool(told: Mapping[str, Any]) -> Tool:
    function = told["function"]
    parameters = clean(function.get("parameters") or {"type": "object", "properties": {}})
    return Tool(name=function["name"], description=function.get("description") or "", parameters=parameters)


def _problem(ended: Ended) -> str:
    """What went wrong in an episode, the innermost error first; empty where nothing did."""
    if ended.error:
        return ended.error
    errors = [error for trace in ended.traces for error in trace.get("errors") or ()] + list(ended.episode.get("errors") or ())
    if errors:
        return f"{errors[-1].get('type')}: {errors[-1].get('message')}"
    return "" if ended.episode.get("ok") else "it is not ok, and says no more"


def _short(message: Mapping[str, Any]) -> str:
    return f"{message['role']} {text_of(message)[:60]!r}"
