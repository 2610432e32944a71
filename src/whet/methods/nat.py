"""Negative-Aware Training (NAT, arXiv:2402.11651): failures teach, too, if they are told apart.

collect     a teacher attempts every task at several temperatures; successes and failures are kept, duplicates dropped
condition   x <- x + control string of the outcome:  one for successes, another for failures
tune        minimise  -log pi(y | x)   on both
act         always with the control string of success

`control="none"` trains on successes and failures alike (the paper's NUT); with `negatives=false` on successes only.
The sentences are not the paper's, but say the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from whet import learn
from whet.agents import Agent, controlled
from whet.config import at_least
from whet.data import batches, filters, opening, reopened, rows_of
from whet.envs.base import EnvFactory
from whet.errors import ConfigError
from whet.learn.lora import Lora
from whet.methods import Parts, note_roles, player
from whet.rollout import collect, success_rates
from whet.types import Data, Episode

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("train",)
PARTS = Parts(
    source="teachers at several temperatures",
    filter="rules; environment as a label",
    reuse="used as they are, under a condition",
    update="SFT conditioned on the outcome",
    schedule="once",
    inference="the control string of success",
)
CONTROLS = {
    "sentence": ("Think step by step, but give a false answer.", "Think step by step, and give the right answer."),
    "inverse": ("Think step by step, and give the right answer.", "Think step by step, but give a false answer."),
    "prefix": ("[Incorrect]", "[Correct]"),
    "letter": ("B", "A"),
    "words": ("window", "river"),
    "none": ("", ""),
}
"""What failures and successes are marked with."""


@dataclass(frozen=True, kw_only=True)
class NATConfig:
    """Defaults: the authors' scripts for 7B parameters; the temperatures are unverified."""

    teachers: tuple[str, ...] = ("expert@0.9", "expert@0.6")
    """Whose attempts are learned from; scripted unless models are named."""
    temperatures: tuple[float, ...] = (0.2, 0.5, 0.7)
    """Each teacher makes `samples` attempts at each; a script makes as many, and knows no temperature."""
    samples: int = 1
    control: Literal["sentence", "inverse", "prefix", "letter", "words", "none"] = "sentence"
    """How outcomes are marked: behind the question, or, with `prefix`, before it."""
    negatives: bool = True
    """Learn from failures, too."""
    bins: tuple[float, ...] = ()
    """Fine-grained NAT: the rewards from which on an attempt is of the next better class, such as [0.01, 0.4, 1]."""
    epochs: int = 2
    lr: float = 5e-5
    batch_size: int = 64
    warmup: float = 0.03
    lora: Lora | None = None
    """Adapters in place of the weights, once a part is set, such as lora.rank=8."""

    def __post_init__(self) -> None:
        at_least(self, 1, "samples", "epochs", "batch_size")
        at_least(self, 0, "lr", "temperatures")
        if not self.teachers or list(self.bins) != sorted(set(self.bins)):
            raise ConfigError(f"teachers is {self.teachers} and bins is {self.bins}; expected at least one teacher, and rising rewards")
        if self.bins and self.control != "sentence":
            raise ConfigError(f"control is {self.control!r} with bins; finer classes are told apart by sentences")


def nat(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: NATConfig = NATConfig()) -> Agent[Any]:
    """The agent tuned on marked successes and failures, with the mark of success in its prompt."""
    data.require(*NEEDS, by="nat")
    teachers = {spec: player(spec, agent) for spec in cfg.teachers}
    note_roles(run, **{f"teacher{i}": teacher for i, teacher in enumerate(teachers.values())})

    # Collect at every temperature.
    episodes: list[Episode] = []
    for spec, teacher in teachers.items():
        for t in cfg.temperatures:
            actor = agent.replace(policy=teacher, sampling=agent.sampling.at(t), suffix="", prefix="")
            episodes += collect(actor, env, data.train, n=cfg.samples, run=run, tag=f"{spec} at {t:g}")
    kept, audit = filters.select(episodes, filters.readable(), filters.deduplicate())
    run.event("filter", **audit.summary())

    # Condition each on its outcome.
    best = len(marks(cfg)) - 1
    learned = [episode for episode in kept if cfg.negatives or outcome(episode, cfg) == best]
    rows = rows_of([marked(episode, cfg) for episode in learned], agent.policy, env)

    # Tune on all of them, and act as the best.
    learner = learn.learner_for(agent.policy, cfg, per_epoch=-(-len(rows) // cfg.batch_size))
    for epoch in run.steps(cfg.epochs, learner, name="nat", practice=False):
        metrics = learn.optimise(learner, batches(rows, cfg.batch_size, seed=run.seed("nat", epoch)), learn.nll())
        run.log(epoch, **success_rates(episodes), kept=len(learned), **metrics)
    return agent.replace(policy=learner.sample(), **placed(marks(cfg)[best], cfg))


def marks(cfg: NATConfig) -> tuple[str, ...]:
    """The control strings, the worst outcome's first."""
    if not cfg.bins:
        return CONTROLS[cfg.control]
    n = len(cfg.bins) + 1
    return tuple(f"Think step by step, and give an answer of grade {k} of {n}." for k in range(1, n + 1))


def outcome(episode: Episode, cfg: NATConfig) -> int:
    """Which of the classes an episode is of."""
    return sum(episode.reward >= least for least in cfg.bins) if cfg.bins else int(episode.success)


def marked(episode: Episode, cfg: NATConfig) -> Episode:
    """The episode with the control string of its outcome, where `Agent.prompt` would have put it."""
    return reopened(episode, controlled(opening(episode), **placed(marks(cfg)[outcome(episode, cfg)], cfg)))


def placed(mark: str, cfg: NATConfig) -> dict[str, str]:
    """A control string as the part of an agent that it is."""
    return {"prefix": mark, "suffix": ""} if cfg.control == "prefix" else {"prefix": "", "suffix": mark}
