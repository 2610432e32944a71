"""ATM: a generator tuned against an attacker that fabricates documents, in turns (arXiv:2405.18111).

init:   generator <- SFT on right answers, the documents before them permuted: shuffled, left out, doubled
repeat R times:
    attack      the attacker writes N fabrications against every question
    score       perplexity of the right answer under the generator, given each fabrication alone
    attacker    DPO:  chosen = the fabrication of the highest perplexity, rejected = that of the lowest
    generator   MITO: L = CE(answer | x~) + beta (KL_theta - KL_ref),  KL of the answer's distributions under x~ from those under x;
                x = the question's own documents, x~ = those with all N fabrications, permuted; ref = generator of the round's start

Paper and code differ. The likelihood here is under attack, as in the paper (the code takes that of the row with the clean prompt);
KL and KL_ref are the code's (see `learn.mito`; the paper has no KL_ref, which changes no gradient). As in the code, the generator
is attacked with what was scored. Learning rates are constant. The attacker first learns what a document looks like.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from whet import learn
from whet.agents import Agent
from whet.config import at_least
from whet.data import batches, extremes, to_examples, to_pairs
from whet.envs.base import EnvFactory
from whet.methods import Parts, note_roles
from whet.policies import load_policy
from whet.rollout import rollout, success_rates
from whet.rollout.contexts import context_rows, documents, fabricate, fabrication, papers, permutations, showing
from whet.types import Cost, Data, Pair

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("experts",)
PARTS = Parts(
    source="expert answers, adversary",
    filter="perplexity under the opponent",
    reuse="contrast: the attacker's best against its worst",
    update="attacker DPO; generator SFT regularised by a KL between contexts (MITO)",
    schedule="SFT, then both in turns",
)


@dataclass(frozen=True, kw_only=True)
class ATMConfig:
    """Defaults: the authors' code and commands, but for what is called unverified."""

    attacker: str = "self"
    """Who fabricates, and is trained to: `self` for weights like the agent's own, or a model's directory or hub id."""
    rounds: int = 3
    """After the initial tuning (value unverified)."""
    fabrications: int = 5
    """Against each question (N)."""
    beta: float = 0.2
    steps: int = 100
    """Optimiser steps of the generator in a round."""
    lr: float = 2e-5
    """Of the generator in a round."""
    init_epochs: int = 1
    init_lr: float = 5e-6
    """Of the initial tuning, of the attacker too."""
    attacker_epochs: int = 1
    """Of the attacker's initial tuning on a document of each question; 0 in the paper."""
    dpo_beta: float = 0.1
    """Value unverified."""
    dpo_epochs: int = 1
    dpo_lr: float = 8e-7
    batch_size: int = 8
    max_tokens: int = 256
    """Of a fabrication (value unverified)."""
    probes: int = 32
    """Questions, of those trained on, that the generator answers among the step's documents, to be logged."""

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "init_epochs", "dpo_epochs", "batch_size", "max_tokens")
        at_least(self, 2, "fabrications")  # a best and a worst
        at_least(self, 0, "rounds", "attacker_epochs", "beta", "lr", "init_lr", "dpo_lr", "probes")


def atm(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: ATMConfig = ATMConfig()) -> Agent[Any]:
    """The agent tuned to answer in spite of documents that an attacker, tuned against it, fabricates."""
    data.require(*NEEDS, by="atm")
    writer: Any = agent.policy if cfg.attacker == "self" else load_policy(cfg.attacker)
    note_roles(run, attacker=writer)
    golds, shown = data.experts, documents(env, [episode.task for episode in data.experts])
    learners = learn.Learners(generator=learn.Learner(agent.policy, lr=cfg.init_lr), attacker=learn.Learner(writer, lr=cfg.init_lr))
    for step in run.steps(1 + cfg.rounds, learners, name="atm"):
        generator, attacker = learners["generator"].sample(), learners["attacker"].sample()
        rng, seed = random.Random(run.seed("permute", step)), run.seed("atm", step)
        if step == 0:
            # Init: right answers behind permuted documents; for the attacker, what a document looks like.
            contexts = permutations(golds, shown, rng)
            rows = context_rows(agent, env, golds, contexts)
            metrics = learn.optimise(learners["generator"], batches(rows, cfg.batch_size, epochs=cfg.init_epochs, seed=seed), learn.nll())
            rows = [row for paper in papers(env, golds, shown, rng) for row in to_examples(paper, attacker)]
            learn.optimise(learners["attacker"], batches(rows, cfg.batch_size, epochs=cfg.attacker_epochs, seed=seed), learn.nll())
        else:
            # Attack, and score each fabrication by how unlikely it alone makes the right answer.
            attacks = fabricate(attacker, env, golds, shown, n=cfg.fabrications, seed=seed, max_tokens=cfg.max_tokens)
            run.spend(sum((attack.cost for group in attacks for attack in group), Cost()))
            alone = [(gold, fabrication(attack)) for gold, group in zip(golds, attacks, strict=True) for attack in group]
            rows = context_rows(agent, env, [gold for gold, _ in alone], [[text] for _, text in alone])
            perplexity = np.exp(learn.mean_nll(rows, generator)).tolist()

            # Attacker: DPO on the most and the least misleading one.
            worth = iter(perplexity)
            pairs = to_pairs([c for group in attacks for c in extremes(group, [next(worth) for _ in group], kind="perplexity")], attacker)
            learners["attacker"].restart(attacker, lr=cfg.dpo_lr)
            duels = batches(learn.with_reference(pairs, attacker), cfg.batch_size, epochs=cfg.dpo_epochs, seed=seed)
            duel = learn.optimise(learners["attacker"], duels, learn.dpo(beta=cfg.dpo_beta))

            # Generator: MITO, all fabrications among its documents against its documents alone.
            contexts = permutations(golds, [[*own, *map(fabrication, group)] for own, group in zip(shown, attacks, strict=True)], rng)
            both = zip(context_rows(agent, env, golds, contexts), context_rows(agent, env, golds, shown), strict=True)
            twins = learn.with_divergences([Pair(chosen=hard, rejected=clean, origin=hard.origin) for hard, clean in both], generator)
            learners["generator"].restart(generator, lr=cfg.lr)
            shuffled = islice(batches(twins, cfg.batch_size, epochs=cfg.steps, seed=seed), cfg.steps)
            metrics = learn.optimise(learners["generator"], shuffled, learn.mito(beta=cfg.beta))
            metrics |= {"fabrications": len(alone), "pairs": len(pairs), "perplexity": sum(perplexity) / max(1, len(alone))}
            metrics |= {f"attacker_{name}": duel[name] for name in ("loss", "accuracy") if name in duel}

        probes = [showing(gold.task, texts) for gold, texts in zip(golds, contexts, strict=True)][: cfg.probes]
        tried = rollout(agent.replace(policy=learners["generator"].sample()), env, probes, seed=seed, run=run, tag=f"probe{step}")
        run.log(step, **success_rates(tried), **metrics)
    return agent.replace(policy=learners["generator"].sample())
