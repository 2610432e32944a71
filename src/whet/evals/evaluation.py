"""How good an agent is: held-out tasks attempted, and what came of it, task by task."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from whet.errors import CheckpointError, ConfigError, did_you_mean
from whet.evals.statistics import mean_interval, proportion_interval
from whet.types import Cost, Episode, Score, Split, Task

if TYPE_CHECKING:
    from whet.agents import Agent
    from whet.envs.base import EnvFactory
    from whet.rollout import Limits
    from whet.runs import Run

Metric = Literal["success", "reward"]
FORMAT = 1
"""Version of an evaluation on disk."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An agent's attempts at some tasks. Attempts that failed for infrastructure's sake are counted but not scored."""

    name: str
    env: str
    split: Split
    policy: str
    """Version of the policy that acted."""
    actor: str = "self"
    """Who acted: `self` is a model and `workflow` several; `script`, `expert` and `random` are code, and `mixed` is so in part."""
    seed: int = 0
    repeats: int = 1
    tasks: tuple[str, ...]
    rewards: tuple[tuple[float, ...], ...]
    """Of each task, the rewards of the attempts that count."""
    successes: tuple[tuple[bool, ...], ...]
    errors: Mapping[str, int] = field(default_factory=dict)
    """Failed attempts by reason."""
    cost: Cost = field(default_factory=Cost)
    """Of the evaluation itself, with its wall-clock seconds."""
    envs: tuple[str, ...] = ()
    """Of each task its environment, where they are of several; empty otherwise."""

    @property
    def scripted(self) -> bool:
        """Whether code acted, alone or beside a model; tables say so."""
        return self.actor not in ("self", "workflow")

    @property
    def n_errors(self) -> int:
        return sum(self.errors.values())

    @property
    def n_episodes(self) -> int:
        """Attempts made, failed ones included."""
        return len(self.tasks) * self.repeats

    @cached_property
    def success(self) -> Score:
        """Success rate with Wilson's interval, clustered by task (`statistics.proportion_interval`)."""
        return self.score("success")

    @cached_property
    def reward(self) -> Score:
        """Mean reward with Student's interval over the tasks' means (`statistics.mean_interval`)."""
        return self.score("reward")

    def per_task(self, metric: Metric) -> np.ndarray:
        """Mean of each task over its attempts, float64 [tasks]; NaN where all of them failed."""
        values = self.successes if metric == "success" else self.rewards
        return np.array([np.mean(v) if v else np.nan for v in values], float)

    def parts(self) -> tuple[str, ...]:
        """The environments that the tasks are of, where there are several."""
        return tuple(dict.fromkeys(self.envs))

    def part(self, env: str) -> Evaluation:
        """What the evaluation says about the tasks of one environment; its cost, and why attempts failed, are not told apart."""
        kept = [i for i, name in enumerate(self.envs) if name == env]
        if not kept:
            raise ConfigError(f"the evaluation has no tasks of environment {env!r}. {did_you_mean(env, self.parts())}")
        failed = sum(self.repeats - len(self.rewards[i]) for i in kept)
        return dataclasses.replace(
            self,
            env=env,
            tasks=tuple(self.tasks[i] for i in kept),
            rewards=tuple(self.rewards[i] for i in kept),
            successes=tuple(self.successes[i] for i in kept),
            errors={"failed": failed} if failed else {},
            cost=Cost(),
            envs=(),
        )

    def score(self, metric: Metric, level: float = 0.95) -> Score:
        """The mean over tasks, with its interval."""
        return score(self.per_task(metric), metric, level=level, seeds=1, cost=self.cost)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, scores included for readers that do no statistics."""
        record = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        record |= {
            "format": FORMAT,
            "scripted": self.scripted,
            "cost": dataclasses.asdict(self.cost),
            "n_errors": self.n_errors,
            "n_episodes": self.n_episodes,
        }
        return record | self._scores() | {"parts": {env: self._part_to_json(env) for env in self.parts()}}

    def _scores(self) -> dict[str, Any]:
        return {"success": dataclasses.asdict(self.success), "reward": dataclasses.asdict(self.reward)}

    def _part_to_json(self, env: str) -> dict[str, Any]:
        """The scores of one environment; without them where all of its episodes failed."""
        part = self.part(env)
        return {"n_errors": part.n_errors, "n_episodes": part.n_episodes, **(part._scores() if any(part.rewards) else {})}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Evaluation:
        """Raises CheckpointError where `record` is no evaluation of this version."""
        if record.get("format") != FORMAT:
            raise CheckpointError(f"an evaluation has format {record.get('format')!r}, expected {FORMAT}")
        kept = {f.name: record[f.name] for f in dataclasses.fields(cls) if f.name in record}
        kept |= {"cost": Cost(**record["cost"]), "tasks": tuple(record["tasks"]), "envs": tuple(record.get("envs", ()))}
        return cls(**kept | {key: tuple(map(tuple, record[key])) for key in ("rewards", "successes")})

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.to_json()))

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Raises CheckpointError where the file is missing or no evaluation."""
        try:
            return cls.from_json(json.loads(Path(path).read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read as an evaluation: {error}") from error


def score(per_task: np.ndarray, metric: Metric, *, level: float, seeds: int, cost: Cost) -> Score:
    """The score of tasks' means, float64 [tasks], NaN where a task has none. Raises ConfigError where all are NaN."""
    values = per_task[~np.isnan(per_task)]
    if not len(values):
        raise ConfigError("every episode of the evaluation failed, so there is no score; see the errors of its episodes")
    low, high = (proportion_interval if metric == "success" else mean_interval)(values, level)
    return Score(mean=float(values.mean()), low=low, high=high, n=len(values), seeds=seeds, level=level, cost=cost)


def evaluate(
    agent: Agent[Any],
    env: EnvFactory,
    tasks: Sequence[Task],
    *,
    repeats: int = 1,
    seed: int = 0,
    run: Run | None = None,
    name: str = "eval",
    limits: Limits | None = None,
) -> Evaluation:
    """Let the agent attempt every task `repeats` times. The only way by which test tasks are ever acted on.

    With a `run`, the episodes are kept under the tag `eval/NAME` and the evaluation under `evals/`; a resumed run does not
    repeat it. Its cost is not counted against the run's budget. Raises ConfigError for no tasks, tasks of several splits,
    or where not a single episode could be had.
    """
    splits = {task.split for task in tasks}
    if len(splits) != 1 or repeats < 1:
        found = ", ".join(sorted(splits)) or "no tasks"
        raise ConfigError(f"evaluate got {found} and repeats={repeats}; expected at least one task, all of one split, and repeats >= 1")
    key = run.unique(f"eval/{name}") if run else ""
    if run and run.already(key):
        return Evaluation.from_json(run.evaluations()[key.removeprefix("eval/")])
    from whet.rollout import Limits, rollout

    began = time.monotonic()
    bar = False if run and run.progress.quiet else None
    episodes = rollout(agent, env, list(tasks), n=repeats, seed=seed, tag=key, allow_test=True, limits=limits or Limits(), progress=bar)
    evaluation = _summary(name, agent, env, tasks, episodes, repeats, seed, time.monotonic() - began)
    if run:
        run.save_episodes(episodes, key)
        success, reward = dataclasses.asdict(evaluation.success), dataclasses.asdict(evaluation.reward)
        run.event("evaluation", name=name, split=evaluation.split, success=success, reward=reward, n_errors=evaluation.n_errors)
        run.save_evaluation(key.removeprefix("eval/"), evaluation.to_json())
        run.commit(key)
    return evaluation


def _summary(
    name: str,
    agent: Agent[Any],
    env: EnvFactory,
    tasks: Sequence[Task],
    episodes: Sequence[Episode],
    repeats: int,
    seed: int,
    seconds: float,
) -> Evaluation:
    by_task: dict[str, list[Episode]] = {task.id: [] for task in tasks}
    envs = tuple(task.env for task in tasks)
    if len(by_task) != len(tasks):
        raise ConfigError(f"{len(tasks) - len(by_task)} tasks share an id with another one; evaluate needs ids that differ")
    for episode in episodes:
        by_task[episode.task.id].append(episode)
    cost = sum((e.cost for e in episodes), Cost())
    errors = Counter(e.reason or "error" for e in episodes if not e.ok)
    return Evaluation(
        name=name,
        env=env.spec or env.name,
        split=tasks[0].split,
        policy=agent.policy.version,
        actor=getattr(agent.policy, "actor", "self"),
        seed=seed,
        repeats=repeats,
        tasks=tuple(by_task),
        rewards=tuple(tuple(e.reward for e in done if e.ok) for done in by_task.values()),
        successes=tuple(tuple(e.success for e in done if e.ok) for done in by_task.values()),
        errors=dict(errors),
        cost=dataclasses.replace(cost, seconds=seconds),
        envs=envs if len(set(envs)) > 1 else (),
    )
