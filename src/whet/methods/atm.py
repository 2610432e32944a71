"""ATM: a generator tuned against an attacker that fabricates documents, in turns (arXiv:2405.18111).

init:   generator <- SFT on right answers, the documents before them permuted: shuffled, left out, doubled
repeat R times:
    attack      the attacker writes N fabrications against every question
    score       perplexity of the right answer under the generator, given each fabrication alone
    attacker    DPO:  chosen = the fabrication of the highest perplexity, rejected = that of the lowest
    generator   MITO: L = CE(answer | x~) + beta (KL_theta - KL_ref),  KL of the answer's distributions under x~ from those under x;
                x = the question's own documents, x~ = those with all N fabrications, permuted; ref = generator of the round's start

Paper and code differ. The likelihood here is under attack, as in the paper (the code takes that of the row with the clean prompt);
KL and KL_ref are the code's (see `learn.mito`; the paper has no KL_ref, which changes no gradient). As in the code, the generator is
attacked with the fabrications that were scored. Learning rates are constant, and the attacker, which in the paper is a model that
writes documents when asked, first learns from the questions' own documents what one looks like.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from whet import learn
from whet.agents import Agent
from whet.config import at_least
from whet.data import batches, to_examples, to_pair
from whet.envs.base import EnvFactory
from whet.methods import Parts, note_roles
from whet.policies import load_policy
from whet.policies.base import Sampling
from whet.rollout import rollout, success_rates
from whet.rollout.contexts import answer_of, context_rows, documents, fabricate, fabrication, permuted, requests, showing
from whet.types import Cost, Data, Episode, Pair, Turn, chain

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
    """Questions, of those trained on, that the generator answers under attack after each round, to be logged."""

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "init_epochs", "dpo_epochs", "batch_size", "max_tokens")
        at_least(self, 2, "fabrications")  # a best and a worst
        at_least(self, 0, "rounds", "attacker_epochs", "beta", "lr", "init_lr", "dpo_lr", "probes")


def atm(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: ATMConfig = ATMConfig()) -> Agent[Any]:
    """The agent tuned to answer in spite of documents that an attacker, tuned against it, fabricates."""
    data.require(*NEEDS, by="atm")
    writer = agent.policy if cfg.attacker == "self" else load_policy(cfg.attacker)
    note_roles(run, attacker=writer)
    golds, shown = data.experts, documents(env, [episode.task for episode in data.experts])
    learners = learn.Learners(generator=learn.Learner(agent.policy, lr=cfg.init_lr), attacker=learn.Learner(writer, lr=cfg.init_lr))
    for step in run.steps(1 + cfg.rounds, learners, name="atm"):
        rng, seed = random.Random(run.seed("permute", step)), run.seed("atm", step)
        if step == 0:
            run.log(step, **initial(agent, golds, shown, learners, rng, env=env, cfg=cfg, seed=seed))
            continue
        # Attack, and score each fabrication by how unlikely it alone makes the right answer.
        generator, attacker = learners["generator"].sample(), learners["attacker"].sample()
        sampling = Sampling(max_tokens=cfg.max_tokens)
        attacks = fabricate(attacker, env, golds, shown, n=cfg.fabrications, seed=seed, sampling=sampling)
        run.spend(sum((attack.cost for group in attacks for attack in group), Cost()))
        alone = [(gold, [fabrication(attack)]) for gold, group in zip(golds, attacks, strict=True) for attack in group]
        perplexity = np.exp(learn.mean_nll(context_rows(agent, env, *zip(*alone, strict=True)), generator)) if alone else np.zeros(0)

        # Attacker: DPO on the most and the least misleading one.
        value = iter(perplexity.tolist())
        ranked = [sorted((replace(a, reward=next(value)) for a in group), key=lambda a: a.reward) for group in attacks]
        pairs = [pair for group in ranked if group and (pair := to_pair(group[-1], group[0], attacker))]
        learners["attacker"].restart(attacker, lr=cfg.dpo_lr)
        shuffled = batches(learn.with_reference(pairs, attacker), cfg.batch_size, epochs=cfg.dpo_epochs, seed=seed)
        duel = learn.optimise(learners["attacker"], shuffled, learn.dpo(beta=cfg.dpo_beta))

        # Generator: MITO on its documents with all fabrications among them, against its documents alone.
        attacked = [permuted([*t, *map(fabrication, g)], rng, keep=answer_of(e)) for e, t, g in zip(golds, shown, attacks, strict=True)]
        both = zip(context_rows(agent, env, golds, attacked), context_rows(agent, env, golds, shown), strict=True)
        twins = learn.with_divergences([Pair(chosen=hard, rejected=clean, origin=hard.origin) for hard, clean in both], generator)
        epochs = -(-cfg.steps * cfg.batch_size // len(twins))
        learners["generator"].restart(generator, lr=cfg.lr)
        shuffled = islice(batches(twins, cfg.batch_size, epochs=epochs, seed=seed), cfg.steps)
        metrics = learn.optimise(learners["generator"], shuffled, learn.mito(beta=cfg.beta))

        probes = [showing(gold.task, texts) for gold, texts in zip(golds, attacked, strict=True)][: cfg.probes]
        now = agent.replace(policy=learners["generator"].sample())
        tried = rollout(now, env, probes, seed=seed, run=run, tag=f"attacked{step}") if probes else []
        own = {f"attacker_{name}": duel[name] for name in ("accuracy", "margin") if name in duel}
        run.log(step, perplexity=float(perplexity.mean()), pairs=len(pairs), **own, **success_rates(tried), **metrics)
    return agent.replace(policy=learners["generator"].sample())


def initial(
    agent: Agent[Any],
    golds: Sequence[Episode],
    shown: Sequence[Sequence[str]],
    learners: learn.Learners,
    rng: random.Random,
    *,
    env: EnvFactory,
    cfg: ATMConfig,
    seed: int,
) -> dict[str, float]:
    """The initial tuning: of the generator behind permuted documents, of the attacker on what a document looks like."""
    mixed = [permuted(texts, rng, keep=answer_of(gold)) for gold, texts in zip(golds, shown, strict=True)]
    rows = context_rows(agent, env, golds, mixed)
    metrics = learn.optimise(learners["generator"], batches(rows, cfg.batch_size, epochs=cfg.init_epochs, seed=seed), learn.nll())
    asked = zip(golds, requests(env, golds, shown), shown, strict=True)
    papers = [replace(e, turns=chain([*prompt, Turn(role="assistant", content=rng.choice(texts))])) for e, prompt, texts in asked]
    rows = [row for paper in papers for row in to_examples(paper, learners["attacker"].policy)]
    wrote = learn.optimise(learners["attacker"], batches(rows, cfg.batch_size, epochs=cfg.attacker_epochs, seed=seed), learn.nll())
    return metrics | {"attacker_nll": wrote["nll"]} if wrote else metrics
