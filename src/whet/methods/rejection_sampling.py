"""Rejection-sampling self-training (ReST-EM, arXiv:2312.06585; one iteration is RFT, arXiv:2308.01825).

repeat I times:
    generate    N episodes per training task from the current policy
    filter      keep the successful ones, at most K different ones per task
    improve     fine-tune the policy that the method was given (not the current one) on what was kept
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet import learn
from whet.agents import Agent
from whet.config import at_least
from whet.data import batches, different, to_examples
from whet.envs.base import EnvFactory
from whet.methods import Parts
from whet.rollout import rollout_groups, success_rates
from whet.types import Data, Episode, Group

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("train",)
PARTS = Parts(source="self", filter="environment", reuse="drop", update="SFT", schedule="repeat, from the given policy or the current one")


@dataclass(frozen=True, kw_only=True)
class RejectionSamplingConfig:
    """Defaults: ReST-EM's for APPS and MATH, where it names them."""

    iterations: int = 3
    samples: int = 32
    """Episodes per task and iteration."""
    keep: int = 10
    """Different successful episodes of a task that are trained on."""
    sample_temperature: float = 0.7
    """Of the generation."""
    restart: bool = True
    """Fine-tune the given policy in every iteration, as in the paper, rather than the current one."""
    epochs: int = 3
    lr: float = 2e-5
    batch_size: int = 64

    def __post_init__(self) -> None:
        at_least(self, 1, "iterations", "samples", "keep", "epochs", "batch_size")
        at_least(self, 0, "lr", "sample_temperature")


def rejection_sampling(
    agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: RejectionSamplingConfig = RejectionSamplingConfig()
) -> Agent[Any]:
    """The agent fine-tuned on its own successes."""
    data.require(*NEEDS, by="rejection_sampling")
    sampler = agent.replace(sampling=agent.sampling.at(cfg.sample_temperature))
    learner = learn.Learner(agent.policy, lr=cfg.lr)
    for iteration in run.steps(cfg.iterations, learner, name="rejection_sampling"):
        # Generate.
        current, seed = sampler.replace(policy=learner.sample()), run.seed("generate", iteration)
        groups = rollout_groups(current, env, data.train, n=cfg.samples, seed=seed, run=run, tag=f"iteration{iteration}")

        # Filter.
        kept = [episode for group in groups for episode in successes(group, cfg.keep)]
        rows = [row for episode in kept for row in to_examples(episode, agent.policy)]

        # Improve.
        if cfg.restart:
            learner.restart(agent.policy)
        shuffled = batches(rows, cfg.batch_size, epochs=cfg.epochs, seed=run.seed("improve", iteration))
        metrics = learn.optimise(learner, shuffled, learn.nll())
        run.log(iteration, **success_rates(groups), kept=len(kept), **metrics)
    return agent.replace(policy=learner.sample())


def successes(group: Group, keep: int) -> list[Episode]:
    """The first `keep` successful episodes of a group that differ in what the policy did."""
    return different((episode for episode in group.episodes if episode.ok and episode.success), keep)
