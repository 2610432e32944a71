"""Sandboxes from their good side: results, files, packages, the zygote, Monty, other machines."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from whet.cli import doctor
from whet.errors import ConfigError, MissingExtra
from whet.tools.sandbox import Result, Sandbox, SandboxUnavailable, landlock, open_sandbox, process, supervise
from whet.tools.sandbox.base import decode

pytestmark = pytest.mark.slow

confining = pytest.mark.skipif(bool(process.offers()[1]), reason="this machine cannot confine a process")


@pytest.fixture(scope="module")
def cold():
    with open_sandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def warm():
    with open_sandbox("zygote") as sandbox:
        yield sandbox


@pytest.fixture(params=["cold", "warm"])
def box(request):
    return request.getfixturevalue(request.param)


def test_arguments_that_cannot_work(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown sandbox 'proces'. Did you mean 'process'"):
        open_sandbox("proces")
    with pytest.raises(ConfigError, match=r"sandbox 'remote'.*unexpected keyword argument 'adress'"):
        open_sandbox("remote", adress="x", url="http://x")
    if process.offers()[1]:
        pytest.skip("this machine cannot confine a process")
    for options, told in (
        ({"packages": "numpy"}, "packages is 'numpy'; expected a sequence"),
        ({"packages": ["no-such-distribution"]}, "no distribution 'no-such-distribution' is installed"),
        ({"read": ["/no/such"]}, "read names '/no/such', which does not exist"),
        ({"processes": 0}, "processes is 0; expected at least 1"),
    ):
        with pytest.raises(ConfigError, match=told):
            open_sandbox(**options)
    with pytest.raises(ConfigError, match="a zygote's programs are one process each"):
        open_sandbox("zygote", processes=2)
    with pytest.raises(SandboxUnavailable, match="does not run as a Python interpreter"):
        open_sandbox(python=str(tmp_path / "python"))
    with open_sandbox() as sandbox:
        for arguments, told in (
            ({}, "exactly one of them"),
            ({"code": "1", "argv": ["ls"]}, "exactly one of them"),
            ({"argv": "ls"}, "argv is 'ls'; expected a list"),
            ({"argv": ["no-such-program"]}, "argv names 'no-such-program'"),
            ({"code": "1", "timeout": 0}, "timeout is 0"),
            ({"code": "1", "memory": 1 << 20}, "Python needs at least"),
            ({"code": "1", "files": {"../x": b""}}, "'../x' is no file name inside the sandbox"),
            ({"code": "1", "files": {"/etc/x": b""}}, "is no file name"),
            ({"code": "1", "files": {"a": b"", "a/b": b""}}, "files cannot be put into the sandbox"),
            ({"code": "1", "files": {"a": "text"}}, "file 'a' is of type str; expected bytes"),
        ):
            with pytest.raises(ConfigError, match=re.escape(told)):
                sandbox.run(**arguments)


# What comes back.


@confining
def test_results(box):
    result = box.run("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    assert (result.stdout, result.stderr, result.exit, result.killed_by, result.truncated) == ("out\n", "err\n", 3, None, False)
    assert not result.ok
    assert box.run("pass").ok
    assert box.run("raise SystemExit('bye')").stderr == "bye\n"
    assert box.run("exit(4)").exit == 4
    assert box.run("print(input() + input())", stdin="a\nß\n").stdout == "aß\n"
    assert box.run("").exit == 0
    assert box.run("print(__name__, __import__('sys').argv)").stdout == "__main__ ['main.py']\n"
    assert box.run("import os; os.write(1, bytes([255, 254]))").stdout == "\ufffd\ufffd"


@confining
def test_tracebacks_show_the_code_and_nothing_else(box):
    told = box.run("def f(x):\n    return 1 / x\n\nf(0)\n").stderr
    assert [line.strip() for line in told.splitlines() if "^" not in line and "~" not in line] == [
        "Traceback (most recent call last):",
        'File "main.py", line 4, in <module>',
        "f(0)",
        'File "main.py", line 2, in f',
        "return 1 / x",
        "ZeroDivisionError: division by zero",
    ]
    syntax = box.run("x = (1,\n")
    assert syntax.stderr.startswith('  File "main.py", line 1\n')
    assert syntax.stderr.endswith("SyntaxError: '(' was never closed\n")


@confining
def test_files(box):
    code = """
import os
print(sorted(os.listdir(".")), open("a/b.txt").read())
open("same", "ab").close(); open("changed", "w").write("new"); os.mkdir("d"); open("d/made", "wb").write(bytes(range(256)))
os.unlink("a/b.txt")
"""
    result = box.run(code, files={"a/b.txt": b"in", "same": b"1", "changed": b"old"})
    assert result.stdout == "['a', 'changed', 'same'] in\n"
    assert result.files == {"changed": b"new", "d/made": bytes(range(256))}
    assert not result.truncated
    assert box.run("import os; print(os.listdir('.'))").stdout == "[]\n", "nothing is kept"


@confining
def test_other_programs(cold):
    assert cold.run(argv=["sh", "-c", "read x; echo $x; exit 7"], stdin="told\n").stdout == "told\n"
    assert cold.run(argv=["sh", "-c", "exit 7"]).exit == 7
    assert cold.run(argv=["python3", "-c", "print(3)"]).stdout == "3\n"
    assert cold.run(argv=["cat", "x"], files={"x": b"content"}).stdout == "content"
    assert cold.run(argv=["cat", "/etc/passwd"]).stdout == ""
    assert cold.run(argv=["./x"], files={"x": b"#!/bin/sh"}).exit == 126


@pytest.mark.parametrize(
    ("data", "limit", "expected"),
    [(b"abc", 3, "abc"), (b"abcd", 3, "abc"), ("aß".encode(), 2, "a"), ("ß€😀".encode(), 9, "ß€😀"), ("ß€😀".encode(), 8, "ß€"),
     ("ß€😀".encode(), 4, "ß"), (b"\xff\xfe", 9, "\ufffd\ufffd"), (b"\x80\x80\x80\x80", 3, "\ufffd\ufffd\ufffd"), (b"ab", 0, "")],
)  # fmt: skip
def test_text_is_cut_between_characters(data, limit, expected):
    assert decode(data, limit) == expected


@confining
def test_packages_are_only_those_that_were_asked_for():
    numpy = pytest.importorskip("numpy")
    other = Path(pytest.__file__).parent / "__init__.py"
    code = f"""
import numpy
print(numpy.arange(4).sum(), numpy.linalg.inv(numpy.eye(2)).sum())
try:
    import pytest
    print("imported")
except ImportError as error:
    print(type(error).__name__)
try:
    print(open({str(other)!r}).read(10))
except OSError as error:
    print(type(error).__name__)
"""
    for kind, options in (("process", {}), ("zygote", {"preload": ["numpy"]})):
        with open_sandbox(kind, packages=["numpy"], **options) as sandbox:
            result = sandbox.run(code, timeout=60)
            assert result.stdout.splitlines()[0] == "6 2.0", result
            assert result.stdout.splitlines()[1] == "ModuleNotFoundError"
            assert result.stdout.splitlines()[2] == "PermissionError"
            assert "numpy" in sandbox.capabilities.packages
    with open_sandbox() as sandbox:
        assert "ModuleNotFoundError" in sandbox.run("import numpy").stderr
    assert numpy.__version__


@confining
def test_what_may_be_read_besides(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").write_text("there")
    with open_sandbox(read=[str(tmp_path / "data")]) as sandbox:
        assert sandbox.run(f"print(open({str(tmp_path / 'data' / 'x')!r}).read())").stdout == "there\n"
        assert "PermissionError" in sandbox.run(f"open({str(tmp_path / 'data' / 'x')!r}, 'w')").stderr


def test_removing_what_resists(tmp_path):
    top = tmp_path / "top"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "b" / "f").write_text("1")
    (top / "link").symlink_to("/")
    (top / "a" / "link").symlink_to(tmp_path)
    (tmp_path / "other").write_text("kept")
    for path in (top / "a" / "b", top / "a", top):
        path.chmod(0)
    supervise.remove(str(top))
    assert os.listdir(tmp_path) == ["other"]
    supervise.remove(str(top))


# The zygote.

SAME = [
    "print(sum(range(100)))",
    "import sys; print(sys.path, sys.argv, sys.flags, sys.getrecursionlimit(), __name__, sorted(globals()))",
    "import os; print(sorted(os.environ), os.environ['LANG'], os.getcwd() == os.environ['HOME'], os.umask(0), os.nice(0))",
    "print(hash('a'), {'b', 'a', 'c'}, repr(object)[:10])",
    "import resource; print([resource.getrlimit(i) for i in range(16) if i != resource.RLIMIT_NPROC])",
    "import signal; print([str(signal.getsignal(s)) for s in range(1, 32) if s not in (9, 19)], signal.pthread_sigmask(0, []))",
    "import threading; print(threading.active_count(), threading.current_thread().name, threading.main_thread().ident != 0)",
    "import os\nfor fd in range(99):\n    try:\n        print(fd, os.fstat(fd).st_mode)\n    except OSError: pass",
    "import atexit; atexit.register(print, 'at exit'); print('x', end='')",
    "f = open('unclosed', 'w'); f.write('text')",
    "1 / 0",
    "import json, decimal, datetime; print(json.dumps([str(decimal.Decimal(1) / 3), str(datetime.timedelta(1))]))",
    "import tempfile; f = tempfile.NamedTemporaryFile(); print(f.name.startswith(__import__('os').getcwd()))",
    "import time, locale; print(time.tzname, locale.getpreferredencoding(), __import__('sys').stdout.encoding)",
    "import ctypes; print(ctypes.CDLL(None).getpid() == __import__('os').getpid())",
    "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nimport pickle; print(pickle.loads(pickle.dumps(A(1))))",
    "import asyncio\nasync def f():\n    await asyncio.sleep(0.01)\n    return 5\nprint(asyncio.run(f()))",
    "import os; os.abort()",
    "print(input())",
    "while True: pass",
]


@confining
@pytest.mark.parametrize("code", SAME)
def test_a_warm_run_gives_what_a_cold_one_gives(cold, warm, code):
    given = {"stdin": "line\n", "files": {"f": b"1"}, "timeout": 0.7 if code.startswith("while") else 10.0}
    first, second = cold.run(code, **given), warm.run(code, **given)
    for part in ("stdout", "stderr", "exit", "killed_by", "truncated", "files"):
        assert getattr(first, part) == getattr(second, part), part


@confining
def test_runs_of_a_zygote_share_nothing(warm):
    code = "import random, uuid, math; print(random.random(), uuid.uuid4(), hasattr(math, 'mark')); math.mark = 1"
    told = [warm.run(code).stdout.split() for _ in range(3)]
    assert len({t[0] for t in told}) == len({t[1] for t in told}) == 3, "a fork must not repeat its siblings' random numbers"
    assert {t[2] for t in told} == {"False"}


@confining
def test_a_dead_zygote_is_replaced():
    before = zygotes()
    with open_sandbox("zygote") as sandbox, ThreadPoolExecutor(4) as pool:
        (first,) = zygotes() - before
        os.kill(first, signal.SIGKILL)
        assert sandbox.run("print(2)").stdout == "2\n"
        (second,) = zygotes() - before
        assert second != first
        runs = [pool.submit(sandbox.run, "import time; time.sleep(0.5); print(3)") for _ in range(4)]
        time.sleep(0.25)
        os.kill(second, signal.SIGKILL)
        assert [run.result().stdout for run in runs] == ["3\n"] * 4, "what was running is run again"
    assert zygotes() == before


def zygotes() -> set[int]:
    """Living children of this process that were started by a zygote sandbox."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            status = Path(f"/proc/{pid}/status").read_text()
            if "child.py" in Path(f"/proc/{pid}/cmdline").read_text() and "State:\tZ" not in status:
                found.add(int(pid))
    return found


@confining
def test_a_zygote_that_cannot_import_says_so():
    with pytest.raises(SandboxUnavailable, match=r"(?s)the zygote did not start: .*No module named 'no_such_module'"):
        open_sandbox("zygote", preload=["no_such_module"])


@confining
def test_a_forked_process_gets_a_zygote_of_its_own(warm):
    assert warm.run("print(1)").stdout == "1\n"
    pid = os.fork()
    if not pid:
        works = warm.run("print(2)").stdout == "2\n"
        warm.close()
        os._exit(0 if works else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert warm.run("print(3)").stdout == "3\n"


# Other backends.


@pytest.fixture(scope="module")
def monty():
    try:
        sandbox = open_sandbox("monty")
    except MissingExtra as error:
        pytest.skip(str(error))
    with sandbox:
        yield sandbox


def test_monty(monty):
    assert monty.run("print(2 ** 10)").stdout == "1024\n"
    assert monty.run("import random; print(random.random())").stdout == monty.run("import random; print(random.random())").stdout
    failed = monty.run("def f():\n    return 1 / 0\nf()")
    assert (failed.exit, failed.killed_by) == (1, None)
    assert failed.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert "NotImplementedError" in monty.run("def f():\n    yield 1").stderr, "what it lacks is said"
    read = monty.run("print(open('a/x').read())", files={"a/x": b"text"})
    assert read.stdout == "text\n"
    for code in (
        "open('/etc/passwd').read()",
        "open('new', 'w')",
        "import socket",
        "import os; print(os.environ['PATH'])",
        "__import__('ctypes')",
    ):
        assert monty.run(code, files={"x": b""}).exit == 1, code
    assert monty.run("print(add(2, 3))", functions={"add": lambda a, b: a + b}).stdout == "5\n"
    with pytest.raises(ConfigError, match="takes no argv"):
        monty.run(argv=["ls"])


def test_limits_of_monty(monty):
    loop = monty.run("try:\n    while True: pass\nexcept BaseException: print('caught')", timeout=0.3)
    assert (loop.killed_by, loop.stdout, loop.exit) == ("timeout", "", -9)
    assert monty.run("x = []\nwhile True: x.append('a' * 1000000)", memory=64 << 20, timeout=60).killed_by == "memory"
    flood = monty.run("while True: print('x' * 1000)", output=1000, timeout=2)
    assert (flood.killed_by, flood.stdout, flood.truncated) == ("output", "x" * 999 + "x", True)
    assert monty.run("import time; time.sleep(50)", timeout=0.3).killed_by == "timeout"
    assert "RecursionError" in monty.run("def f(n): return f(n + 1)\nf(0)").stderr
    assert monty.run("print('alive')").stdout == "alive\n"


@pytest.fixture
def server(tmp_path):
    """A server of its own process, as its module is run."""
    (tmp_path / "token").write_text("open sesame\n")
    command = [sys.executable, "-m", "whet.tools.sandbox.server", "--port", "0", "--token-file", str(tmp_path / "token"), "--longest", "20"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    line = child.stdout.readline()
    yield line.split(" at ")[1].strip()
    child.terminate()
    child.wait()
    child.stdout.close()


@confining
def test_a_sandbox_elsewhere(server):
    with open_sandbox("remote", url=server, token="open sesame") as sandbox:
        assert sandbox.capabilities.kind == "remote"
        assert sandbox.capabilities.details[0] == f"process at {server}"
        result = sandbox.run(
            "import sys; print(sys.stdin.read()); open('y', 'wb').write(b'\\xff'); sys.exit(2)", stdin="ß", files={"x": b"\0"}
        )
        assert result == Result(stdout="ß\n", stderr="", exit=2, files={"y": b"\xff"}, seconds=result.seconds)
        assert sandbox.run("while True: pass", timeout=0.3).killed_by == "timeout"
        assert "PermissionError" in sandbox.run("open('/etc/passwd')").stderr
        assert sandbox.run(argv=["sh", "-c", "echo $0"]).stdout == "sh\n"
        with pytest.raises(ConfigError, match="argv names 'no-such-program'"):
            sandbox.run(argv=["no-such-program"])
        with pytest.raises(ConfigError, match="this server allows at most 20 s"):
            sandbox.run("1", timeout=21)
        with ThreadPoolExecutor(8) as pool:
            assert [r.stdout for r in pool.map(sandbox.run, [f"print({i})" for i in range(16)])] == [f"{i}\n" for i in range(16)]
    for token in ("", "wrong"):
        with pytest.raises(SandboxUnavailable, match="status 401: the token is missing or wrong"):
            open_sandbox("remote", url=server, token=token)


class Faulty(Sandbox):
    """Fails twice, then answers; or always."""

    def __init__(self, failures: int) -> None:
        self.left = failures
        self.capabilities = process.Capabilities(kind="faulty", isolation="weak", python="3")

    def run(self, code=None, **arguments):
        self.left -= 1
        if self.left >= 0:
            raise SandboxUnavailable("out of order")
        return Result(stdout="at last", stderr="", exit=0)


@pytest.mark.parametrize(("failures", "works"), [(2, True), (3, False)])
def test_a_server_that_fails_is_asked_three_times(failures, works):
    from whet.tools.sandbox.server import SandboxServer

    with SandboxServer(Faulty(failures), ("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            sandbox = open_sandbox("remote", url=f"http://127.0.0.1:{server.server_address[1]}")
            if works:
                assert sandbox.run("1").stdout == "at last"
            else:
                with pytest.raises(SandboxUnavailable, match="status 503: out of order"):
                    sandbox.run("1")
        finally:
            server.shutdown()
            thread.join()
    with pytest.raises(SandboxUnavailable, match="does not work: ConnectionRefusedError"):
        sandbox.run("1")


def test_an_open_server_must_have_a_token():
    done = subprocess.run([sys.executable, "-m", "whet.tools.sandbox.server", "--host", "0.0.0.0"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "give a --token-file" in done.stderr


def images() -> list[str]:
    if shutil.which("docker") is None:
        return []
    done = subprocess.run(["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}"], capture_output=True, text=True)
    return [line for line in done.stdout.split() if "python" in line] if done.returncode == 0 else []


def test_container():
    if not images():
        pytest.skip("no docker daemon with an image of Python")
    with open_sandbox("container", image=images()[0]) as sandbox:
        result = sandbox.run("print(open('x').read()); open('y', 'w').write('made')", files={"x": b"in"})
        assert (result.stdout, result.exit, result.files) == ("in\n", 0, {"y": b"made"})
        assert sandbox.run("import sys; sys.exit(3)").exit == 3
        assert sandbox.run("while True: pass", timeout=1).killed_by == "timeout"
        assert sandbox.run("x = bytearray(1 << 30)", memory=64 << 20).killed_by == "memory"
        assert "OSError" in sandbox.run("import socket; socket.create_connection(('1.1.1.1', 53), 2)").stderr
        assert sandbox.run("open('/etc/x', 'w')").exit == 1
        left = subprocess.run(["docker", "ps", "--all", "--format", "{{.Names}}"], capture_output=True, text=True).stdout
        assert "whet-" not in left


def test_a_container_without_docker_is_refused():
    with pytest.raises(SandboxUnavailable, match="there is no program 'no-such-docker'; install docker or podman"):
        open_sandbox("container", command="no-such-docker")
    if shutil.which("docker") and subprocess.run(["docker", "version"], capture_output=True).returncode:
        with pytest.raises(SandboxUnavailable, match="its daemon does not answer"):
            open_sandbox("container")


def test_doctor_says_what_each_backend_offers():
    told = doctor.sandboxes()
    assert set(told) == {"process box", "monty", "container"}
    state, text = told["process box"]
    if process.offers()[1]:
        assert (state, "cannot confine" in text) == ("-", True)
    else:
        assert state == "ok"
        assert f"Landlock ABI {landlock.abi()}, seccomp" in text
    assert set(told) <= set(doctor.checks())
