"""AgentEvol: what it learns from, how much each of it weighs, and where it starts from."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from helpers import Spy, spied
from test_methods import agent, contents, logged
from whet.agents import Agent
from whet.envs import Action, Env, Step
from whet.envs.base import EnvFactory
from whet.envs.mixture import Mixture
from whet.learn import Learner, nll
from whet.methods.agent_evol import AgentEvolConfig, agent_evol
from whet.policies import load_policy
from whet.rollout import rollout
from whet.runs import Run
from whet.types import Data, Episode, Example, Task


class Wages(Env):
    """Pays by the task, whatever is done: nothing for task 0, half for task 1, all for the others."""

    max_turns = 1
    max_tokens = 3

    def reset(self, task: Task) -> str:
        self.wage = min(1.0, int(task.id.rsplit("/", 1)[-1]) / 2)
        return f"Work on {task.id}."

    def step(self, action: Action) -> Step:
        return Step(reward=self.wage, success=self.wage == 1.0, terminated=True)

    def expert(self, rng: Any) -> Action:
        return Action(text="work")


class Other(Wages):
    """Another environment that pays alike."""


WAGES = EnvFactory(Wages)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[list[Example]]:
    return spied(monkeypatch)


def data(env: EnvFactory = WAGES, n: int = 4, experts: int = 1) -> Data:
    """The expert shows the last tasks."""
    tasks = env.tasks("train", n)
    return Data(train=tasks, experts=tuple(rollout(Agent(load_policy("expert")), env, tasks[n - experts :], tag="experts")))


def evolve(run: Run, env: EnvFactory = WAGES, given: Data | None = None, **options: Any) -> Agent[Any]:
    cfg = AgentEvolConfig(**{"iterations": 2, "lr": 1e-2, "batch_size": 100, "explore_temperature": 1.0} | options)
    return agent_evol(agent(), given or data(env), env=env, run=run, cfg=cfg)


def weights(batch: list[Example]) -> dict[str, float]:
    """Episode -> what each token of it weighs."""
    assert all(len(set(row.weights[row.mask])) == 1 for row in batch)
    return {row.origin: float(row.weights[row.mask][0]) for row in batch}


def test_it_clones_then_weighs_what_it_found_by_the_reward_and_keeps_the_experts_episodes(given: list[list[Example]]) -> None:
    run = Run.scratch()
    evolve(run, iterations=1)
    clone, learned = map(weights, given)
    assert clone == {"experts/wages/train/3#0": 1.0}
    found = {f"iteration0/wages/train/{i}#0": reward for i, reward in ((1, 0.5), (2, 1.0), (3, 1.0))}
    assert learned == found | clone, "nothing is learned from task 0, which paid nothing"
    ((_, _, metrics),) = logged(run)
    assert (metrics["kept"], metrics["beyond"]) == (3, 2), "two of the three were never shown"


def test_the_scripts_threshold_and_the_ablations(given: list[list[Example]]) -> None:
    evolve(Run.scratch(), iterations=1, threshold=0.99, experts=False)
    assert weights(given[1]) == {f"iteration0/wages/train/{i}#0": 1.0 for i in (2, 3)}


def test_of_a_task_the_best_different_episodes_are_kept(given: list[list[Example]]) -> None:
    run = Run.scratch()
    evolve(run, iterations=1, samples=6, keep=2)
    kept = Counter(row.origin.split("#")[0] for row in given[1] if row.origin.startswith("iteration"))
    assert set(kept.values()) == {2}
    tried: dict[str, Episode] = {e.id: e for e in run.load_episodes("iteration0")}
    said = [[turn.tokens for turn in tried[row.origin].turns if turn.trained] for row in given[1] if row.origin in tried]
    assert len({repr(tokens) for tokens in said}) > 3, "they differ"


class Starts(Spy):
    """Notes how many steps the weights have behind them at every batch."""

    def forward_backward(self, rows: Any, loss: Any) -> dict[str, float]:
        NOTED.append(self.version.partition("+")[2] or "given")
        return super().forward_backward(rows, loss)


NOTED: list[str] = []


def test_every_iteration_starts_from_the_given_policy_and_explores_with_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    spied(monkeypatch, Starts)
    NOTED.clear()
    run = Run.scratch()
    evolve(run, iterations=3)
    assert NOTED == ["given"] * 4
    actors = [{e.policy for e in run.load_episodes(f"iteration{i}")} for i in range(3)]
    assert len(set().union(*actors)) == 3, "each by the policy of the iteration before"
    NOTED.clear()
    evolve(Run.scratch(), iterations=2, restart=False)
    assert NOTED == ["given", "1", "2"]


def test_the_restart_gives_what_a_new_learner_would(given: list[list[Example]]) -> None:
    better = evolve(Run.scratch(), iterations=2)
    fresh = Learner(agent().policy, lr=1e-2)
    fresh.forward_backward(given[-1], nll())
    fresh.optim_step()
    assert contents(agent().replace(policy=fresh.sample()))["weights"] == contents(better)["weights"]


def test_several_environments_evolve_together_each_with_its_curve(given: list[list[Example]]) -> None:
    both, run = Mixture([WAGES, EnvFactory(Other)]), Run.scratch()
    tasks = both.tasks("train", 8)
    shown = rollout(Agent(load_policy("expert")), both, tasks[-1:], tag="experts")
    evolve(run, both, Data(train=tasks, experts=tuple(shown)), iterations=1)
    assert {row.origin.split("/")[1] for row in given[1]} == {"wages", "other"}
    ((_, _, metrics),) = logged(run)
    assert {"success", "success/wages", "success/other"} <= set(metrics)
    assert run.cost.episodes == 8
