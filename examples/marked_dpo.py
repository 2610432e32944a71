"""Marked DPO: a failure is rejected under NAT's mark of success, and preferred under its mark of failure.

Nobody has published it: the conditional negatives of NAT (arXiv 2402.11651) together with DPO (arXiv 2305.18290). It goes on from
an agent that `nat` has made, whose prompt holds the mark of success.
"""

from dataclasses import dataclass, replace

from whet import learn
from whet.agents import controlled
from whet.data import batches, extremes, opening, reopened, to_pairs
from whet.methods.nat import CONTROLS
from whet.rollout import rollout_groups, success_rates

NEEDS = ("train",)
BAD, GOOD = CONTROLS["sentence"]


@dataclass(frozen=True, kw_only=True)
class MarkedDPOConfig:
    iterations: int = 4
    samples: int = 8
    lr: float = 1e-4
    beta: float = 1.0
    batch_size: int = 32
    mirrored: bool = True
    """Prefer failures under their mark, too; false is DPO on the best and the worst episode of each task."""


def marked_dpo(agent, data, *, env, run, cfg):
    learner = learn.Learner(agent.policy, lr=cfg.lr)
    for step in run.steps(cfg.iterations, learner, name="marked_dpo"):
        now, seed = agent.replace(policy=learner.sample()), run.seed("marked_dpo", step)
        groups = rollout_groups(now, env, data.train, n=cfg.samples, seed=seed, run=run, tag=f"step{step}")
        good = [contrast for group in groups for contrast in extremes([e for e in group.episodes if e.ok])]
        bad = [replace(c, better=failing(c.worse), worse=failing(c.better)) for c in good if cfg.mirrored]
        pairs = learn.with_reference(to_pairs(good + bad, now.policy, env), now.policy)
        learner.restart(now.policy)
        metrics = learn.optimise(learner, batches(pairs, cfg.batch_size, seed=seed), learn.dpo(beta=cfg.beta))
        run.log(step, **success_rates(groups), **metrics)
    return agent.replace(policy=learner.sample())


def failing(episode):
    """The episode as if its prompt had held the mark of failure in place of that of success."""
    *before, last = opening(episode)
    plain = replace(last, content=last.content.removesuffix(f"\n{GOOD}"))
    return reopened(episode, controlled((*before, plain), BAD))
