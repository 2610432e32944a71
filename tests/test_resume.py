"""`kill -9` at any moment and `--resume` end like the undisturbed run: same outcomes task by task, same weights bit by bit."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from commandline import BASE, done, intact, needs_base, result, start, steps_logged, until
from whet.policies import load_policy
from whet.runs import Run

pytestmark = pytest.mark.slow

SEARCH = ("--env", "search:hops=1", "--train-tasks", "12", "--dev-tasks", "2", "--test-tasks", "24", "--seed", "3", "--quiet")


def kill(argv: tuple[str, ...], cwd: Path, steps: int, delay: float) -> bool:
    """Start the run in `cut`, or go on with it; kill it `delay` seconds after that many new steps. False if it ended before."""
    run = cwd / "cut"
    began = _changed(run / "status")
    process = start("run", *argv, "--out", "cut", "--resume", cwd=cwd)
    # the status is written when what lies behind the last commit has been taken back
    until(lambda: _changed(run / "status") != began, "the run begins", process)
    target = steps_logged(run) + steps
    until(lambda: process.poll() == 0 or steps_logged(run) >= target, f"{steps} more steps", process)
    time.sleep(delay)
    if process.poll() is not None:
        process.communicate()
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return True


def _changed(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


def survives(argv: tuple[str, ...], cwd: Path, *, longest: float) -> None:
    """Kill a run in its first step, after one step and after another two, each time at a random moment; then compare."""
    rng = random.Random(repr(argv))
    done("run", *argv, "--out", "whole", cwd=cwd)
    killed = 0
    for steps in (0, 1, 2):
        if kill(argv, cwd, steps, rng.uniform(0, longest)):
            killed += 1
            assert Run.open(cwd / "cut").status == "interrupted"
    assert killed >= 2, "the run is too short to be killed"
    done("run", *argv, "--out", "cut", "--resume", cwd=cwd)
    intact(cwd / "cut", "done")
    whole, cut = result(cwd / "whole"), result(cwd / "cut")
    for part in whole:
        assert cut[part] == whole[part], part
    assert len(whole["log"]) > 2


def test_without_a_model(tmp_path: Path) -> None:
    argv = ("reflexion", *SEARCH, "--train-tasks", "256", "--model", "random", "trials=15", "reflector=environment")
    survives(argv, tmp_path, longest=0.1)


def exhaustive(*options: str) -> Any:
    return pytest.param(options, marks=pytest.mark.exhaustive)


@needs_base
@pytest.mark.parametrize(
    "options",
    [
        ("grpo", "steps=8", "tasks_per_step=4", "group_size=8", "lr=1e-3", "inner_steps=2"),
        exhaustive("rejection_sampling", "iterations=5", "samples=8", "keep=2", "epochs=1", "lr=1e-3", "batch_size=8", "restart=false"),
        exhaustive(
            "eto",
            "iterations=6",
            "--expert-episodes",
            "24",
            "samples=2",
            "explore_temperature=1.0",
            "lr=[3e-4]",
            "epochs=1",
            "batch_size=8",
        ),
        exhaustive("reflexion", "trials=8", "max_tokens=48"),
    ],
    ids=lambda options: options[0],
)
def test_with_the_embedded_model(tmp_path: Path, options: tuple[str, ...]) -> None:
    survives((*options, *SEARCH), tmp_path, longest=0.7)
    trained, base = (load_policy(str(model)).weights for model in (tmp_path / "whole" / "model", BASE))
    same = all(torch.equal(trained[name], base[name]) for name in base)
    assert same == (options[0] == "reflexion")
