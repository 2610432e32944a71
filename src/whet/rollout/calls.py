"""How an environment's code is called: in waves on one thread, overlapped on many, or awaited; always with a deadline.

Plain functions of inline environments run in waves: everything that is pending goes to one thread, in order, and the
results come back together, in order. Decoding waits meanwhile (`WaveGate`), so what shares a batch does not depend on
the clock, and one thread hop serves all episodes. Other plain functions get a thread each. Threads are daemons: a call
that never returns is abandoned with its thread, and the process can still exit.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from typing import Any

from whet.errors import EnvError

Outcome = tuple[bool, Any]
"""(True, what a call returned) or (False, what it raised)."""


class DeadlineError(EnvError):
    """A call did not return in time. `where` are the lines of code at which its thread was, innermost last."""

    def __init__(self, seconds: float, where: str = "") -> None:
        super().__init__(f"still running after {seconds:g} s")
        self.seconds = seconds
        self.where = where


class WaveGate:
    """Holds decoding back while an episode that could still ask for a turn has not asked (see `whet.policies.gate`)."""

    def __init__(self) -> None:
        self.busy = 0
        """Episodes in flight that wait neither for a policy nor for an overlapped call."""

    def blocked(self) -> bool:
        return self.busy > 0


class _Call:
    __slots__ = ("function", "future", "limit")

    def __init__(self, function: Callable[[], Any], limit: float, future: asyncio.Future[Outcome]) -> None:
        self.function, self.limit, self.future = function, limit, future


class _Wave:
    """Calls that one thread runs in order. `outcomes` grows as they return; the lock decides who was first at a deadline."""

    __slots__ = ("abandoned", "began", "calls", "lock", "outcomes", "timer", "worker")

    def __init__(self, calls: list[_Call]) -> None:
        self.calls = calls
        self.outcomes: list[Outcome] = []
        self.began = time.monotonic()
        """When the call that the thread is at began."""
        self.abandoned = False
        self.lock = threading.Lock()
        self.worker: _Worker
        self.timer: asyncio.TimerHandle


class _Worker:
    """A daemon thread that runs waves and reports each to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, report: Callable[[_Wave], None]) -> None:
        self._loop, self._report = loop, report
        self._inbox: SimpleQueue[_Wave | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="whet-env")
        self._thread.start()

    def give(self, wave: _Wave | None) -> None:
        """Run this wave next; None ends the thread."""
        self._inbox.put(wave)

    def where(self) -> str:
        """The code that the thread is in, as the innermost lines of a traceback."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "".join(traceback.format_list(traceback.extract_stack(frame)[-3:])) if frame else ""

    def _work(self) -> None:
        while (wave := self._inbox.get()) is not None:
            wave.began = time.monotonic()
            for call in wave.calls:
                outcome = (False, None) if call.future.cancelled() else _run(call.function)
                with wave.lock:
                    if wave.abandoned:
                        return
                    wave.outcomes.append(outcome)
                    wave.began = time.monotonic()
            try:
                self._loop.call_soon_threadsafe(self._report, wave)
            except RuntimeError:  # the loop was closed: nobody waits any more
                return


def _run(function: Callable[[], Any]) -> Outcome:
    try:
        return True, function()
    except Exception as error:
        return False, error
    except BaseException as error:  # an environment that calls sys.exit must not end the rollout
        wrapped = EnvError(f"raised {type(error).__name__}: {error}")
        wrapped.__cause__ = error
        return False, wrapped


class Calls:
    """Runs the environment calls of one rollout. Made and used on its event loop's thread; `close` ends its threads."""

    def __init__(self, gate: WaveGate, *, threads: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._gate = gate
        self._threads = threads
        self._pending: list[_Call] = []
        self._scheduled = False
        self._wave: _Wave | None = None
        self._inline: _Worker | None = None
        self._idle: list[_Worker] = []
        self._overlapped = 0
        self._queue: deque[_Wave] = deque()
        self._running: set[_Wave] = set()

    async def call(
        self, function: Callable[[], Any], limit: float, *, inline: bool, apart: bool = False, awaited: float | None = None
    ) -> Any:
        """What a plain function returns; if that is awaitable, what it comes to. Raises DeadlineError after `limit` seconds.

        Inline calls join a wave, unless they are to run `apart`; decoding waits for them in either case. `awaited` is
        another limit for what is awaitable.
        """
        if inline and not apart:
            good, value = await self._in_wave(function, limit)
        else:
            self._gate.busy -= not inline
            try:
                good, value = await self._on_thread(function, limit)
            finally:
                self._gate.busy += not inline
        if not good:
            raise value
        return await self.wait(value, awaited or limit) if inspect.isawaitable(value) else value

    async def wait(self, awaitable: Awaitable[Any], limit: float) -> Any:
        """What an awaitable comes to. Past its limit it is cancelled, and abandoned if it does not care."""
        task = asyncio.ensure_future(awaitable)
        self._gate.busy -= 1
        try:
            await asyncio.wait((task,), timeout=limit)
        finally:
            self._gate.busy += 1
            if not task.done():
                task.add_done_callback(_retrieve)
                task.cancel()
        if not task.done():
            raise DeadlineError(limit)
        if task.cancelled():
            raise EnvError("the coroutine was cancelled from within")
        return task.result()

    def hurry(self, grace: float) -> None:
        """The rollout is being cancelled: calls under way get `grace` more seconds."""
        for wave in self._running:
            for call in wave.calls:
                call.limit = min(call.limit, time.monotonic() - wave.began + grace)
            wave.timer.cancel()
            wave.timer = self._loop.call_later(grace, self._watch, wave)

    def close(self) -> None:
        """End the threads; those in a call end after it, if it ever returns."""
        for wave in self._running:
            wave.timer.cancel()
            wave.abandoned = True
            wave.worker.give(None)
        for worker in self._idle:
            worker.give(None)
        if self._inline is not None:
            self._inline.give(None)

    def _in_wave(self, function: Callable[[], Any], limit: float) -> asyncio.Future[Outcome]:
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._pending.append(_Call(function, limit, future))
        if self._wave is None and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)
        return future

    def _flush(self) -> None:
        self._scheduled = False
        if self._pending and self._wave is None:
            self._inline = self._inline or _Worker(self._loop, self._report)
            self._wave, self._pending = _Wave(self._pending), []
            self._start(self._wave, self._inline)

    def _on_thread(self, function: Callable[[], Any], limit: float) -> asyncio.Future[Outcome]:
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._queue.append(_Wave([_Call(function, limit, future)]))
        self._next()
        return future

    def _next(self) -> None:
        while self._queue and (self._idle or self._overlapped < self._threads):
            if self._idle:
                worker = self._idle.pop()
            else:
                worker = _Worker(self._loop, self._report)
                self._overlapped += 1
            self._start(self._queue.popleft(), worker)

    def _start(self, wave: _Wave, worker: _Worker) -> None:
        wave.worker, wave.began = worker, time.monotonic()
        wave.timer = self._loop.call_later(wave.calls[0].limit, self._watch, wave)
        self._running.add(wave)
        worker.give(wave)

    def _report(self, wave: _Wave) -> None:
        """A wave has come back whole."""
        if wave.abandoned:
            return
        wave.timer.cancel()
        self._running.discard(wave)
        _deliver(wave.calls, wave.outcomes)
        if wave is self._wave:
            self._wave = None
            self._flush()
        else:
            self._idle.append(wave.worker)
            self._next()

    def _watch(self, wave: _Wave) -> None:
        """Look whether the call that a wave is at has run out of time; if so abandon it with its thread."""
        with wave.lock:
            at = len(wave.outcomes)
            if at == len(wave.calls):
                return  # its report is on the way
            left = wave.began + wave.calls[at].limit - time.monotonic()
            if left > 0:
                wave.timer = self._loop.call_later(left, self._watch, wave)
                return
            wave.abandoned = True
        self._running.discard(wave)
        late = DeadlineError(wave.calls[at].limit, wave.worker.where())
        _deliver(wave.calls, [*wave.outcomes, (False, late)])
        if wave is self._wave:
            self._wave, self._inline = None, None
            self._pending = [*wave.calls[at + 1 :], *self._pending]
            self._flush()
        else:
            self._overlapped -= 1
            self._next()


def _deliver(calls: list[_Call], outcomes: list[Outcome]) -> None:
    for call, outcome in zip(calls, outcomes):
        if not call.future.done():
            call.future.set_result(outcome)


def _retrieve(task: asyncio.Future[Any]) -> None:
    """Look at an abandoned task's exception, so that asyncio does not complain that nobody did."""
    if not task.cancelled():
        task.exception()
