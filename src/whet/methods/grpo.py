"""Group Relative Policy Optimisation (GRPO, arXiv:2402.03300), over whole multi-turn episodes.

pi_ref <- pi
repeat:
    sample      G episodes per task from pi_old <- pi
    credit      A_i = (r_i - mean(r)) / std(r)   within each group, for every action token of episode i
    optimise    mu times: maximise  E[min(rho A, clip(rho, 1 - eps, 1 + eps) A)] - beta KL(pi || pi_ref),  rho = pi / pi_old

Observations are masked: they enter neither the ratio nor the KL nor the length. Dr. GRPO (arXiv 2503.20783) is
`normalize_std=False`, `aggregation="constant"`; DAPO's higher clip is `clip_high` (arXiv 2503.14476).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from whet import learn
from whet.agents import Agent
from whet.config import at_least
from whet.data import batches, to_examples
from whet.envs.base import EnvFactory
from whet.methods import Parts
from whet.rewards import Grader, environment, tool_failures
from whet.rollout import rollout_groups, success_rates
from whet.types import Data

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("train",)
PARTS = Parts(source="self", filter="environment", update="clipped policy gradient, group advantages", schedule="on-policy")


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """Defaults: the paper's, section 4.2."""

    steps: int = 100
    tasks_per_step: int = 16
    group_size: int = 64
    lr: float = 1e-6
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl: float = 0.04
    normalize_std: bool = True
    aggregation: Literal["row-token-mean", "token-mean", "constant"] = "row-token-mean"
    constant: float | None = None
    """Tokens that a row's sum is divided by with `aggregation="constant"`."""
    inner_steps: int = 1
    """Optimiser steps per batch of episodes (mu)."""

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "tasks_per_step", "inner_steps")
        at_least(self, 2, "group_size")  # one episode has nothing to be compared with
        at_least(self, 0, "lr")


def grpo(
    agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: GRPOConfig = GRPOConfig(), grader: Grader = environment
) -> Agent[Any]:
    """The agent trained by reinforcement on `data.train`, `tasks_per_step` of them at a time, for what `grader` rewards."""
    data.require(*NEEDS, by="grpo")
    loss = learn.policy_gradient(
        clip_low=cfg.clip_low, clip_high=cfg.clip_high, kl=cfg.kl, aggregation=cfg.aggregation, constant=cfg.constant
    )
    epochs = -(-cfg.steps * cfg.tasks_per_step // len(data.train))
    tasks = list(batches(data.train, cfg.tasks_per_step, epochs=epochs + 1, seed=run.seed("tasks")))
    learner = learn.Learner(agent.policy, lr=cfg.lr)
    for step in run.steps(cfg.steps, learner, name="grpo"):
        # Sample from the newest weights.
        current = agent.replace(policy=learner.sample())
        groups = rollout_groups(current, env, tasks[step], n=cfg.group_size, seed=run.seed("sample", step), run=run, tag=f"step{step}")

        # Credit: episodes that failed to run are left out; groups of equal rewards carry no gradient.
        rows, rewards = [], []
        for group in groups:
            episodes = [episode for episode in group.episodes if episode.ok]
            graded = [grader(e) for e in episodes]
            advantages = learn.group_advantages(graded, normalize_std=cfg.normalize_std)
            rows += [row for e, a in zip(episodes, advantages, strict=True) for row in to_examples(e, agent.policy, weight=a)]
            rewards += graded
        if cfg.kl:
            rows = learn.with_reference(rows, agent.policy)

        # Optimise.
        metrics = learn.optimise(learner, [rows] * cfg.inner_steps, loss)
        done = [e for group in groups for e in group.episodes if e.ok]
        run.log(step, reward=fmean(rewards), **success_rates(done), tool_failures=fmean(map(tool_failures, done)), **metrics)
    return agent.replace(policy=learner.sample())
