"""Any MCP server with tasks and a grader: `mcp:command=python server.py,tasks=tasks.jsonl`, `mcp:url=http://.../mcp,tasks=...`.

The model is shown the server's tools and a tool that ends the episode. State is kept apart by giving each episode a
connection of its own: a process over stdio, a session over HTTP, a new server object in this process. A server that keeps
no state can be shared, which saves the start of a process per episode (0.4 s with the Python SDK).
"""

from __future__ import annotations

import shlex
import weakref
from typing import Any

from whet.envs.grading import Match
from whet.envs.served import Result, Rules, Served, names
from whet.errors import ConfigError, EnvError
from whet.tools.function import Tool
from whet.tools.mcp import Connection, Listing, Local, Protocol, Server, Url, connect, connect_shared, listing
from whet.tools.schema import Style
from whet.tools.stdio import Command
from whet.userfile import load_file, load_function


class MCP(Served):
    """Tools of an MCP server, tasks from a file of JSON lines, reward by comparing answers, by a tool or by a function.

    Options: one of `command` (a program that speaks MCP over stdio), `url` (streamable HTTP) and `server` (`path.py:name`
    of a server object, or of a function that makes one); `tasks`, the file; `grader`: `answer`, `tool:NAME`,
    `path.py:function` or a URL; `match` of answers: `exact`, `loose` or `number`; `shared` for servers that keep no state;
    `connections`, how many server processes may run at once; `setup`, a tool that is called first with the task's data;
    `answer_tool`, `only`, `hide`, `pure`, names of tools; `schema`: `plain`, `flat` or `strict`; `pass_env`, environment
    variables for the server; `protocol`: `legacy` gives an HTTP server a session for each connection.
    """

    name = "mcp"

    def __init__(
        self,
        tasks: str = "",
        command: str = "",
        url: str = "",
        server: str = "",
        grader: str = "answer",
        match: Match = "exact",
        shared: bool = False,
        connections: int = 16,
        setup: str = "",
        answer_tool: str = "answer",
        only: str = "",
        hide: str = "",
        pure: str = "",
        schema: Style = "plain",
        instructions: str = "",
        max_turns: int = 16,
        max_tokens: int = 64,
        timeout: float = 30.0,
        start_timeout: float = 60.0,
        pass_env: str = "",
        protocol: Protocol = "auto",
    ) -> None:
        if sum(map(bool, (command, url, server))) != 1:
            raise ConfigError("mcp needs one of command, url and server, such as mcp:command=python server.py,tasks=tasks.jsonl")
        if not tasks:
            raise ConfigError("mcp needs tasks, a file of JSON lines, such as mcp:command=python server.py,tasks=tasks.jsonl")
        if connections < 1:
            raise ConfigError(f"connections is {connections}; expected at least 1")
        if shared and setup:
            raise ConfigError(f"setup={setup} would change the state of a server that all episodes share; leave out shared or setup")
        self._server: Server = _server(command, url, server, names(pass_env), shared)
        self._shared, self._limit = shared, connections
        self._start_timeout, self._protocol = start_timeout, protocol
        self._connection: Connection | None = None
        self._follow(
            Rules(
                tasks=tasks,
                grader=grader,
                match=match,
                setup=setup,
                answer_tool=answer_tool,
                only=only,
                hide=hide,
                pure=pure,
                schema=schema,
                instructions=instructions,
                max_turns=max_turns,
                max_tokens=max_tokens,
                timeout=timeout,
            )
        )

    def _list(self) -> tuple[tuple[Tool, ...], str]:
        found: Listing
        if self._connection is not None:
            found = self._connection.listing
        else:
            found = listing(self._server, timeout=self._start_timeout, protocol=self._protocol, keep=self._shared)
        return found.tools, found.instructions

    async def _open(self) -> None:
        if self._connection is not None:
            raise EnvError("an environment plays one episode; make another one for the next")
        if self._shared:
            self._connection = await connect_shared(self._server, timeout=self._start_timeout, protocol=self._protocol)
            return
        self._connection = connection = await connect(
            self._server, timeout=self._start_timeout, protocol=self._protocol, rollout=self.rollout_id, limit=self._limit
        )
        weakref.finalize(self, connection.close, 0)

    async def _ask(self, name: str, arguments: dict[str, Any]) -> Result:
        if self._connection is None:
            raise EnvError("step was called before reset")
        if self._shared and not self._connection.usable:  # given up on after somebody's call hung; there may be a new one
            self._connection = await connect_shared(self._server, timeout=self._start_timeout, protocol=self._protocol)
        result = await self._connection.call(name, arguments, timeout=self.tool_timeout)
        value = result.structured if result.structured is not None else result.text
        return Result(shown=result.text, value=value)

    def _where(self) -> str:
        return f"the MCP server {str(self._server)!r}"

    def close(self) -> None:
        """End the connection, and the server process with it; a shared one stays."""
        if self._connection is not None and not self._shared:
            self._connection.close()


def _server(command: str, url: str, server: str, pass_env: tuple[str, ...], shared: bool) -> Server:
    if command:
        try:
            argv = tuple(shlex.split(command))
        except ValueError as error:
            raise ConfigError(f"command {command!r} cannot be read: {error}") from error
        return Command(argv, pass_env)
    if url:
        return Url(url)
    made = _named(server)
    if not callable(made) and not shared:
        raise ConfigError(
            f"{server} is one server object, whose state all episodes would share. Name a function that makes one, "
            "or say shared=true if it keeps no state."
        )
    return Local(made, server)


def _named(spec: str) -> Any:
    """A server object of a file, or a function that makes one."""
    path, _, name = spec.rpartition(":")
    if path.endswith(".py"):
        found = getattr(load_file(path), name, None)
        if found is not None and not callable(found):
            return found
    return load_function(spec)
