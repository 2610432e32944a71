"""The default sandbox: a Python process that confines itself by Landlock, seccomp and rlimits before it reads any code.

No root, no namespaces, no container, nothing but the standard library. One process a run, about 30 ms to start.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import glob
import itertools
import marshal
import math
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whet.errors import ConfigError
from whet.tools.sandbox import landlock, supervise, syscalls
from whet.tools.sandbox.base import Capabilities, Killer, Result, Sandbox, SandboxUnavailable, check_arguments, decode, write_files

_CHILD = Path(__file__).with_name("child.py").read_bytes()
"""Handed over by descriptor, so that the confined process needs no access to this package."""
_START = "import os, sys; fd = int(sys.argv.pop()); text = os.read(fd, 1 << 20); os.close(fd); exec(compile(text, 'child.py', 'exec'))"
PATH = "/usr/local/bin:/usr/bin:/bin"
OPEN_FILES = 256
RETURNED_BYTES, RETURNED_FILES = 16 << 20, 256
"""How much of what a program left in its directory a result may hold."""
LIBRARY_SPACE = 2 << 30
"""Address space on top of the memory limit: mappings of libraries and reserved but unused space count, too."""

_SELF_TEST = """
import os, socket
for attempt in (lambda: open("/etc/passwd"), lambda: open("/proc/1/status"), lambda: os.listdir("/"), socket.socket, os.fork,
                lambda: open("/tmp/whet-self-test", "w"), lambda: os.kill(os.getppid(), 0), lambda: os.chmod("/", 0o755)):
    try:
        attempt()
    except OSError:
        continue
    raise SystemExit("not confined: %r worked" % getattr(attempt, "__code__", attempt))
print("confined")
"""
_USERS = itertools.count()
_tested: set[tuple[object, ...]] = set()


def another_user() -> int:
    """For root, a user id that no system gives to anybody, to be counted under; 0 for anybody else."""
    return 0x40000000 + (4096 * os.getpid() + next(_USERS)) % 0x30000000 if os.getuid() == 0 else 0


def offers() -> tuple[list[str], list[str]]:
    """What the kernel offers to confine a process with, and what it lacks, in words. Empty lacks mean that it is enough."""
    have, lack = [], []
    if sys.platform != "linux":
        return [], [f"a Linux kernel (this is {platform.system()})"]
    if version := landlock.abi():
        have.append(f"Landlock ABI {version}")
        if version < 6:
            have.append("signals by seccomp")
    else:
        lack.append("Landlock (Linux 5.13 or later, CONFIG_SECURITY_LANDLOCK, and `landlock` in the boot parameter lsm=)")
    if platform.machine() not in syscalls.ARCHITECTURES:
        lack.append(f"a table of system calls for {platform.machine()} (there is one for {' and '.join(syscalls.ARCHITECTURES)})")
    elif _has_seccomp():
        have.append("seccomp")
    else:
        lack.append("seccomp filters (CONFIG_SECCOMP_FILTER)")
    return have, lack


@functools.cache
def _has_seccomp() -> bool:
    number = {"x86_64": 317, "aarch64": 277}[platform.machine()]
    libc = ctypes.CDLL(None, use_errno=True)
    errno_action = ctypes.c_uint32(0x00050000)
    return bool(libc.syscall(ctypes.c_long(number), ctypes.c_uint(2), ctypes.c_uint(0), ctypes.byref(errno_action)) == 0)


class ProcessSandbox(Sandbox):
    """Options: `python` is the interpreter (this one by default); `packages` are installed distributions that may be imported
    besides the standard library (`*` for all); `read` are further files and directories that may be read; `processes` is how
    many processes a program may have at once (1: it cannot make any; threads are free); `file_size` and `disk` limit its files,
    each and together, in bytes; `parallel` is how many runs may go on at once (0: two for each core), others wait;
    `allow_weak` opens the sandbox where the kernel lacks what keeps a program in, for code that you would run anyway.
    """

    kind = "process"

    def __init__(
        self,
        *,
        python: str | None = None,
        packages: Sequence[str] = (),
        read: Sequence[str] = (),
        processes: int = 1,
        file_size: int = 64 << 20,
        disk: int = 256 << 20,
        parallel: int = 0,
        allow_weak: bool = False,
    ) -> None:
        for name, value in (("packages", packages), ("read", read)):
            if isinstance(value, str):
                raise ConfigError(f"{name} is {value!r}; expected a sequence of strings, such as [{value!r}]")
        for name, number, least in (("processes", processes, 1), ("file_size", file_size, 1), ("disk", disk, 1), ("parallel", parallel, 0)):
            if number < least:
                raise ConfigError(f"{name} is {number}; expected at least {least}")
        have, lack = offers()
        if lack and (not allow_weak or sys.platform != "linux"):
            raise SandboxUnavailable(
                f"this machine cannot confine a process; it lacks {', and '.join(lack)}. Use the sandbox 'monty', 'container' or "
                f"'remote', or pass allow_weak=True for code that you would run without a sandbox"
            )
        self._python = landlock.python(python or landlock.here())
        self._plans = {programs: landlock.plan(self._python, packages, read, programs=programs) for programs in (False, True)}
        self._processes, self._file_size, self._disk = processes, file_size, disk
        self._parallel = parallel or 2 * (os.cpu_count() or 1)
        self._turn = threading.BoundedSemaphore(self._parallel)
        self._besides = (-math.inf, 1)
        """When a user's threads and processes were last counted, and how many there were; root's other ones do not count."""
        self._filters: dict[syscalls.Rules, bytes] = {}
        self._strong = not lack
        self.capabilities = Capabilities(
            kind=self.kind,
            isolation="weak" if lack else "kernel",
            python=self._python.version,
            packages=tuple(packages),
            processes=processes,
            details=(*have, "rlimits", "a session of its own"),
            gaps=tuple(lack),
        )
        self._test((self.kind, self._python, tuple(packages), tuple(read)))

    def _test(self, key: tuple[object, ...]) -> None:
        """Once for each configuration: what should be refused is refused, by trying it."""
        if key in _tested or not self._strong:
            return
        test = _SELF_TEST if self._processes == 1 else _SELF_TEST.replace(" os.fork,", "")
        result = self.run(test, timeout=60.0)
        told = f"{result.stdout}{result.stderr}".strip()
        if told != "confined":
            raise SandboxUnavailable(f"the sandbox's test of itself failed: {told[-500:]}")
        _tested.add(key)

    def run(
        self,
        code: str | None = None,
        *,
        argv: Sequence[str] | None = None,
        stdin: str = "",
        files: Mapping[str, bytes] = {},
        timeout: float = 10.0,
        memory: int = 512 << 20,
        output: int = 1 << 16,
    ) -> Result:
        """As `Sandbox.run`."""
        check_arguments(code, argv, files, timeout, memory, output)
        program = self._program(argv) if argv is not None else None
        source = (code or "").encode("utf-8", "surrogatepass")
        with self._turn:
            begin = time.monotonic()
            directory = tempfile.mkdtemp(prefix="whet-sandbox-", dir=self._base())
            try:
                try:
                    write_files(directory, files)
                except OSError as error:
                    raise ConfigError(f"files cannot be put into the sandbox: {error}") from error
                limits = supervise.Limits(timeout, memory, output, self._disk, self._processes)
                header = self._header(directory, program, memory, timeout)
                exit_status, killer, streams = self._watched(directory, header, source, stdin, limits)
                changed, cut = supervise.collect(directory, files, RETURNED_BYTES, RETURNED_FILES)
            finally:
                supervise.remove(directory)
        out, err = streams
        if killer is None and exit_status == -signal.SIGXCPU:
            killer = "cpu"
        return Result(
            stdout=decode(bytes(out.head), output),
            stderr=decode(bytes(err.head), output),
            exit=exit_status,
            killed_by=killer,
            truncated=cut or max(out.size, err.size) > output,
            files=changed,
            seconds=time.monotonic() - begin,
        )

    def _base(self) -> str | None:
        """Where private directories are made; None for the usual place."""
        return None

    def _program(self, argv: Sequence[str]) -> tuple[str, list[str]]:
        """The program's path and its arguments. Raises ConfigError where there is no such program."""
        if argv[0] in ("python", "python3"):
            return self._python.executable, [self._python.executable, *argv[1:]]
        found = argv[0] if argv[0].startswith(("/", "./")) else shutil.which(argv[0], path=PATH)
        if found is None:
            raise ConfigError(f"argv names {argv[0]!r}, which is not in {PATH}; give a path such as './{argv[0]}' for a file of its own")
        return found, list(argv)

    def _header(self, directory: str, program: tuple[str, list[str]] | None, memory: int, timeout: float) -> dict[str, Any]:
        """What child.py must know about a run."""
        tree = self._processes > 1
        programs = tree or program is not None
        plan = self._plans[programs]
        user = another_user() if tree or program is None else 0
        if user and tree:
            for path in (directory, *glob.iglob(f"{glob.escape(directory)}/**", recursive=True, include_hidden=True)):
                os.chown(path, user, user)
        signals = tree and landlock.abi() >= 6
        kernel = syscalls.Rules(fork=tree, execute=programs, signals=signals, truncates=landlock.abi() >= 3)
        return {
            "kind": "tree" if tree else "process",
            "parent": os.getpid(),
            "directory": directory,
            "argv": program,
            "path": plan.site,
            "hidden": plan.hidden,
            "drop": True,
            "user": user,
            "landlock": landlock.abi() if self._strong else 0,
            "rules": [*plan.rules, landlock.own(directory, programs=programs)],
            "seccomp": self._filter(kernel),
            "limits": self._limits(memory, timeout),
        }

    def _filter(self, rules: syscalls.Rules) -> bytes:
        if not self._strong:
            return b""
        if rules not in self._filters:
            self._filters[rules] = syscalls.program(platform.machine(), rules)
        return self._filters[rules]

    def _limits(self, memory: int, timeout: float) -> list[tuple[int, int, int]]:
        """(resource, soft, hard). Processor time is the wall-clock limit, rounded up, plus a second."""
        seconds = math.ceil(timeout) + 1
        found = [
            (resource.RLIMIT_CORE, 0, 0),
            (resource.RLIMIT_CPU, seconds, seconds + 1),
            (resource.RLIMIT_FSIZE, self._file_size, self._file_size),
            (resource.RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES),
        ]
        found += [(resource.RLIMIT_MEMLOCK, 0, 0), (resource.RLIMIT_MSGQUEUE, 0, 0)]
        found += [(resource.RLIMIT_NPROC, most, most) for most in self._most_tasks()]
        return [*found, (resource.RLIMIT_DATA, memory, memory), (resource.RLIMIT_AS, memory + LIBRARY_SPACE, memory + LIBRARY_SPACE)]

    def _most_tasks(self) -> list[int]:
        """The kernel's own limit on a user's threads and processes, all together. Root's runs are a user each, for which it
        is exact; what others have running besides is added."""
        now = time.monotonic()
        if os.getuid() and now - self._besides[0] > 1.0:
            self._besides = (now, supervise.tasks(os.getuid()))
        return [self._besides[1] + supervise.most_tasks(self._processes)]

    def _environment(self, directory: str, *, programs: bool = False) -> dict[str, str]:
        """All that a program sees of the environment."""
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        fixed = {"LANG": "C.UTF-8", "TZ": "UTC", "MALLOC_ARENA_MAX": "2", "MPLBACKEND": "Agg", "PYTHONUTF8": "1", "PYTHONHASHSEED": "0"}
        site = self._plans[programs].site if programs else []  # code finds its packages without
        return {"PATH": PATH, "HOME": directory, "TMPDIR": directory, **threads, **fixed} | ({"PYTHONPATH": ":".join(site)} if site else {})

    def _watched(
        self, directory: str, header: dict[str, Any], source: bytes, stdin: str, limits: supervise.Limits
    ) -> tuple[int, Killer | None, tuple[supervise.Stream, supervise.Stream]]:
        """Start the process, watch it to its end. Returns its exit status, the limit it broke, its output."""
        with contextlib.ExitStack() as stack:
            job_fd = sealed(framed(header) + source, stack)
            told, tell = pipe(stack)
            environment = self._environment(directory, programs=header["argv"] is not None)
            process = self._spawn(job_fd, tell, sealed(stdin.encode("utf-8", "surrogatepass"), stack), environment)
            stack.callback(process.kill)  # nothing, unless something fails before it is watched
            with process:
                os.close(tell)
                assert process.stdout is not None
                assert process.stderr is not None
                out, err = (supervise.Stream(stream.fileno(), limits.output) for stream in (process.stdout, process.stderr))
                job = _Process(process, told, tree=header["kind"] == "tree", stack=stack)
                killer = supervise.watch(job, (out, err), directory, limits)
                exit_status = job.finish()
            if not job.ready:
                raise SandboxUnavailable(f"a process could not be confined: {decode(bytes(err.head), 500).strip() or 'it ended at once'}")
            return exit_status, killer, (out, err)

    def _spawn(self, job_fd: int, report_fd: int, stdin_fd: int, environment: dict[str, str], *more: int) -> subprocess.Popen[bytes]:
        with contextlib.ExitStack() as stack:
            fds = (job_fd, report_fd, sealed(_CHILD, stack))
            command = [self._python.executable, "-S", "-s", "-B", "-c", _START, *map(str, fds)]
            try:
                return subprocess.Popen(
                    command,
                    stdin=stdin_fd,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    pass_fds=(*fds, *more),
                    env=environment,
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                raise SandboxUnavailable(f"{self._python.executable} cannot be started: {error}") from error


class _Process:
    """A run in processes of its own: one, or a tree under a process that reaps it."""

    def __init__(self, process: subprocess.Popen[bytes], told: int, *, tree: bool, stack: contextlib.ExitStack) -> None:
        self._process, self._tree = process, tree
        self._report = Report(told)
        self.fds: tuple[int, ...] = (told,)
        if not tree:
            ended = os.pidfd_open(process.pid)
            stack.callback(os.close, ended)
            self.fds = (told, ended)

    @property
    def ready(self) -> bool:
        return self._report.ready

    def hear(self, fd: int) -> bool:
        if fd != self._report.fd:
            self._report.read()
            return True
        self._report.read()
        if self._tree:
            return self._report.exit is not None or self._report.closed
        return False

    def pids(self) -> list[int]:
        if not self._tree:
            return [self._process.pid]
        return supervise.session(self._report.pid) if self._report.pid else []

    def kill(self) -> None:
        """The process is not reaped yet, so that its id is still its own, and its group's."""
        with contextlib.suppress(ProcessLookupError):
            if self._tree:
                self._process.terminate()
            else:
                os.killpg(self._process.pid, signal.SIGKILL)

    def finish(self) -> int:
        """Reap what is left. The exit status of the program."""
        try:
            code = self._process.wait(30 if self._tree else None)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._report.read()
        if not self._tree:
            return code
        if self._report.pid:
            for pid in supervise.session(self._report.pid):  # only where the process between was killed
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return self._report.exit if self._report.exit is not None else code


class Report:
    """What child.py says on its report: `R` ready, `P` the process's id, a number the exit status."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.ready = self.closed = False
        self.pid = 0
        self.exit: int | None = None
        self._text = b""

    def read(self) -> None:
        """Take in what has been said."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.fd, 4096):
                self._text += data
            self.closed = True
        *lines, self._text = self._text.split(b"\n")
        for line in lines:
            if line == b"R":
                self.ready = True
            elif line.startswith(b"P") and line[1:].isdigit():
                self.pid = int(line[1:])
            elif line.lstrip(b"-").isdigit():
                self.exit = int(line)


def framed(header: dict[str, Any]) -> bytes:
    """The header as child.py reads it; version 2 of marshal is the same in every Python 3."""
    data = marshal.dumps(header, 2)
    return len(data).to_bytes(8, "little") + data


def sealed(data: bytes, stack: contextlib.ExitStack) -> int:
    """A descriptor to read `data` from, which nobody can write to."""
    fd = os.memfd_create("whet", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    stack.callback(os.close, fd)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return fd


def pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe whose reading end the stack closes; the writing end is the caller's."""
    reading, writing = os.pipe()
    stack.callback(os.close, reading)
    return reading, writing
