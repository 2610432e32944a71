"""Retrospex: an agent that imitates, and a critic beside it that learned from successes and failures (arXiv:2505.11807).

imitate       pi <- SFT(pi, expert episodes)                                   (LoRA)
log           memory: the expert's episodes, and those of actors on the train tasks, whatever became of them
retrospect    an IQL critic of texts (`learn.iql`):  V <- expectile(0.7) of Q_target - V;   Q <- r + 0.99 V(s');   Polyak 0.005
act           of k actions that pi takes, the one of the highest  lambda_t norm(p) + (1 - lambda_t) norm(Q - V),
              lambda_t = max(b, d^t)                                           (`agents.rescoring`)

The authors take pi's 4 best beams and map each to an action that is valid; here pi is asked 4 times, since environments give no list of
valid actions. Their critic reads ScienceWorld's observation, look and inventory; here it reads what was asked and what was seen last, by
the policy's own tokens in place of a SentencePiece model. An episode's end is the end, also where it was cut off.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from whet import learn
from whet.agents import Agent
from whet.agents.rescoring import Rescored, Rescoring
from whet.config import at_least
from whet.data import batches, rows_of
from whet.envs.base import EnvFactory
from whet.learn.iql import IQL, transitions
from whet.learn.lora import Lora
from whet.methods import Parts, note_roles, player, require
from whet.rollout import rollout, success_rates
from whet.types import Data

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("experts", "train")
PARTS = Parts(
    source="expert; logs of its own and of others",
    reuse="all of it, by offline RL",
    update="SFT (LoRA) of the policy; IQL of a critic",
    schedule="imitation, then the critic",
    inference="the critic rescores the policy's actions",
)


@dataclass(frozen=True, kw_only=True)
class RetrospexConfig:
    """Defaults: the authors' code, for Llama-3-8B."""

    epochs: int = 2
    """Of imitation."""
    lr: float = 2e-5
    batch_size: int = 64
    """Value unverified."""
    warmup: float = 0.03
    """Value unverified."""
    lora: Lora | None = Lora(rank=16, alpha=64.0)
    actors: tuple[str, ...] = ("self",)
    """Whose episodes the memory holds besides the expert's: `self` is the agent that imitates; or names such as `expert@0.5`."""
    samples: int = 1
    """Episodes of each actor for each train task."""
    critic: IQL = IQL()
    """Such as critic.steps=500."""
    report: int = 1000
    """Steps of the critic between two lines of the log."""
    act: Rescoring = Rescoring()
    """Such as act.floor=0.5."""

    def __post_init__(self) -> None:
        at_least(self, 1, "epochs", "batch_size", "samples", "report")
        at_least(self, 0, "lr", "warmup")


def retrospex(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: RetrospexConfig = RetrospexConfig()) -> Agent[Any]:
    """The agent tuned on expert episodes, whose actions a critic rescores that was trained on logs."""
    require(NEEDS, data, env, by="retrospex")
    note_roles(run, **{f"actor {name}": player(name, agent) for name in cfg.actors if name != "self"})
    rows = rows_of(data.experts, agent.policy, env)
    learner = learn.learner_for(agent.policy, cfg, per_epoch=-(-len(rows) // cfg.batch_size))
    critic = learn.CriticLearner(agent.policy.chat.tokenizer, cfg.critic, seed=run.seed("critic"))
    chunks = -(-cfg.critic.steps // cfg.report)
    for step in run.steps(1 + chunks, learn.Learners[Any](policy=learner, critic=critic), name="retrospex", practice=False):
        if step == 0:
            # Imitate; then log how the agent fares, and others.
            shuffled = batches(rows, cfg.batch_size, epochs=cfg.epochs, seed=run.seed("imitate"))
            metrics = learn.optimise(learner, shuffled, learn.nll())
            for name in cfg.actors:
                actor = agent.replace(policy=learner.sample() if name == "self" else player(name, agent))
                rollout(actor, env, data.train, n=cfg.samples, seed=run.seed("log", name), run=run, tag=f"log-{name}")
        logs = [episode for name in cfg.actors for episode in run.load_episodes(f"log-{name}") if episode.ok]
        if step > 0:
            # Retrospect: whatever became of them.
            memory = transitions([*data.experts, *logs], cfg.critic.window)
            n = min(cfg.report, cfg.critic.steps - (step - 1) * cfg.report)
            metrics = critic.train(memory, n, seed=run.seed("iql", step))
        run.log(step, **success_rates(logs), **metrics)
    return agent.replace(policy=Rescored(speaker=learner.sample(), critic=critic.sample(), **asdict(cfg.act)))
