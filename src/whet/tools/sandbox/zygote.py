"""The process sandbox, warm: a confined process that has imported everything forks one for each run.

The zygote is confined before it imports anything; each child is confined further, to its own directory and without the
zygote's right to fork, before it reads its code. Results are those of the process sandbox, for a tenth of the start.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import select
import socket
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

from whet.errors import ConfigError, WhetError
from whet.tools.sandbox import landlock, supervise, syscalls
from whet.tools.sandbox.base import Killer, Result, SandboxUnavailable
from whet.tools.sandbox.process import OPEN_FILES, ProcessSandbox, Report, another_user, framed, pipe, sealed

COMMON = (
    "bisect collections dataclasses datetime decimal fractions functools heapq itertools json math operator random re "
    "statistics string textwrap typing"
)
"""Modules of the standard library that code for an agent's Python tool often imports."""


ATTEMPTS = 3
"""Zygotes that may die under a run before it is given up."""


class _Died(WhetError):
    """The zygote died under a run."""


class ZygoteSandbox(ProcessSandbox):
    """Options: those of the process sandbox, with `preload`, the modules that are imported once (by default common ones of
    the standard library; name those of `packages`, such as numpy, to have them warm). A program is always one process;
    `argv` is run as the process sandbox runs it.
    """

    kind = "zygote"

    def __init__(self, *, preload: Sequence[str] = tuple(COMMON.split()), **options: Any) -> None:
        if isinstance(preload, str):
            raise ConfigError(f"preload is {preload!r}; expected a sequence of module names, such as [{preload!r}]")
        if options.get("processes", 1) != 1:
            raise ConfigError(f"processes is {options['processes']}; a zygote's programs are one process each. Use the sandbox 'process'")
        self._preload = tuple(preload)
        self._zygote: _Zygote | None = None
        self._starting = threading.Lock()
        self._mine = threading.local()
        super().__init__(**options)
        if self._strong:
            self.warm()

    def close(self) -> None:
        """End the zygote; the next run would start another."""
        zygote, self._zygote = self._zygote, None
        if zygote is not None:
            zygote.close()

    def warm(self) -> None:
        """Start the zygote now, if none is running. Raises SandboxUnavailable where it cannot import what it should."""
        self._alive()

    def _alive(self) -> _Zygote:
        """The running zygote; a new one where there is none, it has died, or it belongs to the process we were forked from."""
        zygote = self._zygote
        if zygote is None or not zygote.alive:
            with self._starting:
                zygote = self._zygote
                if zygote is None or not zygote.alive:
                    if zygote is not None:
                        zygote.close()
                    zygote = self._zygote = _Zygote(self)
        return zygote

    def _watched(
        self, directory: str, header: dict[str, Any], source: bytes, stdin: str, limits: supervise.Limits
    ) -> tuple[int, Killer | None, tuple[supervise.Stream, supervise.Stream]]:
        if header["argv"] is not None or not self._strong:
            return super()._watched(directory, header, source, stdin, limits)
        header = {**header, "drop": False, "kind": "forked", "environment": self._environment(directory)}
        zygote: _Zygote = self._mine.zygote
        found = zygote.run(directory, framed(header) + source, stdin, limits)
        if found is None:
            raise _Died
        return found

    def run(self, code: str | None = None, **arguments: Any) -> Result:
        """As `Sandbox.run`. A zygote that dies takes its runs with it; they are run again, which nobody can tell."""
        if not self._strong:
            return super().run(code, **arguments)
        for _ in range(ATTEMPTS):
            self._mine.zygote = zygote = self._alive()
            try:
                return super().run(code, **arguments)
            except (OSError, WhetError):  # what goes wrong beside a dead zygote is its fault
                if zygote.alive:
                    raise
        raise SandboxUnavailable(f"{ATTEMPTS} zygotes died, one after the other, while a program ran; is the machine out of memory?")

    def _base(self) -> str | None:
        zygote: _Zygote | None = getattr(self._mine, "zygote", None)
        return zygote.root if zygote is not None else None

    def zygote_header(self, root: str, control: int) -> dict[str, Any]:
        """What child.py must know to become a zygote."""
        plan = self._plans[False]
        kernel = syscalls.Rules(trusted=True, truncates=landlock.abi() >= 3)
        return {
            "kind": "zygote",
            "parent": os.getpid(),
            "control": control,
            "directory": root,
            "argv": None,
            "path": plan.site,
            "hidden": plan.hidden,
            "preload": self._preload,
            "drop": True,
            "user": another_user(),
            "landlock": landlock.abi(),
            "rules": [*plan.rules, landlock.own(root, programs=False)],
            "seccomp": syscalls.program(platform.machine(), kernel),
            "limits": [(resource.RLIMIT_CORE, 0, 0), (resource.RLIMIT_NOFILE, 16 * OPEN_FILES, 16 * OPEN_FILES)],
        }

    def _most_tasks(self) -> list[int]:
        """As for a process, but root's runs are one user together, the zygote's."""
        return [2 + self._parallel * (supervise.THREADS + 1)] if os.getuid() == 0 else super()._most_tasks()

    def start(self, job_fd: int, report_fd: int, root: str, control: int) -> subprocess.Popen[bytes]:
        return self._spawn(job_fd, report_fd, subprocess.DEVNULL, self._environment(root), control)


class _Zygote:
    """The caller's side of a zygote."""

    def __init__(self, sandbox: ZygoteSandbox) -> None:
        self._owner = os.getpid()
        self.root = tempfile.mkdtemp(prefix="whet-sandbox-")
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._said = b""
        self._ended = threading.Event()
        self._numbers = iter(range(1, 1 << 62))
        self._lost = False
        self._clean = weakref.finalize(self, _clean_up, self._owner, self._control, self._ended, self.root)
        with contextlib.ExitStack() as stack:
            stack.callback(theirs.close)
            told, tell = pipe(stack)
            job_fd = sealed(framed(sandbox.zygote_header(self.root, theirs.fileno())), stack)
            started = threading.Event()
            # A process that shall die with its parent dies with the thread that started it; so it gets one of its own.
            arguments = (weakref.ref(self), sandbox, job_fd, tell, self.root, theirs.fileno(), started, self._ended)
            threading.Thread(target=_keep, args=arguments, name="whet-zygote", daemon=True).start()
            started.wait()
            os.close(tell)
            report = Report(told)
            poll = select.poll()
            poll.register(told, select.POLLIN)
            deadline = time.monotonic() + supervise.START
            while not (report.ready or report.closed) and time.monotonic() < deadline:
                poll.poll(1000)
                report.read()
        if not report.ready:
            self.close()
            raise SandboxUnavailable(f"the zygote did not start: {self._said.decode('utf-8', 'replace')[-500:].strip() or 'no answer'}")

    @property
    def alive(self) -> bool:
        return not (self._lost or self._ended.is_set()) and self._owner == os.getpid()

    def run(
        self, directory: str, job: bytes, stdin: str, limits: supervise.Limits
    ) -> tuple[int, Killer | None, tuple[supervise.Stream, supervise.Stream]] | None:
        """Have a child forked for this job and watch it to its end. None where the zygote died before the program's end."""
        with contextlib.ExitStack() as stack:
            job_fd, stdin_fd = sealed(job, stack), sealed(stdin.encode("utf-8", "surrogatepass"), stack)
            (told, tell), (out, out_end), (err, err_end) = (pipe(stack) for _ in range(3))
            forked = _Forked(self._control, next(self._numbers), told)
            try:
                socket.send_fds(self._control, [b"run %d" % forked.number], [job_fd, stdin_fd, out_end, err_end, tell])
            except OSError:
                self._lost = True
                return None
            finally:
                for fd in (tell, out_end, err_end):
                    os.close(fd)
            streams = supervise.Stream(out, limits.output), supervise.Stream(err, limits.output)
            killer = supervise.watch(forked, streams, directory, limits)
            exit_status = forked.finish()
            if exit_status is None:
                self._lost = True
                return None
            if not forked.ready and killer is None:
                raise SandboxUnavailable(
                    f"a forked process could not be confined: {bytes(streams[1].head[:500]).decode('utf-8', 'replace')}"
                )
            return exit_status, killer, streams

    def close(self) -> None:
        self._clean()


def _keep(
    zygote: weakref.ref[_Zygote],
    sandbox: ZygoteSandbox,
    job_fd: int,
    tell: int,
    root: str,
    control: int,
    started: threading.Event,
    ended: threading.Event,
) -> None:
    """Start a zygote and wait for its end."""
    said = b""
    try:
        try:
            process = sandbox.start(job_fd, tell, root, control)
        except SandboxUnavailable as error:
            said = str(error).encode()
            return
        finally:
            del sandbox
            started.set()
        said = b"".join(process.communicate())
    finally:
        if found := zygote():
            found._said = said
        ended.set()


def _clean_up(owner: int, control: socket.socket, ended: threading.Event, root: str) -> None:
    """A zygote ends when its control socket does. In a process forked from its owner, it is not ours to end."""
    control.close()
    if owner == os.getpid():
        ended.wait(10)
        with contextlib.suppress(OSError):
            supervise.remove(root)


class _Forked:
    """A run in a child of the zygote, which alone may signal it: only the zygote knows whether its id is still its own."""

    def __init__(self, control: socket.socket, number: int, told: int) -> None:
        self.number, self._control = number, control
        self._report = Report(told)
        self.fds = (told,)

    @property
    def ready(self) -> bool:
        return self._report.ready

    def hear(self, fd: int) -> bool:
        self._report.read()
        return self._report.exit is not None or self._report.closed

    def pids(self) -> list[int]:
        return [self._report.pid] if self._report.pid else []

    def kill(self) -> None:
        if self._report.exit is None and not self._report.closed:
            with contextlib.suppress(OSError):
                self._control.send(b"kill %d" % self.number)

    def finish(self) -> int | None:
        """Wait until the child is reaped. Its exit status; None where the zygote has died, and the child with it."""
        poll = select.poll()
        poll.register(self.fds[0], select.POLLIN)
        deadline = time.monotonic() + 30
        while self._report.exit is None and not self._report.closed and time.monotonic() < deadline:
            poll.poll(1000)
            self._report.read()
        while self._report.exit is None and self._report.pid and _runs(self._report.pid) and time.monotonic() < deadline:
            time.sleep(0.005)
        return self._report.exit


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] not in (b"Z", b"X")
    except OSError:
        return False
