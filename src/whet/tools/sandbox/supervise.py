"""Watching a confined process from outside: its output, its limits, its end, and what it leaves in its directory."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from whet.tools.sandbox.base import Killer, SandboxUnavailable

FLOOD = 16 << 20
"""Bytes of output that are read and thrown away beyond what is kept, before the program is ended."""
TICK = 0.02
"""Seconds between the first looks at memory; later ones are further apart, up to `SLOW_TICK`."""
SLOW_TICK = 0.1
DISK_TICK = 0.5
START = 60.0
"""Seconds within which a process must be confined and started; only an overloaded machine needs more than one."""
THREADS = 256
"""Threads that a program of one process may have at once, besides its first. One of several has fewer, since the kernel
counts threads and processes together: its limit on both is what keeps a fork bomb small until it is seen and ended."""
ENTRIES = 10_000
"""Files and directories that a program may have in its directory."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Job(Protocol):
    """A running program, as its watcher needs it."""

    @property
    def fds(self) -> tuple[int, ...]:
        """Become readable when something is to be told."""

    @property
    def ready(self) -> bool:
        """Whether the restrictions are in force and the program has been started."""

    def hear(self, fd: int) -> bool:
        """Called when one of `fds` is readable: whether the program is over."""

    def pids(self) -> list[int]:
        """Its processes."""

    def kill(self) -> None:
        """End every process of the program; harmless when there is none left."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a program is ended from outside. Seconds, bytes, counts."""

    timeout: float
    memory: int
    output: int
    disk: int
    processes: int


class Stream:
    """One output pipe: the head is kept, the rest is counted."""

    def __init__(self, fd: int, keep: int) -> None:
        os.set_blocking(fd, False)
        self.fd, self.keep = fd, keep
        self.head = bytearray()
        self.size = 0
        self.open = True

    def read(self) -> None:
        """Take what is there, at most a megabyte, so that other things get their turn."""
        for _ in range(16):
            try:
                data = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                return
            if not data:
                self.open = False
                return
            self.size += len(data)
            self.head += data[: max(0, self.keep + 4 - len(self.head))]  # the cut is made between characters

    def drain(self, enough: int) -> None:
        """Read what is still in the pipe, up to `enough` bytes in all."""
        while self.open and self.size <= enough:
            before = self.size
            self.read()
            if self.size == before:
                return


def watch(job: Job, streams: tuple[Stream, Stream], directory: str, limits: Limits) -> Killer | None:
    """Wait until the program is over or goes beyond a limit, then end what is left of it. Returns the limit it broke.

    The clock starts when the program does. Raises SandboxUnavailable where it does not within `START` seconds.
    """
    watcher = _Watcher(job, streams, directory, limits)
    try:
        killer = watcher.wait()
    finally:
        job.kill()
    for stream in streams:
        stream.drain(limits.output + FLOOD)
    return killer


class _Watcher:
    def __init__(self, job: Job, streams: tuple[Stream, Stream], directory: str, limits: Limits) -> None:
        self.job, self.directory, self.limits = job, directory, limits
        self.streams = {stream.fd: stream for stream in streams}
        self.poll = select.poll()
        for fd in (*job.fds, *self.streams):
            self.poll.register(fd, select.POLLIN)

    def wait(self) -> Killer | None:
        """Returns when the program is over or must be ended."""
        now = time.monotonic()
        deadline, started = now + START, False
        tick, look, disk_look = TICK, now + TICK, now + DISK_TICK
        while True:
            for fd, _ in self.poll.poll(max(0.0, min(look, deadline) - now) * 1000 + 1):
                if self._hear(fd):
                    return None
            now = time.monotonic()
            if self.job.ready and not started:
                started, deadline = True, now + self.limits.timeout
            if now >= deadline:
                if not started:
                    raise SandboxUnavailable(f"a sandboxed process did not start within {START:g} s; is the machine overloaded?")
                return "timeout"
            if any(stream.size > self.limits.output + FLOOD for stream in self.streams.values()):
                return "output"
            if now >= look:
                if killer := self._usage(disk=now >= disk_look):
                    return killer
                now = time.monotonic()
                disk_look = now + DISK_TICK if now >= disk_look else disk_look
                tick = min(SLOW_TICK if self.limits.processes == 1 else TICK, tick * 1.3)
                look = now + tick

    def _hear(self, fd: int) -> bool:
        if fd not in self.streams:
            return self.job.hear(fd)
        self.streams[fd].read()
        if not self.streams[fd].open:
            self.poll.unregister(fd)
        return False

    def _usage(self, disk: bool) -> Killer | None:
        """The limit on memory, processes or disk that is exceeded now."""
        pids = self.job.pids()
        used = [resident(pid) for pid in pids]
        if len(pids) > self.limits.processes or sum(threads for _, threads in used) > most_tasks(self.limits.processes):
            return "processes"
        if sum(memory for memory, _ in used) > self.limits.memory:
            return "memory"
        return "disk" if disk and occupied(self.directory, self.limits.disk, pids) > self.limits.disk else None


def resident(pid: int) -> tuple[int, int]:
    """Bytes of memory that are a process's own, and its threads; zeros when it is gone.

    Counts anonymous and shared memory, not pages of files, which every Python on the machine shares.
    """
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            text = file.read()
    except OSError:
        return 0, 0
    found = {name: int(value.split()[0]) for name, _, value in (line.partition(b":") for line in text.splitlines()) if name in _STATUS}
    return (found.get(b"RssAnon", 0) + found.get(b"RssShmem", 0)) << 10, found.get(b"Threads", 0)


_STATUS = (b"RssAnon", b"RssShmem", b"Threads")


def session(leader: int) -> list[int]:
    """Processes of the session that `leader` began, itself included."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b") ")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] not in (b"Z", b"X"):
                found.append(int(name))
    return found


def most_tasks(processes: int) -> int:
    """Threads and processes that a program may have at once."""
    return 1 + THREADS if processes == 1 else max(64, 4 * processes)


def tasks(uid: int) -> int:
    """Processes and threads of a user."""
    count = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{name}").st_uid == uid:
                    count += len(os.listdir(f"/proc/{name}/task"))
    return count


def occupied(directory: str, enough: int, pids: Sequence[int] = ()) -> int:
    """Bytes on disk under `directory`, and in files that `pids` hold open and have deleted.

    Stops counting beyond `enough`. More than `ENTRIES` entries count as too much, and so does a directory that cannot be
    looked into: the program may still be running, so that changing its mode could be turned against a file outside.
    """
    total = 0
    for info in _entries(directory, []):
        total += enough + 1 if info is None else info.st_blocks * 512
        if total > enough:
            return total
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    info = os.stat(f"/proc/{pid}/fd/{name}")
                    total += info.st_blocks * 512 if stat.S_ISREG(info.st_mode) and not info.st_nlink else 0
    return total


def _entries(directory: str, files: list[str]) -> Iterator[os.stat_result | None]:
    """What lies under `directory`, links not followed; regular files' paths are added to `files`.

    None stands for a directory that cannot be looked into, or for more than `ENTRIES` entries, which end the walk.
    """
    entries, waiting = 0, [directory]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as found:
                for entry in found:
                    entries += 1
                    if entries > ENTRIES:
                        yield None
                        return
                    with contextlib.suppress(FileNotFoundError):
                        info = entry.stat(follow_symlinks=False)
                        if stat.S_ISDIR(info.st_mode):
                            waiting.append(entry.path)
                        elif stat.S_ISREG(info.st_mode):
                            files.append(entry.path)
                        yield info
        except FileNotFoundError:  # deleted while it was looked at
            continue
        except OSError:
            yield None


def collect(directory: str, before: Mapping[str, bytes], limit: int, count: int) -> tuple[dict[str, bytes], bool]:
    """Regular files in `directory` that differ from `before`, and whether some were left out.

    At most `count` files and `limit` bytes in all, the first by name; links are neither followed nor returned. Nothing may
    run there any more.
    """
    paths: list[str] = []
    complete = None not in list(_entries(directory, paths))
    files: dict[str, bytes] = {}
    left = limit
    for path in sorted(paths):
        name, content = os.path.relpath(path, directory), _read(path, left)
        if content is None or len(content) > left or len(files) >= count:
            complete = False
        elif before.get(name) != content:
            left -= len(content)
            files[os.fsencode(name).decode("utf-8", "replace")] = content
    return files, not complete


def _read(path: str, limit: int) -> bytes | None:
    """At most `limit` + 1 bytes of a regular file; None for anything else."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(fd, "rb") as file:
        return file.read(limit + 1) if stat.S_ISREG(os.fstat(fd).st_mode) else None


def remove(directory: str) -> None:
    """Delete a directory whatever a program did to it: modes without rights, or nesting deeper than any path may be.

    Directories are moved up to the top before they are emptied, so that neither paths nor recursion grow. Nothing may run
    there any more; somebody else may be deleting it, too. Raises OSError where something could not be deleted.
    """
    for _ in range(8):
        with contextlib.suppress(FileNotFoundError):
            return _remove(directory)


def _remove(directory: str) -> None:
    os.chmod(directory, 0o700)
    top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        while names := os.listdir(top):
            for name in names:
                if stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
                    _empty(top, name)
                    os.rmdir(name, dir_fd=top)
                else:
                    os.unlink(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(directory)


def _empty(top: int, name: str) -> None:
    """Delete the files of a directory in `top`, and move its directories into `top`."""
    os.chmod(name, 0o700, dir_fd=top)
    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
    try:
        for child in os.listdir(inner):
            if stat.S_ISDIR(os.stat(child, dir_fd=inner, follow_symlinks=False).st_mode):
                os.chmod(child, 0o700, dir_fd=inner)
                os.rename(child, uuid.uuid4().hex, src_dir_fd=inner, dst_dir_fd=top)
            else:
                os.unlink(child, dir_fd=inner)
    finally:
        os.close(inner)
