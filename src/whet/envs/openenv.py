"""Environments behind an OpenEnv server (github.com/meta-pytorch/OpenEnv), over its wire protocol; openenv-core 0.3.

    load_env("openenv:url=http://localhost:8000")

An episode is one session on the server's WebSocket `/ws`: messages `reset`, `step` and `close` go out, `observation` and
`error` come back, all as JSON. (The server's plain HTTP `/reset` and `/step` make a new environment for each request, so no
episode can be played over them.) The schema of actions at `/schema` decides how the agent acts:

    one field of text                    what the agent writes goes into it
    other fields                         a tool `act` with these arguments
    calls of MCP tools                   the server's own tools, by their names and schemas

Whether a server's tasks follow from the seed is up to the server, so its episodes count as replayable only where the user
says so.
"""

from __future__ import annotations

import contextlib
import functools
import json
import threading
import time
import urllib.error
import urllib.request
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from whet.envs.base import FAILED, Action, Env, Step, ToolError
from whet.errors import ConfigError, EnvError, did_you_mean, missing_extra
from whet.seeding import derive_seed
from whet.tools.function import Tool
from whet.tools.schema import clean
from whet.types import Split, Task

try:
    from websockets.exceptions import ConnectionClosed, WebSocketException
    from websockets.sync.client import ClientConnection, connect
except ImportError as error:
    raise missing_extra("websockets", "openenv", "the environment 'openenv'") from error

BASE_FIELDS = ("metadata",)
"""Fields of every action, which are no agent's business."""
MCP_ACTIONS = ("CallToolAction", "ListToolsAction", "Action")
"""Titles of the action schemas of servers whose environment is a set of MCP tools."""
MISTAKES = ("VALIDATION_ERROR",)
"""Codes of errors that are the agent's own."""
LARGEST = 100 << 20
"""Bytes of the longest message that is taken, as in OpenEnv's own client."""
WAIT = 540.0
"""Seconds to wait for a free session; below `reset_timeout`."""
RETRY = 0.25
"""Seconds between two attempts at a session where the server is full of other clients."""


class Refused(EnvError):
    """The server answered with an error; `code` is its kind."""

    def __init__(self, url: str, data: Mapping[str, Any]) -> None:
        self.code = str(data.get("code", "UNKNOWN"))
        self.data = data
        super().__init__(f"the OpenEnv server {url} answered {self.code}: {data.get('message', 'no message')}")


class OpenEnv(Env):
    """Any OpenEnv server by its address; actions and observations as its schemas say.

    Options: `url` is the server's address; `field` names the field of the action that takes the agent's text, where that is
    not clear; `show` names the fields of an observation that the agent sees, joined by `+` (all, unless given);
    `success_at` is the return from which an episode counts as solved; `arguments` go to the server's `reset` besides the
    seed, as a JSON object; `timeout` is how many seconds it may take to answer; `prompt` replaces its description;
    `replayable` says that the same seed and actions lead to the same episode there.
    """

    instructions = "Act in the environment until the goal is reached."
    inline = False
    replayable = False
    reset_timeout = 600.0

    def __init__(
        self,
        url: str,
        field: str = "",
        show: str = "",
        success_at: float = 1.0,
        max_turns: int = 32,
        arguments: dict[str, Any] | None = None,
        timeout: float = 60.0,
        prompt: str = "",
        replayable: bool = False,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"url is {url!r}; expected the address of an OpenEnv server, such as http://localhost:8000")
        if max_turns < 1 or timeout <= 0:
            raise ConfigError(f"max_turns is {max_turns} and timeout {timeout}; expected 1 or more, and more than 0 seconds")
        self._url, self._field, self._timeout = url.rstrip("/"), field, timeout
        self._show = tuple(part.strip() for part in show.split("+")) if show else ()
        self._success_at, self._arguments = success_at, dict(arguments or {})
        self.max_turns = max_turns  # type: ignore[misc]
        self.replayable = replayable  # type: ignore[misc]
        self.step_timeout = timeout + 10  # type: ignore[misc]
        self._prompt = prompt
        if prompt:
            self.instructions = prompt  # type: ignore[misc]
        self._session: Session | None = None
        self._return = 0.0
        self._paid = False

    def tasks(self, split: Split, n: int, start: int = 0) -> list[Task]:
        """Endlessly many, told apart by the seed that the server is reset with."""
        return [
            Task(id=f"{self.name}/{split}/{i}", env=self.name, split=split, seed=derive_seed("task", self.name, split, i))
            for i in range(start, start + n)
        ]

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The server's MCP tools, or `act`; none where the agent acts by its text."""
        return self._form().tools

    def _form(self) -> Form:
        form = form_of(self._url, self._timeout)
        if not self._field:
            return form
        if form.mcp or self._field not in form.fields:
            what = "calls of MCP tools" if form.mcp else did_you_mean(self._field, form.fields)
            raise ConfigError(f"actions of {self._url} have no field {self._field!r}. {what}")
        return Form(fields=form.fields, text=self._field, description=form.description)

    def reset(self, task: Task) -> str:
        self.close()
        form = self._form()
        if form.description and not self._prompt:
            self.instructions = form.description  # type: ignore[misc]
        self._session = Session(self._url, self._timeout)
        # Seeds of 31 bits, because many servers hand them to numpy.
        told = self._session.ask("reset", {"seed": task.seed % 2**31, "episode_id": task.id[:255], **self._arguments})
        if told.get("done"):
            raise EnvError(f"the OpenEnv server {self._url} ended the episode of {task.id!r} in its reset")
        self._return, self._paid, self._over = 0.0, False, False
        return self._shown(told) or "(no observation)"

    def step(self, action: Action) -> Any:
        """One action; what the server finds wrong with its form comes back to the agent."""
        text = self._form().text
        self._gained = 0.0
        if text is None:
            step = super().step(action)
            assert isinstance(step, Step)
        elif self._over:
            raise EnvError("the episode of 'OpenEnv' is over; one object is one episode, so make another one")
        else:
            self._reward = self._success = None
            try:
                observation = self._act({text: action.text})
            except ToolError as error:
                observation = f"{FAILED}{error}"
            step = replace(self._outcome(()), observation=observation)
        return replace(step, reward=self._gained)

    def call_tool(self, name: str, arguments: dict[str, Any]) -> str:
        """One step on the server: its own tool, or the action whose fields are the arguments of `act`."""
        if self._form().mcp:
            return self._act({"type": "call_tool", "tool_name": name, "arguments": arguments})
        return self._act(arguments)

    def _act(self, data: Mapping[str, Any]) -> str:
        """Send an action; what the agent sees of the answer. Ends the episode where the server does."""
        if self._session is None:
            raise EnvError("the environment 'openenv' was not reset, or is closed")
        try:
            told = self._session.ask("step", data)
        except Refused as refused:
            if refused.code in MISTAKES:
                raise ToolError(_mistakes(refused.data)) from None
            raise
        if told.get("reward") is not None:
            self._gained += float(told["reward"])
            self._return += float(told["reward"])
            self._paid = True
        observation = told.get("observation") or {}
        if isinstance(problem := observation.get("error"), Mapping) and self._form().mcp and not told.get("done"):
            raise ToolError(str(problem.get("message", problem)))
        shown = self._shown(told)
        if told.get("done"):
            if not self._paid:
                raise EnvError(f"the OpenEnv server {self._url} ended the episode and never gave a reward; this would be a silent zero")
            self.finish(reward=self._gained, success=self._return >= self._success_at)
        return shown or ("done" if told.get("done") else "(no observation)")

    def _shown(self, told: Mapping[str, Any]) -> str:
        """An observation as text: its only string, the text of a tool's result, or `field: value` line by line."""
        observation = {key: value for key, value in (told.get("observation") or {}).items() if key != "metadata"}
        if self._show:
            if unknown := [key for key in self._show if key not in observation]:
                raise ConfigError(f"observations of {self._url} have no field {unknown[0]!r}. {did_you_mean(unknown[0], observation)}")
            observation = {key: observation[key] for key in self._show}
        elif "tool_name" in observation:
            return tool_text(observation.get("result"))
        if len(observation) == 1 and isinstance(only := next(iter(observation.values())), str):
            return only
        return "\n".join(f"{key}: {plain(value)}" for key, value in observation.items() if value not in (None, "", [], {}))

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


@dataclass(frozen=True)
class Form:
    """How actions of a server are written."""

    fields: Mapping[str, Any]
    """Field of the action -> its JSON schema."""
    text: str | None = None
    """The field that takes the agent's text; None where it calls tools."""
    tools: tuple[Tool, ...] = ()
    mcp: bool = False
    description: str = ""


@functools.cache
def form_of(url: str, timeout: float) -> Form:
    """What the server says about its actions, asked once. Raises EnvError where it does not answer."""
    schema = _get(f"{url}/schema", timeout)["action"]
    fields = {key: part for key, part in schema.get("properties", {}).items() if key not in BASE_FIELDS}
    description = str(_get(f"{url}/metadata", timeout).get("description") or "")
    if schema.get("title") in MCP_ACTIONS:
        session = Session(url, timeout)
        try:
            listed = session.ask("step", {"type": "list_tools"})["observation"].get("tools") or []
        finally:
            session.close()
        if not listed:
            raise EnvError(f"the OpenEnv server {url} takes calls of MCP tools, but lists none")
        tools = [Tool(name=t["name"], description=t.get("description") or "", parameters=_arguments(t)) for t in listed]
        return Form(fields=fields, tools=tuple(tools), mcp=True, description=description)
    if len(fields) == 1 and next(iter(fields.values())).get("type") == "string":
        return Form(fields=fields, text=next(iter(fields)), description=description)
    required = [key for key in schema.get("required", ()) if key in fields]
    parameters = {"type": "object", "properties": fields, "required": required}
    if "$defs" in schema:
        parameters["$defs"] = schema["$defs"]
    summary = schema.get("description") or "Act in the environment."
    act = Tool(name="act", description=" ".join(summary.split("\n\n")[0].split()), parameters=clean(parameters))
    return Form(fields=fields, tools=(act,), description=description)


def _arguments(listed: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema of a listed tool's arguments; servers spell its name in two ways."""
    found = listed.get("input_schema") or listed.get("inputSchema") or {"type": "object", "properties": {}}
    cleaned: dict[str, Any] = clean(found)
    return cleaned


def _get(url: str, timeout: float) -> Mapping[str, Any]:
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            found = json.load(answer)
    except (urllib.error.URLError, TimeoutError, ConnectionError, json.JSONDecodeError) as error:
        raise EnvError(f"no OpenEnv server answers at {url}: {error}. Is it running, and is the address right?") from error
    if not isinstance(found, dict):
        raise EnvError(f"{url} answered with {type(found).__name__}; expected an object. Is it an OpenEnv server?")
    return found


class _Seats:
    """How many sessions of this process a server has room for, learned when it first says that it is full."""

    def __init__(self) -> None:
        self._room = threading.Condition()
        self._limit: int | None = None
        self._used = 0

    def take(self, url: str) -> None:
        """Wait for a place and hold it. Raises EnvError where none becomes free."""
        with self._room:
            if not self._room.wait_for(lambda: self._limit is None or self._used < self._limit, WAIT):
                raise EnvError(f"the OpenEnv server {url} had no free session for {WAIT:g} s; it takes {self._limit} at once")
            self._used += 1

    def leave(self) -> None:
        with self._room:
            self._used -= 1
            self._room.notify()

    def limit(self, limit: int) -> None:
        with self._room:
            self._limit = max(1, limit)


@functools.cache
def _seats(url: str) -> _Seats:
    return _Seats()


class Session:
    """A connection to the server, and by that an environment on it. Used by one thread at a time.

    It ends with `close`, or when nobody holds it any more.
    """

    def __init__(self, url: str, timeout: float) -> None:
        """Waits while the server is full. Raises EnvError where it stays so, or where there is no server."""
        self._url, self._timeout = url, timeout
        seats, until = _seats(url), time.monotonic() + WAIT
        while True:
            seats.take(url)
            try:
                self._socket = self._enter()
            except Refused as refused:
                seats.leave()
                if refused.code != "CAPACITY_REACHED" or time.monotonic() > until:
                    raise
                seats.limit(int(refused.data.get("max_sessions", 1)))
                time.sleep(RETRY)
            except BaseException:
                seats.leave()
                raise
            else:
                self.close = weakref.finalize(self, _hang_up, self._socket, url)
                return

    def _enter(self) -> ClientConnection:
        """A connection behind which there is an environment: servers say at once where there is none."""
        socket = self._connect()
        try:
            _exchange(socket, self._url, {"type": "state"}, self._timeout)
        except BaseException:
            socket.close()
            raise
        return socket

    def _connect(self) -> ClientConnection:
        address = "ws" + self._url.removeprefix("http") + "/ws"
        try:
            return connect(address, open_timeout=self._timeout, max_size=LARGEST, close_timeout=2.0, proxy=None)
        except (OSError, TimeoutError, WebSocketException) as error:
            raise EnvError(f"no OpenEnv server takes a session at {address}: {error}. Is it running?") from error

    def ask(self, kind: Literal["reset", "step"], data: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the server observes. Raises Refused where it answers with an error, EnvError where it does not answer."""
        return _exchange(self._socket, self._url, {"type": kind, "data": data}, self._timeout)


def _hang_up(socket: ClientConnection, url: str) -> None:
    """End a session, and with it the environment on the server."""
    try:
        # The server closes the connection when it is told to; one that is closed on it meanwhile is an error in its log.
        with contextlib.suppress(OSError, WebSocketException, TimeoutError):
            socket.send(json.dumps({"type": "close"}))
            socket.recv(timeout=2.0)
        with contextlib.suppress(OSError, WebSocketException):
            socket.close()
    finally:
        _seats(url).leave()


def _exchange(socket: ClientConnection, url: str, message: Mapping[str, Any], timeout: float) -> Mapping[str, Any]:
    try:
        with contextlib.suppress(ConnectionClosed):  # why it was closed may still be there to read
            socket.send(json.dumps(message))
        answer = json.loads(socket.recv(timeout=timeout))
    except ValueError as error:
        raise EnvError(f"the OpenEnv server {url} answered with something that is no JSON: {error}") from error
    except TimeoutError as error:
        raise EnvError(f"the OpenEnv server {url} did not answer {message['type']!r} within {timeout:g} s") from error
    except (OSError, WebSocketException) as error:
        raise EnvError(f"the OpenEnv server {url} closed the session: {error or type(error).__name__}") from error
    if answer.get("type") == "error":
        raise Refused(url, answer.get("data") or {})
    data: Mapping[str, Any] = answer.get("data") or {}
    return data


def _mistakes(data: Mapping[str, Any]) -> str:
    """What the server found wrong with an action, for the agent."""
    problems = data.get("errors") or ()
    told = "; ".join(f"{'.'.join(map(str, p.get('loc', ()))) or 'action'}: {p.get('msg')}" for p in problems)
    return f"bad action: {told}" if told else str(data.get("message", "bad action"))


def tool_text(result: Any) -> str:
    """The result of an MCP tool as text: its text content, else its data, as JSON."""
    if isinstance(result, Mapping):
        parts = [part.get("text") for part in result.get("content") or () if isinstance(part, Mapping) and part.get("text") is not None]
        if parts:
            return "\n".join(map(str, parts))
        result = result.get("data", result)
    return plain(result)


def plain(value: Any) -> str:
    """A value as an agent reads it: strings as they are, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
