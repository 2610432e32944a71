"""Event loops on threads of their own, for connections that outlive the event loop of whoever uses them.

A rollout has an event loop for as long as it lasts, and an environment may be called on any thread. Connections to tool
servers therefore live on one loop in the background, which is asked from any thread and any other loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
_loops: dict[tuple[int, str], Background] = {}
_lock = threading.Lock()


class Background:
    """An event loop on a daemon thread, which starts when it is made."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True, name=f"whet-{name}")
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin a coroutine on the loop; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What a coroutine on the loop comes to, awaited on another one. Being cancelled cancels it."""
        return await asyncio.wrap_future(self.submit(work))

    def wait(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        """What a coroutine on the loop comes to, for threads without a loop. Raises TimeoutError; then it is cancelled."""
        future = self.submit(work)
        try:
            return future.result(seconds)
        except TimeoutError:
            future.cancel()
            raise

    def answers(self, seconds: float = 1.0) -> bool:
        """Whether the loop gets round to something new, or is held up by code that blocks it."""
        turned = threading.Event()
        self.loop.call_soon_threadsafe(turned.set)
        return turned.wait(seconds)


def background(name: str = "tools") -> Background:
    """This process's loop of that name; another one after a fork."""
    with _lock:
        key = (os.getpid(), name)
        if key not in _loops:
            _loops[key] = Background(name)
        return _loops[key]


def abandon(loop: Background) -> None:
    """Have `background` make another one in the place of a loop that is held up."""
    with _lock:
        if _loops.get((os.getpid(), loop.name)) is loop:
            del _loops[os.getpid(), loop.name]
