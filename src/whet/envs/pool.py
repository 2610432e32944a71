"""Servers that are slow to start or leak (Java virtual machines, browsers), lent to one episode at a time.

    pool = Pool(start_java, stop_java, size=4, recycle=200, alive=lambda java: java.poll() is None)
    java = pool.take(timeout=60)
    try:
        ...
    finally:
        pool.give(java, broken=failed)

An item is made when it is first needed, in the thread that needs it. It is closed after `recycle` uses, when it is given
back broken, when it is no longer alive, and at the interpreter's exit. A process that forks starts with an empty pool:
the child neither uses nor closes what belongs to its parent.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.process import parent_process
from typing import Any, Generic, TypeVar

from whet.errors import ConfigError, EnvError, WhetError

T = TypeVar("T")
PATIENCE = 10.0
"""Seconds that closing an item may take before the pool goes on without it."""

_log = logging.getLogger("whet.envs")
_pools: weakref.WeakSet[Pool[Any]] = weakref.WeakSet()
_workers: set[int] = set()
"""Process ids of multiprocessing's workers that close their pools at exit."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What a pool holds now, and what became of everything that it made."""

    idle: int = 0
    taken: int = 0
    closing: int = 0
    made: int = 0
    recycled: int = 0
    """Closed after their last use."""
    broken: int = 0
    """Closed because they were given back broken, or found dead."""
    stuck: int = 0
    """Whose closing did not return in time, or raised."""


@dataclass(eq=False)
class _Record(Generic[T]):
    """An item, and the thread that waits to close it.

    The thread is started with the item, because Python starts none while the interpreter exits, and a closing that hangs
    must not keep the interpreter from exiting.
    """

    item: T
    uses: int = 0
    retired: bool = False
    gone: bool = False
    """It no longer takes up a place."""
    go: threading.Event = field(default_factory=threading.Event)
    watch: threading.Timer | None = None


@dataclass(eq=False)
class _Waiter(Generic[T]):
    """Somebody who waits in `take`. Granted a `record`, or, where that is None, the place to make one."""

    granted: threading.Event = field(default_factory=threading.Event)
    record: _Record[T] | None = None


class Pool(Generic[T]):
    """At most `size` items at once, lent in the order of asking. Safe to use from many threads.

    `make` starts an item and `close` ends it; both may take seconds and are called without a lock. `alive` says whether an
    idle item can still be used. `kill` ends by force what `close` did not end within `patience` seconds, or raised on; without
    it such an item is left to itself, and its place is free again. Raises ConfigError for a size or recycle below 1.
    """

    def __init__(
        self,
        make: Callable[[], T],
        close: Callable[[T], None],
        *,
        size: int,
        recycle: int | None = None,
        alive: Callable[[T], bool] | None = None,
        kill: Callable[[T], None] | None = None,
        name: str = "",
        patience: float = PATIENCE,
    ) -> None:
        if size < 1:
            raise ConfigError(f"a pool's size is {size}; expected 1 or more")
        if recycle is not None and recycle < 1:
            raise ConfigError(f"a pool's recycle is {recycle}; expected 1 use or more, or None for never")
        self.name = name or getattr(make, "__qualname__", type(make).__name__)
        self.size = size
        self._make, self._close, self._alive, self._kill = make, close, alive, kill
        self._recycle, self._patience = recycle, patience
        self._lock = threading.Lock()
        self._records: dict[int, _Record[T]] = {}
        """All that take up a place, by the id of their item."""
        self._idle: list[_Record[T]] = []
        self._waiting: deque[_Waiter[T]] = deque()
        self._making = 0
        self._counts = Counts()
        self._shut = False
        self._inherited: list[object] = []
        _pools.add(self)

    def take(self, timeout: float) -> T:
        """An item that nobody else has, newly made if need be. Raises EnvError after `timeout` seconds without a free one.

        Time spent in `make` does not count: it has limits of its own. What `make` raises ends this call as EnvError, unless
        it is one of whet's errors already.
        """
        until = time.monotonic() + timeout
        first = False
        while True:
            record = self._wait(until, timeout, first)
            if record is None:
                return self._made()
            if self._lives(record):
                return record.item
            self._retire(record, "broken")
            first = True

    def give(self, item: T, broken: bool = False, *, worn: bool = False) -> None:
        """Hand an item back, which ends it where it is `broken` or `worn`. Raises EnvError for one that is not out."""
        with self._lock:
            record = self._records.get(id(item))
            strange = record is None or record in self._idle or record.retired
            if strange and (self._shut or any(item is other for other in self._inherited)):
                return
            if strange or record is None:
                raise EnvError(f"pool {self.name!r} was given {type(item).__name__} that it had not lent, or that was given back before")
            record.uses += 1
        if broken or not self._lives(record):
            self._retire(record, "broken")
        elif worn or (self._recycle is not None and record.uses >= self._recycle):
            self._retire(record, "recycled")
        else:
            with self._lock:
                if not record.retired:
                    self._idle.append(record)
                    self._serve()

    def counts(self) -> Counts:
        """A snapshot."""
        with self._lock:
            closing = sum(record.retired for record in self._records.values())
            idle = len(self._idle)
            return replace(self._counts, idle=idle, closing=closing, taken=len(self._records) - closing - idle)

    def close(self) -> None:
        """Close every item, those that are out as well, and lend no more. Returns within about `patience` seconds."""
        until = time.monotonic() + self._patience
        with self._lock:
            self._shut = True
            waiting, self._waiting = self._waiting, deque()
            self._idle.clear()
        for waiter in waiting:
            waiter.granted.set()
        while (self._records or self._making) and time.monotonic() < until:
            for record in self._present():
                record.retired = True
                record.go.set()
            time.sleep(0.005)
        for record in self._present():
            self._overdue(record)

    def _present(self) -> list[_Record[T]]:
        with self._lock:
            return list(self._records.values())

    def _wait(self, until: float, timeout: float, first: bool) -> _Record[T] | None:
        """An idle record, or None for a place that is now the caller's to fill; behind those who asked before."""
        waiter: _Waiter[T] = _Waiter()
        with self._lock:
            self._refuse_when_shut()
            if first:
                self._waiting.appendleft(waiter)
            else:
                self._waiting.append(waiter)
            self._serve()
        try:
            waiter.granted.wait(max(0.0, until - time.monotonic()))
        except BaseException:
            self._forget(waiter)
            raise
        with self._lock:
            self._refuse_when_shut()
            if waiter.granted.is_set():
                return waiter.record
            self._waiting.remove(waiter)
        told = f"all {self.size} are in use" if self.size > 1 else "the only one is in use"
        raise EnvError(f"pool {self.name!r} had nothing free for {timeout:g} s: {told}. Run fewer episodes at once, or enlarge the pool.")

    def _forget(self, waiter: _Waiter[T]) -> None:
        """The waiter was interrupted: what it was granted goes to the next one."""
        with self._lock:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif not self._shut:
                if waiter.record is None:
                    self._making -= 1
                else:
                    self._idle.append(waiter.record)
                self._serve()

    def _serve(self) -> None:
        """Grant what is free to those who wait. Called with the lock held."""
        while self._waiting and (self._idle or len(self._records) + self._making < self.size):
            waiter = self._waiting.popleft()
            if self._idle:
                waiter.record = self._idle.pop()
            else:
                self._making += 1
            waiter.granted.set()

    def _made(self) -> T:
        """Fill the place that was granted."""
        record = None
        _close_at_exit_of_workers()
        try:
            record = _Record(self._make())
            threading.Thread(target=self._keep, args=(record,), daemon=True, name=f"whet-pool-{self.name}").start()
        except WhetError:
            raise
        except Exception as error:
            raise EnvError(f"pool {self.name!r} could not make a new item: {type(error).__name__}: {error}") from error
        finally:
            with self._lock:
                self._making -= 1
                if record is not None:
                    self._records[id(record.item)] = record
                    self._counts = replace(self._counts, made=self._counts.made + 1)
                self._serve()
        if self._shut:  # meanwhile
            record.go.set()
            self._refuse_when_shut()
        return record.item

    def _lives(self, record: _Record[T]) -> bool:
        try:
            return self._alive is None or self._alive(record.item)
        except Exception:
            return False

    def _retire(self, record: _Record[T], why: str) -> None:
        """Have an item closed. Its place is free once that is done, or after `patience` seconds."""
        with self._lock:
            if record.retired:
                return
            record.retired = True
            self._counts = replace(self._counts, **{why: getattr(self._counts, why) + 1})
            record.watch = threading.Timer(self._patience, self._overdue, (record,))
            record.watch.daemon = True
            with contextlib.suppress(RuntimeError):  # while the interpreter exits, `close` watches
                record.watch.start()
        record.go.set()

    def _keep(self, record: _Record[T]) -> None:
        """The thread of an item: wait until it is to be closed, and close it."""
        record.go.wait()
        try:
            self._close(record.item)
        except Exception as error:
            _log.warning("pool %r: closing failed: %s: %s", self.name, type(error).__name__, error)
            self._overdue(record)
        else:
            self._gone(record)

    def _overdue(self, record: _Record[T]) -> None:
        """Closing took too long or failed: end the item by force, if there is a way, and go on without it."""
        with self._lock:
            if record.gone:
                return
            self._counts = replace(self._counts, stuck=self._counts.stuck + 1)
        if self._kill is not None:
            try:
                self._kill(record.item)
            except Exception as error:
                _log.warning("pool %r: killing failed: %s: %s", self.name, type(error).__name__, error)
        self._gone(record)

    def _gone(self, record: _Record[T]) -> None:
        with self._lock:
            if not record.gone:
                record.gone = True
                if record.watch is not None:
                    record.watch.cancel()
                self._records.pop(id(record.item), None)
                self._serve()

    def _refuse_when_shut(self) -> None:
        if self._shut:
            raise EnvError(f"pool {self.name!r} is closed")

    def _after_fork(self) -> None:
        """In the child: begin anew. The parent's items are kept but not touched, so that no finalizer of theirs runs here."""
        self._inherited += [*self._records.values(), *(record.item for record in self._records.values())]
        self._lock = threading.Lock()
        self._records, self._idle, self._waiting = {}, [], deque()
        self._making, self._counts = 0, Counts()


@atexit.register
def _close_pools() -> None:
    for pool in list(_pools):
        pool.close()


def _close_at_exit_of_workers() -> None:
    """Workers of multiprocessing that were forked leave without running what atexit knows; they have a list of their own."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None and parent_process() is not None and os.getpid() not in _workers:
        _workers.add(os.getpid())
        util.Finalize(None, _close_pools, exitpriority=0)


def _after_fork() -> None:
    for pool in list(_pools):
        pool._after_fork()


os.register_at_fork(after_in_child=_after_fork)
