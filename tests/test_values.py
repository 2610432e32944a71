"""Monte-Carlo values of beginnings, against values that can be worked out exactly."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import tiny_policy
from whet.agents import Agent
from whet.data import to_examples
from whet.envs import Action, Env, Step
from whet.envs.base import EnvFactory
from whet.errors import ConfigError
from whet.learn import with_reference
from whet.policies import ScriptedPolicy
from whet.policies.base import Sampling
from whet.rollout import Prefix, rollout
from whet.rollout.values import prefix_values
from whet.runs import Run
from whet.types import Episode, Turn, chain

ACTIONS = ("left", "right", "wait")


class Maze(Env):
    """Three turns of three actions: what is paid depends on all of them, and on which came first."""

    max_turns = 3

    def reset(self, task: Any) -> str:
        self.said: tuple[str, ...] = ()
        return "Where?"

    def step(self, action: Action) -> Step:
        self.said = (*self.said, action.text)
        over = len(self.said) == 3
        return Step(observation="On.", reward=paid(self.said) if over else 0.125, terminated=over)


def paid(said: tuple[str, ...]) -> float:
    return sum(ACTIONS.index(action) * 3**i for i, action in enumerate(said) if action in ACTIONS) / 26


MAZE = EnvFactory(Maze)
CHANCES = (0.5, 0.3, 0.2)
CHANCE = Agent(ScriptedPolicy(lambda request, rng: rng.choices(ACTIONS, CHANCES)[0]))


def exact(said: tuple[str, ...]) -> float:
    """The expected reward of going on by chance, over all ways in which it may go on."""
    left = 3 - len(said)
    value = 0.0
    for rest in itertools.product(range(3), repeat=left):
        chance = np.prod([CHANCES[i] for i in rest]) if rest else 1.0
        value += float(chance) * paid((*said, *(ACTIONS[i] for i in rest)))
    return value + 0.25


def played(*said: str) -> Episode:
    words = iter(said)
    (episode,) = rollout(Agent(ScriptedPolicy(lambda request, rng: next(words))), MAZE, MAZE.tasks("train", 1))
    return episode


@pytest.fixture(scope="module")
def episode() -> Episode:
    return played("right", "wait", "left")


def test_a_scorer_without_chance_gives_the_exact_value(episode: Episode) -> None:
    right = Agent(ScriptedPolicy(lambda request, rng: "right"))
    values = prefix_values(right, MAZE, [(episode, k) for k in range(4)], n=2)
    told = [("right",) * 3, ("right",) * 3, ("right", "wait", "right"), ("right", "wait", "left")]
    assert [v.mean for v in values if v] == pytest.approx([paid(said) + 0.25 for said in told])
    assert [(v.n, v.error) for v in values if v] == [(2, 0), (2, 0), (2, 0), (0, 0)]


@pytest.mark.slow
def test_a_scorer_of_chance_gives_it_on_average(episode: Episode) -> None:
    values = prefix_values(CHANCE, MAZE, [(episode, k) for k in range(4)], n=500, seed=1)
    for k, value in enumerate(values):
        assert value is not None
        assert value.mean == pytest.approx(exact(("right", "wait", "left")[:k]), abs=4 * value.error + 1e-9)
    assert 0 < values[2].error < values[0].error < 0.03  # type: ignore[union-attr]


class Last(Env):
    """One turn of one token: worth 1 where its number is even."""

    max_turns = max_tokens = 1

    def reset(self, task: Any) -> str:
        return "Say."

    def step(self, action: Action) -> Step:
        return Step(reward=float(sum(action.text.encode()) % 2), terminated=True)


@pytest.mark.slow
def test_a_models_value_is_the_sum_over_all_that_it_may_say() -> None:
    policy, env = tiny_policy(seed=3), EnvFactory(Last)
    (start,) = rollout(Agent(policy), env, env.tasks("train", 1))
    prompt, vocabulary = start.turns[0], policy.tokenizer.vocab_size
    said = [chain([prompt, Turn(role="assistant", tokens=(token,))]) for token in range(vocabulary)]
    rows = [row for turns in said for row in to_examples(Episode(id="", task=start.task, turns=turns, stop=start.stop), policy)]
    chances = np.exp([row.reference[-1] for row in with_reference(rows, policy) if row.reference is not None])
    texts = [policy.tokenizer.decode([token], skip_special_tokens=True) for token in range(vocabulary)]
    value = float(chances @ np.array([sum(text.encode()) % 2 for text in texts]))
    assert chances.sum() == pytest.approx(1.0, abs=1e-4)
    (found,) = prefix_values(Agent(policy, sampling=Sampling(temperature=1.0)), env, [(start, 0)], n=500)
    assert found is not None
    assert found.mean == pytest.approx(value, abs=4 * found.error)
    assert 0.01 < value < 0.99


def test_it_is_one_rollout_in_which_equal_beginnings_are_asked_about_once(episode: Episode) -> None:
    run, other = Run.scratch(), played("right", "left", "left")
    values = prefix_values(CHANCE, MAZE, [(episode, 1), (other, 1), (other, 2), (episode, 1), (other, 3)], n=4, run=run, tag="values")
    assert run.cost.episodes == len(list(run.load_episodes("values"))) == 8
    assert values[0] == values[1] == values[3]
    assert values[4].mean == other.reward  # type: ignore[union-attr]
    assert {e.tags["fork"]["actions"] for e in run.load_episodes()} == {1, 2}
    assert len({e.seed for e in run.load_episodes()}) == 8


def test_what_completions_begin_with_is_computed_once() -> None:
    policy = tiny_policy(seed=1)
    (start,) = rollout(Agent(policy), MAZE, MAZE.tasks("train", 1))
    prefix = Prefix.of(start, actions=2)
    policy = tiny_policy(seed=1)
    prefix_values(Agent(policy), MAZE, [(start, 2)], n=8)
    length = sum(len(turn.tokens) for turn in prefix.turns)
    assert length > 16
    assert policy.engine.stats.prefilled < 2 * length
    assert policy.engine.stats.copied >= 7 * (length - 1)


def test_what_cannot_be_asked_is_refused(episode: Episode) -> None:
    with pytest.raises(ConfigError, match="n is 0"):
        prefix_values(CHANCE, MAZE, [(episode, 1)], n=0)
    with pytest.raises(ConfigError, match="cannot replay 4"):
        prefix_values(CHANCE, MAZE, [(episode, 4)], n=1)


@pytest.mark.slow
def test_the_benchmark_runs() -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "bench_values.py"
    if not script.exists():
        pytest.skip("benchmarks are not beside the tests")
    options = ["--prefixes", "6", "--completions", "2", "--single", "2", "--rounds", "1"]
    done = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "batched / one by one" in done.stdout
