"""MCP servers to test against: one with the SDK that can do everything wrong, and one without it that speaks the old protocol."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import whet

SOURCE = Path(whet.__file__).parent.parent
EXAMPLES = Path(__file__).parent.parent / "examples"
PYTHON = f"env PYTHONPATH={SOURCE} {sys.executable}"
"""A command that runs Python with this package."""

SERVER = '''
import asyncio, os, subprocess, sys, time
from mcp.server.mcpserver import MCPServer, Image
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel, Field

PAGES = {"Rosa": "boss Joe", "Joe": "friend Otto", "Otto": "teacher Mila"}


class Point(BaseModel):
    x: int = Field(ge=0)


def make():
    server = MCPServer("oddities", instructions="Look things up.", log_level="CRITICAL")
    cart = []

    @server.tool()
    def lookup(name: str) -> str:
        """Read
        a page."""
        if name not in PAGES:
            raise ToolError(f"no page of {name}")
        return PAGES[name]

    @server.tool()
    def add(item: str, at: Point | None = None) -> list[str]:
        "Put something into the cart."
        cart.append(item)
        return cart

    @server.tool()
    async def hang(seconds: float) -> str:
        "Answers late."
        await asyncio.sleep(seconds)
        return "at last"

    @server.tool()
    async def block(seconds: float) -> str:
        "Answers late, and nothing else answers meanwhile."
        time.sleep(seconds)
        return "at last"

    @server.tool()
    def big(n: int) -> str:
        "Much."
        return "x" * n

    @server.tool()
    def boom() -> str:
        "Breaks."
        raise RuntimeError("secret of the house")

    @server.tool()
    def die(word: str = "goodbye") -> str:
        "Ends the server."
        print(word, "cruel world", file=sys.stderr, flush=True)
        os._exit(3)

    @server.tool()
    def breed() -> int:
        "Leaves a child behind."
        return subprocess.Popen(["sleep", "1000"]).pid

    @server.tool()
    def environment() -> dict[str, str]:
        "What the server sees."
        return dict(os.environ)

    @server.tool()
    def picture() -> list[str | Image]:
        "Shows something."
        return ["a dot", Image(data=b"123456789", format="png")]

    @server.tool()
    def prepare(start: list[str], task: str) -> str:
        "Sets a task up."
        cart[:] = start
        return f"The cart of {task} holds {', '.join(start)}."

    @server.tool()
    def judge(goal: list[str]) -> dict[str, float | bool]:
        "Grades the cart."
        return {"reward": len(set(cart) & set(goal)) / len(goal), "success": sorted(cart) == sorted(goal)}

    @server.tool()
    def misjudge() -> str:
        "No grade."
        return "very good"

    return server


if __name__ == "__main__":
    server = make()
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
'''

OLD_SERVER = r"""
import json, sys
out = sys.stdout.buffer


def send(**message):
    out.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
    out.flush()


print("starting up, and saying so where only messages belong", flush=True)
for line in sys.stdin:
    message = json.loads(line)
    method, id = message.get("method"), message.get("id")
    if method == "initialize":
        send(id=id, result={"protocolVersion": "2024-11-05", "capabilities": {"tools": {}}, "serverInfo": {"name": "old", "version": "1"}})
    elif method == "tools/list":
        first = not (message.get("params") or {}).get("cursor")
        tool = {"name": "raw" if first else "junk", "inputSchema": {"type": "object", "properties": {"n": {"type": "integer"}}}}
        send(id=id, result={"tools": [tool], **({"nextCursor": "2"} if first else {})})
    elif method == "tools/call":
        if message["params"]["name"] == "junk":
            send(id=id, error={"code": -32603, "message": "the database is gone"})
            continue
        content = json.dumps([{"type": "text", "text": "caf@"}]).encode().replace(b"@", b"\xe9")
        out.write(b'{"jsonrpc": "2.0", "id": %d, "result": {"content": %s}}' % (id, content) + b"\n")
        out.flush()
    elif id is not None:
        send(id=id, error={"code": -32601, "message": "no such method"})
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(*argv: str, port: int, seconds: float = 60) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that listens on a port, until the end of the block."""
    process = subprocess.Popen([sys.executable, *argv], env={**os.environ, "PYTHONPATH": str(SOURCE)}, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + seconds
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, f"{argv} ended with {process.returncode}"
                assert time.monotonic() < end, f"{argv} does not listen on {port}"
                time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()
