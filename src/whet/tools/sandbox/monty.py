"""Monty (github.com/pydantic/monty): an interpreter of its own for a subset of Python, in worker processes of its own.

For calculators and for code that does little but call tools: a run takes about a millisecond, works on any system, and can be
given functions of the caller. No class inheritance, no `yield`, no `exit`, no standard input, few modules, no packages; files
can be read, not written. What it lacks comes back as an error that says so.
"""

from __future__ import annotations

import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from whet.errors import ConfigError, missing_extra
from whet.tools.sandbox import supervise
from whet.tools.sandbox.base import Capabilities, Killer, Result, Sandbox, SandboxUnavailable, check_arguments, decode, write_files

try:
    import pydantic_monty
except ImportError as error:
    raise missing_extra("pydantic-monty", "monty", "the sandbox 'monty'") from error

DIRECTORY = "/work"
"""Where a program finds its files."""
GRACE = 5.0
"""Seconds on top of the timeout before a worker that does not stop by itself is killed."""


class MontySandbox(Sandbox):
    """Options: `parallel` is how many runs may go on at once (0: one for each core), others wait; `seed` makes `random` repeat
    itself from run to run (None: it does not).
    """

    def __init__(self, *, parallel: int = 0, seed: int | None = 0) -> None:
        if parallel < 0:
            raise ConfigError(f"parallel is {parallel}; expected at least 0")
        self._parallel, self._seed = parallel or os.cpu_count() or 1, seed
        self._lock = threading.Lock()
        self._pool: Any = None
        self._owner = os.getpid()
        version = self.run("import sys\nprint(sys.version)", timeout=60.0).stdout.strip()
        self.capabilities = Capabilities(
            kind="monty",
            isolation="interpreter",
            python=version,
            argv=False,
            details=(f"pydantic-monty {pydantic_monty.__version__}", "a subset of Python", "files can be read, not written"),
        )

    def close(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
            if pool is not None and self._owner == os.getpid():
                pool.__exit__(None, None, None)

    def _workers(self) -> Any:
        """The pool of workers; one of its own for each process, so that a fork does not share its pipes."""
        with self._lock:
            if self._pool is None or self._owner != os.getpid():
                try:
                    self._pool = pydantic_monty.Monty(
                        min_processes=1, max_processes=self._parallel, feed_duration_limit_grace=GRACE
                    ).__enter__()
                except Exception as error:
                    raise SandboxUnavailable(f"Monty's workers do not start: {error}") from error
                self._owner = os.getpid()
            return self._pool

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
        functions: Mapping[str, Callable[..., Any]] = {},
    ) -> Result:
        """As `Sandbox.run`. `functions` can be called by name in the code; they run in the caller's process, unconfined, and
        their time does not count. Raises ConfigError for `argv` and `stdin`, which Monty does not have.
        """
        check_arguments(code, argv, files, timeout, memory, output)
        if argv is not None or stdin:
            raise ConfigError(f"the sandbox 'monty' takes no {'argv' if argv is not None else 'stdin'}; use the sandbox 'process'")
        begin = time.monotonic()
        kept = _Printed(output)
        limits = {"max_feed_duration_secs": timeout, "max_total_sleep_secs": timeout, "max_memory": memory}
        policy: dict[str, Any] = {"sleep_system_max": math.inf}  # below that, a sleep would be cut short without a word
        if self._seed is not None:
            policy["random_start"] = {"seed": self._seed}
        error, killer = "", None
        with ExitStack() as stack:
            places = {}
            if files:
                directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="whet-sandbox-"))
                write_files(directory, files)
                mount = pydantic_monty.MountDir(host_path=Path(directory), virtual_path=DIRECTORY, mode="read-only")
                places = {"mount": stack.enter_context(mount), "cwd": DIRECTORY}
            try:
                with self._workers().checkout(limits=limits, os_policy=policy) as session:
                    session.feed_run(code, print_callback=kept, external_lookup=dict(functions), **places)
            except pydantic_monty.MontyError as problem:
                error, killer = _told(problem, kept)
        return Result(
            stdout=decode(bytes(kept.head["stdout"]), output),
            stderr=decode(bytes(kept.head["stderr"]) + error.encode("utf-8", "replace"), output),
            exit=(-9 if killer else 1) if error else 0,
            killed_by=killer,
            truncated=max(kept.size.values()) > output,
            seconds=time.monotonic() - begin,
        )


def _told(problem: Any, kept: _Printed) -> tuple[str, Killer | None]:
    """The text of an error, and the limit that it stands for. Monty's limits cannot be caught by the code."""
    if isinstance(problem, pydantic_monty.MontyCrashedError):
        return f"{problem}\n", "timeout" if problem.timed_out else "memory"
    text = f"{problem.display()}\n" if hasattr(problem, "display") else f"{problem}\n"
    inner = problem.exception()
    if kept.flooded:
        return text, "output"
    if isinstance(inner, TimeoutError) and "limit exceeded" in str(inner):
        return text, "timeout"
    return text, "memory" if isinstance(inner, MemoryError) else None


class _Printed:
    """What a program prints: the head of each stream is kept. A flood is an error, which Monty lets a program know of only
    when it is over or its time is up.
    """

    def __init__(self, keep: int) -> None:
        self.keep, self.flooded = keep, False
        self.head = {"stdout": bytearray(), "stderr": bytearray()}
        self.size = {"stdout": 0, "stderr": 0}

    def __call__(self, stream: str, text: str) -> None:
        data = text.encode("utf-8", "replace")
        self.size[stream] += len(data)
        self.head[stream] += data[: max(0, self.keep + 4 - len(self.head[stream]))]
        if self.size[stream] > self.keep + supervise.FLOOD:
            self.flooded = True
            raise MemoryError("too much output")
