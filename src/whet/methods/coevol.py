"""CoEvol: responses evolved by a debate, for fine-tuning on what became of them (arXiv:2406.07054).

D <- episodes of an imperfect teacher, one for every task
for each of their actions in turn, at most I times:
    debate    a positive and a critical debater take the positions that they are given, then weigh each other's points freely
    advise    the advisor extracts at most 3 suggestions
    edit      the editor writes another response by them
    judge     old against new, twice with swapped positions, averaged: the new one is kept and evolved on if it wins; else stop
pi <- SFT(pi, D)

The paper evolves the responses of instruction data, of several turns one after the other with the last 3 in view. Here a response
is an action: where an edit is accepted, the environment takes it and the teacher goes on from what it then shows. What an episode
is worth is decided by the judge alone; the environment's verdict is logged to show how good the judge was. One model plays all
five roles in the paper. Its fine-tuning is that of another project: `sft`'s settings stand here (values unverified).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from whet import learn
from whet.agents import Agent
from whet.config import at_least
from whet.data import batches, to_examples
from whet.envs.base import EnvFactory
from whet.methods import Parts, note_roles, require
from whet.policies import load_policy
from whet.policies.workflow import untokenised
from whet.rollout import rollout, success_rates
from whet.rollout.debate import Evolving, Panel, counts, evolve_turns
from whet.types import Data, Episode

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("train", "replay")
PARTS = Parts(
    source="imperfect teacher, several speakers",
    filter="model judge, positions swapped",
    reuse="correct: debate, advise, edit",
    update="SFT",
    schedule="once",
)


@dataclass(frozen=True, kw_only=True)
class CoEvolConfig:
    """Defaults: the authors' code, where it names them."""

    teacher: str = "expert@0.6"
    """Whose episodes are evolved: a policy's name. A scripted expert that is often wrong, unless a model is named."""
    speaker: str = "script"
    """Who debates, advises, edits and judges: a model's or endpoint's name. Scripted by the environment unless one is named."""
    judge: str = ""
    """Who judges, if somebody else than `speaker`; scripted unless a model is named."""
    iterations: int = 3
    """Edits of a response at most; 0 trains on the teacher's episodes as they are."""
    window: int = 3
    """Exchanges that the speakers see, besides the opening; the last of them is that of the response."""
    turns: int = 16
    """Actions of an episode that are evolved, the first ones."""
    epochs: int = 3
    lr: float = 2e-5
    batch_size: int = 64
    warmup: float = 0.03
    """Share of the steps; then a cosine to zero."""

    def __post_init__(self) -> None:
        at_least(self, 1, "window", "turns", "epochs", "batch_size")
        at_least(self, 0, "iterations", "lr", "warmup")


def coevol(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: CoEvolConfig = CoEvolConfig()) -> Agent[Any]:
    """The agent fine-tuned on an imperfect teacher's episodes, after other speakers have improved them."""
    require(NEEDS, data, env, by="coevol")
    teacher, panel = Agent(load_policy(cfg.teacher)), Panel.of(cfg.speaker, judge=cfg.judge)
    note_roles(run, teacher=teacher.policy, **(vars(panel) if cfg.iterations else {}))
    total = cfg.epochs * -(-len(data.train) // cfg.batch_size)
    learner = learn.Learner(agent.policy, lr=cfg.lr, schedule="cosine", warmup_steps=int(cfg.warmup * total), total_steps=total)
    for epoch in run.steps(cfg.epochs, learner, name="coevol"):
        metrics: dict[str, float] = {}
        if epoch == 0:
            # The teacher acts, and its actions are evolved one after another.
            taught = rollout(teacher, env, data.train, seed=run.seed("teacher"), run=run, tag="teacher")
            taught = [episode for episode in taught if episode.ok]
            evolving = Evolving(iterations=cfg.iterations, window=cfg.window, turns=cfg.turns)
            _, evolved = evolve_turns(taught, teacher, panel, evolving, env=env, seed=run.seed("evolve"), run=run)
            for response in evolved:
                run.spend(response.cost)
            metrics = {**counts(evolved), **{f"teacher_{name}": rate for name, rate in success_rates(taught).items()}}

        # Fine-tune on the last version of each task's episode.
        latest = versions(run, cfg.turns)
        rows = [row for episode in latest for row in to_examples(episode, agent.policy, tools=env.of(episode.task).tools)]
        metrics |= learn.optimise(learner, batches(rows, cfg.batch_size, seed=run.seed("sft", epoch)), learn.nll())
        run.log(epoch, **success_rates(latest), **metrics)
    return agent.replace(policy=learner.sample())


def versions(run: Run, turns: int) -> list[Episode]:
    """Of every task the episode that was played last: the teacher's, or the one that went on from its last accepted edit.

    As text, since the teacher's tokens need not be the agent's.
    """
    saved = (episode for tag in ("teacher", *(f"turn{t}" for t in range(turns))) for episode in run.load_episodes(tag))
    latest = {episode.task.id: episode for episode in saved if episode.ok}
    return [replace(episode, turns=tuple(map(untokenised, episode.turns))) for episode in latest.values()]
