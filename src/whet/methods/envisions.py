"""ENVISIONS: neural-symbolic self-training without a teacher (arXiv:2406.11736).

D <- {}
repeat I times:
    self-explore   K episodes of every task from pi; the environment says which are right
    self-refine    each of them is shown to pi again with the request to do it better: K more episodes
    self-reward    a sample's score is its length-normalised log-prob; the refined one takes its place where it is right and
                   the first was wrong, or where both are right and its score is higher
    pool           every task's right and wrong samples, of all iterations, different ones only, best score first
    train          the given policy anew, by maximum likelihood alone:  L1 = -log pi(y+ | x)  on the best right ones,
                   L2 = -log pi(y+ | x, y-)  on pairs of a right and a wrong one with the request to do it better

The paper's solutions are programs that are run once; here they are episodes, and what is shown again is the episode's log.
Defaults are those of the released scripts for agents.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from whet import learn
from whet.agents import Agent, with_notes
from whet.config import at_least
from whet.data import actions, batches, confidence, opening, reopened, to_examples
from whet.envs.base import EnvFactory
from whet.methods import Parts
from whet.rollout import retried, rollout, success_rates
from whet.transcript import transcript
from whet.types import Data, Episode

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("train",)
PARTS = Parts(
    source="self, from the start and after its own attempts",
    filter="environment, own log-prob",
    reuse="correct: the wrong attempt is a condition of the right one",
    update="SFT of solutions and of corrections",
    schedule="repeat, from the given policy, pool kept",
)
REQUEST = "Your last attempt is below. It can be done better: do the task again, and correct what was wrong."


@dataclass(frozen=True, kw_only=True)
class ENVISIONSConfig:
    """Defaults: the authors' scripts for agents."""

    iterations: int = 5
    samples: int = 5
    """Episodes of a task in an iteration (K); as many again are refined ones."""
    keep: int = 10
    """Right samples of a task that are trained on."""
    corrections: int = 2
    """Pairs of a task that are trained on."""
    epochs: int = 1
    lr: float = 2e-5
    batch_size: int = 128
    restart: bool = True
    """Train the given policy in every iteration, as in the paper, rather than the current one."""

    def __post_init__(self) -> None:
        at_least(self, 1, "iterations", "samples", "keep", "epochs", "batch_size")
        at_least(self, 0, "corrections", "lr")


def envisions(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: ENVISIONSConfig = ENVISIONSConfig()) -> Agent[Any]:
    """The agent trained on its own solutions, and on its own corrections of what went wrong."""
    data.require(*NEEDS, by="envisions")
    learner = learn.Learner(agent.policy, lr=cfg.lr)
    for iteration in run.steps(cfg.iterations, learner, name="envisions"):
        current = agent.replace(policy=learner.sample())
        for k in range(cfg.samples):
            # Self-explore, then self-refine: each task's own attempt stands before the task.
            seed = run.seed("explore", iteration, k)
            tried = [e for e in rollout(current, env, data.train, seed=seed, run=run, tag=f"explore{iteration}.{k}") if e.ok]
            retried(current, env, tried, request, seed=run.seed("refine", iteration, k), run=run, tag=f"refine{iteration}.{k}")

        # Train the policy that the method was given on the best of the pool of all iterations.
        rows = []
        for right, wrong in pool(kept for i in range(iteration + 1) for k in range(cfg.samples) for kept in superior(run, i, k)):
            corrected = [reopened(a, with_notes(opening(a), (request(b),))) for a, b in zip(right, wrong)]
            chosen = [*right[: cfg.keep], *corrected[: cfg.corrections]]
            rows += [row for e in chosen for row in to_examples(e, agent.policy, tools=env.of(e.task).tools)]
        if cfg.restart:
            learner.restart(agent.policy)
        shuffled = batches(rows, cfg.batch_size, epochs=cfg.epochs, seed=run.seed("train", iteration))
        metrics = learn.optimise(learner, shuffled, learn.nll())
        explored = [run.load_episodes(f"explore{iteration}.{k}") for k in range(cfg.samples)]
        run.log(iteration, **success_rates(chain.from_iterable(explored)), **metrics)
    return agent.replace(policy=learner.sample())


def request(episode: Episode) -> str:
    """What a sample is refined by: its log, with the request to do it better."""
    return f"{REQUEST}\n{transcript(episode.turns, opening=False)}"


def superior(run: Run, iteration: int, k: int) -> Iterator[tuple[float, Episode]]:
    """The k-th sample of every task with its score, or its refinement as if nothing had stood before it.

    The refinement is better where it is right and the sample wrong, or where both are right and its score is higher.
    """
    refined = {e.task.id: e for e in run.load_episodes(f"refine{iteration}.{k}") if e.ok and e.success}
    for sample in (e for e in run.load_episodes(f"explore{iteration}.{k}") if e.ok):
        other = refined.get(sample.task.id)
        if other and (not sample.success or confidence(other) > confidence(sample)):
            yield confidence(other), reopened(other, opening(sample))
        else:
            yield confidence(sample), sample


def pool(scored: Iterable[tuple[float, Episode]]) -> list[tuple[list[Episode], list[Episode]]]:
    """Each task's right and wrong episodes that differ, the best score first."""
    found: dict[str, dict[object, tuple[float, Episode]]] = defaultdict(dict)
    for score, episode in scored:
        found[episode.task.id].setdefault(actions(episode), (score, episode))
    ranked = [sorted(of.values(), key=lambda entry: -entry[0]) for of in found.values()]
    return [([e for _, e in each if e.success], [e for _, e in each if not e.success]) for each in ranked]
