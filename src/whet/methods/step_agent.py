"""StepAgent: step-wise reinforcement from the expert's actions (arXiv:2411.03817), without any reward of the environment.

pi <- SFT(pi, D_expert)                          (done before: `sft`)
repeat I times, by the implicit reward:
    inspect    in every state s_t of the expert's episodes pi acts for itself:  a^_t ~ pi(. | s_t)
    reflect    pi_ref <- pi;  where a^_t is not the expert's a_t, minimise
               -log sigmoid( beta log pi/pi_ref(a_t | s_t) - beta log pi/pi_ref(a^_t | s_t) )
or by inverse reinforcement learning:
    inspect    episodes e^ of pi for every task of the expert's
    reflect    max_D  E_e^[log D(s, a)] + E_expert[log(1 - D(s, a))];   PPO of pi on the step rewards  -log D(s, a^)

For the implicit reward, states are the recorded ones, so that the environment takes no step. Formulas and values are unverified: there
is no code of the authors'. So are the references: the policy that was inspected and, of PPO's penalty, the one that was given.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from whet import learn
from whet.agents import Agent
from whet.config import at_least
from whet.data import Contrast, batches, rows_of, to_pairs
from whet.envs.base import EnvFactory
from whet.errors import ConfigError, did_you_mean
from whet.learn.credit import PPO
from whet.methods import Parts
from whet.rollout import rollout, success_rates
from whet.rollout.language import Moment, propose, taken
from whet.transcript import line
from whet.types import Data

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("experts",)
PARTS = Parts(
    source="expert, self in the expert's states or from the start",
    filter="agreement with the expert",
    reuse="contrast: step pairs",
    update="DPO on single steps, or PPO with a discriminator's rewards",
    schedule="repeat, reference moves",
)


@dataclass(frozen=True, kw_only=True)
class StepAgentConfig:
    """Defaults are unverified, all of them."""

    reward: Literal["implicit", "inverse"] = "implicit"
    iterations: int = 3
    samples: int = 1
    """Actions of its own that the agent takes in each state (of equal ones, one is kept), or its episodes of each task."""
    explore_temperature: float = 1.0
    beta: float = 0.1
    nll: float = 0.0
    """Weight of the likelihood of the expert's actions beside the implicit reward; 0 in the paper."""
    lr: float = 1e-6
    epochs: int = 1
    """Of the implicit reward's pairs, or of the discriminator's rows."""
    batch_size: int = 32
    discriminator_lr: float = 1e-5
    ppo: PPO = PPO()

    def __post_init__(self) -> None:
        at_least(self, 1, "iterations", "samples", "epochs", "batch_size")
        at_least(self, 0, "explore_temperature", "beta", "nll", "lr", "discriminator_lr")
        if self.reward not in ("implicit", "inverse"):
            raise ConfigError(f"unknown reward {self.reward!r}. {did_you_mean(self.reward, ('implicit', 'inverse'))}")


def step_agent(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: StepAgentConfig = StepAgentConfig()) -> Agent[Any]:
    """The agent drawn to the expert's actions, away from its own in the same states."""
    data.require(*NEEDS, by="step_agent")
    by = {"implicit": implicit, "inverse": inverse}[cfg.reward]
    return by(agent, data, env, run, cfg)


def implicit(agent: Agent[Any], data: Data, env: EnvFactory, run: Run, cfg: StepAgentConfig) -> Agent[Any]:
    """By the implicit reward: step pairs and DPO."""
    states = [(Moment(episode=e, at=i), t) for e in data.experts for t, i in enumerate(i for i, turn in enumerate(e.turns) if turn.trained)]
    learner = learn.Learner(agent.policy, lr=cfg.lr)
    for iteration in run.steps(cfg.iterations, learner, name="step_agent"):
        policy, seed = learner.sample(), run.seed("inspect", iteration)
        inspected = agent.replace(policy=policy, sampling=agent.sampling.at(cfg.explore_temperature))
        moves = propose(inspected, env, [state for state, _ in states], n=cfg.samples, top=cfg.samples, seed=seed, run=run)
        found = [
            Contrast(better=taken(state), worse=taken(own), margin=1.0, kind="step", start=t)
            for (state, t), each in zip(states, moves, strict=True)
            for own in each
            if line(own.action) != line(state.action)
        ]
        pairs = learn.with_reference(to_pairs(found, policy, env), policy)
        learner.restart(policy)
        shuffled = batches(pairs, cfg.batch_size, epochs=cfg.epochs, seed=run.seed("reflect", iteration))
        metrics = learn.optimise(learner, shuffled, learn.dpo(beta=cfg.beta, nll=cfg.nll))
        run.log(iteration, pairs=len(found), moves=sum(map(len, moves)), **metrics)
    return agent.replace(policy=learner.sample())


def inverse(agent: Agent[Any], data: Data, env: EnvFactory, run: Run, cfg: StepAgentConfig) -> Agent[Any]:
    """By inverse reinforcement learning: a discriminator and PPO, in turn."""
    tasks, taught = [expert.task for expert in data.experts], rows_of(data.experts, agent.policy, env)
    policy = learn.Learner(agent.policy, lr=cfg.lr, value_head=True)
    learners = learn.Learners(policy=policy, discriminator=learn.Learner(agent.policy, lr=cfg.discriminator_lr, value_head=True))
    for iteration in run.steps(cfg.iterations, learners, name="step_agent"):
        seed = run.seed("inspect", iteration)
        inspected = agent.replace(policy=policy.sample(), sampling=agent.sampling.at(cfg.explore_temperature))
        played = [e for e in rollout(inspected, env, tasks, n=cfg.samples, seed=seed, run=run, tag=f"iteration{iteration}") if e.ok]
        own = rows_of(played, agent.policy, env)
        shuffled = batches(learn.told_apart(taught, own), cfg.batch_size, epochs=cfg.epochs, seed=seed)
        apart = learn.optimise(learners["discriminator"], shuffled, learn.discrimination())
        paid = learn.step_rewards(learners["discriminator"], own)
        metrics = learn.ppo(policy, own, paid, agent.policy, cfg.ppo, seed=seed)
        run.log(iteration, **success_rates(played), told_apart=apart["accuracy"], paid=fmean(map(sum, paid)), **metrics)
    return agent.replace(policy=policy.sample())
