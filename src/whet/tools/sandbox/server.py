"""Serves a sandbox to other machines, by the protocol of remote.py.

    python -m whet.tools.sandbox.server --port 8700 --kind zygote --option parallel=8 --token-file token

Whoever can reach it can run code in the sandbox. Without a token it listens on this machine only.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hmac
import json
import sys
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from whet.errors import ConfigError, WhetError
from whet.tools.sandbox import Sandbox, open_sandbox

REQUEST = 64 << 20
"""Bytes that a request may have."""
ARGUMENTS = {"code", "argv", "stdin", "files", "timeout", "memory", "output"}


class SandboxServer(ThreadingHTTPServer):
    """`SandboxServer(sandbox, ("127.0.0.1", 0), token="...")`; then `serve_forever()`, and `server_address` says where."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, sandbox: Sandbox, address: tuple[str, int], token: str = "", longest: float = 300.0) -> None:
        self.sandbox, self.token, self.longest = sandbox, token, longest
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    server: SandboxServer

    def do_GET(self) -> None:
        self._answer(lambda: asdict(self.server.sandbox.capabilities), "/capabilities")

    def do_POST(self) -> None:
        self._answer(self._run, "/run")

    def _answer(self, act: Any, path: str) -> None:
        given = self.headers.get("Authorization", "").encode()
        if self.server.token and not hmac.compare_digest(given, f"Bearer {self.server.token}".encode()):
            return self._send(401, {"error": "the token is missing or wrong"})
        if self.path != path:
            return self._send(404, {"error": f"no {self.path!r} here; there are GET /capabilities and POST /run"})
        try:
            return self._send(200, act())
        except ConfigError as error:
            return self._send(400, {"error": str(error)})
        except WhetError as error:
            return self._send(503, {"error": str(error)})

    def _run(self) -> dict[str, Any]:
        size = self.headers.get("Content-Length", "")
        if not size.isdigit() or int(size) > REQUEST:
            raise ConfigError(f"Content-Length is {size!r}; expected at most {REQUEST} bytes")
        try:
            request = json.loads(self.rfile.read(int(size)))
        except ValueError as error:
            raise ConfigError(f"the request is no JSON: {error}") from error
        if not isinstance(request, dict) or set(request) - ARGUMENTS:
            raise ConfigError(f"expected a JSON object with some of {', '.join(sorted(ARGUMENTS))}")
        arguments = _checked(request)
        if arguments.get("timeout", 10.0) > self.server.longest:
            raise ConfigError(f"timeout is {arguments['timeout']}; this server allows at most {self.server.longest:g} s")
        result = self.server.sandbox.run(**arguments)
        return asdict(result) | {"files": {name: base64.b64encode(content).decode("ascii") for name, content in result.files.items()}}

    def _send(self, status: int, told: dict[str, Any]) -> None:
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status in (400, 401, 404):  # the request's body may not have been read
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: they hold what models wrote."""


def _checked(request: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `Sandbox.run`. Raises ConfigError for wrong types; values are checked by `run`."""
    types = {"code": str, "argv": list, "stdin": str, "files": dict, "timeout": (int, float), "memory": int, "output": int}
    arguments = {key: value for key, value in request.items() if value is not None}
    for key, value in arguments.items():
        if not isinstance(value, types[key]) or isinstance(value, bool):  # type: ignore[arg-type]
            raise ConfigError(f"{key} is of type {type(value).__name__}")
    try:
        files = {name: base64.b64decode(content, validate=True) for name, content in arguments.pop("files", {}).items()}
    except (binascii.Error, TypeError, ValueError) as error:
        raise ConfigError(f"files must be base64: {error}") from error
    return arguments | {"files": files}


def main() -> int:
    """Returns 1 where the sandbox cannot be opened."""
    parser = argparse.ArgumentParser(prog="python -m whet.tools.sandbox.server", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8700, help="0 for any free one, which is printed")
    parser.add_argument("--kind", default="process", help="the sandbox that is served")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=JSON", help="an option of it, such as parallel=8")
    parser.add_argument("--token-file", type=Path, help="file that holds what clients must send; needed unless --host is this machine")
    parser.add_argument("--longest", type=float, default=300.0, help="seconds that a client may ask for at most")
    args = parser.parse_args()
    token = args.token_file.read_text().strip() if args.token_file else ""
    if not token and args.host not in ("127.0.0.1", "::1", "localhost"):
        parser.error(f"--host {args.host} can be reached by others; give a --token-file")
    options = {}
    for option in args.option:
        key, _, value = option.partition("=")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    try:
        with open_sandbox(args.kind, **options) as sandbox, SandboxServer(sandbox, (args.host, args.port), token, args.longest) as server:
            print(f"{args.kind} sandbox at http://{args.host}:{server.server_address[1]}", flush=True)
            server.serve_forever()
    except WhetError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
