"""AGILE: an agent that looks up, asks for advice, remembers and answers, trained over whole sessions (arXiv:2405.14751).

imitate     pi <- SFT(pi, D_expert),  sessions in which somebody who knows when to ask has acted;  loss on actions only
pi_ref <- pi;  V <- a value head on pi's backbone
repeat:
    act         a session is a stream of questions. An executor, which does not learn, runs what pi calls, and edits its context:
                each question stands alone behind what memory has about it
    reward      1 for a right answer, 0 for a wrong one, 1 - c for asking the expert, paid with that action; what the advice
                is worth to later questions is paid with those, if pi has kept it (reflection)
    credit      A <- generalised advantage estimation from token to token through all contexts of the session: an early question's
                advice and note are credited with what they save later;  less beta (log pi - log pi_ref) for each token
    optimise    PPO

Executor, expert, memory and the cost of asking are the environment's. The authors' code has no trainer: how many sessions an update
takes, and all of PPO's settings, are unverified, as is their way to divide long sessions and to reward the parts; `session=false`
credits each context by its own rewards alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from whet import learn
from whet.agents import Agent
from whet.config import at_least
from whet.data import batches, contexts, rows_of
from whet.envs.base import EnvFactory
from whet.learn.credit import PPO
from whet.methods import Parts
from whet.rollout import rollout, success_rates
from whet.types import Data

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("experts", "train")
PARTS = Parts(
    source="expert; self, in sessions",
    filter="environment: accuracy less what asking costs",
    update="SFT; PPO with a value head, over the contexts of a session",
    schedule="SFT, then on-policy",
    inference="memory, and an expert who can be asked, as actions",
)


@dataclass(frozen=True, kw_only=True)
class AGILEConfig:
    """Defaults: values unverified, all of them."""

    imitation: int = 3
    """Epochs over the expert's sessions; 0 for an agent that has imitated them already."""
    imitation_lr: float = 2e-5
    batch_size: int = 32
    """Contexts of an optimiser step of imitation."""
    epochs: int = 1
    """Of PPO over the sessions."""
    sessions_per_step: int = 16
    """That are sampled before each update."""
    lr: float = 1e-6
    critic_lr: float = 0.0
    """Of a critic with weights of its own; 0 puts its head on the policy's backbone."""
    session: bool = True
    """Credit actions with what is paid in later contexts of their session."""
    ppo: PPO = PPO()

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "epochs", "sessions_per_step")
        at_least(self, 0, "imitation", "imitation_lr", "lr", "critic_lr")


def agile(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: AGILEConfig = AGILEConfig()) -> Agent[Any]:
    """The agent that has imitated the expert's sessions, reinforced by what its own paid."""
    data.require(*NEEDS, by="agile")
    learner = learn.Learner(agent.policy, lr=cfg.imitation_lr, value_head=not cfg.critic_lr)
    critic = learn.Learner(agent.policy, lr=cfg.critic_lr, value_head=True) if cfg.critic_lr else None
    learners = learn.Learners(policy=learner, **({"critic": critic} if critic else {}))
    shown = rows_of(data.experts, agent.policy, env)
    for epoch in run.steps(cfg.imitation, learners, name="agile.imitate", practice=False):
        shuffled = batches(shown, cfg.batch_size, seed=run.seed("imitate", epoch))
        run.log(epoch, **success_rates(data.experts), **learn.optimise(learner, shuffled, learn.nll()))

    reference = learner.sample()
    learner.restart(reference, lr=cfg.lr)
    tasks = list(batches(data.train, cfg.sessions_per_step, epochs=cfg.epochs, seed=run.seed("tasks")))
    for step in run.steps(len(tasks), learners, name="agile"):
        # Act, in sessions.
        current = agent.replace(policy=learner.sample())
        played = [e for e in rollout(current, env, tasks[step], seed=run.seed("sample", step), run=run, tag=f"step{step}") if e.ok]

        # Reward and credit: each action's own pay, through the contexts of its session.
        rows, rewards = zip(*(pair for episode in played for pair in contexts(episode, agent.policy)), strict=True)
        seed = run.seed("ppo", step)
        metrics = learn.ppo(learner, rows, rewards, reference, cfg.ppo, critic=critic, joined=cfg.session, seed=seed)
        run.log(step, reward=fmean(e.reward for e in played), **success_rates(played), **metrics)
    return agent.replace(policy=learner.sample())
