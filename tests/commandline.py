"""The installed command `whet` in processes of its own, and what a run directory must be after anything that happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from whet.evals import Evaluation
from whet.runs import Run

BASE = Path(sys.modules["whet"].__file__ or "").parent / "base"
SCRIPT = Path(sys.executable).with_name("whet")
"""What `pip install` put beside the interpreter."""

needs_base = pytest.mark.skipif(not (BASE / "config.json").exists(), reason="the embedded model has not been built (make base)")


def start(*argv: str, cwd: Path, **env: str) -> subprocess.Popen[str]:
    """`whet ARGV` in a process group of its own, on one thread."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {"TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(
        [str(SCRIPT), *argv],
        cwd=cwd,
        env={**os.environ, **threads, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def whet(*argv: str, cwd: Path, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
    """`whet ARGV`, waited for."""
    process = start(*argv, cwd=cwd, **env)
    try:
        out, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, errors = process.communicate()
        pytest.fail(f"whet {' '.join(argv)} was still running after {timeout:g} s; it printed {out[-500:]!r} and {errors[-2000:]!r}")
    return subprocess.CompletedProcess(argv, process.returncode, out, errors)


def done(*argv: str, cwd: Path, timeout: float = 120, **env: str) -> str:
    """What a command printed that must succeed."""
    result = whet(*argv, cwd=cwd, timeout=timeout, **env)
    assert result.returncode == 0, result.stderr
    return result.stdout


def message(result: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """The one message of a command that failed: a line that begins with `error: `, and nothing else on stderr."""
    assert result.returncode == code, (result.returncode, result.stderr)
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: "), result.stderr
    assert "unexpected" not in lines[0], result.stderr
    return lines[0].removeprefix("error: ")


def until(happened: Callable[[], bool], what: str, process: subprocess.Popen[str], seconds: float = 90) -> None:
    """Wait for something that a process is to do."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if happened():
            return
        if process.poll() is not None:
            pytest.fail(f"the process ended with {process.returncode} before {what}: {process.communicate()[1][-2000:]}")
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    pytest.fail(f"{what} did not happen within {seconds:g} s")


def steps_logged(path: Path) -> int:
    """How many steps a run has logged so far."""
    log = path / "events.jsonl"
    return log.read_bytes().count(b'{"kind":"log"') if log.exists() else 0


def intact(path: Path, status: str) -> Run:
    """The run in a directory, after a look at all of it: config, events, episodes, evaluations and checkpoints."""
    run = Run.open(path)
    assert run.status == status, run.status
    json.loads((path / "config.json").read_text())
    list(run.events())
    assert (path / "episodes.db").exists()
    list(run.load_episodes())
    for record in run.evaluations().values():
        Evaluation.from_json(record)
    strays = [file.name for file in path.rglob("*") if file.name.endswith(".tmp")]
    assert not strays
    return run


def result(path: Path) -> dict[str, Any]:
    """All that two runs of the same seed must have in common, bit by bit; only what a clock says is left out."""
    run = intact(path, "done")
    weights = path / "model" / "model.safetensors"
    evaluations = {name: Evaluation.from_json(record) for name, record in run.evaluations().items()}
    return {
        "evaluations": {name: (e.tasks, e.rewards, e.successes) for name, e in evaluations.items()},
        "weights": weights.read_bytes() if weights.exists() else None,
        "agent": json.loads((path / "agent.json").read_text()) | {"policy": None},
        "log": [(e["phase"], e["step"], e["metrics"]) for e in run.events("log")],
        "episodes": [(e.id, e.reward, [t.content for t in e.turns], [t.tokens for t in e.turns]) for e in run.load_episodes()],
    }
