"""The wire between whet and a `verifiers` environment server: ZeroMQ outwards, chat completions inwards.

A `verifiers` server plays whole episodes itself and asks a model endpoint for each turn. So an episode here is a request `run`
to the server, whose model endpoint is this process: what the server asks for there is the agent's next observation, and what
the agent then does is the answer.

    whet  --- run(task, endpoint) --->  server          DEALER, frames [request id, method, msgpack]
    whet  <-- POST /TOKEN/v1/chat/completions ---       one per turn, held open until the agent has acted
    whet  <-- delta ..., reply -------  server          frames [request id, kind, msgpack]
"""

from __future__ import annotations

import contextlib
import functools
import json
import secrets
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Empty, SimpleQueue
from typing import Any

from whet.errors import EnvError, missing_extra

try:
    import msgpack
    import zmq
except ImportError as error:
    raise missing_extra("pyzmq and msgpack", "verifiers", "the environment 'verifiers'") from error

PULSE = 5.0
"""Seconds between two questions whether the server is alive."""
SILENCE = 60.0
"""Seconds without any word from the server after which it counts as dead."""
GREETING = 10.0
"""Seconds that a server may take to say that it is there."""
MODEL = "whet"


@dataclass
class Asked:
    """A turn that the server asked for. `answer` lets its request go on."""

    body: Mapping[str, Any]
    reply: bytes = b""
    kind: str = "application/json"
    status: int = 200
    answered: threading.Event = field(default_factory=threading.Event)

    def answer(self, message: Mapping[str, Any]) -> None:
        """Send this assistant message, in the form that was asked for: whole, or as a stream of a single piece."""
        finish = "tool_calls" if message.get("tool_calls") else "stop"
        head = {"id": f"whet-{uuid.uuid4().hex}", "created": int(time.time()), "model": MODEL}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        if not self.body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": finish}
            self.reply = json.dumps({**head, "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
        else:
            calls = [{"index": i, **call} for i, call in enumerate(message.get("tool_calls") or ())]
            delta = {**message, **({"tool_calls": calls} if calls else {})}
            pieces: list[dict[str, Any]] = [
                {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
                {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]},
                {"choices": [], "usage": usage},
            ]
            lines = [json.dumps({**head, "object": "chat.completion.chunk", **piece}) for piece in pieces]
            self.reply = "".join(f"data: {line}\n\n" for line in (*lines, "[DONE]")).encode()
            self.kind = "text/event-stream"
        self.answered.set()

    def refuse(self, reason: str, status: int = 410) -> None:
        self.reply, self.status = json.dumps({"error": {"message": reason, "type": "whet"}}).encode(), status
        self.kind = "application/json"
        self.answered.set()


@dataclass(frozen=True)
class Ended:
    """How an episode ended on the server: its record, or what went wrong."""

    episode: Mapping[str, Any] = field(default_factory=dict)
    traces: tuple[Mapping[str, Any], ...] = ()
    error: str = ""


Event = Asked | Ended


class _Endpoint(ThreadingHTTPServer):
    """This process as a model: requests are sorted to their episodes by the token in their path."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, host: str) -> None:
        self.queues: dict[str, SimpleQueue[Event]] = {}
        super().__init__((host, 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True, name="whet-verifiers-endpoint").start()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Endpoint

    def do_POST(self) -> None:
        token, _, route = self.path.lstrip("/").partition("/")
        asked = Asked(body={})
        try:
            asked = Asked(body=json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0)))))
        except ValueError as error:
            asked.refuse(f"the request is no JSON: {error}", 400)
        queue = self.server.queues.get(token)
        if queue is None:
            asked.refuse("no such episode; it may be over", 404)
        elif route != "v1/chat/completions":
            asked.refuse(f"whet answers chat completions only, not {route!r}", 404)
            queue.put(Ended(error=f"its harness asked for {route!r}, and whet answers chat completions only; choose another harness"))
        elif not asked.answered.is_set():
            queue.put(asked)
        asked.answered.wait()
        with contextlib.suppress(OSError):  # whoever asked may be gone
            self.send_response(asked.status)
            self.send_header("Content-Type", asked.kind)
            self.send_header("Content-Length", str(len(asked.reply)))
            self.end_headers()
            self.wfile.write(asked.reply)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no news."""


@functools.cache
def _endpoint(host: str) -> _Endpoint:
    return _Endpoint(host)


@functools.cache
def _context() -> zmq.Context[Any]:
    return zmq.Context()


class Play:
    """One episode on a server, from `run` to its reply. `next` gives what happens, turn by turn."""

    def __init__(self, url: str, host: str, task: Mapping[str, Any], sampling: Mapping[str, Any]) -> None:
        """Raises EnvError where no server answers."""
        self._url = url
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._endpoint = _endpoint(host)
        self._token = secrets.token_urlsafe(16)
        self._asked: Asked | None = None
        self._closing = threading.Event()
        greeted: SimpleQueue[str] = SimpleQueue()
        base = f"http://{host}:{self._endpoint.server_port}/{self._token}/v1"
        # Their client reads its key from this variable of its own process; there is none to read.
        client = {"type": "eval", "base_url": base, "api_key_var": "WHET_ENDPOINT_KEY"}
        self._request = {"task_data": dict(task), "client": client, "model": MODEL, "sampling": dict(sampling)}
        self._endpoint.queues[self._token] = self._events
        # All that is done with the socket is done by this thread, as ZeroMQ demands.
        threading.Thread(target=self._run, args=(greeted,), daemon=True, name="whet-verifiers").start()
        if problem := greeted.get():
            self.close()
            raise EnvError(problem)

    def next(self, timeout: float) -> Event:
        """The next turn that the server asks for, or the end. Raises EnvError after `timeout` seconds."""
        try:
            event = self._events.get(timeout=timeout)
        except Empty:
            raise EnvError(
                f"the verifiers server {self._url} neither asked for a turn nor ended the episode within {timeout:g} s"
            ) from None
        if isinstance(event, Asked):
            self._asked = event
        return event

    def answer(self, message: Mapping[str, Any]) -> None:
        """What the agent did in the turn that was asked for last."""
        asked, self._asked = self._asked, None
        if asked is None:
            raise EnvError("the verifiers server has not asked for a turn")
        asked.answer(message)

    def close(self) -> None:
        """Leave the episode; one that is not over is cancelled on the server."""
        self._closing.set()
        self._endpoint.queues.pop(self._token, None)
        if self._asked is not None:
            self._asked.refuse("the episode was closed")
        with contextlib.suppress(Empty):
            while isinstance(event := self._events.get_nowait(), Asked):
                event.refuse("the episode was closed")

    def _run(self, greeted: SimpleQueue[str]) -> None:
        socket = _context().socket(zmq.DEALER)
        try:
            socket.setsockopt(zmq.LINGER, 1000)  # milliseconds for what is still to be sent, such as the cancelling
            for high_water in (zmq.SNDHWM, zmq.RCVHWM):
                socket.setsockopt(high_water, 0)
            socket.connect(self._url)
            self._events.put(self._talk(socket, greeted))
        except Exception as error:
            greeted.put(f"the verifiers server {self._url} cannot be talked to: {error}")
            self._events.put(Ended(error=f"{type(error).__name__}: {error}"))
        finally:
            socket.close()

    def _talk(self, socket: zmq.Socket[Any], greeted: SimpleQueue[str]) -> Ended:
        _send(socket, "health", {})
        if not socket.poll(int(GREETING * 1000)):
            greeted.put(f"no verifiers server answered at {self._url} within {GREETING:g} s. Is it running (`serve_env`)?")
            return Ended(error="no server")
        socket.recv_multipart()
        greeted.put("")
        run = _send(socket, "run", self._request)
        assembly = Assembly()
        heard = asked = time.monotonic()
        while not self._closing.is_set():
            if socket.poll(50):
                request, kind, data = socket.recv_multipart()
                heard = time.monotonic()
                if request != run:
                    continue
                told = msgpack.unpackb(data, raw=False, strict_map_key=False)
                if kind == b"delta":
                    assembly.apply(told)
                elif not told.get("success"):
                    return Ended(error=str(told.get("error")))
                else:
                    return assembly.finish(told)
            now = time.monotonic()
            if now - heard > SILENCE:
                return Ended(error=f"nothing was heard from it for {SILENCE:g} s")
            if now - max(heard, asked) > PULSE:
                asked = now
                _send(socket, "health", {})
        _send(socket, "cancel", {"request_id": run.decode()})
        return Ended(error="closed")


class Assembly:
    """What the server has told about the traces of an episode: each piece once, as it came."""

    def __init__(self) -> None:
        self._traces: dict[str, dict[str, Any]] = {}

    def apply(self, delta: Mapping[str, Any]) -> None:
        if delta.get("discard"):
            self._traces.pop(delta["trace"], None)
            return
        if "open" in delta:
            self._traces[delta["trace"]] = {**delta["open"], "errors": []}
        trace = self._traces[delta["trace"]]
        trace["errors"] += delta.get("errors") or []
        trace.update(delta.get("set") or {})

    def finish(self, reply: Mapping[str, Any]) -> Ended:
        missing = [one["id"] for one in reply["traces"] if one["id"] not in self._traces]
        if missing:
            return Ended(error=f"it never told about trace {missing[0]}, which belongs to the episode")
        return Ended(episode=reply["head"], traces=tuple(self._traces[one["id"]] for one in reply["traces"]))


def _send(socket: zmq.Socket[Any], method: str, payload: Mapping[str, Any]) -> bytes:
    """Send a request; its id."""
    request = uuid.uuid4().hex.encode()
    socket.send_multipart([request, method.encode(), msgpack.packb(payload, use_bin_type=True)])
    return request
