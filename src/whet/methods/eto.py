"""Exploration-based Trajectory Optimisation (ETO, arXiv:2403.02502).

pi <- SFT(pi, D_expert)                          (done before: `sft`)
repeat I times:
    explore     e^ ~ pi(. | u)  for every task u of the expert's episodes
    contrast    (e_w, e_l) <- the better and the worse of (e_expert, e^);  ties are dropped
    optimise    pi_ref <- pi;  minimise DPO(e_w, e_l; pi, pi_ref, beta) on action tokens

Self-play, which needs no expert's episodes: of several own episodes of each task, the best against the worst.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet import learn
from whet.agents import Agent
from whet.config import at_least
from whet.data import batches, extremes, outcome, to_pairs
from whet.envs.base import EnvFactory
from whet.methods import Parts
from whet.rollout import rollout_groups, success_rates
from whet.types import Data

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("experts",)
PARTS = Parts(
    source="expert, self",
    filter="environment",
    reuse="contrast",
    update="DPO on whole episodes",
    schedule="repeat, reference moves",
)


@dataclass(frozen=True, kw_only=True)
class ETOConfig:
    """Defaults: the authors' scripts. Of tuples, the last entry holds for all later iterations."""

    iterations: int = 3
    beta: tuple[float, ...] = (0.1, 0.5)
    lr: tuple[float, ...] = (1e-6, 5e-7)
    epochs: int = 3
    batch_size: int = 32
    samples: int = 1
    """Explorations of each task."""
    explore_temperature: float = 0.0
    """Of the exploration; the authors explore greedily."""
    max_extra_turns: int | None = 5
    """A loser is cut to this many turns more than the winner has (from the authors' code)."""
    nll: float = 0.0
    """Weight of the winner's likelihood beside the DPO loss; 0 in the paper."""
    self_play: bool = False
    """Contrast the best of the samples with the worst, on train tasks, rather than each with the expert's episode."""

    def __post_init__(self) -> None:
        at_least(self, 1, "iterations", "samples", "epochs", "batch_size")
        at_least(self, 0, "lr", "beta", "nll", "explore_temperature")
        if self.self_play:
            at_least(self, 2, "samples")  # one has nothing to be compared with


def eto(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: ETOConfig = ETOConfig()) -> Agent[Any]:
    """Refine a cloned agent on its failures, each held against the expert's episode of the same task."""
    data.require(*(("train",) if cfg.self_play else NEEDS), by="eto")
    tasks = data.train if cfg.self_play else [episode.task for episode in data.experts]
    explorer = agent.replace(sampling=agent.sampling.at(cfg.explore_temperature))
    learner = learn.Learner(agent.policy, lr=cfg.lr[0])
    for iteration in run.steps(cfg.iterations, learner, name="eto"):
        # Explore: the current policy attempts every task of the expert's.
        reference = learner.sample()
        current, seed = explorer.replace(policy=reference), run.seed("explore", iteration)
        groups = rollout_groups(current, env, tasks, n=cfg.samples, seed=seed, run=run, tag=f"iteration{iteration}")

        # Contrast: the better one is chosen, whoever it is from; ties are dropped.
        played, cut = [[episode for episode in group.episodes if episode.ok] for group in groups], cfg.max_extra_turns
        if cfg.self_play:
            found = [c for own in played for c in extremes(own, max_extra_turns=cut)]
        else:
            both = [(expert, e) for expert, own in zip(data.experts, played, strict=True) for e in own]
            found = [c for expert, e in both for c in outcome(expert, e, max_extra_turns=cut)]
        pairs = learn.with_reference(to_pairs(found, reference, env), reference)

        # Optimise: DPO against the policy that explored.
        learner.restart(reference, lr=cfg.lr[min(iteration, len(cfg.lr) - 1)])
        beta = cfg.beta[min(iteration, len(cfg.beta) - 1)]
        shuffled = batches(pairs, cfg.batch_size, epochs=cfg.epochs, seed=run.seed("optimise", iteration))
        metrics = learn.optimise(learner, shuffled, learn.dpo(beta=beta, nll=cfg.nll))
        run.log(iteration, **success_rates(groups), pairs=len(pairs), **metrics)
    return agent.replace(policy=learner.sample())
