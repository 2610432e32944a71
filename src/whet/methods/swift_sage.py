"""SwiftSage: a small fast model that was trained on oracle paths, and a large slow one that is asked in trouble (arXiv:2305.17390).

train     Swift: minimise  -log pi(action | history)  on oracle paths, of each kind of task as many, without idle steps
act       the action buffer's next, if Sage has left any; otherwise Swift's proposal, if it is valid, and any of
              fewer than 10 actions so far | Sage asked within 5 actions | reward within 5 actions | not one of the last 3 actions
          otherwise Sage: plan (what is needed, where, which subgoals, which mistakes), then ground: the next 5 calls -> buffer
          Sage in any case after 2 failed actions, and for the first critical one; Swift in any case after Sage was asked twice

The authors' code repairs an action that fails by the nearest one of a list of valid actions, and drops it after three failures.
Environments here give no such list: an action is valid if its tool accepts the arguments, and one of the buffer's that fails is
dropped at once. Their Swift reads the last 10 steps with inventory and scores; here it reads the whole conversation.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from whet import learn
from whet.agents import Agent
from whet.agents.buffer import action_of
from whet.agents.fast_slow import FastSlow, Switch
from whet.config import at_least
from whet.data import batches, rows_of
from whet.envs.base import EnvFactory
from whet.learn.lora import Lora
from whet.methods import Parts, note_roles, player
from whet.types import Data, Episode, chain

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("experts",)
PARTS = Parts(
    source="oracle paths",
    filter="rules: as many of each kind of task, no idle steps",
    reuse="drop",
    update="SFT",
    schedule="once",
    inference="fast and slow, with an action buffer",
)


@dataclass(frozen=True, kw_only=True)
class SwiftSageConfig:
    """Defaults: the authors' code, for 770M parameters; batch size and warm-up unverified."""

    sage: str = "script:sage"
    """Who plans and grounds (the paper's GPT-4): a model's or endpoint's name; scripted by the environment unless one is named."""
    slow: bool = True
    """False leaves Swift alone."""
    switch: Switch = Switch()
    """When Sage is asked, such as switch.early=6."""
    per_kind: int = 0
    """Paths of each kind of task that are learned from at most, drawn by chance; 0 for all."""
    idle: tuple[str, ...] = ()
    """Patterns of actions, written name(argument='value'), that oracles take without need (regular expressions)."""
    epochs: int = 8
    lr: float = 1e-4
    batch_size: int = 16
    warmup: float = 0.03
    lora: Lora | None = None
    """Adapters in place of the weights, once a part is set, such as lora.rank=8."""

    def __post_init__(self) -> None:
        at_least(self, 1, "epochs", "batch_size")
        at_least(self, 0, "lr", "warmup", "per_kind")


def swift_sage(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: SwiftSageConfig = SwiftSageConfig()) -> Agent[Any]:
    """The agent with its policy tuned as Swift, and Sage at its side."""
    data.require(*NEEDS, by="swift_sage")
    sage = player(cfg.sage, agent)
    note_roles(run, **({"sage": sage} if cfg.slow else {}))

    # Sample the oracle's paths down.
    rng = random.Random(run.seed("sample"))
    paths = [without(episode, cfg.idle) for episode in per_kind(rng.sample(data.experts, len(data.experts)), cfg.per_kind)]
    rows = rows_of(paths, agent.policy, env)

    # Train Swift.
    learner = learn.learner_for(agent.policy, cfg, per_epoch=-(-len(rows) // cfg.batch_size))
    for epoch in run.steps(cfg.epochs, learner, name="swift_sage", practice=False):
        shuffled = batches(rows, cfg.batch_size, seed=run.seed("swift", epoch))
        run.log(epoch, paths=len(paths), **learn.optimise(learner, shuffled, learn.nll()))
    swift = learner.sample()
    return agent.replace(policy=FastSlow(swift=swift, sage=sage, **asdict(cfg.switch)) if cfg.slow else swift)


def per_kind(episodes: Sequence[Episode], most: int) -> list[Episode]:
    """The first `most` of each kind of task, which is its environment and what its data call its `kind`; all of them for 0."""
    seen: Counter[tuple[str, str]] = Counter()
    kept = []
    for episode in episodes:
        kind = (episode.task.env, str(episode.task.data.get("kind", "")))
        seen[kind] += 1
        if not most or seen[kind] <= most:
            kept.append(episode)
    return kept


def without(episode: Episode, idle: Sequence[str]) -> Episode:
    """The episode without the actions that match one of these patterns, and without what came of them."""
    kept, dropping = [], False
    for turn in episode.turns:
        dropping = any(re.search(pattern, action_of(turn)) for pattern in idle) if turn.trained else dropping
        if not dropping:
            kept.append(turn)
    return replace(episode, turns=chain(kept))
