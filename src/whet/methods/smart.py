"""SMART: four roles in one model, taught by short trajectories of one role, then by long ones of all (arXiv:2407.09893).

annotate    long trajectories:   a teacher writes queries, a retriever finds the top 3 documents, the teacher marks each of them
                                 [Relevant] or [Irrelevant] and copies the facts, then the gold response follows, with citations
            short trajectories:  of each other gold response one role's piece: queries, or marks, or the response to the facts
            what is copied must stand in its document word for word; other trajectories are left out
short       pi <- SFT(pi, pieces of single roles)
long        pi <- SFT(pi, whole trajectories);   the retrieved documents are read, and are no part of the loss
act         reconstruct -> retrieve -> locate -> generate from the relevant facts; from the question alone where there are none

Here a trajectory is a conversation and what was retrieved one of its user turns. The paper's pieces come from other data sets; here
they are made of gold episodes that give nothing else. The retriever is BM25 (the paper's is Contriever). LoRA's size, the warm-up,
and whether the second stage takes up the first one's adapters are unverified.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet import learn
from whet.agents import Agent
from whet.agents.four_roles import ROLES, TOP, FourRoles
from whet.config import at_least
from whet.data import batches
from whet.envs.base import EnvFactory
from whet.errors import ConfigError
from whet.learn.lora import Lora
from whet.methods import Parts, note_roles, player
from whet.rollout.four_roles import annotate, pieces, role_rows, whole
from whet.runs import JsonState
from whet.types import Data

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("experts",)
PARTS = Parts(
    source="gold responses, annotated role by role by a teacher",
    filter="rules: facts copied word for word",
    reuse="drop",
    update="SFT, one model for all roles",
    schedule="short trajectories, then long ones",
    inference="reconstruct, retrieve, locate, generate",
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One of the two trainings."""

    epochs: int = 2
    """0 leaves the stage out."""
    lr: float = 2e-4
    batch_size: int = 128
    warmup: float = 0.03
    lora: Lora | None = Lora(rank=16, alpha=32.0)
    """none trains the weights themselves."""

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size")
        at_least(self, 0, "epochs", "lr", "warmup")


@dataclass(frozen=True, kw_only=True)
class SMARTConfig:
    """Defaults: the authors' scripts for 7B parameters, but for what is called unverified."""

    teacher: str = "script"
    """Who writes queries and marks documents (the paper's GPT-4): `script` is the environment's script of each role; or a model's name."""
    long_share: float = 0.28
    """Of the gold episodes, how many become long trajectories (the paper has 142k beside 360k short ones)."""
    top: int = TOP
    """Documents that are retrieved."""
    short: Stage = Stage()
    """Such as short.epochs=4."""
    long: Stage = Stage()
    separate: bool = False
    """A model for each role instead of one for all: what the paper holds it against."""

    def __post_init__(self) -> None:
        at_least(self, 1, "top")
        if not 0 < self.long_share <= 1:
            raise ConfigError(f"long_share is {self.long_share}; expected a share in (0, 1]")
        if not self.short.epochs + self.long.epochs:
            raise ConfigError("short.epochs and long.epochs are both 0; expected a stage to train in")


def smart(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: SMARTConfig = SMARTConfig()) -> Agent[Any]:
    """The agent with a policy that plays the roles of SMART one after the other."""
    data.require(*NEEDS, by="smart")
    teachers = {role: player(f"script:{role}" if cfg.teacher == "script" else cfg.teacher, agent) for role in ROLES[:2]}
    note_roles(run, **teachers)

    # Annotate gold episodes: some as whole trajectories, the others for one role each.
    state = JsonState(long={}, short={})
    n_long = max(1, round(cfg.long_share * len(data.experts)))
    golds = {"long": data.experts[:n_long], "short": data.experts[n_long:]}
    for _ in run.steps(1, state, name="annotate", practice=False):
        for kind, episodes in golds.items():
            state[kind], cost = annotate(episodes, teachers, env, top=cfg.top, seed=run.seed("annotate", kind))
            run.spend(cost)
    trajectories = {"short": pieces(golds["short"], state["short"], cfg.top), "long": whole(golds["long"], state["long"], cfg.top)}
    run.event("annotated", **{kind: len(found) for kind, found in trajectories.items()})
    if not any(trajectories.values()):
        raise ConfigError(f"none of the {len(data.experts)} annotations keeps the rules; name another teacher")

    # Train one model on all roles (or one on each): short trajectories, then long ones.
    policies: dict[str, Any] = {}
    for roles in [(role,) for role in ROLES] if cfg.separate else [ROLES]:
        policy = agent.policy
        for kind, stage in (("short", cfg.short), ("long", cfg.long)):
            rows = role_rows(trajectories[kind], roles, policy, env)
            if not rows or not stage.epochs:
                continue
            learner = learn.learner_for(policy, stage, per_epoch=-(-len(rows) // stage.batch_size))
            for epoch in run.steps(stage.epochs, learner, name="_".join(["smart", *(roles if cfg.separate else ()), kind]), practice=False):
                shuffled = batches(rows, stage.batch_size, seed=run.seed(kind, epoch))
                run.log(epoch, **learn.optimise(learner, shuffled, learn.nll()))
            policy = learner.sample()
        policies |= dict.fromkeys(roles, policy)
    return agent.replace(policy=FourRoles(**policies, top=cfg.top))
