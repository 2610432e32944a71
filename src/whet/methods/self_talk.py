"""Self-Talk: a task-oriented agent trained on its own dialogues with a simulated client (arXiv:2401.05033).

follow    a policy that does not follow prompts yet first learns to say what a node asks for, from D dialogues of a teacher
repeat I times:
    talk      pi, as the agent, and a client converse, N times about every task; the workflow is a graph of the agent's steps and
              the client's possible answers, and in each turn pi is shown the current node alone (structured prompting)
    measure   subgoals completed = steps of the workflow that something the agent said matches by ROUGE-L
    filter    keep dialogues with at least `min_subgoals`, or the best share of all
    tune      minimise  -log pi(y | x)  on what the agent said, after the whole workflow instead of a node

The environment has the client and draws the workflow; both the client and the choice of the node may be played by a model. The
paper's models are chat models, so that D = 0. It also describes characters, and checks how a dialogue ends; here an ending is a step
of the workflow like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from whet import learn
from whet.agents import Agent
from whet.agents.structured import Structured
from whet.config import at_least
from whet.data import batches, to_examples
from whet.envs.base import EnvFactory
from whet.errors import ConfigError
from whet.learn.lora import Lora
from whet.methods import Parts, note_roles, player
from whet.rewards.subgoals import THRESHOLD, subgoals_of
from whet.rollout import collect, rollout, success_rates
from whet.rollout.prompted import prompted_rows
from whet.types import Data, Episode

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("train",)
PARTS = Parts(
    source="self-talk with a simulated client, prompted node by node",
    filter="rule: subgoals completed",
    reuse="drop",
    update="SFT",
    schedule="once, or repeat from the current policy",
)


@dataclass(frozen=True, kw_only=True)
class SelfTalkConfig:
    """The paper has no code: filters are the paper's by summaries of it; all other values are unverified."""

    guide: str = "script:node"
    """Who says which node of the workflow holds; scripted by the environment unless a model is named."""
    teacher: str = "expert"
    """Who shows how to follow; scripted unless a model is named."""
    demonstrations: int = 0
    """Dialogues of the teacher that are learned from turn by turn, each behind its node alone (D)."""
    follow: int = 4
    """Epochs on them."""
    structured: bool = True
    """Show pi the current node alone while it talks; otherwise the whole workflow."""
    iterations: int = 1
    samples: int = 1
    """Dialogues about a task (N)."""
    threshold: float = THRESHOLD
    """ROUGE-L from which on an utterance matches a step."""
    select: Literal["enough", "best"] = "enough"
    """Keep dialogues with at least `min_subgoals` steps done, or the `best` share by the part of their workflow that is done."""
    min_subgoals: int = 5
    best: float = 0.05
    epochs: int = 1
    lr: float = 2e-4
    batch_size: int = 16
    lora: Lora | None = Lora()

    def __post_init__(self) -> None:
        at_least(self, 1, "iterations", "samples", "epochs", "batch_size")
        at_least(self, 0, "demonstrations", "follow", "min_subgoals", "lr")
        if not (0 < self.best <= 1 and 0 < self.threshold <= 1):
            raise ConfigError(f"best is {self.best} and threshold is {self.threshold}; expected shares in (0, 1]")


def self_talk(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: SelfTalkConfig = SelfTalkConfig()) -> Agent[Any]:
    """The agent tuned on those of its own dialogues that got enough of their workflow done."""
    data.require(*NEEDS, by="self_talk")
    guide, teacher = player(cfg.guide, agent), player(cfg.teacher, agent)
    note_roles(run, **({"guide": guide} if cfg.structured else {}), **({"teacher": teacher} if cfg.demonstrations else {}))
    learner = learn.Learner(agent.policy, lr=cfg.lr, lora=cfg.lora)

    # Follow.
    if cfg.demonstrations:
        shown = collect(agent.replace(policy=teacher), env, data.train[: cfg.demonstrations], run=run, tag="teacher")
        rows = prompted_rows([e for e in shown if e.success], guide, agent.policy, env=env, seed=run.seed("nodes"))
        for epoch in run.steps(cfg.follow, learner, name="follow", practice=False):
            learn.optimise(learner, batches(rows, cfg.batch_size, seed=run.seed("follow", epoch)), learn.nll())

    for iteration in run.steps(cfg.iterations, learner, name="self_talk"):
        # Talk, about every task.
        speaker = learner.sample()
        talker = agent.replace(policy=Structured(speaker, guide) if cfg.structured else speaker)
        seed = run.seed("talk", iteration)
        talks = rollout(talker, env, data.train, n=cfg.samples, seed=seed, run=run, tag=f"talk{iteration}")
        talks = [episode for episode in talks if episode.ok]

        # Measure and filter.
        counts = [subgoals_of(episode, cfg.threshold) for episode in talks]
        kept = chosen(talks, counts, cfg)
        figures = success_rates(talks) | {"subgoals": fmean(done for done, _ in counts), "kept": len(kept)}
        figures["kept_success"] = fmean(e.success for e in kept) if kept else 0.0

        # Tune on the dialogues as they stand, with the whole workflow before them.
        rows = [row for e in kept for row in to_examples(e, agent.policy, tools=env.of(e.task).tools)]
        shuffled = batches(rows, cfg.batch_size, epochs=cfg.epochs, seed=run.seed("tune", iteration))
        run.log(iteration, **figures, **learn.optimise(learner, shuffled, learn.nll()))
    return agent.replace(policy=learner.sample())


def chosen(talks: Sequence[Episode], counts: Sequence[tuple[int, int]], cfg: SelfTalkConfig) -> list[Episode]:
    """The dialogues that got enough done, or the best share of them, at least one, of equal ones the first."""
    if cfg.select == "enough":
        return [episode for episode, (done, _) in zip(talks, counts) if done >= cfg.min_subgoals]
    ranked = sorted(zip(talks, counts), key=lambda each: -each[1][0] / each[1][1])
    return [episode for episode, _ in ranked[: max(1, round(cfg.best * len(talks)))]]
