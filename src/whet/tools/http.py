"""Tools behind HTTP endpoints: a call is a POST of its arguments as JSON.

    POST {url}/{tool}              the arguments, as an object
    X-Whet-Rollout: step3/t17#2    the attempt at an episode; tools and graders tell episodes apart by it
    Idempotency-Key: ...           the call; a server that sees it again may repeat its answer

    200 {"result": ...}            what the model is shown; any other JSON or text is shown as it is
    200 {"error": "..."}, 4xx      shown to the model as a failed call
    5xx, 408, 425, 429, no answer  tried again, `retries` times with growing pauses; then EndpointError, which fails the
                                   attempt at the episode

Tools are described inline or by a URL (`{url}/tools` if nothing else is said), as a list of objects with `name`,
`description`, `parameters` (JSON Schema) and perhaps a `url` of their own; OpenAI's form is read, too.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urljoin

from whet.errors import ConfigError, EnvError, ToolError, ToolTimeout, missing_extra
from whet.tools.background import Background, background
from whet.tools.function import Tool
from whet.tools.schema import SchemaCheck, clean

try:
    import httpx2
except ImportError as error:
    raise missing_extra("httpx2", "http", "a tool behind an HTTP endpoint") from error

ROLLOUT_HEADER = "X-Whet-Rollout"
MAX_BODY = 256 << 20
"""Bytes of an answer; more than that is an error of the endpoint."""
_PASSING = (408, 425, 429)
_PAUSE = 0.25
_LONGEST_PAUSE = 10.0
_clients: dict[Background, httpx2.AsyncClient] = {}

Description = str | Sequence[Mapping[str, Any]] | Mapping[str, Any] | None


class EndpointError(EnvError):
    """An endpoint could not be reached, failed, or answered something that cannot be read, however often it was asked."""


class HttpTools:
    """The tools of a server, and how they are called. Any thread and any event loop may use it.

    `counts` says what answers came back: `ok`, `4xx`, `5xx`, `429`, `connection`, `timeout`; of a call that was tried three
    times, all three.
    """

    def __init__(
        self,
        url: str,
        *,
        description: Description = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        retries: int = 3,
        pause: float = _PAUSE,
    ) -> None:
        """`timeout` (seconds) covers a call with all that it takes to try it again. Raises ConfigError for what is no URL."""
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"{url!r} is no address of a tool server; expected http://... or https://...")
        if retries < 0 or not timeout > 0:
            raise ConfigError(f"retries is {retries} and timeout {timeout}; expected 0 or more tries and a number of seconds above 0")
        self.url, self.timeout, self.retries, self.pause = url.rstrip("/"), timeout, retries, pause
        self.counts: Counter[str] = Counter()
        self._headers = dict(headers or {})
        self._description = description
        self._tools: dict[str, tuple[Tool, str]] | None = None

    def tools(self) -> tuple[Tool, ...]:
        """The tools; described by a URL, they are fetched the first time, from any thread. Raises ConfigError, EndpointError."""
        if self._tools is None:
            found = self._description
            if found is None or isinstance(found, str):
                where = urljoin(f"{self.url}/", found or "tools")
                try:
                    found = background("http").wait(self._send("GET", where, None, rollout="", key=""), self.timeout)
                except TimeoutError:
                    raise EndpointError(f"GET {where}, which describes the tools, did not answer within {self.timeout:g} s") from None
                except ToolError as error:
                    raise ConfigError(f"GET {where}, which is to describe the tools, gave: {error}") from error
            self._tools = _read_tools(found, self.url)
        return tuple(tool for tool, _ in self._tools.values())

    async def call(self, name: str, arguments: Mapping[str, Any], *, rollout: str) -> Any:
        """What a tool gives: text, bytes or JSON.

        Raises ToolError with what the endpoint says is wrong with the call, ToolTimeout past the deadline, EndpointError
        where it cannot be reached or fails each time.
        """
        self.tools()
        assert self._tools is not None
        if name not in self._tools:
            raise ToolError(f"unknown tool {name!r}")
        given = await self.post(self._tools[name][1], arguments, rollout=rollout, what=name)
        if isinstance(given, Mapping) and given.get("error") is not None:
            raise ToolError(_text(given["error"]))
        return given["result"] if isinstance(given, Mapping) and "result" in given else given

    async def post(self, url: str, body: Mapping[str, Any], *, rollout: str, what: str = "") -> Any:
        """The answer to a POST. Raises as `call`."""
        work = self._send("POST", url, dict(body), rollout=rollout, key=secrets.token_hex(8))
        try:
            async with asyncio.timeout(self.timeout) as deadline:
                return await background("http").run(work)
        except TimeoutError:
            if not deadline.expired():
                raise
            self.counts["timeout"] += 1
            raise ToolTimeout(f"{what or url} did not answer within {self.timeout:g} s") from None

    async def _send(self, method: str, url: str, body: dict[str, Any] | None, *, rollout: str, key: str) -> Any:
        """On the background loop: ask until there is an answer that counts."""
        headers = {**self._headers, ROLLOUT_HEADER: quote(rollout, safe="/#@:-._~"), "Idempotency-Key": key}
        content = None if body is None else json.dumps(body, default=str).encode()
        headers |= {"Content-Type": "application/json"} if content is not None else {}
        counts = self.counts if content is not None else Counter()
        for tried in range(self.retries + 1):
            wait = self.pause * 2**tried
            try:
                status, answer, after = await _exchange(method, url, content, {k: v for k, v in headers.items() if v})
            except httpx2.TransportError as error:
                counts["connection"] += 1
                problem = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            else:
                if status < 400:
                    counts["ok"] += 1
                    return _decoded(answer)
                if status < 500 and status not in _PASSING:
                    counts["4xx"] += 1
                    raise ToolError(_complaint(status, answer))
                counts["429" if status in _PASSING else "5xx"] += 1
                problem, wait = f"{status} {_complaint(status, answer)[:300]}", max(wait, after)
            if tried < self.retries:
                await asyncio.sleep(min(wait, _LONGEST_PAUSE))
        raise EndpointError(f"{method} {url} failed {self.retries + 1} times; the last time: {problem}")


async def post(url: str, body: Mapping[str, Any], *, rollout: str, timeout: float) -> Any:
    """The answer of a single endpoint, such as a grader's. Its 4xx is a failure, too: there is no model to be told.

    Raises EndpointError.
    """
    try:
        return await HttpTools(url, description=(), timeout=timeout).post(url, body, rollout=rollout)
    except ToolError as error:
        raise EndpointError(f"POST {url} failed: {error}") from error


async def _exchange(method: str, url: str, content: bytes | None, headers: Mapping[str, str]) -> tuple[int, bytes, float]:
    """Status, body, and the seconds that the server asks to wait. Raises httpx2.TransportError, EndpointError."""
    loop = background("http")
    if loop not in _clients:
        _clients[loop] = httpx2.AsyncClient(timeout=httpx2.Timeout(30.0, read=None), limits=httpx2.Limits(max_connections=None))
    async with _clients[loop].stream(method, url, content=content, headers=dict(headers)) as response:
        pieces, size = [], 0
        async for piece in response.aiter_bytes():
            pieces.append(piece)
            size += len(piece)
            if size > MAX_BODY:
                raise EndpointError(f"{method} {url} answered with more than {MAX_BODY >> 20} MB")
        after = response.headers.get("Retry-After", "")
        return response.status_code, b"".join(pieces), float(after) if after.isdigit() else 0.0


def _decoded(body: bytes) -> Any:
    """JSON where it is JSON, else the bytes as they came: an environment shows them as text."""
    if body[:1] not in b'{["-0123456789tfn' or not body:
        return body
    try:
        return json.loads(body.decode(errors="replace"))
    except ValueError:
        return body


def _complaint(status: int, body: bytes) -> str:
    """What an answer that is an error says, in its own words."""
    said = _decoded(body)
    if isinstance(said, Mapping):
        said = next((said[key] for key in ("error", "detail", "message") if said.get(key)), said)
    text = said.decode(errors="replace") if isinstance(said, bytes) else _text(said)
    return text.strip() or f"HTTP {status}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read_tools(described: Any, url: str) -> dict[str, tuple[Tool, str]]:
    """Tools with their addresses. Raises ConfigError for what describes none."""
    listed = described.get("tools", [described]) if isinstance(described, Mapping) else described
    if not isinstance(listed, Sequence) or isinstance(listed, (str, bytes)):
        raise ConfigError(f"the tools of {url} are described by {described!r:.100}; expected a list of objects with name and parameters")
    found = {}
    for entry in listed:
        function = entry.get("function", entry) if isinstance(entry, Mapping) else {}
        name, parameters = function.get("name"), function.get("parameters") or {"type": "object", "properties": {}}
        if not isinstance(name, str) or not name or not isinstance(parameters, Mapping):
            raise ConfigError(f"a tool of {url} is described by {entry!r:.200}; expected an object with name, description and parameters")
        tool = Tool(
            name=name,
            description=" ".join(str(function.get("description", "")).split()),
            parameters={"type": "object", "properties": {}} | clean(parameters),
            arguments=SchemaCheck(parameters),
        )
        found[name] = (tool, urljoin(f"{url}/", str(function.get("url") or entry.get("url") or quote(name))))
    return found
