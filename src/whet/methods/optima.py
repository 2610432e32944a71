"""OPTIMA: two agents of one model learn to say what the other needs, and no more of it (arXiv:2410.08115).

R(tau) = R_task - lambda_tok * tokens / (most tokens of the task's episodes) + lambda_loss / (NLL of the worst turn under the base model)
init      every task N times, the agents asked to speak in the ways of a pool of formats; then as iSFT
iSFT      every task N times;  keep the best by R, if R > theta;  pi <- SFT(base, what both agents said)
iDPO      a tree of every task: a promising state is gone on from in 3 ways, again and again; a state is worth the mean R through it
          pairs: the best against the worst next thing said, if V_best > 0.2 and V_best - V_worst > 0.45; the clearer half of them
          pi <- DPO(pi) from pi, on that thing alone
isft: init, iSFT, iSFT ...      idpo: init, iDPO, iDPO ...      isft-dpo: init, iDPO, iSFT, iDPO ...

The agents exchange information: each sees half of the documents (`agents.exchange`). How many nodes a tree expands, learning rates,
batch sizes and what is first after the initial round are unverified. Pairs are ranked by the difference of their values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from whet import learn
from whet.agents import Agent
from whet.agents.exchange import Exchange
from whet.agents.four_roles import documented
from whet.config import at_least
from whet.data import batches
from whet.data.pairs import siblings
from whet.envs.base import EnvFactory
from whet.learn.conversations import Ranking
from whet.methods import Parts, note_roles, player, require
from whet.rollout import success_rates
from whet.rollout.contexts import openings
from whet.rollout.exchange import both_rows, said_pairs, talks
from whet.rollout.trees import Growth, grow
from whet.types import Data

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("train",)
PARTS = Parts(
    source="self, two agents; a tree over turns",
    filter="reward of task, tokens and readability; threshold",
    reuse="contrast: siblings",
    update="SFT from base; DPO on single turns",
    schedule="generate, rank, select, train; SFT and DPO in turns",
    inference="two agents exchange information",
)
FORMATS = ("Speak in full sentences.", "Speak in JSON.", "Speak in as few words as possible.")


@dataclass(frozen=True, kw_only=True)
class OptimaConfig:
    """Defaults: the authors' recipe for ARC, but for what is called unverified."""

    variant: Literal["isft", "idpo", "isft-dpo"] = "isft-dpo"
    iterations: int = 6
    """Of training, the initial one included."""
    teacher: str = "script:partner"
    """Who plays both agents in the initial round (the paper: the base model itself, `self`); scripted unless a model is named."""
    formats: tuple[str, ...] = FORMATS
    """What they are asked for then, in turn (the paper's pool is longer)."""
    samples: int = 15
    """Episodes of each task (N)."""
    tokens_weight: float = 0.5
    reading_weight: float = 0.6
    threshold: float = 0.6
    """What the best episode of a task must be worth (theta)."""
    tree: Growth = Growth()
    """How trees grow, such as tree.expansions=4."""
    least_value: float = 0.2
    least_gap: float = 0.45
    keep: float = 0.5
    """Share of the pairs that is learned from, those of the largest gap."""
    epochs: int = 1
    lr: float = 2e-5
    dpo_lr: float = 5e-7
    beta: float = 0.1
    batch_size: int = 32

    def __post_init__(self) -> None:
        at_least(self, 1, "iterations", "samples", "epochs", "batch_size")
        at_least(self, 0, "tokens_weight", "reading_weight", "lr", "dpo_lr", "beta", "keep")


def optima(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: OptimaConfig = OptimaConfig()) -> Agent[Any]:
    """The agent as two that share a policy, which was trained to exchange information in few words."""
    require(NEEDS if cfg.variant == "isft" else (*NEEDS, "replay"), data, env, by="optima")
    teacher, base = player(cfg.teacher, agent), agent.policy
    note_roles(run, teacher=teacher)
    documented(data.train[0], openings(agent, env, data.train[:1])[0])
    worth = Ranking(base, env, tokens_weight=cfg.tokens_weight, reading_weight=cfg.reading_weight)
    learner = learn.Learner(base, lr=cfg.lr)
    for iteration in run.steps(cfg.iterations, learner, name="optima"):
        current, seed, tag = learner.sample(), run.seed("optima", iteration), f"iteration{iteration}."
        talking = agent.replace(policy=Exchange(current, current))
        if by_tree := iteration > 0 and (cfg.variant == "idpo" or (cfg.variant == "isft-dpo" and iteration % 2 == 1)):
            # Generate: trees over what is said.
            groups = grow(talking, env, data.train, worth, cfg.tree, seed=seed, run=run, tag=tag)
        else:
            # Generate: whole conversations, at first in the ways of the pool.
            speakers = [Exchange(teacher, teacher, style) for style in cfg.formats] if iteration == 0 else [talking.policy]
            groups = talks(agent, speakers, env, data.train, n=cfg.samples, seed=seed, run=run, tag=tag)

        # Rank and select: from here on an episode's reward is R.
        groups = worth.ranked(groups)
        talked = [episode for group in groups for episode in group]
        figures = {"said": fmean(worth.tokens[e.id] for e in talked), "worth": fmean(e.reward for e in talked)}
        rows: Any
        if by_tree:
            found = siblings(talked, least=cfg.least_gap, at_least=cfg.least_value)
            clear = sorted(found, key=lambda contrast: -contrast.margin)[: math.ceil(cfg.keep * len(found))]
            rows = learn.with_reference(said_pairs(clear, current, env), current)
        else:
            best = [max(group, key=lambda episode: episode.reward) for group in groups if group]
            rows = [row for episode in best if episode.reward > cfg.threshold for row in both_rows(episode, base, env)]

        # Train: on the best from base, on pairs from the present weights.
        if rows:
            learner.restart(current if by_tree else base, lr=cfg.dpo_lr if by_tree else cfg.lr)
        shuffled = batches(rows, cfg.batch_size, epochs=cfg.epochs, seed=seed)
        metrics = learn.optimise(learner, shuffled, learn.dpo(beta=cfg.beta) if by_tree else learn.nll())
        run.log(iteration, **success_rates(talked), **figures, selected=len(rows), **metrics)
    tuned = learner.sample()
    return agent.replace(policy=Exchange(tuned, tuned))
