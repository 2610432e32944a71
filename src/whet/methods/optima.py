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

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from whet import learn
from whet.agents import Agent
from whet.agents.exchange import Exchange
from whet.config import at_least
from whet.data import batches
from whet.envs.base import EnvFactory
from whet.methods import Parts, note_roles, player
from whet.rewards.talk import talk_rewards
from whet.rollout import rollout, success_rates
from whet.rollout.exchange import both_rows, must_have_halves, said_pairs
from whet.rollout.trees import Growth, grow
from whet.types import Data, Episode, Group

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
    data.require(*NEEDS, by="optima")
    must_have_halves(env, data.train)
    teacher, base = player(cfg.teacher, agent), agent.policy
    note_roles(run, teacher=teacher)

    def worth(episodes: Sequence[Episode]) -> list[float]:
        rows = [both_rows(episode, base, env) for episode in episodes]
        nlls = [max(learn.worst_turn_nll(each, base), default=0.0) for each in rows]
        tokens = [sum(int(row.mask.sum()) for row in each) for each in rows]
        weights = {"tokens_weight": cfg.tokens_weight, "reading_weight": cfg.reading_weight}
        return talk_rewards([episode.reward for episode in episodes], tokens, nlls, **weights)

    learner = learn.Learner(base, lr=cfg.lr)
    for iteration in run.steps(cfg.iterations, learner, name="optima"):
        current, seed = learner.sample(), run.seed("optima", iteration)
        pair = agent.replace(policy=Exchange(current, current))
        by_tree = iteration > 0 and (cfg.variant == "idpo" or (cfg.variant == "isft-dpo" and iteration % 2 == 1))
        if by_tree:
            # Generate: trees.
            trees = grow(pair, env, data.train, worth, cfg.tree, seed=seed, run=run, tag=f"tree{iteration}.")
        else:
            # Generate: episodes, at first by the formats of the pool.
            styles = [Exchange(teacher, teacher, style) for style in cfg.formats] if iteration == 0 else [pair.policy]
            trees = [[] for _ in data.train]
            for k, policy in enumerate(styles):
                n, tag = -(-cfg.samples // len(styles)), f"talk{iteration}.{k}"
                talked = rollout(agent.replace(policy=policy), env, data.train, n=n, seed=run.seed(tag), run=run, tag=tag)
                for i, episode in enumerate(talked):
                    trees[i // n] += [episode] if episode.ok else []

        # Rank and select.
        values = [worth(tree) for tree in trees]
        known = {episode.id: value for tree, each in zip(trees, values, strict=True) for episode, value in zip(tree, each, strict=True)}
        figures = success_rates(Group(task=task, episodes=tuple(tree)) for task, tree in zip(data.train, trees, strict=True))
        ...
    return agent.replace(policy=Exchange(learner.sample(), learner.sample()))
