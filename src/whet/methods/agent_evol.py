"""AgentEvol: an agent that evolves by exploring more tasks than it was cloned on (AgentGym, arXiv:2406.04151).

pi_1 <- argmax_pi  E_{e ~ D_expert} [ r(e) log pi(e) ],   from pi_init                        behavioural cloning
repeat M times:
    explore     e ~ pi_m(. | u)  for every task u of all environments;   D_m <- those that are rewarded
    learn       pi_{m+1} <- argmax_pi  E_{e ~ D_m + D_expert} [ r(e) log pi(e) ],   from pi_init again

It is expectation maximisation for reinforcement seen as inference: exploring estimates which episodes a rewarded agent would have
had, learning makes them likely. It starts from the given policy each time, so that nothing is learned twice over, and the
expert's episodes stay in. The paper weighs by the reward; its scripts keep what is above a threshold, 0.99 in most
environments (`threshold`), and explore each task once, greedily.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet import learn
from whet.agents import Agent
from whet.config import at_least
from whet.data import batches, different, to_examples
from whet.envs.base import EnvFactory
from whet.methods import Parts
from whet.rollout import rollout_groups, success_rates
from whet.types import Data, Episode, Example

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("experts", "train")
PARTS = Parts(
    source="expert; self, on tasks of several environments",
    filter="environment reward above a threshold",
    reuse="drop",
    update="SFT weighted by the reward",
    schedule="SFT, then repeat: explore, learn from the given policy; expert data stay in",
)


@dataclass(frozen=True, kw_only=True)
class AgentEvolConfig:
    """Defaults: the authors' scripts."""

    iterations: int = 4
    samples: int = 1
    """Explorations of each task."""
    explore_temperature: float = 0.0
    keep: int = 1
    """Different episodes of a task that are learned from, the best rewarded first."""
    threshold: float = 0.0
    """Episodes are learned from whose reward is above it."""
    restart: bool = True
    """Train the given policy in every iteration, as in the paper, rather than the current one."""
    experts: bool = True
    """Keep the expert's episodes in what is learned from, as in the paper."""
    epochs: int = 1
    lr: float = 1e-5
    batch_size: int = 16
    """Value unverified."""

    def __post_init__(self) -> None:
        at_least(self, 1, "iterations", "samples", "keep", "epochs", "batch_size")
        at_least(self, 0, "explore_temperature", "threshold", "lr")


def agent_evol(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: AgentEvolConfig = AgentEvolConfig()) -> Agent[Any]:
    """The agent cloned from `data.experts`, and evolved on `data.train`."""
    data.require(*NEEDS, by="agent_evol")

    def weighed(episodes: list[Episode]) -> list[Example]:
        return [row for e in episodes for row in to_examples(e, agent.policy, weight=e.reward, tools=env.of(e.task).tools)]

    def fit(rows: list[Example], *names: object) -> dict[str, float]:
        return learn.optimise(learner, batches(rows, cfg.batch_size, epochs=cfg.epochs, seed=run.seed(*names)), learn.nll())

    base = weighed(list(data.experts))
    learner = learn.Learner(agent.policy, lr=cfg.lr)
    for iteration in run.steps(cfg.iterations, learner, name="agent_evol"):
        if iteration == 0:
            fit(base, "clone")

        # Explore: all tasks, of which the expert showed a part.
        current, seed = agent.replace(policy=learner.sample()), run.seed("explore", iteration)
        explorer = current.replace(sampling=agent.sampling.at(cfg.explore_temperature))
        groups = rollout_groups(explorer, env, data.train, n=cfg.samples, seed=seed, run=run, tag=f"iteration{iteration}")
        rewarded = [sorted((e for e in g.episodes if e.ok and e.reward > cfg.threshold), key=lambda e: -e.reward) for g in groups]
        found = [episode for each in rewarded for episode in different(each, cfg.keep)]

        # Learn: the given policy anew, from what was found and what the expert showed.
        if cfg.restart:
            learner.restart(agent.policy)
        metrics = fit([*weighed(found), *(base if cfg.experts else [])], "learn", iteration)
        beyond = {e.task.id for e in found} - {e.task.id for e in data.experts}
        run.log(iteration, **success_rates(groups), kept=len(found), beyond=len(beyond), **metrics)
    return agent.replace(policy=learner.sample())
