"""What every sandbox offers: `run` takes a program and its limits and returns a `Result`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from types import TracebackType
from typing import Literal, Self

from whet.errors import ConfigError, WhetError

Killer = Literal["timeout", "cpu", "memory", "output", "disk", "processes"]
"""Which limit made the sandbox end a program."""


class SandboxUnavailable(WhetError, RuntimeError):
    """A sandbox cannot be opened or has stopped working here; the message says what is missing and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What came of a program. Nothing in it was ever run, unpacked or trusted by the caller's process."""

    stdout: str
    stderr: str
    """Both are UTF-8 with invalid bytes replaced; the first `output` bytes of what was written."""
    exit: int
    """Exit status; the negated signal number where a signal ended it."""
    killed_by: Killer | None = None
    """The limit that ended the program, if one did."""
    truncated: bool = False
    """Whether some output or some files were left out because they were too much."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Regular files that the program made or changed in its directory: relative path -> content."""
    seconds: float = 0.0
    """Wall-clock time from the call to the end of the last process."""

    @property
    def ok(self) -> bool:
        """Whether the program ended by itself and without an error."""
        return self.exit == 0 and self.killed_by is None


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """What a sandbox can do and how well it confines."""

    kind: str
    isolation: Literal["kernel", "interpreter", "container", "remote", "weak"]
    """Who keeps the program in: the kernel's filters, another interpreter, a container, another machine, or hardly anyone."""
    python: str
    """The Python that `code` runs in, such as `3.11.7`."""
    packages: tuple[str, ...] = ()
    """What can be imported besides the standard library; `*` where everything installed can."""
    argv: bool = True
    """Whether other programs than Python code can be run."""
    processes: int = 1
    """How many processes a program may have at once."""
    details: tuple[str, ...] = ()
    """What is in force, in words."""
    gaps: tuple[str, ...] = ()
    """What this machine does not offer, in words."""


class Sandbox:
    """Runs programs, each in a directory of its own that is gone afterwards. Safe to use from several threads.

    Nothing is kept between runs. Use it as a context manager, or call `close`.
    """

    capabilities: Capabilities

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
        """Run Python `code`, or the program `argv`, to its end or to a limit.

        `files` (relative path -> content) lie in its directory when it starts; `timeout` is in seconds of wall-clock
        time; `memory` is in bytes for all its processes together; `output` is how many bytes of standard output and of
        standard error, each, are kept. What the program does wrong stands in the result. Raises ConfigError for
        arguments that cannot work and SandboxUnavailable where the sandbox itself fails.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what the sandbox holds; harmless when called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def check_arguments(
    code: str | None, argv: Sequence[str] | None, files: Mapping[str, bytes], timeout: float, memory: int, output: int
) -> None:
    """Raises ConfigError for arguments of `run` that cannot work."""
    if (code is None) == (argv is None):
        raise ConfigError("run takes either code or argv; give exactly one of them")
    if argv is not None and (isinstance(argv, str) or not argv or not all(isinstance(a, str) and "\0" not in a for a in argv)):
        raise ConfigError(f"argv is {argv!r}; expected a list of strings without null characters, the program first")
    if not 0 < timeout <= 86400:
        raise ConfigError(f"timeout is {timeout}; expected seconds above 0 and at most 86400")
    if memory < 64 << 20:
        raise ConfigError(f"memory is {memory} bytes; Python needs at least {64 << 20} (64 MB)")
    if output < 0:
        raise ConfigError(f"output is {output}; expected how many bytes of each stream to keep")
    for name, content in files.items():
        if not isinstance(content, bytes):
            raise ConfigError(f"file {name!r} is of type {type(content).__name__}; expected bytes")
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts or "\0" in name or name.endswith("/") or str(path) in (".", ""):
            raise ConfigError(f"{name!r} is no file name inside the sandbox; expected a relative path without '..'")


def decode(data: bytes, limit: int) -> str:
    """The first `limit` bytes as text. A character cut in two at the limit is dropped; invalid bytes are replaced."""
    if len(data) > limit:
        data = data[:limit]
        for back in range(1, 4):  # the start of a UTF-8 character that the cut left incomplete
            if len(data) >= back and data[-back] >= 0xC0:
                size = 2 if data[-back] < 0xE0 else 3 if data[-back] < 0xF0 else 4
                data = data[:-back] if size > back else data
                break
            if len(data) >= back and data[-back] < 0x80:
                break
    return data.decode("utf-8", "replace")


def write_files(directory: str, files: Mapping[str, bytes]) -> None:
    """Put `files` into an empty directory of ours, subdirectories included."""
    for name, content in files.items():
        path = os.path.join(directory, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
