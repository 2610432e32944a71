"""From plain code into an event loop and back, with an end to everything that was begun."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from whet.errors import ConfigError

_GRACE = 1.0
"""Seconds that what is still running gets when a loop is closed."""
T = TypeVar("T")


def run_sync(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in an event loop of its own; Ctrl-C cancels it and then raises KeyboardInterrupt.

    Unlike `asyncio.run` it never waits for tasks that ignore being cancelled, nor for threads.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        main.close()
        raise ConfigError(
            "this call waits for episodes, and it was made inside a running event loop (a notebook, or a coroutine), which would stand "
            "still meanwhile. Write `await arollout(...)` or `await arollout_groups(...)` there."
        )
    loop = asyncio.new_event_loop()
    task = loop.create_task(main)
    interrupts = 0

    def on_interrupt(signum: int, frame: object) -> None:
        nonlocal interrupts
        interrupts += 1
        loop.set_exception_handler(lambda loop, context: None)  # asyncio would print what a second one breaks off
        if interrupts > 1 or task.done():
            raise KeyboardInterrupt
        task.cancel()
        loop.call_soon_threadsafe(lambda: None)  # wake the loop up

    main_thread = threading.current_thread() is threading.main_thread()
    # SIGTERM, too, where a program has made it the same as Ctrl-C
    ours = [s for s in (signal.SIGINT, signal.SIGTERM) if main_thread and signal.getsignal(s) is signal.default_int_handler]
    for number in ours:
        signal.signal(number, on_interrupt)
    try:
        return loop.run_until_complete(task)
    except asyncio.CancelledError:
        if interrupts:
            raise KeyboardInterrupt from None
        raise
    finally:
        for number in ours:
            signal.signal(number, signal.default_int_handler)
        _drain(loop, task)


def _drain(loop: asyncio.AbstractEventLoop, main: asyncio.Task[Any]) -> None:
    """Close a loop: `main` is cancelled and waited for (it bounds its own end), anything else gets a moment."""
    if not main.done():  # a second Ctrl-C, or a signal handler of the caller's
        main.cancel()
        loop.run_until_complete(asyncio.wait({main}))
    if not main.cancelled():
        main.exception()
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=_GRACE))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
