"""Reflexion: verbal feedback between attempts at the same task (arXiv:2303.11366). No weights change.

repeat for each trial:
    act         attempt every task that has not been solved yet
    evaluate    the environment says which attempts succeeded
    reflect     the reflector reads a failed attempt's log and says what to do differently
    remember    the last 3 reflections on a task are put before the next attempt at it

The reflector is whoever the caller names: a policy (`policy`, by default the agent's own), the environment's scripted
one (`environment`, made from the log alone and marked as scripted), or any function of an episode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from whet.agents import Agent
from whet.config import at_least
from whet.envs.base import EnvFactory
from whet.methods import Parts
from whet.policies.base import Policy, Sampling
from whet.rollout import ask, means, rollout
from whet.runs import JsonState
from whet.transcript import transcript
from whet.types import Data, Episode, Turn

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("train",)
PARTS = Parts(source="self", filter="environment", reuse="reflect", schedule="retry the same tasks", inference="reflections in the prompt")
PROMPT = (
    "You were unsuccessful in the task above. Say in a few sentences what went wrong and make a concise new plan "
    "that refers to the actions you should take instead. New plan:"
)


@dataclass(frozen=True, kw_only=True)
class ReflexionConfig:
    """Defaults: the paper's, for decision making."""

    trials: int = 12
    memory: int = 3
    """Reflections on a task that are kept, the newest ones."""
    reflector: Literal["policy", "environment"] = "policy"
    max_tokens: int = 256
    """Of a reflection written by a policy."""

    def __post_init__(self) -> None:
        at_least(self, 1, "trials", "memory", "max_tokens")


def reflexion(
    agent: Agent[Any],
    data: Data,
    *,
    env: EnvFactory,
    run: Run,
    cfg: ReflexionConfig = ReflexionConfig(),
    reflector: Policy | Callable[[Episode], str | None] | None = None,
) -> Agent[Any]:
    """The agent with a memory of what it learned about each training task. `reflector` overrides the config's."""
    data.require(*NEEDS, by="reflexion")
    reflect = reflector or (agent.policy if cfg.reflector == "policy" else scripted(env))
    state = JsonState(solved=[], memory={})
    for trial in run.steps(cfg.trials, state, name="reflexion"):
        # Act on the tasks that are not solved, with what is remembered about them.
        open_tasks = [task for task in data.train if task.id not in state["solved"]]
        actor = agent.replace(memory=merged(agent, state["memory"]))
        episodes = rollout(actor, env, open_tasks, seed=run.seed("act", trial), run=run, tag=f"trial{trial}")

        # Evaluate.
        state["solved"] += [episode.task.id for episode in episodes if episode.success]
        failed = [episode for episode in episodes if episode.ok and not episode.success]

        # Reflect on each failure and remember it.
        if isinstance(reflect, Policy):
            answers = written(reflect, failed, cfg, run.seed("reflect", trial))
            for answer in filter(None, answers):
                run.spend(answer.cost)
            notes = [answer.content if answer else None for answer in answers]
        else:
            notes = [reflect(episode) for episode in failed]
        for episode, note in zip(failed, notes, strict=True):
            if note:
                state["memory"][episode.task.id] = [*state["memory"].get(episode.task.id, []), note][-cfg.memory :]
        scripted_by = getattr(reflect, "actor", None) if isinstance(reflect, Policy) else getattr(reflect, "__name__", "function")
        solved = means("success", ((task.env, task.id in state["solved"]) for task in data.train))
        run.log(trial, **solved, attempted=len(open_tasks), reflections=sum(map(bool, notes)))
        run.event("reflector", trial=trial, scripted=scripted_by)
    return agent.replace(memory=merged(agent, state["memory"]))


def merged(agent: Agent[Any], memory: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    """The agent's memory with these notes added."""
    return {**agent.memory, **{task: (*agent.memory.get(task, ()), *notes) for task, notes in memory.items()}}


def scripted(env: EnvFactory) -> Callable[[Episode], str | None]:
    """The environment's own reflector: its object is put back to the task, and reads the log."""

    def environment(episode: Episode) -> str | None:
        world = env()
        try:
            world.reset(episode.task)
            return world.reflect(episode.turns)
        finally:
            world.close()

    return environment


def written(policy: Policy, failed: list[Episode], cfg: ReflexionConfig, seed: int) -> list[Turn | None]:
    """What a policy writes when it is shown each log with a request for a new plan; None for a log too long for it."""
    prompts = [(Turn(role="user", content=f"{transcript(episode.turns)}\n\n{PROMPT}"),) for episode in failed]
    return ask(policy, prompts, sampling=Sampling(max_tokens=cfg.max_tokens), seed=seed)
