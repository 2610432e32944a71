"""StepAgent: step-wise reinforcement from the expert's actions (arXiv:2411.03817), without any reward of the environment.

pi <- SFT(pi, D_expert)                          (done before: `sft`)
repeat I times:
    inspect    in every state s_t of the expert's episodes pi acts for itself:  a^_t ~ pi(. | s_t)
    reflect    pi_ref <- pi;  where a^_t is not the expert's a_t, minimise
               -log sigmoid( beta log pi/pi_ref(a_t | s_t) - beta log pi/pi_ref(a^_t | s_t) )          (implicit reward)

The states are the recorded ones, so that the environment takes no step. Formulas and values are unverified: there is no code of the
authors'. So is the reference, which is the policy that was inspected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet import learn
from whet.agents import Agent
from whet.config import at_least
from whet.data import Contrast, batches, to_pairs
from whet.envs.base import EnvFactory
from whet.methods import Parts
from whet.rollout.language import Moment, propose, taken
from whet.transcript import line
from whet.types import Data

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("experts",)
PARTS = Parts(
    source="expert, self in the expert's states",
    filter="agreement with the expert",
    reuse="contrast: step pairs",
    update="DPO on single steps",
    schedule="repeat, reference moves",
)


@dataclass(frozen=True, kw_only=True)
class StepAgentConfig:
    """Defaults are unverified, all of them."""

    iterations: int = 3
    samples: int = 1
    """Actions of its own that the agent takes in each state; of equal ones, one is kept."""
    explore_temperature: float = 1.0
    beta: float = 0.1
    nll: float = 0.0
    """Weight of the likelihood of the expert's actions beside the implicit reward; 0 in the paper."""
    lr: float = 1e-6
    epochs: int = 1
    batch_size: int = 32

    def __post_init__(self) -> None:
        at_least(self, 1, "iterations", "samples", "epochs", "batch_size")
        at_least(self, 0, "explore_temperature", "beta", "nll", "lr")


def step_agent(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: StepAgentConfig = StepAgentConfig()) -> Agent[Any]:
    """The agent drawn to the expert's actions, away from its own in the same states."""
    data.require(*NEEDS, by="step_agent")
    states = [(Moment(episode=e, at=i), t) for e in data.experts for t, i in enumerate(i for i, turn in enumerate(e.turns) if turn.trained)]
    learner = learn.Learner(agent.policy, lr=cfg.lr)
    for iteration in run.steps(cfg.iterations, learner, name="step_agent"):
        # Inspect: what the agent would do where the expert was.
        policy, seed = learner.sample(), run.seed("inspect", iteration)
        inspected = agent.replace(policy=policy, sampling=agent.sampling.at(cfg.explore_temperature))
        moves = propose(inspected, env, [state for state, _ in states], n=cfg.samples, top=cfg.samples, seed=seed, run=run)
        found = [
            Contrast(better=taken(state), worse=taken(own), margin=1.0, kind="step", start=t)
            for (state, t), each in zip(states, moves, strict=True)
            for own in each
            if line(own.action) != line(state.action)
        ]

        # Reflect: DPO on the two actions of a state.
        pairs = learn.with_reference(to_pairs(found, policy, env), policy)
        learner.restart(policy)
        shuffled = batches(pairs, cfg.batch_size, epochs=cfg.epochs, seed=run.seed("reflect", iteration))
        metrics = learn.optimise(learner, shuffled, learn.dpo(beta=cfg.beta, nll=cfg.nll))
        run.log(iteration, pairs=len(found), moves=sum(map(len, moves)), **metrics)
    return agent.replace(policy=learner.sample())
