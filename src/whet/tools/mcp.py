"""Connections to MCP servers: over stdio, over streamable HTTP, and to a server object in this process.

    connection = await connect(Command(("python", "server.py")), timeout=30)
    result = await connection.call("lookup", {"name": "Rosa"}, timeout=10)
    connection.close()

Connections live on an event loop in the background, and may be used from any other loop. Each has one task that enters and
leaves the client of the package `mcp`, since its cancel scopes may not cross tasks. Every call has a deadline of ours: the
package's own does not interrupt a server in this process that blocks.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

from whet.errors import ConfigError, EnvError, ToolError, ToolTimeout, missing_extra
from whet.tools.background import Background, abandon, background
from whet.tools.function import Pure, Tool
from whet.tools.schema import SchemaCheck, clean
from whet.tools.stdio import MAX_MESSAGE, Command, Fate, stdio

try:
    import mcp
    import mcp.client.streamable_http
    import mcp_types
except ImportError as error:
    raise missing_extra("mcp", "mcp", "an MCP server") from error

ROLLOUT_HEADER = "X-Whet-Rollout"
"""HTTP header that names the attempt at an episode: tools and graders tell episodes apart by it."""
SAFE = "/#@:-._~"
"""What is not written as %XX in it, beside letters and digits."""
CLOSE_SECONDS = 8.0
Protocol = Literal["auto", "legacy"]


class ServerError(EnvError):
    """An MCP server answered with an error of its own, which is no business of the model's."""


class ServerLost(ServerError):
    """An MCP server did not start, ended, or cannot be reached any more."""


@dataclass(frozen=True)
class Url:
    """A server that speaks MCP's streamable HTTP."""

    url: str
    headers: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class Local:
    """A server in this process: an `MCPServer` (or low-level `Server`), or a function that makes one for each connection."""

    server: Any = field(hash=False)
    name: str

    def __str__(self) -> str:
        return self.name

    def make(self) -> Any:
        return self.server() if callable(self.server) else self.server


Server = Command | Url | Local


@dataclass(frozen=True)
class Result:
    """What a tool call gave."""

    text: str
    structured: Any = None
    """JSON that the server gave beside the text or in its place."""


@dataclass(frozen=True)
class Listing:
    """What a server offers."""

    tools: tuple[Tool, ...]
    instructions: str = ""


class Connection:
    """A connection to a server. Made by `connect`; `close` when done, or it is closed at the interpreter's end."""

    def __init__(
        self, server: Server, loop: Background, *, protocol: Protocol, rollout: str, shared: bool, slot: asyncio.Semaphore | None
    ) -> None:
        self.server, self.loop, self.shared = server, loop, shared
        self.listing = Listing(())
        self.alive = False
        self._protocol, self._rollout, self._slot = protocol, rollout, slot
        self._fate = Fate()
        self._client: Any = None
        self._leave = asyncio.Event()
        self._under_way = 0
        self._entered = self._retired = False
        self._owner: asyncio.Task[None]

    async def open(self, timeout: float) -> None:
        """On the background loop: connect and list the tools. Raises ServerLost, ConfigError."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._slot is not None:
            await self._slot.acquire()  # the owner lets go of it
        self._owner = asyncio.create_task(self._own(ready))
        self._owner.add_done_callback(self._gone)  # also of an owner that was cancelled before it began
        _open.add(self)
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(ready)
        except TimeoutError:
            await self.leave()
            raise self._lost(f"did not answer within {timeout:g} s") from None
        except BaseException:
            await self.leave()
            raise

    async def _own(self, ready: asyncio.Future[None]) -> None:
        """The one task that enters the client, and leaves it."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                client = await stack.enter_async_context(await self._enter(stack))
                self.listing = await _list(client)
                self._client, self.alive, self._entered = client, True, True
                ready.set_result(None)
                await self._leave.wait()
        except BaseException as error:
            told = _leaf(error)
            if not ready.done():
                ready.set_exception(told if isinstance(told, ConfigError) else self._lost(f"did not start ({_words(told)})"))
                ready.exception()  # nobody may be waiting any more
            if isinstance(error, asyncio.CancelledError):
                raise

    def _gone(self, owner: asyncio.Task[None]) -> None:
        self.alive = False
        self._client = None
        _open.discard(self)
        if self._slot is not None:
            self._slot.release()

    async def _enter(self, stack: contextlib.AsyncExitStack) -> Any:
        """The package's client for this server; what it needs is entered on the stack before it."""
        if isinstance(self.server, Local):
            return mcp.Client(self.server.make(), mode=self._protocol)
        if isinstance(self.server, Command):
            return mcp.Client(stdio(self.server, self._fate), mode=self._protocol)
        import httpx2

        headers = {**dict(self.server.headers), **({ROLLOUT_HEADER: quote(self._rollout, safe=SAFE)} if self._rollout else {})}
        http = httpx2.AsyncClient(headers=headers, timeout=httpx2.Timeout(30.0, read=None), limits=httpx2.Limits(max_connections=None))
        await stack.enter_async_context(http)
        transport = mcp.client.streamable_http.streamable_http_client(self.server.url, http_client=http, max_sse_event_size=MAX_MESSAGE)
        return mcp.Client(transport, mode=self._protocol)

    async def call(self, name: str, arguments: Mapping[str, Any], *, timeout: float) -> Result:
        """What a tool gives, from any event loop.

        Raises ToolError with what the server says of the call, ToolTimeout past the deadline (in seconds), ServerLost where
        the server is gone, ServerError where it failed otherwise.
        """
        try:
            async with asyncio.timeout(timeout) as deadline:
                return await self.loop.run(self._call(name, dict(arguments)))
        except asyncio.CancelledError:
            self._give_up()
            raise
        except TimeoutError:
            if not deadline.expired():
                raise
            self._give_up()
            raise ToolTimeout(f"{name} did not answer within {timeout:g} s") from None

    def _give_up(self) -> None:
        """A call was not waited for to its end: nobody knows whether the server will ever answer anybody."""
        self._retired = self.shared

    async def _call(self, name: str, arguments: dict[str, Any]) -> Result:
        if not self.alive:
            raise self._lost("is gone")
        self._under_way += 1
        try:
            result = await self._client.call_tool(name, arguments)
        except asyncio.CancelledError:
            self._give_up()
            raise
        except mcp.MCPError as error:
            if error.code == mcp_types.CONNECTION_CLOSED:
                self.alive = False
                raise self._lost(f"ended during a call of {name}") from None
            if error.code == mcp_types.INVALID_PARAMS:
                raise ToolError(error.message) from None
            raise ServerError(f"the MCP server {str(self.server)!r} failed in a call of {name}: {error.message} ({error.code})") from None
        except Exception as error:
            self.alive = False
            raise self._lost(f"ended during a call of {name} ({_words(_leaf(error))})") from error
        finally:
            self._under_way -= 1
            if (self._retired or not self.alive) and not self._under_way:
                self._leave.set()
        text = "\n".join(map(_block, result.content))
        if result.is_error:
            raise ToolError(text or f"{name} failed")
        structured = result.structured_content
        return Result(text if text or structured is None else json.dumps(structured, ensure_ascii=False), structured)

    @property
    def usable(self) -> bool:
        """Whether new calls may go over it: it is alive, and none of its calls was given up."""
        return self.alive and not self._retired and self._fate.exit is None

    async def leave(self) -> None:
        """On the background loop: let the owner leave the client, and wait for it; past the deadline it is cancelled."""
        self._leave.set()
        if not self._entered:
            self._owner.cancel()
        done, _ = await asyncio.wait({self._owner}, timeout=CLOSE_SECONDS)
        if not done:
            self._owner.cancel()

    def close(self, wait: float = CLOSE_SECONDS) -> None:
        """End the connection and the server process behind it. Waits `wait` seconds at most, from any thread."""
        with contextlib.suppress(TimeoutError, RuntimeError, asyncio.CancelledError):
            if wait:
                self.loop.wait(self.leave(), wait)
            else:
                self.loop.loop.call_soon_threadsafe(self._leave.set)

    def _lost(self, how: str) -> ServerLost:
        known = f": {self._fate}" if isinstance(self.server, Command) and (self._fate.exit is not None or self._fate.complaints) else ""
        return ServerLost(f"the MCP server {str(self.server)!r} {how}{known}")


_open: weakref.WeakSet[Connection] = weakref.WeakSet()
_shared: dict[tuple[Server, Protocol], Connection] = {}
_locks: dict[tuple[Server, Protocol, Background], asyncio.Lock] = {}
_slots: dict[tuple[Server, int, Background], asyncio.Semaphore] = {}
_listings: dict[tuple[Server, Protocol], Listing] = {}


async def connect(
    server: Server, *, timeout: float, protocol: Protocol = "auto", rollout: str = "", limit: int | None = None
) -> Connection:
    """A connection of one's own, with its tools listed, from any event loop.

    `timeout` is in seconds, `rollout` goes into a header over HTTP, and where `server` is a process, `limit` is how many
    there may be at once; then this waits until one has ended. Raises ServerLost or, where nothing can be started, ConfigError.
    """
    loop = _loop(server)
    return await loop.run(_connect(server, loop, timeout, protocol, rollout=rollout, limit=limit))


async def connect_shared(server: Server, *, timeout: float, protocol: Protocol = "auto") -> Connection:
    """The connection that everybody shares, for servers that keep no state; a new one where the last is gone or hangs."""
    loop = _loop(server)
    return await loop.run(_connect_shared(server, loop, timeout, protocol))


def listing(server: Server, *, timeout: float, protocol: Protocol = "auto", keep: bool = False) -> Listing:
    """What a server offers, from any thread: as it was told the last time, or over a connection made for that.

    `keep` leaves the connection open for those who share one. Raises as `connect`.
    """
    key = (server, protocol)
    if key not in _listings:
        loop = _loop(server)
        if keep:
            loop.wait(_connect_shared(server, loop, timeout, protocol), timeout + 1)
        else:
            loop.wait(_connect(server, loop, timeout, protocol), timeout + 1).close()
    return _listings[key]


def open_connections() -> int:
    """How many connections this process has."""
    return len(_open)


def close_shared() -> None:
    """Close the connections that are shared."""
    while _shared:
        _shared.popitem()[1].close()


async def _connect(
    server: Server,
    loop: Background,
    timeout: float,
    protocol: Protocol,
    *,
    rollout: str = "",
    shared: bool = False,
    limit: int | None = None,
) -> Connection:
    slot = _slots.setdefault((server, limit, loop), asyncio.Semaphore(limit)) if limit and isinstance(server, Command) else None
    connection = Connection(server, loop, protocol=protocol, rollout=rollout, shared=shared, slot=slot)
    await connection.open(timeout)
    _listings[server, protocol] = connection.listing
    return connection


async def _connect_shared(server: Server, loop: Background, timeout: float, protocol: Protocol) -> Connection:
    key = (server, protocol)
    async with _locks.setdefault((*key, loop), asyncio.Lock()):
        found = _shared.get(key)
        if found is None or not found.usable or found.loop is not loop:
            found = _shared[key] = await _connect(server, loop, timeout, protocol, shared=True)
        return found


def _loop(server: Server) -> Background:
    """Where the connection is to live. Servers in this process share a loop, which is replaced when one of them blocks it."""
    if not isinstance(server, Local):
        return background("mcp")
    loop = background("mcp-local")
    if not loop.answers():
        abandon(loop)
        loop = background("mcp-local")
    return loop


async def _list(client: Any) -> Listing:
    tools: list[Tool] = []
    cursor: str | None = None
    while True:
        page = await client.list_tools(cursor=cursor)
        tools += [as_tool(found) for found in page.tools]
        cursor = page.next_cursor
        if not cursor:
            return Listing(tuple(tools), client.instructions or "")


def as_tool(found: Any, pure: Pure = False) -> Tool:
    """A tool of an MCP listing as whet's."""
    schema = clean(found.input_schema)
    return Tool(
        name=found.name,
        description=" ".join((found.description or "").split()),
        parameters={"type": "object", "properties": {}} | {k: v for k, v in schema.items() if k not in ("$schema", "description")},
        arguments=SchemaCheck(found.input_schema),
        pure=pure,
    )


def _block(block: Any) -> str:
    """A piece of content as text; what is no text is named with its size."""
    if block.type == "text":
        return str(block.text)
    resource = getattr(block, "resource", None)
    if resource is not None and getattr(resource, "text", None) is not None:
        return str(resource.text)
    data = getattr(block, "data", None) or getattr(resource, "blob", None) or ""
    kind = getattr(block, "mime_type", None) or getattr(resource, "mime_type", None) or block.type
    where = getattr(block, "uri", None) or getattr(resource, "uri", None)
    return f"[{kind}{f' {where}' if where else ''}{f', {len(data) * 3 // 4:,} bytes' if data else ''}]"


def _leaf(error: BaseException) -> BaseException:
    """The first error inside exception groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


@atexit.register
def _close_all() -> None:
    for connection in list(_open):
        connection.close(wait=0)
    loops = {connection.loop for connection in list(_open)}
    for loop in loops:
        with contextlib.suppress(TimeoutError, RuntimeError):
            loop.wait(_all_gone(loop), 3.0)


async def _all_gone(loop: Background) -> None:
    while any(connection.loop is loop for connection in list(_open)):
        await asyncio.sleep(0.01)
