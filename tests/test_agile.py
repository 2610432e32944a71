"""AGILE: what is paid in a session's later contexts is credited to what was done in the earlier ones."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import spied
from test_methods import _Cut, agent, contents, logged
from whet.agents import Agent
from whet.data import contexts
from whet.envs import Action, Env, Step
from whet.envs.base import EnvFactory
from whet.learn import PPO, credited
from whet.methods.agile import AGILEConfig, agile
from whet.policies import load_policy
from whet.rollout import rollout
from whet.runs import Run
from whet.types import Data, Example, Task

EXACT = PPO(kl=0.0, gamma=1.0, lam=1.0, whiten=False, epochs=1, batch_size=100)


class Stream(Env):
    """Three questions, whatever is said: the first is settled by advice, for 0.7, the second answered, the third is not."""

    max_turns = 3
    max_tokens = 3
    pays = (0.7, 1.0, 0.0)

    def reset(self, task: Task) -> str:
        self.n = 0
        return "Question 1."

    def step(self, action: Action) -> Step:
        self.n += 1
        return Step(observation=f"Question {self.n + 1}.", reward=self.pays[self.n - 1], fresh=True, terminated=self.n == 3)

    def expert(self, rng: random.Random) -> Action:
        return Action(text="ask")


STREAM = EnvFactory(Stream)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    return spied(monkeypatch)


def train(run: Run, **options: Any) -> Agent[Any]:
    cfg = AGILEConfig(**{"imitation": 0, "lr": 1e-2, "sessions_per_step": 2, "ppo": EXACT} | options)
    tasks = STREAM.tasks("train", 2)
    experts = rollout(Agent(load_policy("expert")), STREAM, tasks[:1], tag="experts")
    return agile(agent(), Data(train=tasks, experts=tuple(experts)), env=STREAM, run=run, cfg=cfg)


def returns(batch: list[Example]) -> dict[int, set[float]]:
    """Question -> the returns of its context's tokens."""
    found: dict[int, set[float]] = {}
    for row in batch:
        assert row.returns is not None
        text = agent().policy.tokenizer.decode(row.tokens)
        number = int(text.split("Question ")[1][0])
        found.setdefault(number, set()).update(round(float(r), 4) for r in row.returns[row.mask])
    return found


def test_the_return_of_the_session_credits_the_early_question(given: list[list[Any]]) -> None:
    run = Run.scratch()
    train(run)
    assert returns(given[0]) == {1: {1.7}, 2: {1.0}, 3: {0.0}}, "advice counts for what comes after it"
    ((_, _, metrics),) = logged(run)
    assert metrics["reward"] == pytest.approx(1.7)


def test_without_sessions_each_context_is_credited_by_itself(given: list[list[Any]]) -> None:
    train(Run.scratch(), session=False)
    assert returns(given[0]) == {1: {0.7}, 2: {1.0}, 3: {0.0}}


def row(origin: str, *values: float) -> Example:
    """A prompt token, and an action of as many tokens as there are values."""
    mask = np.array([False] + [True] * len(values))
    array = np.array([0.0, *values], dtype=np.float32)
    return Example(tokens=np.arange(len(mask)), mask=mask, weights=mask.astype(np.float32), values=array, origin=origin)


def test_advantages_go_through_contexts_but_not_from_session_to_session() -> None:
    rows, paid = [row("a", 0.5, 0.4), row("a", 0.2), row("b", 0.9)], [[0.7], [1.0], [0.0]]
    how = PPO(kl=0.0, gamma=1.0, lam=0.5, whiten=False)
    first, second, other = (r.weights[r.mask].tolist() for r in credited(rows, paid, how, joined=True))
    # delta: 0.4 - 0.5, 0.7 + 0.2 - 0.4, 1 - 0.2, and of the other session 0 - 0.9
    assert second == pytest.approx([0.8])
    assert first == pytest.approx([-0.1 + 0.5 * (0.5 + 0.5 * 0.8), 0.5 + 0.5 * 0.8])
    assert other == pytest.approx([-0.9])
    apart = [r.weights[r.mask].tolist() for r in credited(rows, paid, how)]
    assert apart[0] == pytest.approx([-0.1 + 0.5 * 0.3, 0.3]), "without, the first context ends with 0.7"


def test_contexts_come_in_the_order_of_time_with_what_each_action_was_paid() -> None:
    (episode,) = rollout(agent(), STREAM, STREAM.tasks("train", 1))
    found = contexts(episode, agent().policy)
    assert [rewards for _, rewards in found] == [[0.7], [1.0], [0.0]]
    assert {row.origin for row, _ in found} == {episode.id}


IMITATING: dict[str, Any] = {"imitation": 1, "imitation_lr": 1e-2, "epochs": 2, "ppo": PPO(epochs=1, batch_size=100)}


def test_it_imitates_first_and_the_penalty_is_against_what_came_of_it(given: list[list[Any]]) -> None:
    run = Run.scratch()
    train(run, **IMITATING)
    assert [row.origin for row in given[0]] == ["experts/stream/train/0#0"] * 3
    decode = agent().policy.tokenizer.decode
    assert {decode(row.tokens[row.mask]) for row in given[0]} == {"ask<|im_end|>"}
    first, second = (metrics["kl"] for phase, _, metrics in logged(run) if phase == "agile")
    assert first == pytest.approx(0.0, abs=1e-4), "the first sessions are the reference's own"
    assert abs(second) > 1e-3


@pytest.mark.parametrize("critic_lr", [0.0, 1e-2], ids=["shared backbone", "critic beside"])
def test_a_resumed_run_has_the_same_reference_and_critic(tmp_path: Path, critic_lr: float) -> None:
    options = {**IMITATING, "critic_lr": critic_lr}
    with Run.create(tmp_path / "whole", {"seed": 0}, quiet=True) as run:
        whole = contents(train(run, **options))
        assert ("critic_loss" in logged(run)[-1][2]) == bool(critic_lr)
    with pytest.raises(KeyboardInterrupt), _Cut.create(tmp_path / "cut", {"seed": 0}, quiet=True) as run:
        train(run, **options)
    with Run.create(tmp_path / "cut", {"seed": 0}, resume=True, quiet=True) as run:
        assert contents(train(run, **options)) == whole
