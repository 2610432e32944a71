"""A container for each run, through docker's command line (or podman's, whose arguments are the same).

The image's own Python runs the code; it must have `sh`, too. Slower than a process (a second a run is common), with a wall of
its own for files, processes and network. The daemon must see the caller's temporary directory: a remote daemon does not.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence

from whet.errors import ConfigError
from whet.tools.sandbox import supervise
from whet.tools.sandbox.base import Capabilities, Killer, Result, Sandbox, SandboxUnavailable, check_arguments, decode, write_files
from whet.tools.sandbox.process import OPEN_FILES, RETURNED_BYTES, RETURNED_FILES, Report, sealed

NOBODY = 65534
WORK, CODE = "/work", "/whet"
OUT_OF_MEMORY = 137
"""Exit status of a container whose program was killed, as the kernel does where memory runs out."""
OUT_OF_TIME = 128 + signal.SIGXCPU


class ContainerSandbox(Sandbox):
    """Options: `image` must hold `python3` and be there already (nothing is pulled); `command` is the client; `processes`,
    `file_size`, `disk` and `parallel` as for the process sandbox; `cores` is how many a container may use.
    """

    def __init__(
        self,
        *,
        image: str = "python:3.12-slim",
        command: str = "docker",
        processes: int = 64,
        cores: float = 1.0,
        file_size: int = 64 << 20,
        disk: int = 256 << 20,
        parallel: int = 0,
    ) -> None:
        if not hasattr(os, "pidfd_open"):
            raise SandboxUnavailable("the sandbox 'container' needs Linux here; use 'remote' with a server that has it")
        if shutil.which(command) is None:
            raise SandboxUnavailable(f"there is no program {command!r}; install docker or podman, or name another with command=")
        self._image, self._command = image, command
        self._processes, self._cores, self._file_size, self._disk = processes, cores, file_size, disk
        self._turn = threading.BoundedSemaphore(parallel or os.cpu_count() or 1)
        self._check("version", "--format", "{{.Server.Version}}", wrong="its daemon does not answer; is it running?")
        self._check("image", "inspect", image, wrong=f"there is no image {image!r}; get it with `{command} pull {image}`")
        told = self.run("import platform; print(platform.python_version())", timeout=120.0)
        if told.exit:
            raise SandboxUnavailable(f"image {image!r} does not run Python: {told.stderr.strip()[-300:]}")
        self.capabilities = Capabilities(
            kind="container", isolation="container", python=told.stdout.strip(), packages=("*",), processes=processes, details=(image,)
        )

    def _check(self, *arguments: str, wrong: str) -> None:
        try:
            done = subprocess.run([self._command, *arguments], capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.SubprocessError) as error:
            raise SandboxUnavailable(f"{self._command}: {error}") from error
        if done.returncode:
            raise SandboxUnavailable(f"{self._command}: {wrong} ({done.stderr.strip()[-200:]})")

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
        """As `Sandbox.run`. The clock starts when the container does."""
        check_arguments(code, argv, files, timeout, memory, output)
        begin, name = time.monotonic(), f"whet-{uuid.uuid4().hex}"
        with self._turn, contextlib.ExitStack() as stack:
            directory, script = (tempfile.mkdtemp(prefix="whet-sandbox-") for _ in range(2))
            for path in (directory, script):
                stack.callback(supervise.remove, path)
            try:
                write_files(directory, files)
            except OSError as error:
                raise ConfigError(f"files cannot be put into the sandbox: {error}") from error
            with open(os.path.join(script, "main.py"), "w", encoding="utf-8", errors="surrogatepass") as file:
                file.write(code or "")
            os.mkfifo(os.path.join(script, "ready"))
            self._open_up(directory, script)
            program = list(argv) if argv is not None else ["python3", "-B", f"{CODE}/main.py"]
            started = ["sh", "-c", f'echo R > {CODE}/ready; exec "$@"', "sh"]
            command = [*self._create(name, directory, script, memory, timeout), self._image, *started, *program]
            limits = supervise.Limits(timeout, memory, output, self._disk, self._processes)
            exit_status, killer, out, err = self._watched(name, command, stdin, directory, script, limits, stack)
            changed, cut = supervise.collect(directory, files, RETURNED_BYTES, RETURNED_FILES)
        return Result(
            stdout=decode(bytes(out.head), output),
            stderr=decode(bytes(err.head), output),
            exit=exit_status,
            killed_by=killer,
            truncated=cut or max(out.size, err.size) > output,
            files=changed,
            seconds=time.monotonic() - begin,
        )

    def _open_up(self, directory: str, script: str) -> None:
        """Give the container's user, who is nobody where we are root, access to what we have put there."""
        if os.getuid() == 0:
            os.chmod(script, 0o755)
            os.chmod(os.path.join(script, "ready"), 0o666)
            for root, _, names in os.walk(directory):
                for path in (root, *(os.path.join(root, name) for name in names)):
                    os.chown(path, NOBODY, NOBODY)

    def _create(self, name: str, directory: str, script: str, memory: int, timeout: float) -> list[str]:
        user, group = (NOBODY, NOBODY) if os.getuid() == 0 else (os.getuid(), os.getgid())
        seconds = math.ceil(timeout * max(1.0, self._cores)) + 1
        limits = {
            "fsize": f"{self._file_size}:{self._file_size}",
            "nofile": f"{OPEN_FILES}:{OPEN_FILES}",
            "core": "0:0",
            "cpu": f"{seconds}:{seconds + 1}",
        }
        environment = {"HOME": WORK, "TMPDIR": WORK, "LANG": "C.UTF-8", "TZ": "UTC", "PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1"}
        return [
            *(self._command, "run", "--rm", "--interactive", "--init", "--pull", "never", "--name", name),
            *("--network", "none", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", f"{user}:{group}"),
            *("--memory", str(memory), "--memory-swap", str(memory), "--pids-limit", str(self._processes + 1), "--cpus", str(self._cores)),
            *("--workdir", WORK, "--volume", f"{directory}:{WORK}", "--volume", f"{script}:{CODE}:ro"),
            *(part for key, value in limits.items() for part in ("--ulimit", f"{key}={value}")),
            *(part for key, value in environment.items() for part in ("--env", f"{key}={value}")),
        ]

    def _watched(
        self,
        name: str,
        command: list[str],
        stdin: str,
        directory: str,
        script: str,
        limits: supervise.Limits,
        stack: contextlib.ExitStack,
    ) -> tuple[int, Killer | None, supervise.Stream, supervise.Stream]:
        given = sealed(stdin.encode("utf-8", "surrogatepass"), stack)
        with subprocess.Popen(command, stdin=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            out, err = (supervise.Stream(stream.fileno(), limits.output) for stream in (process.stdout, process.stderr))
            ended = os.pidfd_open(process.pid)
            stack.callback(os.close, ended)
            told = os.open(os.path.join(script, "ready"), os.O_RDWR | os.O_NONBLOCK)  # for writing, too, so that it has no end
            stack.callback(os.close, told)
            job = _Container(self._command, name, ended, told, process)
            killer = supervise.watch(job, (out, err), directory, limits)
            code = process.wait(30)
        if code == 125:
            raise SandboxUnavailable(f"{self._command} could not run the container: {decode(bytes(err.head), 500).strip()}")
        if killer is None and code in (OUT_OF_MEMORY, OUT_OF_TIME):
            return 128 - code, "memory" if code == OUT_OF_MEMORY else "cpu", out, err
        return (128 - code if killer is None and 128 < code < 160 else -signal.SIGKILL if killer else code), killer, out, err


class _Container:
    """A run in a container; its client is the only process of it that we see."""

    def __init__(self, command: str, name: str, ended: int, told: int, process: subprocess.Popen[bytes]) -> None:
        self._command, self._name, self._process = command, name, process
        self._report = Report(told)
        self.fds: tuple[int, ...] = (told, ended)

    @property
    def ready(self) -> bool:
        return self._report.ready

    def hear(self, fd: int) -> bool:
        self._report.read()
        return fd != self._report.fd

    def pids(self) -> list[int]:
        return []

    def kill(self) -> None:
        if self._process.poll() is None:
            subprocess.run([self._command, "rm", "--force", self._name], capture_output=True, timeout=60)
            self._process.terminate()
