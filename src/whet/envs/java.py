"""Java virtual machines behind environments: started with py4j, kept by a pool, shared by the episodes of a process.

    SERVERS = Servers("textworldexpress", "textworldexpress.runtime.PythonInterface", jar)
    server = SERVERS.take(timeout=60)       # a Java object of its own, in a machine that others use as well
    server.call("stepJSON", "look around")  # raises EnvError when the machine has died or hangs
    SERVERS.give(server)

A machine takes half a second to start and about 100 MB, while a server in it is an object that costs next to nothing. So
`share` episodes have their servers in one machine, each with its own; a second machine is started for more of them. When a
machine dies, all its episodes fail with EnvError, which rollouts count and try again, in another machine.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from whet.envs.base import Env
from whet.envs.jvm import JavaRaised, Machine, Static
from whet.envs.pool import Pool
from whet.errors import EnvError


class Server:
    """One Java object for one episode."""

    def __init__(self, machine: Machine, cls: str, key: str = "") -> None:
        """An object of the class `cls`: one that was kept under this key, or a new one."""
        self.machine = machine
        self.broken = False
        self.ready = True
        """Whether the object has been made what its key says; whoever does that sets this, and the object is kept for later."""
        self._cls, self._key = cls, key
        self._busy = 0
        self.values: list[Any] | None = None
        """Of the machine's static fields, while another server's are in place; None before its first call."""
        self.object: Any = machine.kept(key) if key else None
        if self.object is None:
            self.ready = False
            self.object = self.make(cls)

    def beside(self) -> Server:
        """Another one in the same machine, to be released by the caller."""
        return Server(self.machine, self._cls, self._key)

    def make(self, cls: str, *args: Any) -> Any:
        """A new Java object of this class, in this server's machine."""
        return self.run(lambda: self.machine.cls(cls)(*args))

    def call(self, method: str, *args: Any) -> Any:
        """What a method of the server's object returns. Raises EnvError as `run`."""
        return self.run(getattr(self.object, method), *args)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function in the machine returns; lists are fetched whole. Raises JavaRaised, or EnvError where Java died or hung."""
        from py4j.java_collections import JavaArray, JavaList
        from py4j.protocol import Py4JError, Py4JJavaError

        self._busy += 1
        began = time.monotonic()
        try:
            with self.machine.statics.of(self) if self.machine.statics else contextlib.nullcontext():
                result = function(*args)
            return list(result) if isinstance(result, (JavaList, JavaArray)) else result
        except Py4JJavaError as error:
            told = str(error.java_exception)
            self.broken = self.broken or "OutOfMemoryError" in told
            raise JavaRaised(f"Java raised an exception in the environment {self.machine.name!r}: {told}") from None
        except (Py4JError, OSError, AttributeError) as error:
            self.broken = True
            raise EnvError(self._why(error, time.monotonic() - began)) from error
        finally:
            self._busy -= 1

    def _why(self, error: Exception, seconds: float) -> str:
        """What has become of the machine, in a call that took so many seconds."""
        hung = seconds >= self.machine.answer_s
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.machine.process.wait(0.01 if hung else 2.0)  # one that was killed a moment ago may not have ended yet
        pid, code = self.machine.process.pid, self.machine.process.poll()
        alive = f"did not answer within {self.machine.answer_s:g} s" if hung else f"failed: {error}"
        what = alive if code is None else f"has died (exit status {code})"
        return f"the Java process {pid} of the environment {self.machine.name!r} {what}"

    def aside(self, static: Static, method: str, *args: Any) -> Any:
        """As `call`, with this static field as it was at first while it lasts, so that what the server has there does not change."""

        def ask() -> Any:
            assert self.machine.statics is not None, "the machine was started without static fields"
            with self.machine.statics.renewed(static):
                return getattr(self.object, method)(*args)

        return self.run(ask)

    def release(self) -> bool:
        """Let go of the Java object. Whether the machine may be used by others."""
        if self._busy:  # a call that hung was abandoned
            self.broken = True
        if self.ready and self._key and not self.broken:
            self.machine.keep(self._key, self.object)
        self.object = None  # py4j tells Java when nobody holds it any more
        return not self.broken


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the next server goes: a machine, or None for one that the caller is to start."""

    machine: Machine | None


class Servers:
    """Gives each episode a Java object, in machines that a pool keeps.

    `share` servers live in one machine at most, in at most `size` machines. After `recycle` servers a machine takes no
    further ones, as long as another can be started, and ends with its last. `statics` are the fields that the program has once
    for all its objects and that must not be shared; a machine with such answers one call at a time. `options` are Java's own,
    behind `OPTIONS`.
    """

    def __init__(
        self,
        name: str,
        cls: str,
        jar: Callable[[], str],
        *,
        size: int = 4,
        share: int = 64,
        recycle: int = 2000,
        statics: Sequence[Static] = (),
        options: Sequence[str] = (),
        start_s: float = 100.0,
        answer_s: float = 60.0,
    ) -> None:
        self.name, self.share, self.recycle = name, share, recycle
        self._cls = cls

        def start() -> Machine:
            return Machine(name, jar(), options=options, statics=statics, start_s=start_s, answer_s=answer_s)

        self.pool = Pool(start, Machine.kill, size=size, alive=Machine.alive, kill=Machine.kill, name=f"java for {name}")
        self._fresh()
        os.register_at_fork(after_in_child=self._fresh)

    def _fresh(self) -> None:
        self._change = threading.Condition()
        self._open: list[Machine] = []
        self._starting = False
        self._lost: deque[Server] = deque()
        """Servers of episodes that were never closed; garbage collection may come at any moment, so it only notes them here."""

    def take(self, timeout: float, key: str = "") -> Server:
        """A server, which has an object that was kept under `key` if there is one.

        Raises EnvError after `timeout` seconds in which every machine was full, or where none can be started.
        """
        machine = self._place(time.monotonic() + timeout, timeout).machine or self._start(timeout)
        try:
            return Server(machine, self._cls, key)
        except BaseException:
            self._leave(machine, broken=True)
            raise

    def give(self, server: Server) -> None:
        """The episode is over."""
        self._leave(server.machine, broken=not server.release())

    def lost(self, server: Server) -> None:
        """The episode has vanished without having been closed; its place is free at the next `take`."""
        self._lost.append(server)

    def _place(self, until: float, timeout: float) -> _Place:
        with self._change:
            while True:
                while self._lost:
                    self.give(self._lost.popleft())
                for machine in [m for m in self._open if not m.alive()]:
                    self._give_up(machine)
                free = [m for m in self._open if m.users < self.share]
                new = [m for m in free if m.served < self.recycle]
                if not new and not self._starting and len(self._open) < self.pool.size:
                    self._starting = True
                    return _Place(None)
                if (new or free) and not (self._starting and not new):
                    machine = (new or free)[0]
                    machine.users += 1
                    machine.served += 1
                    return _Place(machine)
                if not self._change.wait(until - time.monotonic()):
                    full = f"{self.pool.size} machines with {self.share} episodes each"
                    raise EnvError(f"no place in Java for the environment {self.name!r} in {timeout:g} s: there are {full}")

    def _start(self, timeout: float) -> Machine:
        machine = None
        try:
            machine = self.pool.take(timeout)
            machine.users = machine.served = 1
            return machine
        finally:
            with self._change:
                self._starting = False
                if machine is not None:
                    self._open.append(machine)
                self._change.notify_all()

    def _leave(self, machine: Machine, broken: bool) -> None:
        with self._change:
            machine.users -= 1
            if broken:
                self._give_up(machine)
            elif machine.users == 0 and machine.served >= self.recycle and machine in self._open:
                self._open.remove(machine)
                self.pool.give(machine, worn=True)
            self._change.notify_all()

    def _give_up(self, machine: Machine) -> None:
        """End a machine whose servers cannot be relied on. Called with the lock held."""
        if machine in self._open:
            self._open.remove(machine)
            self.pool.give(machine, broken=True)


class JavaEnv(Env):
    """An environment whose episode is a Java object. A subclass says which in `servers`.

    Calls take a fraction of a millisecond, less than a change of threads, so they are made inline, and runs can be repeated
    exactly. A machine that dies or hangs ends them with EnvError.
    """

    servers: ClassVar[Servers]
    reset_timeout = 240.0
    """A machine may have to be started first."""
    step_timeout = 90.0
    max_concurrent = 256
    """As many as there is room for in the machines."""

    _server: Server | None = None
    _closed = False
    _net: Any = None

    def _begin(self, key: str = "") -> Server:
        """Take a server for the episode, made what `key` says if one was kept."""
        self._release()
        server = self.servers.take(self.reset_timeout / 2, key)
        self._server = server
        self._net = weakref.finalize(self, self.servers.lost, server)
        self._net.atexit = False
        if self._closed:  # a rollout has given this episode up while the machine was being started
            self._release()
            raise EnvError("closed while it began")
        return server

    def _running(self) -> Server:
        """The episode's server. Raises EnvError before `reset` and after `close`."""
        if self._server is None:
            raise EnvError(f"the episode of {type(self).__name__!r} has not begun, or is closed")
        return self._server

    def _release(self) -> None:
        server, self._server = self._server, None
        if server is not None and self._net.detach() is not None:
            self.servers.give(server)

    def close(self) -> None:
        """Hand the server back."""
        self._closed = True
        self._release()
