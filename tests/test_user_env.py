"""An environment of the user's own, in a fresh file outside the package, is trained by the installed command."""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import fmean

import pytest

from commandline import done, intact, needs_base
from whet.evals import Evaluation

SHOP = Path(__file__).parent.parent / "examples" / "shop.py"
GRPO = ("tasks_per_step=8", "group_size=8", "lr=5e-4", "kl=0", "--model", "base", "--train-tasks", "256", "--quiet")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A fresh directory with nothing but a copy of the example."""
    shutil.copy(SHOP, tmp_path / "mine.py")
    return tmp_path


@pytest.mark.slow
@needs_base
def test_it_is_trained_from_its_file(place: Path) -> None:
    out = done("run", "grpo", "--env", "mine.py:Shop", "steps=2", *GRPO, "--test-tasks", "8", "--dev-tasks", "0", cwd=place)
    assert "mine.py:Shop: 8 test tasks" in out
    run = intact(place / "runs" / "shop-grpo-seed0", "done")
    assert {"agent.json", "model", "report.html", "config.json", "commit.json"} <= {file.name for file in (place / out_of(out)).iterdir()}
    episodes = list(run.load_episodes("step0"))
    assert len(episodes) == 64
    assert {turn.role for episode in episodes for turn in episode.turns} == {"system", "user", "assistant", "tool"}
    assert all(episode.task.split == "train" for episode in episodes)


def out_of(printed: str) -> str:
    """The directory that `whet run` said it has written."""
    return next(line.removeprefix("run: ") for line in printed.splitlines() if line.startswith("run: "))


@pytest.mark.exhaustive
@pytest.mark.slow
@needs_base
def test_it_is_learned(place: Path) -> None:
    out = done("run", "grpo", "--env", "mine.py:Shop", "steps=25", *GRPO, "--test-tasks", "64", cwd=place)
    run = intact(place / out_of(out), "done")
    rewards = [event["metrics"]["reward"] for event in run.events("log")]
    assert fmean(rewards[-10:]) > fmean(rewards[:2]) + 0.25
    before, after = (Evaluation.from_json(run.evaluations()[name]).success for name in ("before", "final"))
    assert after.low > before.high
    again = done("eval", "--env", "mine.py:Shop", "--model", out_of(out), "-n", "64", "--quiet", cwd=place)
    assert f"{after.mean:.1%}" in again, "the run's directory is the agent that was evaluated"
