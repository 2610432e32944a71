"""Servers of other projects for the tests: real ones, each in an environment of its own (`make servers` builds and tests them).

`WHET_SERVERS` names the directory of these environments, `openenv` and `verifiers`; without it they are in `.venv/servers`.
"""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

HERE = Path(__file__).parent
SERVERS = Path(os.environ.get("WHET_SERVERS") or HERE.parent / ".venv" / "servers")
T = TypeVar("T")


def python_of(project: str) -> Path:
    return SERVERS / project / "bin" / "python"


def needs(project: str) -> Callable[[T], T]:
    """Marks a test that needs the servers of `openenv` or `verifiers`; it is skipped where they are not installed."""
    python = python_of(project)
    absent = pytest.mark.skipif(not python.exists(), reason=f"no server of {project}: {python} is absent; run `make servers`")

    def mark(test: T) -> T:
        for one in (pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(900), absent):
            test = one(test)
        return test

    return mark


@contextlib.contextmanager
def serve(project: str, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The first line that `served/PROJECT_server.py` prints (where it listens), and its process, which ends with the block."""
    script = HERE / "served" / f"{project}_server.py"
    with subprocess.Popen(
        [python_of(project), script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            line = process.stdout.readline().strip()
            assert line, f"{script.name} ended with code {process.wait()} before it listened"
            yield line, process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
