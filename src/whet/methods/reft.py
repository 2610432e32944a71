"""ReFT: reinforced fine-tuning of a warmed-up policy by PPO with a partial reward (arXiv:2401.08967).

pi <- SFT(pi, D_expert)                          (done before: `sft`, 2 epochs)
pi_ref <- pi;  V <- a value head on pi's backbone
repeat:
    sample      e ~ pi(. | u)  for a batch of tasks u
    reward      1 for a right answer, 0.1 for one that is wrong but could be graded, 0 for none; paid with the last token;
                and every token costs  beta (log pi - log pi_ref)
    credit      A, R <- generalised advantage estimation by V;  A is whitened over the batch
    optimise    K epochs:  minimise  -min(rho A, clip(rho, 1 - eps, 1 + eps) A) + c 1/2 max((V - R)^2, (V_clipped - R)^2)

Tasks are those of the warm-up in the paper, here `data.train`. An answer that could be graded is an episode that the environment
ended, rather than a limit. The paper's baselines are other recipes: offline self-training is `agent_evol` with one iteration,
online self-training the same with many of them and `restart=false`. Voting and reranking, which the paper adds, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from whet import learn
from whet.agents import Agent
from whet.config import at_least
from whet.data import batches, to_examples
from whet.envs.base import EnvFactory
from whet.learn.credit import PPO
from whet.methods import Parts
from whet.rewards import partial_credit
from whet.rollout import rollout, success_rates
from whet.types import Data

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("train",)
PARTS = Parts(source="self", filter="environment, partial credit", update="PPO with a value head and a KL penalty", schedule="on-policy")


@dataclass(frozen=True, kw_only=True)
class ReFTConfig:
    """Defaults: the authors' scripts for Python programs; for chains of thought in words ppo.kl is 0.05."""

    epochs: int = 300
    """Over the tasks."""
    tasks_per_step: int = 32
    """Episodes that are sampled before each update (value unverified)."""
    lr: float = 3e-7
    partial: float = 0.1
    """Reward of an answer that is wrong but could be graded."""
    ppo: PPO = PPO()

    def __post_init__(self) -> None:
        at_least(self, 1, "epochs", "tasks_per_step")
        at_least(self, 0, "lr", "partial")


def reft(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: ReFTConfig = ReFTConfig()) -> Agent[Any]:
    """The agent reinforced by what the environment says about its answers."""
    data.require(*NEEDS, by="reft")
    grade = partial_credit(cfg.partial)
    tasks = list(batches(data.train, cfg.tasks_per_step, epochs=cfg.epochs, seed=run.seed("tasks")))
    learner = learn.Learner(agent.policy, lr=cfg.lr, value_head=True)
    for step in run.steps(len(tasks), learner, name="reft"):
        # Sample from the newest weights.
        current = agent.replace(policy=learner.sample())
        played = [e for e in rollout(current, env, tasks[step], seed=run.seed("sample", step), run=run, tag=f"step{step}") if e.ok]

        # Reward, credit and optimise.
        rows = [(row, grade(e)) for e in played for row in to_examples(e, agent.policy)]
        paid = [learn.at_end(row, reward) for row, reward in rows]
        metrics = learn.ppo(learner, [row for row, _ in rows], paid, agent.policy, cfg.ppo, seed=run.seed("ppo", step))
        run.log(step, reward=fmean(map(grade, played)), **success_rates(played), **metrics)
    return agent.replace(policy=learner.sample())
