"""Direct Multi-turn Preference Optimisation (DMPO, arXiv:2406.14868).

pi <- SFT(pi, D_expert)                          (done before: `sft`)
explore     e^ ~ pi(. | u)  for every task u of the expert's episodes
contrast    (e_w, e_l) <- the better and the worse of (e_expert, e^), uncut;  ties are dropped
optimise    pi_ref <- pi;  minimise  -log sigmoid( sum_t phi(t, T_w) r_t^w - sum_t phi(t, T_l) r_t^l ),
            r_t = beta (log pi(a_t | s_t) - log pi_ref(a_t | s_t)),   phi(t, T) = gamma^t (1 - gamma^(T-t)) / (1 - gamma^T)

A policy constrained in the states that it visits, rather than in its answers, has no partition function that depends on the state;
normalising by the length T makes those of a winner and a loser of different lengths cancel. With one turn, or gamma -> 0, it is DPO.
The paper explores once; `iterations` repeats the whole, with the policy that explored as the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from whet import learn
from whet.agents import Agent
from whet.config import at_least
from whet.data import batches, outcome, to_pairs
from whet.envs.base import EnvFactory
from whet.errors import ConfigError
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
    update="DPO on whole episodes, turns discounted and normalised by length (DMPO)",
    schedule="once",
)


@dataclass(frozen=True, kw_only=True)
class DMPOConfig:
    """Defaults: the authors' scripts, but for what is called unverified."""

    iterations: int = 1
    gamma: float = 0.7
    """Discount of the turns; 1 stands for its limit, (T - t) / T."""
    beta: float = 0.1
    lr: float = 1e-6
    epochs: int = 3
    """Value unverified, as are the batch size and the exploration's temperature: ETO's."""
    batch_size: int = 32
    samples: int = 1
    """Explorations of each task."""
    explore_temperature: float = 0.0
    max_extra_turns: int | None = None
    """A loser is cut to this many turns more than the winner has, as ETO does; not in the paper."""

    def __post_init__(self) -> None:
        at_least(self, 1, "iterations", "samples", "epochs", "batch_size")
        at_least(self, 0, "lr", "beta", "gamma", "explore_temperature")
        if self.gamma > 1:
            raise ConfigError(f"gamma is {self.gamma}; expected at most 1")


def dmpo(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: DMPOConfig = DMPOConfig()) -> Agent[Any]:
    """Refine a cloned agent on its failures against the expert's episodes, early turns before late ones."""
    data.require(*NEEDS, by="dmpo")
    tasks = [episode.task for episode in data.experts]
    learner = learn.Learner(agent.policy, lr=cfg.lr)
    for iteration in run.steps(cfg.iterations, learner, name="dmpo"):
        # Explore.
        reference = learner.sample()
        explorer = agent.replace(policy=reference, sampling=agent.sampling.at(cfg.explore_temperature))
        seed, tag = run.seed("explore", iteration), f"iteration{iteration}"
        groups = rollout_groups(explorer, env, tasks, n=cfg.samples, seed=seed, run=run, tag=tag)

        # Contrast: every turn weighs what its place and the length of its episode say.
        both = [(expert, own) for expert, group in zip(data.experts, groups, strict=True) for own in group.episodes if own.ok]
        found = [contrast for pair in both for contrast in outcome(*pair, max_extra_turns=cfg.max_extra_turns)]
        pairs = to_pairs(found, reference, env, weigh=partial(learn.turn_weights, gamma=cfg.gamma))

        # Optimise: DPO on weighted turns.
        learner.restart(reference)
        shuffled = batches(learn.with_reference(pairs, reference), cfg.batch_size, epochs=cfg.epochs, seed=run.seed("optimise", iteration))
        metrics = learn.optimise(learner, shuffled, learn.dpo(beta=cfg.beta))
        run.log(iteration, **success_rates(groups), pairs=len(pairs), **metrics)
    return agent.replace(policy=learner.sample())
