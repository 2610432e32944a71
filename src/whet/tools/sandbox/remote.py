"""A sandbox on another machine, over a small protocol: JSON by HTTP. server.py is one side of it, this the other.

    GET  /capabilities      -> {"kind", "isolation", "python", "packages", "argv", "processes", "details", "gaps"}
    POST /run               {"code" or "argv", "stdin", "files": {path: base64}, "timeout", "memory", "output"}
                            -> {"stdout", "stderr", "exit", "killed_by", "truncated", "files": {path: base64}, "seconds"}

With a token, each request carries `Authorization: Bearer TOKEN`. Errors are {"error": text}: 400 for arguments that cannot
work, 401 for a wrong token, 503 where the sandbox behind the server fails.
"""

from __future__ import annotations

import base64
import http.client
import json
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from whet.errors import ConfigError
from whet.tools.sandbox.base import Capabilities, Result, Sandbox, SandboxUnavailable, check_arguments

ATTEMPTS = 3
"""How often a request is made before a server that fails, or does not answer, is given up. A run leaves nothing behind, so
that running it again is harmless."""
PAUSE = 0.2
"""Seconds before the second attempt; doubled before the third."""
ANSWER = 64 << 20
"""Bytes that an answer may have."""


class RemoteSandbox(Sandbox):
    """Options: `url` is where the server is, such as `http://127.0.0.1:8700`; `token` is what it asks for; `patience` is how
    many seconds it may take on top of a run's timeout, for queueing and for the way.
    """

    def __init__(self, *, url: str, token: str = "", patience: float = 30.0) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"url is {url!r}; expected an address such as 'http://127.0.0.1:8700'")
        self._parts, self._url, self._token, self._patience = parts, url, token, patience
        told = self._ask("GET", "/capabilities", None, patience)
        try:
            details = (f"{told['kind']} at {url}", *told["details"])
            self.capabilities = Capabilities(
                kind="remote",
                isolation="weak" if told["isolation"] == "weak" else "remote",
                python=told["python"],
                packages=tuple(told["packages"]),
                argv=told["argv"],
                processes=told["processes"],
                details=details,
                gaps=tuple(told["gaps"]),
            )
        except (KeyError, TypeError) as error:
            raise SandboxUnavailable(f"{url} does not answer like a sandbox: {str(told)[:200]}") from error

    def run(
        self,
        code: str | None = None,
        *,
        argv: Sequence[str] | None = None,
        stdin: str = "",
        files: Mapping[str, bytes] = {},
        timeout: float = 10.0,
        memory: int = 512 << 20,
        output: int = 1 << 16,
    ) -> Result:
        """As `Sandbox.run`. `seconds` is what the server measured."""
        check_arguments(code, argv, files, timeout, memory, output)
        encoded = {name: base64.b64encode(content).decode("ascii") for name, content in files.items()}
        request = {"stdin": stdin, "files": encoded, "timeout": timeout, "memory": memory, "output": output}
        request |= {"code": code} if argv is None else {"argv": list(argv)}
        told = self._ask("POST", "/run", request, timeout + self._patience)
        try:
            return result_of(told)
        except (KeyError, TypeError, ValueError) as error:
            raise SandboxUnavailable(f"{self._url} does not answer like a sandbox: {str(told)[:200]}") from error

    def _ask(self, method: str, path: str, request: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
        """The answer's JSON. Raises ConfigError where the request is at fault, SandboxUnavailable where the server is."""
        body = None if request is None else json.dumps(request)
        problem = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                status, told = self._once(method, path, body, seconds)
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if status == 200:
                return told
            problem = f"status {status}: {told.get('error', '')}"
            if status == 400:
                raise ConfigError(str(told.get("error", "")))
            if status < 500:
                break
        raise SandboxUnavailable(f"the sandbox at {self._url} does not work: {problem}")

    def _once(self, method: str, path: str, body: str | None, seconds: float) -> tuple[int, dict[str, Any]]:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        assert self._parts.hostname is not None
        connection = kind(self._parts.hostname, self._parts.port, timeout=seconds)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._token}"} if self._token else {})
        try:
            connection.request(method, self._parts.path.rstrip("/") + path, body=body, headers=headers)
            response = connection.getresponse()
            data = response.read(ANSWER + 1)
            if len(data) > ANSWER:
                raise ValueError(f"the answer has more than {ANSWER} bytes")
            told = json.loads(data)
            if not isinstance(told, dict):
                raise ValueError(f"the answer is no JSON object: {data[:100]!r}")
            return response.status, told
        finally:
            connection.close()


def result_of(told: Mapping[str, Any]) -> Result:
    """A result from the protocol's JSON. Raises KeyError, TypeError or ValueError where it is not one."""
    files = {str(name): base64.b64decode(content, validate=True) for name, content in told["files"].items()}
    return Result(
        stdout=str(told["stdout"]),
        stderr=str(told["stderr"]),
        exit=int(told["exit"]),
        killed_by=told["killed_by"],
        truncated=bool(told["truncated"]),
        files=files,
        seconds=float(told["seconds"]),
    )
