"""AgentTuning (arXiv:2310.12823): agent trajectories mixed with general conversations.

collect     a teacher acts with ReAct, a thought before each action, on the train tasks of several environments
filter      keep trajectories of reward 1
tune        minimise  J = eta E_agent[-log pi(y | x)] + (1 - eta) E_general[-log pi(y | x)]   on what the model says,
            by drawing each row of a batch from the agent's data with probability eta, else from the general data

Several environments are one: `--env "search + babyai"`. General conversations that are held out show what the tuning does to
them. With eta=1 it is tuned on agent data alone, the paper's ablation.
"""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from whet import learn
from whet.agents import Agent
from whet.config import at_least
from whet.data import filters, rows_of
from whet.data.general import general_rows
from whet.data.mixing import mixed
from whet.envs.base import EnvFactory
from whet.errors import ConfigError
from whet.evals.statistics import paired_difference
from whet.learn.lora import Lora
from whet.methods import Parts, note_roles, player
from whet.rollout import collect, success_rates
from whet.types import Data, Episode

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("train", "general")
PARTS = Parts(source="teacher", filter="environment", reuse="drop", update="SFT, mixed with general conversations", schedule="once")


@dataclass(frozen=True, kw_only=True)
class AgentTuningConfig:
    """Defaults: the paper's for 7B parameters; of eta, the learning rate, the batch size and the warm-up unverified."""

    teacher: str = "expert"
    """Whose trajectories are learned from; scripted unless a model is named."""
    samples: int = 1
    """Attempts of the teacher at each task."""
    min_reward: float = 1.0
    eta: float = 0.2
    """Share of the agent's data in what is learned."""
    epochs: int = 3
    """Passes over the agent's data, with the general rows that come between them."""
    lr: float = 5e-5
    batch_size: int = 64
    warmup: float = 0.02
    held_out: int = 100
    """General conversations that are not learned from; the loss on them is logged."""
    lora: Lora | None = None
    """Adapters in place of the weights, once a part is set, such as lora.rank=8."""

    def __post_init__(self) -> None:
        at_least(self, 1, "samples", "epochs", "batch_size", "held_out")
        at_least(self, 0, "lr")
        if not 0 < self.eta <= 1:
            raise ConfigError(f"eta is {self.eta}; expected a share in (0, 1]")


def agent_tuning(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: AgentTuningConfig = AgentTuningConfig()) -> Agent[Any]:
    """The agent tuned on a teacher's successes and on `data.general`."""
    data.require(*NEEDS, by="agent_tuning")
    teacher = player(cfg.teacher, agent)
    note_roles(run, teacher=teacher)

    # Collect, and keep what the environment paid in full.
    episodes = collect(agent.replace(policy=teacher), env, data.train, n=cfg.samples, run=run, tag="teacher")
    kept, audit = filters.select(episodes, filters.min_reward(cfg.min_reward), filters.deduplicate())
    run.event("filter", **audit.summary())
    rows = rows_of(kept, agent.policy, env)
    general, held_out = (general_rows(part, agent.policy) for part in hold_out(data.general, cfg.held_out, run.seed("held out")))

    # Tune on the mixture.
    per_epoch = math.ceil(round(len(rows) / cfg.eta) / cfg.batch_size)
    learner = learn.learner_for(agent.policy, cfg, per_epoch)
    before = learn.mean_nll(held_out, agent.policy)
    for epoch in run.steps(cfg.epochs, learner, name="agent_tuning", practice=False):
        mixture = mixed(rows, general, cfg.batch_size, eta=cfg.eta, seed=run.seed("mix", epoch))
        metrics = learn.optimise(learner, mixture, learn.nll())
        after = learn.mean_nll(held_out, learner.sample())
        run.log(epoch, **success_rates(episodes), kept=len(kept), general_loss=after.mean(), **metrics)
    policy = learner.sample()
    change = paired_difference(learn.mean_nll(held_out, policy) - before, proportion=False)
    run.event("general", before=before.mean(), change=asdict(change))
    return agent.replace(policy=policy)


def hold_out(conversations: tuple[Episode, ...], n: int, seed: int) -> tuple[list[Episode], list[Episode]]:
    """The conversations to learn from, and `n` drawn from them to measure by. Raises ConfigError where nothing is left to learn from."""
    if n >= len(conversations):
        raise ConfigError(
            f"held_out is {n} of {len(conversations)} general conversations; expected fewer, or more of them (--general FILE)"
        )
    order = random.Random(seed).sample(conversations, len(conversations))
    return order[n:], order[:n]
