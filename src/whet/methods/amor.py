"""AMOR: a machine of modules with an expert each, adapted by feedback on every module's step (arXiv:2402.01469).

warm up     each module:  pi_m <- SFT(pi_m, what it says in annotated solutions);   MLPs of its own, attention shared
repeat:
    explore     the machine on every train task
    feedback    each step of a module is right or wrong; what follows a wrong one is skipped
    exploit     each module:  minimise  KTO(right, wrong; pi_m, pi_ref) + eta MLE(right),   pi_ref <- pi of the round's start
act         decompose -> judge -> extract -> decompose ... -> complete             (`agents.modules`)

The paper's model routes the module's index to one of four MLPs in each layer; here that is four policies with common weights elsewhere
(`learn.experts`). Feedback is yes or no; the paper's refined answers, which a person may write instead, are left out. Its machine
finds documents, then passages in them; here documents are short, and BM25 finds them. beta, eta and both weights are unverified.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from whet import learn
from whet.agents import Agent
from whet.agents.four_roles import documented
from whet.agents.modules import MODULES, Modules
from whet.config import at_least
from whet.data import batches
from whet.data.pairs import unpaired
from whet.envs.base import EnvFactory
from whet.methods import Parts, note_roles, player, require
from whet.policies import load_policy
from whet.rollout import rollout, success_rates
from whet.rollout.contexts import openings
from whet.rollout.modules import Sample, by_module, outcome_feedback, process_feedback
from whet.types import Cost, Data

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("experts", "train")
PARTS = Parts(
    source="annotated solutions, then self",
    filter="process feedback on each module's step",
    reuse="unpaired negatives",
    update="SFT, then KTO with MLE; an expert for each module",
    schedule="warm-up, then explore and exploit",
    inference="a finite-state machine of modules",
)


@dataclass(frozen=True, kw_only=True)
class AMORConfig:
    """Defaults: the authors' scripts for 7B parameters, but for what is called unverified."""

    teacher: str = "script"
    """Who annotates solutions (the paper: public data): `script` is the environment's script of each module; or a model's name."""
    judge: str = "script:feedback"
    """Who says whether a module's step is right; scripted by gold documents and answers unless a model is named."""
    feedback: Literal["process", "outcome"] = "process"
    """outcome: every step is as right as the episode, which is what the paper holds process feedback against."""
    experts: bool = True
    """False: all modules share all weights."""
    rounds: int = 1
    """Of exploring and exploiting; 0: the warm-up alone."""
    samples: int = 1
    """Episodes of each task in a round (value unverified)."""
    top: int = 3
    """Documents that are read for a query."""
    queries: int = 6
    """Of an episode, at most."""
    epochs: int = 2
    lr: float = 2e-5
    batch_size: int = 32
    adapt_epochs: int = 2
    adapt_lr: float = 5e-6
    beta: float = 0.1
    mle: float = 1.0
    """eta."""
    desirable: float = 1.0
    undesirable: float = 1.0

    def __post_init__(self) -> None:
        at_least(self, 1, "samples", "top", "queries", "epochs", "batch_size", "adapt_epochs")
        at_least(self, 0, "rounds", "lr", "adapt_lr", "beta", "mle", "desirable", "undesirable")


def amor(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: AMORConfig = AMORConfig()) -> Agent[Any]:
    """The agent as a machine of modules, tuned on annotated solutions and then by feedback on its own steps."""
    require(NEEDS, data, env, by="amor")
    documented(data.train[0], openings(agent, env, data.train[:1])[0])
    teachers = {m: load_policy(f"script:module:{m}") if cfg.teacher == "script" else player(cfg.teacher, agent) for m in MODULES}
    judge, how = player(cfg.judge, agent), dict[str, Any](top=cfg.top, queries=cfg.queries)
    asked = {"feedback": judge} if cfg.feedback == "process" and cfg.rounds else {}
    note_roles(run, **{f"teacher of {module}": teacher for module, teacher in teachers.items()}, **asked)
    experts = learn.Experts(agent.policy, MODULES, lr=cfg.lr, own=cfg.experts)
    for step in run.steps(1 + cfg.rounds, experts, name="amor"):
        seed, batched = run.seed("amor", step), dict[str, Any]()
        policies: dict[str, Any] = teachers if step == 0 else experts.policies()
        tasks = [episode.task for episode in data.experts] if step == 0 else data.train
        machine = agent.replace(policy=Modules(**policies, **how))
        played = rollout(machine, env, tasks, n=cfg.samples if step else 1, seed=seed, tag=f"round{step}")
        run.save_episodes(played, f"round{step}")  # in their order, whichever module was the faster
        run.spend(sum((episode.cost for episode in played), Cost()))
        if step == 0:
            # Warm up: what each module says in solutions.
            right = outcome_feedback([episode for episode in played if episode.success], **how)
            for module, (rows, _) in by_module(right, agent.policy, env).items():
                batched[module] = list(batches(rows, cfg.batch_size, epochs=cfg.epochs, seed=seed))
            metrics = experts.optimise(batched, learn.nll(), seed=seed)
        else:
            # Feedback on what they said themselves; then exploit it.
            process = cfg.feedback == "process"
            samples, cost = process_feedback(played, judge, env, seed=seed, **how) if process else (outcome_feedback(played, **how), Cost())
            run.spend(cost)
            for module, (rows, labels) in by_module(samples, agent.policy, env).items():
                pairs = unpaired(rows, labels, desirable=cfg.desirable, undesirable=cfg.undesirable)
                known = learn.with_reference(pairs, policies[module])
                batched[module] = list(batches(known, cfg.batch_size, epochs=cfg.adapt_epochs, seed=seed))
            experts.restart(cfg.adapt_lr)
            metrics = experts.optimise(batched, learn.kto(beta=cfg.beta, nll=cfg.mle), seed=seed) | rates(samples)
        run.log(step, **success_rates(played), **metrics)
    return agent.replace(policy=Modules(**dict[str, Any](experts.policies()), **how))


def rates(samples: Sequence[Sample]) -> dict[str, float]:
    """Of each module that said anything, how much of that was right."""
    said = Counter(sample.step.ask.module for sample in samples)
    right = Counter(sample.step.ask.module for sample in samples if sample.right)
    return {f"right/{module}": right[module] / n for module, n in said.items()}
