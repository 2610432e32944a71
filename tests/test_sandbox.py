"""The sandbox under attack, one test for each: files, network, other processes, the kernel. test_sandbox_limits.py has the rest.

Each test runs against each backend, as the user who runs the tests and as nobody. The evidence is gathered on the side of the
host: what lies in its directories, what runs, who connected. Programs report each attempt, so that one that no longer reaches
its target fails its test, too.
"""

import ctypes
import glob
import os
import pickle
import signal
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandbox_host import ATTEMPT, SECRET, refused
from whet.tools.sandbox import Result, open_sandbox

pytest_plugins = ("sandbox_host",)


def test_reading_outside(host, outside):
    paths = [
        "/etc/passwd",
        "/etc/shadow",
        "/etc/hostname",
        "/root/.bashrc",
        __file__,
        str(outside / "file"),
        "/var/log/dpkg.log",
        "/usr/bin/env",
    ]
    code = f"{ATTEMPT}\nfor path in {paths}:\n attempt(path, lambda: open(path, 'rb').read(9))"
    refused(host.run(code), len(paths))
    places = ["/", "/etc", "/root", "/home", "/tmp", "/proc", "/sys", os.path.dirname(__file__), str(outside), ".."]
    refused(host.run(f"{ATTEMPT}\nfor path in {places}:\n attempt(path, os.listdir, path)"), len(places))
    assert host.run("import os; print(len(open(os.__file__).read()) > 1000)").stdout == "True\n", "the standard library can be read"


def test_writing_outside(host, outside):
    code = f"""{ATTEMPT}
os.chdir({str(outside)!r})
for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_TRUNC):
    attempt("open", os.open, "file", flags)
attempt("truncate", os.truncate, "file", 0)
attempt("create", os.open, "new", os.O_CREAT | os.O_WRONLY)
attempt("unnamed", os.open, ".", os.O_TMPFILE | os.O_RDWR)
for name, arguments in dict(unlink=["file"], rename=["file", "other"], mkdir=["d"], symlink=["file", "s"], link=["file", "l"], mkfifo=["f"],
        chmod=["file", 0], utime=["file", (1, 1)], chown=["file", 1, 1], setxattr=["file", "user.x", b"1"], rmdir=["."]).items():
    attempt(name, getattr(os, name), *arguments)
"""
    before = os.stat(outside / "file")
    refused(host.run(code), 19)
    after = os.stat(outside / "file")
    assert os.listdir(outside) == ["file"]
    assert (outside / "file").read_text() == SECRET
    assert (before.st_mode, before.st_mtime_ns, before.st_uid) == (after.st_mode, after.st_mtime_ns, after.st_uid)


def test_moving_a_file_out_or_in(host, outside):
    code = f"""{ATTEMPT}
open("mine", "w").write("x")
attempt("out", os.rename, "mine", {str(outside / "planted")!r})
attempt("in", os.rename, {str(outside / "file")!r}, "stolen")
attempt("copy", os.link, "mine", {str(outside / "planted")!r})
"""
    refused(host.run(code), 3)
    assert os.listdir(outside) == ["file"]


def test_symlink_escape(host, outside):
    code = f"""{ATTEMPT}
os.symlink("/etc/passwd", "a"); os.symlink({str(outside)!r}, "b"); os.symlink("b/file", "c"); os.symlink("..", "d")
for path in ("a", "b/file", "c", "d/x"):
    attempt(path, lambda: open(path).read())
    attempt(path, lambda: open(path, "w").write("x"))
attempt("list", os.listdir, "b")
"""
    result = host.run(code)
    refused(result, 9)
    assert result.files == {}, "links that are left behind are not followed by the host"
    assert (outside / "file").read_text() == SECRET


def test_hard_links(host, outside):
    targets = ["/etc/passwd", str(outside / "file"), "/usr/bin/env"]
    code = f"{ATTEMPT}\nfor i, path in enumerate({targets}):\n attempt(path, os.link, path, str(i))\nprint(os.listdir('.'))"
    result = host.run(code)
    refused(result, 3)
    assert result.stdout.endswith("[]\n")
    assert os.stat(outside / "file").st_nlink == 1


def test_sockets_of_every_family(host):
    code = f"""{ATTEMPT}
made = 0
for family in range(64):
    for kind in (1, 2, 3, 4, 5, 10):
        try:
            socket.socket(family, kind).close()
            made += 1
        except OSError as error:
            assert error.errno == errno.EPERM, error
print("made", made)
"""
    assert host.run(code).stdout == "made 0\n"


def test_socketpairs_cannot_be_aimed(host):
    """asyncio's loop needs a pair of connected streams; that is all there is."""
    path = host.base / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as letters:
        server.bind(str(path))
        letters.bind(str(path) + ".d")
        server.listen()
        for name in (path, path.with_suffix(".d")):
            name.chmod(0o777)
        server.settimeout(0.05)
        letters.settimeout(0.05)
        code = f"""{ATTEMPT}
a, b = socket.socketpair()
attempt("connect", a.connect, {str(path)!r})
attempt("bind", a.bind, "mine")
attempt("listen", a.listen)
attempt("sendto", a.sendto, b"x", {str(path) + ".d"!r})
attempt("sendmsg", a.sendmsg, [b"x"], [], 0, {str(path) + ".d"!r})
attempt("setsockopt", a.setsockopt, 1, 7, 1 << 20)
for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
    attempt("pair", socket.socketpair, socket.AF_UNIX, kind)
attempt("inet pair", socket.socketpair, socket.AF_INET)
"""
        refused(host.run(code), 9)
        for waiting in (server.accept, lambda: letters.recv(1)):
            with pytest.raises(TimeoutError):
                waiting()
        path.unlink()
        path.with_suffix(".d").unlink()
    assert host.run("import asyncio; print(asyncio.run(asyncio.sleep(0.01, 'awake')))").stdout == "awake\n"


def test_fork(host):
    code = f"""{ATTEMPT}
import subprocess, multiprocessing
attempt("fork", os.fork)
attempt("spawn", os.posix_spawn, sys.executable, ["x"], {{}})
attempt("subprocess", subprocess.run, ["/bin/true"])
attempt("exec", os.execv, "/bin/true", ["true"])
call("vfork", 58 if os.uname().machine == "x86_64" else 1079)
call("clone3", 435, 0, 0)
attempt("pool", multiprocessing.Pool, 2)
"""
    refused(host.run(code), 7)
    threads = "import threading; t = [threading.Thread(target=print, args=(i,)) for i in range(20)]; [x.start() for x in t]"
    assert len(host.run(threads).stdout.split()) == 20, "threads are free"


def test_signal_to_the_parent(host):
    code = f"""{ATTEMPT}
import fcntl
a, b = os.pipe()
for pid in (os.getppid(), 1, -1, {os.getpid()}, {host.pid}, -{os.getpgrp()}):
    for number in (0, signal.SIGTERM, signal.SIGKILL):
        attempt(pid, os.kill, pid, number)
attempt("pidfd", os.pidfd_open, os.getppid())
attempt("owner", fcntl.fcntl, a, fcntl.F_SETOWN, os.getppid())
attempt("nice", os.setpriority, os.PRIO_PROCESS, os.getppid(), 19)
attempt("affinity", os.sched_setaffinity, os.getppid(), {{0}})
for name, number in dict(tkill=(200, 130), rt_sigqueueinfo=(129, 138), pidfd_send_signal=(424, 424)).items():
    call(name, number[os.uname().machine != "x86_64"], os.getppid(), 15, 0, 0)
"""
    refused(host.run(code), 25)
    assert host.run("print('the host is alive')").exit == 0
    own = host.run("import os, signal; os.kill(os.getpid(), signal.SIGUSR1)")
    assert own.exit == -signal.SIGUSR1, "a process may end itself"
    assert host.run("import os; os.abort()").exit == -signal.SIGABRT


def test_ptrace(host):
    code = f"""{ATTEMPT}
x86 = os.uname().machine == "x86_64"
for request in (16, 0x4206, 0):
    call("ptrace", 101 if x86 else 117, request, os.getppid(), 0, 0)
call("process_vm_readv", 310 if x86 else 270, os.getppid(), 0, 0, 0, 0, 0)
call("process_vm_writev", 311 if x86 else 271, os.getppid(), 0, 0, 0, 0, 0)
call("pidfd_getfd", 438, 3, 0, 0)
call("kcmp", 312 if x86 else 272, os.getppid(), os.getpid(), 0, 0, 0)
"""
    refused(host.run(code), 7)


def test_proc_of_others(host):
    code = f"""{ATTEMPT}
for pid in ("self", "thread-self", os.getppid(), {host.pid}, {os.getpid()}, 1):
    for name in ("environ", "cmdline", "mem", "maps", "status", "root/etc/passwd", "cwd/.", "task"):
        attempt(f"{{pid}}/{{name}}", lambda: open(f"/proc/{{pid}}/{{name}}", "rb").read(20))
for pid in (os.getppid(), {host.pid}, {os.getpid()}, 1):
    for name in ("exe", "cwd", "root", "fd/0"):
        attempt(name, os.readlink, f"/proc/{{pid}}/{{name}}")
for path in ("/proc/meminfo", "/proc/sys/kernel/core_pattern", "/sys/kernel/notes", "/dev/mem", "/dev/kmsg", "/dev/tty", "/dev/shm/x"):
    attempt(path, os.open, path, os.O_RDONLY)
    attempt(path, os.open, path, os.O_WRONLY)
"""
    refused(host.run(code), 6 * 8 + 4 * 4 + 7 * 2)


def test_environment_secrets(host):
    assert os.environ["WHET_TEST_SECRET"] == SECRET
    code = """
import ctypes, os
print(sorted(os.environ))
environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
i = 0
while environ[i]:
    print(environ[i])
    i += 1
import sys
print(sys.argv, sys.orig_argv[:2])
"""
    result = host.run(code)
    assert result.exit == 0
    assert "PYTHONHASHSEED" in result.stdout
    assert SECRET not in result.stdout
    assert "WHET_TEST_SECRET" not in result.stdout


def test_file_descriptors(host):
    with open(host.base / "leak", "w+") as file:
        os.set_inheritable(file.fileno(), True)
        result = host.run(
            "import os\nfor fd in range(3, 5000):\n try: print('open', fd, os.fstat(fd))\n except OSError: pass\nprint('done')"
        )
    assert result.stdout == "done\n"
    (host.base / "leak").unlink()
    assert host.run("import os; os.closerange(0, 5000)").killed_by is None
    assert host.run("import os; os.dup2(1, 2); os.write(2, b'both'); os.close(1)").stdout == "both"
    assert "Too many open files" in host.run("import os\nx = [os.dup(0) for i in range(5000)]").stderr, "no traceback can be imported"
    assert host.run("import os\nfor fd in (0,): os.ftruncate(fd, 0)", stdin="abc").exit == 1, "standard input cannot be written to"


def test_setuid_and_capabilities(host):
    code = f"""{ATTEMPT}
fd = os.open("x", os.O_CREAT | os.O_WRONLY, 0o6777)
attempt("chmod", os.chmod, "x", 0o6777)
attempt("fchmod", os.fchmod, fd, 0o6777)
attempt("chown", os.chown, "x", 0, 0)
for name in ("setuid", "setgid", "seteuid", "setegid"):
    attempt(name, getattr(os, name), 0)
attempt("setresuid", os.setresuid, 0, 0, 0)
attempt("setgroups", os.setgroups, [0])
attempt("chroot", os.chroot, ".")
attempt("mknod", os.mknod, "null", 0o20666, os.makedev(1, 3))
data = (ctypes.c_uint32 * 6)()
libc.capget((ctypes.c_uint32 * 2)(0x20080522, 0), data)
print("capabilities", sum(data))
"""
    result = host.run(code)
    refused(result, 11)
    assert result.stdout.endswith("capabilities 0\n")


def test_dangerous_system_calls(host):
    if os.uname().machine != "x86_64":
        pytest.skip("numbers of x86-64")
    calls = dict(  # noqa: C408
        io_uring_setup=425, io_uring_enter=426, bpf=321, userfaultfd=323, perf_event_open=298, keyctl=250, add_key=248, request_key=249,
        unshare=272, setns=308, mount=165, umount2=166, pivot_root=155, move_mount=429, open_tree=428, fsopen=430, fsmount=432,
        memfd_create=319, memfd_secret=447, open_by_handle_at=304, name_to_handle_at=303, fanotify_init=300, inotify_init1=294,
        shmget=29, semget=64, msgget=68, mq_open=240, personality=135, init_module=175, finit_module=313, delete_module=176,
        kexec_load=246, iopl=172, ioperm=173, acct=163, quotactl=179, settimeofday=164, clock_settime=227, adjtimex=159, sethostname=170,
        syslog=103, swapoff=168, modify_ldt=154, vmsplice=278, lookup_dcookie=212, mbind=237, migrate_pages=256, move_pages=279,
        ioprio_set=251, sched_setscheduler=144, sched_setattr=314, setpriority=141, landlock_create_ruleset=444, seccomp=317, openat2=437,
        fchmodat2=452, process_madvise=440, utimensat=280, setxattr=188, sync=162, x32_read=0x40000000, far_future=4000,
    )  # fmt: skip
    body = "\n".join(f"call({name!r}, {number}, 0, 0, 0, 0, 0, 0)" for name, number in calls.items())
    refused(host.run(f"{ATTEMPT}\n{body}"), len(calls))


def test_system_calls_of_another_architecture(host):
    if os.uname().machine != "x86_64":
        pytest.skip("machine code of x86-64")
    code = """
import ctypes, mmap
m = mmap.mmap(-1, 4096, prot=7)
m.write(bytes.fromhex("b814000000 cd80 c3"))  # mov eax, 20; int 0x80; ret: getpid of 32-bit Linux
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))())
"""
    result = host.run(code)
    assert (result.exit, result.stdout) == (-signal.SIGSYS, ""), result


def test_prctl_and_ioctl(host):
    code = f"""{ATTEMPT}
import fcntl
def prctl(*arguments):
    if libc.prctl(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
attempt("outlive the parent", prctl, 1, 0, 0, 0, 0)
attempt("dumpable", prctl, 4, 1, 0, 0, 0)
attempt("subreaper", prctl, 36, 1, 0, 0, 0)
attempt("mm", prctl, 35, 1, 0, 0, 0)
for request in (0x5412, 0x540E, 0x8901, 0x8902, 0x6601):  # TIOCSTI, TIOCSCTTY, FIOSETOWN, SIOCSPGRP, FS_IOC_GETFLAGS
    attempt(request, fcntl.ioctl, 0, request, b"x" * 8)
for command in (fcntl.F_SETOWN, fcntl.F_SETSIG, fcntl.F_SETLEASE, fcntl.F_NOTIFY, 1031):
    attempt(command, fcntl.fcntl, 0, command, 1)
attempt("lock the library", lambda: fcntl.fcntl(os.open(os.__file__, os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK))
"""
    refused(host.run(code), 15)


def test_planted_modules_run_confined_or_not_at_all(host, outside):
    """What lies in the directory must not be imported by the part of the child that is not confined yet."""
    planted = f"open({str(outside / 'planted')!r}, 'w').write('x')\n".encode()
    names = ("ctypes", "marshal", "os", "resource", "signal", "site", "sitecustomize", "usercustomize", "encodings", "_ctypes", "gc")
    files = {f"{name}.py": planted for name in names} | {"encodings/__init__.py": planted, "pyvenv.cfg": b"home = /", "x.pth": b"import os"}
    files.pop("encodings.py")
    result = host.run("print('ran')", files=files)
    assert result.stdout == "ran\n"
    assert os.listdir(outside) == ["file"]


@pytest.mark.slow
def test_other_runs(kind):
    """A program finds neither the files nor the processes of another one."""
    with open_sandbox(kind, parallel=2) as sandbox, ThreadPoolExecutor(1) as pool:
        sandbox.run("1")
        before = set(glob.glob(f"{tempfile.gettempdir()}/whet-sandbox-*/**", recursive=True))
        first = pool.submit(sandbox.run, f"import time; open('mine', 'w').write({SECRET!r}); print('x', flush=True); time.sleep(1.5)")
        deadline = time.monotonic() + 20
        found: list[str] = []
        while not found and time.monotonic() < deadline:
            now = set(glob.glob(f"{tempfile.gettempdir()}/whet-sandbox-*/**", recursive=True))
            found = [path for path in now - before if path.endswith("/mine")]
        code = f"""{ATTEMPT}
attempt("read", lambda: open({found[0]!r}).read())
attempt("write", lambda: open({found[0]!r}, "w").write("y"))
attempt("list", os.listdir, os.path.dirname({found[0]!r}))
attempt("plant", lambda: open(os.path.dirname({found[0]!r}) + "/new", "w"))
attempt("delete", os.unlink, {found[0]!r})
"""
        refused(sandbox.run(code), 5)
        assert first.result().files == {"mine": SECRET.encode()}


def test_results_can_be_sent_to_another_process():
    assert pickle.loads(pickle.dumps(Result(stdout="a", stderr="", exit=0))) == Result(stdout="a", stderr="", exit=0)


def test_the_capability_to_attack_is_there():
    """The attacks above would work without the sandbox; or else they would prove nothing."""
    assert "root" in Path("/etc/passwd").read_text()
    socket.socket().close()
    assert os.kill(os.getppid(), 0) is None
    assert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0
    weak = open_sandbox("process")
    weak._strong = False
    result = weak.run(f"{ATTEMPT}\nattempt('read', lambda: open('/etc/passwd').read(4)); attempt('socket', socket.socket)")
    assert result.stdout.count("WORKED") == 2
