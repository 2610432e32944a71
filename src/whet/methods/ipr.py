"""Iterative step-level Process Refinement (IPR, arXiv:2406.11176).

pi <- SFT(pi, D_expert),  pi_s <- pi_ref <- pi      (done before: `sft`; scorer and reference stay as they are)
repeat I times:
    explore    from every beginning of every expert's episode e: in s_t, pi acts for itself and goes on to the end, giving e^_t
    reward     r(s_t, a) = mean final reward of N completions by pi_s after a  (of a last action, what the environment paid)
    contrast   outcome pairs  e against e^_0  where the final rewards differ;
               step pairs     e from t on against e^_t from t on,  where r(s_t, .) and the final reward both say the same
    optimise   minimise, over all pairs alike,  -log sigmoid(beta (D_w - D_l)) - log pi(e_w),  D = log pi - log pi_ref

Step pairs are of whole suffixes, as the authors' code has them; `suffix=False` takes the single action that the paper's formula
shows. A likelihood is the mean over tokens (unverified). The code's rule that of equal suffixes the shorter one wins, for one of its
environments, is left out. A reward is asked for only where a pair may come of it, and of the expert's steps once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet import learn
from whet.agents import Agent
from whet.config import at_least
from whet.data import batches, outcome, step, to_pairs
from whet.envs.base import EnvFactory
from whet.methods import Parts, require
from whet.rollout import Prefix, rollout, success_rates
from whet.rollout.values import prefix_values
from whet.types import Data, Episode

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("experts", "replay")
PARTS = Parts(
    source="expert, self from the expert's states",
    filter="environment, Monte-Carlo value of each step by a fixed scorer",
    reuse="contrast: outcome and step pairs",
    update="DPO with the winner's likelihood",
    schedule="repeat, reference stays",
)


@dataclass(frozen=True, kw_only=True)
class IPRConfig:
    """Defaults: the authors' scripts, but for what is called unverified."""

    iterations: int = 6
    completions: int = 5
    """Of each step (N)."""
    explore_temperature: float = 1.0
    """Of the scorer, too."""
    samples: int = 1
    """Explorations from each state."""
    least: float = 0.01
    """Rewards that differ by no more than this are a tie."""
    suffix: bool = True
    """Step pairs of all that follows, rather than of the single action."""
    beta: float = 0.1
    nll: float = 1.0
    """Weight of the winner's likelihood."""
    lr: float = 3e-6
    epochs: int = 3
    batch_size: int = 32
    """Value unverified."""
    warmup: float = 0.1
    """Share of an iteration's steps, were there a pair for each exploration."""

    def __post_init__(self) -> None:
        at_least(self, 1, "iterations", "completions", "samples", "epochs", "batch_size")
        at_least(self, 0, "explore_temperature", "least", "beta", "nll", "lr", "warmup")


def ipr(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: IPRConfig = IPRConfig()) -> Agent[Any]:
    """Refine a cloned agent step by step: in every state of the expert's, its own way on against the expert's."""
    require(NEEDS, data, env, by="ipr")
    scorer = agent.replace(sampling=agent.sampling.at(cfg.explore_temperature))
    states = [(expert, t) for expert in data.experts for t in range(expert.n_actions) for _ in range(cfg.samples)]
    tasks, prefixes = [expert.task for expert, _ in states], [Prefix.of(expert, actions=t) for expert, t in states]
    warmup_steps = int(cfg.warmup * cfg.epochs * -(-len(states) // cfg.batch_size))
    learner = learn.Learner(agent.policy, lr=cfg.lr, warmup_steps=warmup_steps)

    def rewards(steps: list[tuple[Episode, int]], name: str) -> list[float | None]:
        """What each step is worth, of an episode with its place."""
        ended, seed = [(episode, t + 1) for episode, t in steps], run.seed("reward", name)
        values = prefix_values(scorer, env, ended, n=cfg.completions, seed=seed, run=run, tag=f"reward/{name}")
        return [None if value is None else value.mean for value in values]

    for iteration in run.steps(cfg.iterations, learner, name="ipr"):
        # Explore: from every state of the expert's.
        current, seed = scorer.replace(policy=learner.sample()), run.seed("explore", iteration)
        tried = rollout(current, env, tasks, prefix=prefixes, seed=seed, run=run, tag=f"iteration{iteration}")
        own = [(expert, e, t) for (expert, t), e in zip(states, tried, strict=True) if e.ok and e.n_actions > t]
        found = [contrast for expert, e, t in own if t == 0 for contrast in outcome(expert, e, least=cfg.least)]

        # Reward the steps of which the final rewards differ (of others there is no pair); the expert's once.
        differ = [(expert, e, t) for expert, e, t in own if t > 0 and outcome(expert, e, least=cfg.least)]
        if iteration == 0:
            run.event("expert_steps", worth=rewards(states, "expert"))
        known = dict(zip([(e.id, t) for e, t in states], next(run.events("expert_steps"))["worth"], strict=True))
        worth = rewards([(e, t) for _, e, t in differ], f"iteration{iteration}")

        # Contrast: what follows in each state, by both rewards.
        for (expert, e, t), value in zip(differ, worth, strict=True):
            if (theirs := known[expert.id, t]) is not None and value is not None:
                found += step(expert, e, t, worth=(theirs, value), least=cfg.least, length=None if cfg.suffix else 1)
        pairs = learn.with_reference(to_pairs(found, agent.policy, env), agent.policy)

        # Optimise: DPO and the winner's likelihood, against the policy that was given.
        learner.restart(current.policy)
        shuffled = batches(pairs, cfg.batch_size, epochs=cfg.epochs, seed=run.seed("optimise", iteration))
        metrics = learn.optimise(learner, shuffled, learn.dpo(beta=cfg.beta, nll=cfg.nll))
        steps = sum(c.kind == "step" for c in found)
        begun = [e for _, e, t in own if t == 0]
        run.log(iteration, **success_rates(begun), outcome_pairs=len(found) - steps, step_pairs=steps, **metrics)
    return agent.replace(policy=learner.sample())
