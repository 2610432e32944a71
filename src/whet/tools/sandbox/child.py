"""The other side of the process sandbox: confines the process it runs in, and only then reads what a model wrote.

This file is run as a script by a bare Python (3.9 or later), so it imports nothing of whet, and as little as it can. Its
arguments are `JOB REPORT SELF`, file descriptors; the last, of this file, has been read and taken off. JOB holds a header (by
marshal, made by process.py), then the code. On REPORT goes `R` as soon as the restrictions are in force, and, where there is
a process between this one and the caller, its id and the exit status. What fails before `R` is the sandbox's fault, not the
code's.
"""

from __future__ import annotations

import ctypes
import gc
import marshal
import os
import resource
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes longer to import than all of the above
    from typing import Any

    Job = dict[str, Any]

LIBC = ctypes.CDLL(None, use_errno=True)
ADD_RULE, RESTRICT_SELF, CREATE_RULESET = 445, 446, 444
SECCOMP = {"x86_64": 317, "aarch64": 277}
SET_PDEATHSIG, CAPBSET_DROP, SET_CHILD_SUBREAPER, SET_NO_NEW_PRIVS, CAP_AMBIENT, CLEAR_AMBIENT = 1, 24, 36, 38, 47, 4
SET_KEEPCAPS, RAISE_AMBIENT, READ_ALL, CAP_VERSION, UNCHANGED = 8, 2, 2, 0x20080522, 0xFFFFFFFF
FILE_RIGHTS = 1 | 2 | 4 | 1 << 14 | 1 << 15
OWN_PID = (0xFFFFFF42).to_bytes(4, sys.byteorder)


def check(value: int, what: str) -> int:
    if value < 0:
        number = ctypes.get_errno()
        raise OSError(number, what + ": " + os.strerror(number))
    return value


def call(number: int, *arguments: Any) -> int:
    result: int = LIBC.syscall(ctypes.c_long(number), *(ctypes.c_void_p(a) if isinstance(a, int) else a for a in arguments))
    return result


def prctl(option: int, *arguments: int) -> int:
    given = (*arguments, 0, 0, 0, 0)[:4]
    result: int = LIBC.prctl(ctypes.c_int(option), *(ctypes.c_ulong(a) for a in given))
    return result


def die_with_parent(parent: int) -> None:
    """Be killed when the thread that made this process ends."""
    check(prctl(SET_PDEATHSIG, signal.SIGKILL), "PR_SET_PDEATHSIG")
    if os.getppid() != parent:
        os._exit(1)


def take_another_name(user: int, for_all: bool) -> None:
    """For root, whose threads and processes the kernel does not count.

    It counts by the real user, while what a process may do goes by the effective one, so that taking another real user is
    enough, until a program is run, which then is that user `for_all`. The right to read all that Landlock lets through is
    kept then, since Python may well be installed in root's home.
    """
    if not for_all:
        if LIBC.setresuid(ctypes.c_uint32(user), ctypes.c_uint32(UNCHANGED), ctypes.c_uint32(UNCHANGED)) < 0:
            return  # in a container without the right to: the caller counts, too
        return
    check(prctl(SET_KEEPCAPS, 1), "PR_SET_KEEPCAPS")
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    held = (ctypes.c_uint32 * 6)()
    LIBC.capget((ctypes.c_uint32 * 2)(CAP_VERSION, 0), held)
    if held[1] & 1 << READ_ALL:
        only = (ctypes.c_uint32 * 6)(1 << READ_ALL, 1 << READ_ALL, 1 << READ_ALL)
        check(LIBC.capset((ctypes.c_uint32 * 2)(CAP_VERSION, 0), only), "capset")
        check(prctl(CAP_AMBIENT, RAISE_AMBIENT, READ_ALL), "PR_CAP_AMBIENT_RAISE")
    die_with_parent(os.getppid())  # forgotten with the old name


def drop_privileges(user: int, for_all: bool) -> None:
    """Nothing gained by running setuid files, and none of root's capabilities but what `take_another_name` keeps."""
    check(prctl(SET_NO_NEW_PRIVS, 1), "PR_SET_NO_NEW_PRIVS")
    prctl(CAP_AMBIENT, CLEAR_AMBIENT)
    for capability in range(64):
        if not (for_all and capability == READ_ALL) and prctl(CAPBSET_DROP, capability) < 0:
            break
    if user:
        take_another_name(user, for_all)
    if not (user and for_all):
        check(LIBC.capset((ctypes.c_uint32 * 2)(CAP_VERSION, 0), (ctypes.c_uint32 * 6)()), "capset")


def landlock(rules: Any, abi: int) -> None:
    """Only what `rules` name: (path, rights) pairs. Uses what each ABI offers: see landlock.py."""
    handled = (1 << (13 if abi < 2 else 14 if abi < 3 else 15 if abi < 5 else 16)) - 1
    attributes = (ctypes.c_uint64 * 3)(handled, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = check(call(CREATE_RULESET, attributes, size, 0), "landlock_create_ruleset")
    for path, rights, is_file in rules:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # what is not there needs no rule
        rights &= handled & (FILE_RIGHTS if is_file else -1)
        rule = rights.to_bytes(8, sys.byteorder) + fd.to_bytes(4, sys.byteorder)
        check(call(ADD_RULE, ruleset, 1, rule, 0), "landlock_add_rule " + os.fsdecode(path))
        os.close(fd)
    flags = 1 | 4 if abi >= 7 else 0  # what a model tries must not fill the machine's audit log
    check(call(RESTRICT_SELF, ruleset, flags), "landlock_restrict_self")
    os.close(ruleset)


def seccomp(program: bytes) -> None:
    program = program.replace(OWN_PID, os.getpid().to_bytes(4, sys.byteorder))
    body = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    given = Program(len(program) // 8, ctypes.addressof(body))
    check(call(SECCOMP[os.uname().machine], 1, 0, ctypes.byref(given)), "seccomp")


def confine(job: Job) -> None:
    """Everything of `job` that restricts, in an order in which each step can still be made."""
    for limit, soft, hard in job["limits"]:
        most = resource.getrlimit(limit)[1]
        soft, hard = (value if most == resource.RLIM_INFINITY else min(value, most) for value in (soft, hard))
        resource.setrlimit(limit, (soft, hard))
    os.umask(0o077)
    if job["drop"]:
        drop_privileges(job["user"], job["kind"] == "tree")
    if job["landlock"]:
        landlock(job["rules"], job["landlock"])
    if job["seccomp"]:
        seccomp(job["seccomp"])


def read_exactly(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(fd, size - len(data))
        if not part:
            raise EOFError("the job is shorter than it says")
        data += part
    return data


def read_all(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, 1 << 20):
        parts.append(part)
    os.close(fd)
    return b"".join(parts)


def header(fd: int) -> Job:
    job: Job = marshal.loads(read_exactly(fd, int.from_bytes(read_exactly(fd, 8), "little")))
    return job


class Hidden:
    """Packages that lie beside those which may be read: without this, importing one would be a PermissionError."""

    def __init__(self, names: Any) -> None:
        self.names = frozenset(names)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if path is None and name in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def settle(job: Job) -> None:
    """What the code finds in place: its directory, its modules' places and the names that Python's prompt has."""
    os.chdir(job["directory"])
    sys.path[:] = [path for path in sys.path if path not in job["path"]] + job["path"]
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Hidden)]
    sys.meta_path.insert(0, Hidden(job["hidden"]))
    sys.argv[:] = ["main.py"]
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what was printed before a limit struck is worth seeing
    if not hasattr(sys.modules["builtins"], "exit"):
        import site

        site.setquit()


def execute(code: bytes) -> int:
    """Run the code as a script called main.py. Returns its exit status; a traceback shows its own frames only."""
    main = type(sys)("__main__")
    main.__dict__["__builtins__"] = sys.modules["builtins"]
    sys.modules["__main__"] = main
    try:
        exec(compile(code, "main.py", "exec", dont_inherit=True), main.__dict__)
    except SystemExit:
        raise
    except BaseException as error:
        report(error, code)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def report(error: BaseException, code: bytes) -> None:
    sys.stdout.flush()
    try:
        import linecache
        import traceback

        text = code.decode("utf-8", "replace")
        linecache.cache["main.py"] = (len(text), None, text.splitlines(True), "main.py")
        trace = error.__traceback__
        traceback.print_exception(type(error), error, trace and trace.tb_next)
    except BaseException:  # no memory or no descriptors left, say: the name must do
        sys.stderr.write(f"{type(error).__name__}: {str(error)[:500]}\n")


def supervise(job: Job, report_fd: int) -> None:
    """Returns in a child; this process stays between it and the caller as the one who inherits and ends its orphans."""
    check(prctl(SET_CHILD_SUBREAPER, 1), "PR_SET_CHILD_SUBREAPER")
    me = os.getpid()
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    ready, told = os.pipe()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.close(ready)
        os.setsid()
        os.nice(5)  # so that whoever counts and ends the processes comes first
        os.close(told)
        die_with_parent(me)
        return

    def end(*_: Any) -> None:
        """Its children lead no group of their own, since they may not, so that this reaches all of them at once."""
        os.killpg(child, signal.SIGKILL)

    os.close(told)
    os.write(report_fd, b"P%d\n" % child)
    os.read(ready, 1)  # until the child leads a session of its own, which is what is killed
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    signal.signal(signal.SIGTERM, end)
    prctl(SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != job["parent"]:
        end()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # not reaped yet, so that its id is still its group's
    end()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    _, status = os.waitpid(child, 0)
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        pass
    os.write(report_fd, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def run(job: Job, job_fd: int, report_fd: int) -> None:
    """Confine, say so, read the code, run it."""
    try:
        if job["argv"] is None:
            settle(job)
        else:
            os.chdir(job["directory"])
        confine(job)
        os.write(report_fd, b"R\n")
        os.close(report_fd)
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
        os._exit(70)
    if job["argv"] is None:
        sys.exit(execute(read_all(job_fd)))
    os.close(job_fd)
    try:
        os.execve(job["argv"][0], job["argv"][1], dict(os.environ))
    except OSError as error:
        sys.stderr.write(f"{job['argv'][1][0]}: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(126)


class Zygote:
    """A process that imports what it is told, confined already, and forks a child for each job it is sent.

    Its control socket takes messages: `run` with the descriptors of a job, its standard streams and its report, or `kill`,
    each with the job's number. It never reads a job; the child does, once it is confined further.
    """

    def __init__(self, control: Any, receive: Any) -> None:
        self.control, self.receive = control, receive
        self.jobs: dict[int, tuple[bytes, int]] = {}
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.wake, tell = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(tell, False)
        signal.set_wakeup_fd(tell, warn_on_full_buffer=False)

    def serve(self, poll: Any) -> None:
        """Serve until the caller goes away. Returns in a child, whose job and report are descriptors 3 and 4."""
        poll.register(self.control, 1)
        poll.register(self.wake, 1)
        while True:
            for fd, _ in poll.poll():
                if fd == self.wake:
                    os.read(fd, 4096)
                    self.reap()
                elif self.take():
                    return

    def take(self) -> bool:
        """Do what the next message says. Whether this is the child that it made."""
        data, fds, _, _ = self.receive(self.control, 64, 5)
        if not data:
            os._exit(0)
        what, number = data.split()
        if what == b"kill":
            for pid, (name, _) in self.jobs.items():
                if name == number:
                    os.kill(pid, signal.SIGKILL)
            return False
        me = os.getpid()
        try:
            pid = os.fork()
        except OSError:  # the report is closed without a word, which the caller understands
            pid = -1
        if pid == 0:
            self.become(me, fds)
            return True
        if pid > 0:
            self.jobs[pid] = (number, fds[4])
            self.tell(fds[4], pid, b"P%d\n")
        for fd in fds[:4] if pid > 0 else fds:
            os.close(fd)
        return False

    def become(self, parent: int, fds: list[int]) -> None:
        """Leave everything of the zygote behind."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        die_with_parent(parent)
        for source, target in zip(fds[1:4], range(3)):
            os.dup2(source, target)
        job, report = os.dup(fds[0]), os.dup(fds[4])
        os.dup2(job, 3)
        os.dup2(report, 4)
        self.control.detach()
        os.closerange(5, 4096)

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            _, fd = self.jobs.pop(pid)
            self.tell(fd, os.waitstatus_to_exitcode(status), b"%d\n")
            os.close(fd)

    def tell(self, fd: int, number: int, form: bytes) -> None:
        try:
            os.write(fd, form % number)
        except OSError:
            return  # nobody listens any more


def zygote(job: Job, job_fd: int, report_fd: int) -> None:
    import select
    import socket

    confine(job)
    os.close(job_fd)
    settle(job)
    for name in job["preload"]:
        __import__(name)
    server = Zygote(socket.socket(fileno=job["control"]), socket.recv_fds)
    os.write(report_fd, b"R\n")
    os.close(report_fd)
    gc.collect()
    gc.freeze()
    server.serve(select.poll())
    job = header(3)
    os.environ.update(job["environment"])
    if "numpy.random" in sys.modules:  # as in a fresh process; `random` sees to it itself
        sys.modules["numpy.random"].seed()
    run(job, 3, 4)


def main() -> None:
    sys.path[:] = [path for path in sys.path if path.startswith("/")]
    job_fd, report_fd = int(sys.argv[1]), int(sys.argv[2])
    job = header(job_fd)
    die_with_parent(job["parent"])
    if job["kind"] == "zygote":
        zygote(job, job_fd, report_fd)
    elif job["kind"] == "tree":
        supervise(job, report_fd)
        run(job, job_fd, report_fd)
    else:
        run(job, job_fd, report_fd)


if __name__ == "__main__":
    main()
