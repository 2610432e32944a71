"""A server process that is talked to in lines of JSON over its standard input and output, as MCP's stdio transport wants.

The transport of the package `mcp` joins each piece that arrives to all that came before (a result of 50 MB took it 57 s),
gives up on text that is no UTF-8, and lets the server's standard error run into ours. This one reads in linear time,
bounds the size of a message, keeps the end of what the server complained about, and knows how the process ended.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from whet.errors import ConfigError

MAX_MESSAGE = 512 << 20
"""Bytes of one message from a server."""
INHERITED = ("HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "LANG", "LC_ALL", "TMPDIR", "TZ", "SYSTEMROOT")
"""What a server sees of this process's environment variables; secrets stay here unless they are named."""
_CHUNK = 1 << 20
_GRACE = 1.0
"""Seconds that a server has to end by itself, and then after SIGTERM."""
_KEPT = 4_000
"""Bytes of a server's standard error that are kept."""
_groups: set[int] = set()


@dataclass(frozen=True)
class Command:
    """How a server process is started."""

    argv: tuple[str, ...]
    pass_env: tuple[str, ...] = ()
    """Environment variables that it is given beside the harmless ones."""
    cwd: str | None = None

    def __str__(self) -> str:
        return " ".join(self.argv)

    def environment(self) -> dict[str, str]:
        """Raises ConfigError for a variable that is not set."""
        for name in self.pass_env:
            if name not in os.environ:
                raise ConfigError(f"the server {str(self)!r} is to be given the environment variable {name!r}, which is not set")
        return {name: os.environ[name] for name in (*INHERITED, *self.pass_env) if name in os.environ}


@dataclass
class Fate:
    """What is known of a server process when its connection has ended."""

    exit: int | None = None
    """Its exit status, or minus the signal that killed it; None while it runs."""
    complaints: bytearray = field(default_factory=bytearray)
    """The end of its standard error."""
    note: str = ""

    def __str__(self) -> str:
        if self.note:
            how = self.note
        elif self.exit is None:
            how = "it closed its output"
        else:
            how = f"killed by signal {-self.exit}" if self.exit < 0 else f"exit status {self.exit}"
        lines = self.complaints.decode(errors="replace").strip().splitlines()
        return f"{how}; {' | '.join(lines[-3:])[-600:]}" if lines else how


@contextlib.asynccontextmanager
async def stdio(command: Command, fate: Fate) -> AsyncIterator[tuple[Any, Any]]:
    """Start a server, and the two streams of messages that a client session of the package `mcp` works with.

    At the end its input is closed, and its whole process group is killed if it has not gone by then. Raises ConfigError
    where there is no such program.
    """
    import anyio

    process = await _start(command)
    _groups.add(process.pid)
    to_session, from_server = anyio.create_memory_object_stream[Any](0)
    to_server, from_session = anyio.create_memory_object_stream[Any](0)
    tasks = [
        asyncio.create_task(_read(process, to_session, fate)),
        asyncio.create_task(_write(process, from_session, to_session)),
        asyncio.create_task(_listen(process, fate)),
    ]
    try:
        yield from_server, to_server
    finally:
        for stream in (from_server, to_server):
            stream.close()
        await _stop(process)
        _groups.discard(process.pid)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for stream in (to_session, from_session):
            stream.close()


async def _start(command: Command) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    try:
        return await asyncio.create_subprocess_exec(
            *command.argv,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=command.environment(),
            cwd=command.cwd,
            start_new_session=True,
            limit=_CHUNK,
        )
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(
            f"the server {str(command)!r} cannot be started: {error.strerror}: {error.filename!r}. Name a program on PATH or by its path."
        ) from error


async def _read(process: asyncio.subprocess.Process, to_session: Any, fate: Fate) -> None:
    """Hand each line of the server's output on as a message; the stream's end tells the session that the server is gone."""
    assert process.stdout is not None
    pieces: list[bytes] = []
    size = 0
    try:
        while chunk := await process.stdout.read(_CHUNK):
            *lines, rest = chunk.split(b"\n")
            for line in lines:
                message = b"".join((*pieces, line))
                pieces, size = [], 0
                if message.strip():
                    await to_session.send(_parse(message))
            pieces.append(rest)
            size += len(rest)
            if size > MAX_MESSAGE:
                fate.note = f"it sent a message of more than {MAX_MESSAGE >> 20} MB"
                break
        await _returncode(process, 0.5)
        fate.exit = process.returncode
    except Exception as error:
        if type(error).__name__ not in ("BrokenResourceError", "ClosedResourceError"):  # the session has left
            fate.note = f"reading its output failed: {error}"
    finally:
        to_session.close()


def _parse(line: bytes) -> Any:
    """A message, or the error that a line is none; bytes that are no UTF-8 are replaced."""
    from mcp.shared.message import SessionMessage
    from mcp_types import jsonrpc_message_adapter

    try:
        try:
            line.decode()
        except UnicodeDecodeError:
            line = line.decode(errors="replace").encode()
        return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
    except ValueError as error:
        return error


async def _write(process: asyncio.subprocess.Process, from_session: Any, to_session: Any) -> None:
    assert process.stdin is not None
    try:
        async for message in from_session:
            process.stdin.write(message.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
            await process.stdin.drain()
    except OSError:
        to_session.close()


async def _listen(process: asyncio.subprocess.Process, fate: Fate) -> None:
    """Keep the end of what the server writes to its standard error."""
    assert process.stderr is not None
    while chunk := await process.stderr.read(_CHUNK):
        fate.complaints += chunk[-_KEPT:]
        del fate.complaints[:-_KEPT]


async def _stop(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError, RuntimeError):
        process.stdin.close()
    if not await _returncode(process, _GRACE):
        _signal(process.pid, signal.SIGTERM)
        await _returncode(process, _GRACE)
    _signal(process.pid, signal.SIGKILL)  # and what it may have left behind
    await _returncode(process, _GRACE)
    process._transport.close()  # type: ignore[attr-defined]  # a grandchild out of reach may still hold the pipes


async def _returncode(process: asyncio.subprocess.Process, seconds: float) -> bool:
    """Whether the process ends in time. `Process.wait` would also wait for whoever else holds its pipes."""
    end = asyncio.get_running_loop().time() + seconds
    while process.returncode is None and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.005)
    return process.returncode is not None


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


@atexit.register
def _kill_all() -> None:
    """Whatever an abandoned loop could not close."""
    for group in list(_groups):
        _signal(group, signal.SIGKILL)
