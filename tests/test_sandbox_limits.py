"""The sandbox under attack, one test for each: memory, processes, time, output, disk; and what stays behind."""

import gc
import os
import shutil
import signal
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandbox_host import ATTEMPT, Host, refused
from whet.tools.sandbox import landlock, open_sandbox, zygote

pytestmark = pytest.mark.slow

pytest_plugins = ("sandbox_host",)

FORK_BOMBS = {
    "python": {"code": "import os\nwhile True:\n try:\n  os.fork()\n except OSError: pass"},
    "shell": {"argv": ["bash", "-c", ":(){ :|:& };:; sleep 60"]},
    "threads": {"code": "import os, threading, time\nos.fork(); os.fork(); threading.stack_size(1 << 16)\nwhile True:\n try:\n"
                        "  threading.Thread(target=time.sleep, args=(9,)).start()\n except RuntimeError: pass"},
}  # fmt: skip


@pytest.mark.parametrize("bomb", FORK_BOMBS)
def test_fork_bomb(tree, bomb):
    """The kernel stops it at 64 threads and processes; then it is seen, and ended."""
    most, over = 0, threading.Event()

    def look():
        nonlocal most
        while not over.is_set():
            most = max(most, len(tree.processes()))

    watching = threading.Thread(target=look)
    watching.start()
    begin = time.monotonic()
    result = tree.run(timeout=3 if bomb == "threads" else 20, **FORK_BOMBS[bomb])
    over.set()
    watching.join()
    assert result.killed_by == "processes" or (bomb == "threads" and result.killed_by in ("memory", "timeout")), result
    assert most <= 66, "with the one that watches over them"
    assert time.monotonic() - begin < 15
    assert tree.processes() == []


def test_processes_up_to_the_limit(tree):
    code = "import subprocess; print([subprocess.run(['echo', str(i)], capture_output=True, text=True).stdout for i in range(3)])"
    assert tree.run(code).stdout == "['0\\n', '1\\n', '2\\n']\n"
    assert tree.run(argv=["bash", "-c", "seq 5 | sort -r | head -2; exit 3"]).stdout == "5\n4\n"
    assert tree.run(argv=["bash", "-c", "seq 5 | sort -r | head -2; exit 3"]).exit == 3


def test_thread_bomb(host):
    code = "import threading, time\nthreading.stack_size(1 << 16)\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()"
    result = host.run(code, timeout=20)
    assert result.killed_by == "processes" or "can't start new thread" in result.stderr, result
    assert host.processes() == []


@pytest.mark.parametrize(
    "code",
    [
        "x = []\nwhile True: x.append(bytearray(1 << 20))",
        "x = 1 << (1 << 34)",
        "x = 'a' * (1 << 34)",
        "import mmap\nx = mmap.mmap(-1, 1 << 30)\nfor i in range(0, 1 << 30, 4096): x[i] = 1",
        "import os, mmap\nx = [mmap.mmap(-1, 1 << 28) for i in range(4)]\nfor y in x:\n for i in range(0, 1 << 28, 4096): y[i] = 1",
    ],
    ids=["list", "integer", "string", "shared", "many mappings"],
)
def test_memory_bomb(host, code):
    begin = time.monotonic()
    result = host.run(code, memory=128 << 20, timeout=20)
    assert result.killed_by == "memory" or "MemoryError" in result.stderr or "Cannot allocate" in result.stderr, result
    assert time.monotonic() - begin < 15


def test_memory_of_a_tree(tree):
    """Each process stays below the limit; all of them together do not."""
    code = "import os, time\nfor i in range(5):\n if os.fork() == 0: break\nx = bytearray(60 << 20)\ntime.sleep(20)"
    assert tree.run(code, memory=128 << 20, timeout=15).killed_by == "memory"
    assert tree.processes() == []


def test_output_flood(host):
    result = host.run("while True: print('x' * 1000)", output=1000, timeout=20)
    assert result.killed_by == "output"
    assert result.truncated
    assert len(result.stdout) == 1000
    error = host.run("import os\nwhile True: os.write(2, b'y' * 65536)", output=500, timeout=20)
    assert (error.killed_by, error.stderr, error.stdout) == ("output", "y" * 500, "")


def test_much_output_and_a_normal_end(host):
    result = host.run("print('x' * 2_000_000); print('end'); open('done', 'w').write('1')", output=100)
    assert (result.exit, result.killed_by, result.truncated, result.stdout, result.files) == (0, None, True, "x" * 100, {"done": b"1"})


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import signal\nfor s in range(1, 65):\n try: signal.signal(s, 1)\n except (OSError, ValueError): pass\nwhile True: pass",
        "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: time.sleep(100)",
        "while True:\n try:\n  while True: pass\n except BaseException: pass",
        "sum(range(10 ** 12))",
        "import atexit\n@atexit.register\ndef f():\n while True: pass",
    ],
    ids=["loop", "ignored signals", "blocked signals", "except", "in C", "at exit"],
)
def test_infinite_loop(host, code):
    result = host.run(f"print('begun')\n{code}", timeout=1)
    assert (result.killed_by, result.stdout) == ("timeout", "begun\n"), result
    assert result.exit == -signal.SIGKILL
    assert result.seconds < 5
    assert host.processes() == []


def test_limits_cannot_be_lifted(host):
    code = f"""{ATTEMPT}
import resource
for limit in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC):
    hard = resource.getrlimit(limit)[1]
    attempt(limit, resource.setrlimit, limit, (hard, hard))
print(resource.getrlimit(resource.RLIMIT_CPU), resource.getrlimit(resource.RLIMIT_CORE))
"""
    result = host.run(code, timeout=3)
    refused(result, 5)
    assert result.stdout.endswith("(4, 5) (0, 0)\n")


LINGER = """
import os, time
told, tell = os.pipe()
if os.fork() == 0:
    try:
        os.setsid()
    except OSError:
        print("setsid refused", flush=True)
    if os.fork() == 0:
        print("lingering", flush=True)
        os.write(tell, b"x")
        os.closerange(0, 64)
        time.sleep(600)
    os._exit(0)
os.read(told, 1)
"""


def test_leaving_a_background_process(tree):
    begin = time.monotonic()
    result = tree.run(LINGER, timeout=20)
    assert (result.stdout, result.exit) == ("setsid refused\nlingering\n", 0), result
    assert time.monotonic() - begin < 15, "it was ended with the program, not by the clock"
    assert tree.processes() == []
    tree.run(argv=["bash", "-c", "trap '' TERM HUP INT; (trap '' TERM HUP; sleep 600) & disown; nohup sleep 600 >/dev/null 2>&1 & exit 0"])
    assert tree.processes() == []


def test_signals_in_a_tree_stay_inside(tree):
    code = f"""{ATTEMPT}
for pid in (os.getppid(), 1, {tree.pid}, {os.getpid()}):
    attempt(pid, os.kill, pid, 9)
if {landlock.abi()} >= 6:
    child = os.fork() or __import__("time").sleep(60)
    os.kill(child, 9)
    print(os.waitpid(child, 0)[1])
"""
    result = tree.run(code)
    refused(result, 4)
    assert result.stdout.endswith("9\n") or landlock.abi() < 6


def test_deleting_its_own_directory(host):
    code = """
import os, shutil
shutil.rmtree(os.getcwd(), ignore_errors=True)
try:
    os.rmdir(os.getcwd())
except OSError as error:
    print(type(error).__name__)
print(os.listdir("."))
"""
    assert host.run(code, files={"a/b/c": b"1"}).stdout == "PermissionError\n[]\n"


def test_directories_that_resist_deletion(host):
    code = """
import os
os.makedirs("a/b"); open("a/b/f", "w").write("1")
os.umask(0o777)
os.mkdir("dark"); os.mkdir("a/dark"); open("a/darkfile", "w").close()
os.umask(0)
os.mkdir("blind", 0o300); open("blind/f", "w").write("1")
for i in range(3000):
    os.mkdir("deep"); os.chdir("deep")
print("built")
"""
    result = host.run(code, timeout=30)
    assert result.stdout == "built\n" or result.killed_by == "disk", result  # and Host.run has seen that the directory is gone
    assert result.files["a/b/f"] == b"1"


def test_deep_recursion(host):
    assert "RecursionError" in host.run("def f(n): return f(n + 1)\nf(0)").stderr
    crash = host.run("import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x): return [*map(f, [x])]\nf(0)", timeout=20)
    assert crash.exit == -signal.SIGSEGV or "Error" in crash.stderr, crash
    assert host.run("(" * 5000 + ")" * 5000).exit == 1
    assert host.run("eval('-' * 100000 + '1')").exit != 0
    assert host.run("print('alive')").stdout == "alive\n"


def test_decompression_bomb(host):
    head = "import zlib, bz2, os\nbomb = bz2.compress(bytes(10_000_000)) * 400\n"
    in_memory = host.run(f"{head}d = b''.join(bz2.decompress(bomb) for i in range(9))", memory=128 << 20, timeout=20)
    assert in_memory.killed_by in ("memory", "timeout") or "MemoryError" in in_memory.stderr, in_memory
    to_disk = host.run("f = open('x', 'wb')\nwhile True: f.write(bytes(1 << 20))", timeout=20)
    assert "File too large" in to_disk.stderr
    assert to_disk.truncated, "a file above what a result may hold is left out"
    left = host.run(f"{head}open('bomb.bz2', 'wb').write(bomb)", timeout=20)
    assert 0 < len(left.files["bomb.bz2"]) < 100_000, "the host hands it on as it is"


def test_filling_the_disk(host):
    code = "import os\ni = 0\nwhile True:\n i += 1\n with open(str(i), 'wb') as f: f.write(bytes(8 << 20))"
    assert host.run(code, timeout=90).killed_by == "disk"
    assert host.run("i = 0\nwhile True:\n i += 1\n open(str(i), 'w').close()", timeout=90).killed_by == "disk", "nor with empty files"
    unlinked = "import os\nk = []\nwhile True:\n k.append(open('x', 'wb')); os.unlink('x'); k[-1].write(bytes(8 << 20))"
    assert host.run(unlinked, timeout=90).killed_by == "disk", "nor with files that have no name"


def test_death_of_the_host(kind):
    """What runs in a sandbox does not outlive the process that opened it."""
    host = Host(kind, False)
    host._pipe.send(("import time\nprint('x', flush=True)\nwhile True: time.sleep(1)", {"timeout": 600}))
    deadline = time.monotonic() + 20
    while not (running := [*host.processes()]) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    running = [pid for pid in host.processes() if Path(f"/proc/{pid}").exists()]
    assert running
    os.kill(host.pid, signal.SIGKILL)
    host._process.join()
    while any(zygote._runs(pid) for pid in running) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(zygote._runs(pid) for pid in running)
    shutil.rmtree(host.base)


MIX = {
    "print(6 * 7)": lambda r: r.stdout == "42\n" and r.exit == 0,
    "open('x', 'w').write('y' * 100)": lambda r: len(r.files["x"]) == 100,
    "while True: pass": lambda r: r.killed_by == "timeout",
    "1 / 0": lambda r: r.exit == 1 and "ZeroDivisionError" in r.stderr,
    "import os; os.kill(os.getpid(), 11)": lambda r: r.exit == -11,
    "import os; os.mkdir('d', 0); os.fork()": lambda r: r.exit == 1,
}


@pytest.mark.parametrize("processes", [1, 4])
def test_two_hundred_runs_at_once_leave_nothing(kind, processes):
    if kind == "zygote" and processes > 1:
        pytest.skip("a zygote's programs are one process each")
    gc.collect()
    fds = len(os.listdir("/proc/self/fd"))
    with tempfile.TemporaryDirectory() as base, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", base)
        with open_sandbox(kind, processes=processes, parallel=16) as sandbox, ThreadPoolExecutor(200) as pool:
            programs = [list(MIX)[i % len(MIX)] for i in range(200)]
            # what ends by itself may take its time on a busy machine
            results = list(pool.map(lambda code: sandbox.run(code, timeout=1.0 if code.startswith("while") else 30.0), programs))
            for code, result in zip(programs, results):
                if processes == 1 or "fork" not in code:
                    assert MIX[code](result), (code, result)
        assert os.listdir(base) == []
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == fds
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    assert not [t for t in threading.enumerate() if t.name == "whet-zygote"]
    if children.exists():
        left = [pid for pid in children.read_text().split() if b"whet" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert not left
