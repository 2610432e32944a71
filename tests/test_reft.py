"""ReFT: what is rewarded, where it is paid, and against whom the penalty is taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers import spied
from test_methods import agent, logged
from whet import learn
from whet.agents import Agent
from whet.envs import Action, Env, Step
from whet.envs.base import EnvFactory
from whet.learn import PPO, with_reference
from whet.methods.reft import ReFTConfig, reft
from whet.rewards import partial_credit
from whet.runs import Run
from whet.types import Data, Episode, Example, Stop, Task


class Exam(Env):
    """By the task's number: right, wrong, or never answered."""

    max_turns = 2
    max_tokens = 3

    def reset(self, task: Task) -> str:
        self.kind, self.turn = int(task.id.rsplit("/", 1)[-1]) % 3, 0
        return f"Answer {task.id}."

    def step(self, action: Action) -> Step:
        self.turn += 1
        if self.turn < 2 or self.kind == 2:
            return Step(observation="And?")
        return Step(reward=float(self.kind == 0), success=self.kind == 0, terminated=True)


EXAM = EnvFactory(Exam)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[list[Example]]:
    return spied(monkeypatch)


def train(run: Run, n: int = 3, **options: Any) -> Agent[Any]:
    cfg = ReFTConfig(**{"epochs": 1, "tasks_per_step": n, "lr": 1e-2, "ppo": PPO(epochs=2, batch_size=100)} | options)
    return reft(agent(), Data(train=EXAM.tasks("train", n)), env=EXAM, run=run, cfg=cfg)


def test_the_reward_by_hand() -> None:
    def ended(stop: Stop, reward: float) -> float:
        task = Task(id="t", env="exam", split="train")
        return partial_credit(0.1)(Episode(id="e", task=task, turns=(), stop=stop, reward=reward))

    assert [ended(Stop.TERMINATED, r) for r in (1.0, 0.5, 0.0)] == [1.0, 0.5, 0.1]
    assert ended(Stop.TRUNCATED, 0.0) == 0.0


def test_rewards_are_paid_with_the_last_turn_and_become_returns(given: list[list[Example]]) -> None:
    run = Run.scratch()
    train(run, ppo=PPO(kl=0.0, lam=1.0, epochs=2, batch_size=100))
    first, second = given
    assert {row.origin for row in first} == {row.origin for row in second} == {f"step0/exam/train/{i}#0" for i in range(3)}
    returns = {row.origin[-3]: row.returns[row.mask] for row in first if row.returns is not None}
    for number, expected in (("0", 1.0), ("1", 0.1), ("2", 0.0)):
        np.testing.assert_allclose(returns[number], expected, atol=1e-6)
    weights = np.concatenate([row.weights[row.mask] for row in first])
    assert weights.mean() == pytest.approx(0.0, abs=1e-5)
    assert weights.std(ddof=1) == pytest.approx(1.0, abs=1e-4)
    ((_, _, metrics),) = logged(run)
    assert metrics["reward"] == pytest.approx(1.1 / 3)
    assert metrics["success"] == pytest.approx(1 / 3)


def test_the_penalty_is_against_the_policy_that_was_given_in_every_step(given: list[list[Example]]) -> None:
    run = Run.scratch()
    train(run, epochs=3)
    assert len(given) == 6
    for batch in given:
        for row, expected in zip(batch, with_reference(batch, agent().policy), strict=True):
            assert row.reference is not None
            assert expected.reference is not None
            np.testing.assert_allclose(row.reference[row.mask], expected.reference[row.mask], atol=1e-5)
    assert abs(logged(run)[0][2]["kl"]) < 1e-4
    assert abs(logged(run)[2][2]["kl"]) > 1e-3


def test_the_critic_is_the_learners_own_and_remembers(given: list[list[Example]], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    spy = learn.Learner
    monkeypatch.setattr(learn, "Learner", lambda *args, **options: made.append(options) or spy(*args, **options))
    train(Run.scratch(), epochs=2)
    assert [options["value_head"] for options in made] == [True]
    assert all(not row.values.any() for row in given[0] if row.values is not None), "at first it expects nothing"
    assert any(row.values.any() for row in given[2] if row.values is not None)
