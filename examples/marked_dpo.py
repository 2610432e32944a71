"""Marked DPO: a failure is rejected under the mark of success, and preferred under the mark of failure.

Nobody has published it: conditional negatives (NAT, arXiv 2402.11651) together with preferences (DPO, arXiv 2305.18290).
"""

from dataclasses import dataclass, replace

from whet import learn
from whet.agents import controlled
from whet.data import batches, extremes, opening, reopened, to_pairs
from whet.rollout import rollout_groups, success_rates

NEEDS = ("train",)
GOOD, BAD = "Give the right answer.", "Give a false answer."


@dataclass(frozen=True, kw_only=True)
class MarkedDPOConfig:
    iterations: int = 8
    samples: int = 8
    lr: float = 1e-4
    beta: float = 1.0
    batch_size: int = 32
    marks: bool = True
    """False leaves both marks out: DPO on the agent's best and worst episode of each task."""


def marked_dpo(agent, data, *, env, run, cfg):
    learner = learn.Learner(agent.policy, lr=cfg.lr)
    for step in run.steps(cfg.iterations, learner, name="marked_dpo"):
        policy = learner.sample()
        actor = agent.replace(policy=policy, suffix=GOOD * cfg.marks)
        groups = rollout_groups(actor, env, data.train, n=cfg.samples, seed=run.seed("explore", step), run=run, tag=f"step{step}")
        good = [contrast for group in groups for contrast in extremes([e for e in group.episodes if e.ok])]
        bad = [replace(c, better=under(BAD, c.worse), worse=under(BAD, c.better)) for c in good if cfg.marks]
        pairs = learn.with_reference(to_pairs(good + bad, policy, env), policy)
        learner.restart(policy)
        metrics = learn.optimise(learner, batches(pairs, cfg.batch_size, seed=run.seed("pairs", step)), learn.dpo(beta=cfg.beta))
        run.log(step, **success_rates(groups), **metrics)
    return agent.replace(policy=learner.sample(), suffix=GOOD * cfg.marks)


def under(mark, episode):
    """The episode as if its prompt had held this mark in place of that of success."""
    *before, last = opening(episode)
    plain = replace(last, content=last.content.removesuffix(f"\n{GOOD}"))
    return reopened(episode, controlled((*before, plain), mark))
