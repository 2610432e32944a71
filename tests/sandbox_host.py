"""A process of another user, perhaps, that opens a sandbox and runs what a test sends it; what attacks are written with."""

import glob
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from whet.tools.sandbox import Result, landlock, open_sandbox, process, zygote  # noqa: F401  (here before a child becomes nobody)
from whet.tools.sandbox.process import offers

if offers()[1]:
    pytest.skip(f"this machine lacks {', '.join(offers()[1])}", allow_module_level=True)

ROOT = os.getuid() == 0
NOBODY = 65534
SECRET = "swordfish-7f3a"
os.environ["WHET_TEST_SECRET"] = SECRET


def works_as_nobody(python: str) -> bool:
    command = [python, "-c", "print(1)"]
    try:
        return subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, cwd="/").returncode == 0
    except OSError:
        return False


def python_of_nobody() -> str:
    """This interpreter lies in a home directory, often enough."""
    for python in (sys.executable, shutil.which("python3", path="/usr/bin:/usr/local/bin")):
        if python and works_as_nobody(python):
            return python
    pytest.skip("no Python that an ordinary user may run")


class Host:
    """A process that opens a sandbox, as another user perhaps, and runs what it is sent. `base` is where it keeps its files."""

    def __init__(self, kind: str, nobody: bool, **options) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="whet-attack-"))
        self.base.chmod(0o777)
        if nobody:
            options["python"] = python_of_nobody()
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=serve, args=(theirs, ours, kind, nobody, str(self.base), options), daemon=False)
        self._process.start()
        theirs.close()
        self._pipe, self.kind, self.pid = ours, kind, self._process.pid
        assert self._pipe.recv() == "open"

    def run(self, code=None, **arguments) -> Result:
        self._pipe.send((code, arguments))
        found = self._pipe.recv()
        if isinstance(found, Exception):
            raise found
        assert not self.directories(), "the private directory is still there"
        return found

    def directories(self) -> list[str]:
        pattern = "whet-sandbox-*/whet-sandbox-*" if self.kind == "zygote" else "whet-sandbox-*"
        return glob.glob(str(self.base / pattern))

    def processes(self) -> list[int]:
        """What runs (or is a zombie) below the host's process, except for a zygote."""
        parents = {}
        for stat in glob.glob("/proc/[0-9]*/stat"):
            try:
                head, _, rest = Path(stat).read_text().rpartition(") ")
                parents[int(head.split()[0])] = int(rest.split()[1])
            except OSError:
                continue
        below = {self.pid}
        while grown := {pid for pid, parent in parents.items() if parent in below} - below:
            below |= grown
        direct = [pid for pid, parent in parents.items() if parent == self.pid]
        return sorted(below - {self.pid} - set(direct if self.kind == "zygote" else ()))

    def close(self) -> None:
        self._pipe.close()
        self._process.join(20)
        assert not self._process.is_alive()
        left = [path for path in self.base.iterdir() if path.name.startswith("whet-sandbox-")]
        shutil.rmtree(self.base)
        assert not left, "closing leaves nothing behind"


def serve(pipe, other, kind, nobody, base, options) -> None:
    other.close()
    if nobody:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    tempfile.tempdir = base
    with open_sandbox(kind, **options) as sandbox:
        pipe.send("open")
        while True:
            try:
                code, arguments = pipe.recv()
            except EOFError:
                break
            try:
                pipe.send(sandbox.run(code, **arguments))
            except Exception as error:
                pipe.send(error)


ME, SLOW = "root" if ROOT else "user", pytest.mark.slow
OTHER = () if ROOT else (pytest.mark.skip("becoming nobody needs root"),)
USERS = [pytest.param(False, id=ME), pytest.param(True, id="nobody", marks=OTHER)]
HOSTS = [
    pytest.param(("process", False), id=f"process-{ME}"),
    pytest.param(("zygote", True), id="zygote-nobody", marks=OTHER),
    pytest.param(("process", True), id="process-nobody", marks=(SLOW, *OTHER)),
    pytest.param(("zygote", False), id=f"zygote-{ME}", marks=SLOW),
]


@pytest.fixture(scope="module", params=["process", "zygote"])
def kind(request):
    return request.param


@pytest.fixture(scope="module", params=HOSTS)
def host(request):
    host = Host(*request.param)
    yield host
    host.close()


@pytest.fixture(scope="module", params=USERS)
def tree(request):
    """A sandbox whose programs may make processes: up to 8 of them."""
    host = Host("process", request.param, processes=8)
    yield host
    host.close()


@pytest.fixture
def outside(host):
    """A directory outside the sandbox that everybody may write to, with a file in it."""
    directory = host.base / "outside"
    directory.mkdir()
    directory.chmod(0o777)
    (directory / "file").write_text(SECRET)
    (directory / "file").chmod(0o666)
    yield directory
    shutil.rmtree(directory)


ATTEMPT = """
import ctypes, errno, os, signal, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def attempt(what, function, *arguments):
    try:
        print("WORKED", what, repr(function(*arguments))[:200])
    except (OSError, ValueError) as error:
        print("refused", what, type(error).__name__)
def call(name, number, *arguments):
    ctypes.set_errno(0)
    if libc.syscall(number, *arguments) >= 0 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
        print("WORKED", name, ctypes.get_errno())
    else:
        print("refused", name)
"""


def refused(result: Result, count: int) -> None:
    """All of `count` attempts were made and none of them worked."""
    assert "WORKED" not in result.stdout, result.stdout
    assert result.stdout.count("refused") == count, result
    assert result.exit == 0, result
    assert SECRET not in result.stdout + result.stderr
