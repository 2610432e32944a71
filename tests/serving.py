"""Servers of other projects for the tests: real ones, in an environment of their own (`make servers` builds it)."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PYTHON = Path(os.environ.get("WHET_SERVERS_PYTHON") or HERE.parent / ".venv" / "servers" / "bin" / "python")


def needs(module: str) -> pytest.MarkDecorator:
    """Skips where the servers' environment, or this module in it, is absent."""
    probe = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    present = PYTHON.exists() and subprocess.run([PYTHON, "-c", probe], check=False).returncode == 0
    return pytest.mark.skipif(not present, reason=f"no server: {PYTHON} with {module!r} is absent; run `make servers`")


@contextlib.contextmanager
def serve(script: str, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The first line that a script under `served/` prints (where it listens), and its process, which ends with the block."""
    with subprocess.Popen(
        [PYTHON, HERE / "served" / script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    ) as process:
        try:
            line = process.stdout.readline().strip()
            assert line, f"{script} ended with code {process.wait()} before it listened"
            yield line, process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
