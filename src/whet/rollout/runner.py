"""Many episodes at once: whose turn it is to start, what is kept, when to give up, and how Ctrl-C ends it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any, Protocol

from whet.agents import Agent
from whet.envs.base import Env, EnvFactory
from whet.errors import ConfigError, EnvError, PolicyError, SplitError
from whet.policies.gate import current_gate
from whet.policies.loop import run_sync
from whet.rollout.calls import Calls, WaveGate
from whet.rollout.episode import Failure, Job, Setting, play
from whet.rollout.garbage import rare_collections
from whet.rollout.limits import Limits
from whet.rollout.progress import ProgressBar
from whet.rollout.replay import Prefixes, align
from whet.seeding import derive_seed
from whet.types import Cost, Episode, Group, Task

_log = logging.getLogger("whet.rollout")
_SAVE_EVERY = 64
_MIN_FAILURES = 8
_HANGS = 3
"""Calls that may hang before one of their kind has ever returned."""
_GRACE = 1.0
"""Seconds that environment calls under way get when a rollout is cancelled."""


class Recorder(Protocol):
    """What a rollout needs of a run (`whet.runs.Run`)."""

    def save_episodes(self, episodes: Sequence[Episode], tag: str) -> None: ...
    def spend(self, cost: Cost) -> None: ...


def rollout(
    agent: Agent[Any],
    env: EnvFactory,
    tasks: Sequence[Task],
    *,
    n: int = 1,
    seed: int = 0,
    run: Recorder | None = None,
    limits: Limits = Limits(),
    prefix: Prefixes | None = None,
    tag: str = "",
    allow_test: bool = False,
    progress: bool | None = None,
) -> list[Episode]:
    """Let an agent act: `n` episodes of each task, in the order of the tasks, whatever finishes first.

    Ids (`tag/task#attempt`) and seeds follow from the arguments alone; a task that is listed twice counts its attempts on.
    With `run`, episodes are saved under `tag` as they finish and their cost is spent. `prefix` gives each task (by its id,
    or by its place) the beginning of an episode to replay first. `progress` shows a bar on stderr; None does so on a
    terminal, once the rollout turns out to be long.

    Failed episodes are part of the result (`Episode.ok` is false). Raises EnvError or PolicyError with the first failure's
    message where all episodes failed, or more than `limits.max_error_rate` of them; EnvError where a replay diverged;
    CannotReplay for a prefix in an environment that cannot; SplitError for test tasks, unless `allow_test`; ConfigError
    inside a running event loop (await `arollout` there). Ctrl-C closes the environments, saves what is finished and raises
    KeyboardInterrupt.
    """
    episodes = arollout(
        agent, env, tasks, n=n, seed=seed, run=run, limits=limits, prefix=prefix, tag=tag, allow_test=allow_test, progress=progress
    )
    return run_sync(episodes)


async def arollout(
    agent: Agent[Any],
    env: EnvFactory,
    tasks: Sequence[Task],
    *,
    n: int = 1,
    seed: int = 0,
    run: Recorder | None = None,
    limits: Limits = Limits(),
    prefix: Prefixes | None = None,
    tag: str = "",
    allow_test: bool = False,
    progress: bool | None = None,
) -> list[Episode]:
    """`rollout` for callers that are in an event loop. Cancelling it saves what is finished."""
    if n < 1:
        raise ConfigError(f"n is {n}; expected at least one episode per task")
    for task in tasks:
        if task.split == "test" and not allow_test:
            raise SplitError(
                f"task {task.id!r} is a test task, and episodes on it must not reach a method. "
                "Score an agent on it with whet.evals.evaluate, or roll out train or dev tasks."
            )
    prefixes = align(prefix, tasks, env)
    attempts: Counter[str] = Counter()
    jobs = []
    for task, begin in zip(tasks, prefixes):
        for _ in range(n):
            attempt = attempts[task.id]
            attempts[task.id] += 1
            name = f"{task.id}#{attempt}"
            jobs.append(Job(task=task, id=f"{tag}/{name}" if tag else name, seed=derive_seed(seed, task.id, attempt), prefix=begin))
    if not jobs:
        return []
    return await _Rollout(agent, env, jobs, run=run, limits=limits, tag=tag, progress=progress).finish()


def rollout_groups(agent: Agent[Any], env: EnvFactory, tasks: Sequence[Task], *, n: int, **options: Any) -> list[Group]:
    """`rollout`, with the `n` episodes of each task together. Takes the same options."""
    return run_sync(arollout_groups(agent, env, tasks, n=n, **options))


async def arollout_groups(agent: Agent[Any], env: EnvFactory, tasks: Sequence[Task], *, n: int, **options: Any) -> list[Group]:
    """`rollout_groups` for callers that are in an event loop."""
    episodes = await arollout(agent, env, tasks, n=n, **options)
    return [Group(task=task, episodes=tuple(episodes[i * n : (i + 1) * n])) for i, task in enumerate(tasks)]


class _Queue:
    """Jobs in their order, as far as their environments have room (`Env.max_concurrent`).

    Who is given None need not come again: then everything left is of environments that are full, and whoever holds a place
    there asks again when it is done.
    """

    def __init__(self, kinds: Sequence[type[Env]]) -> None:
        """`kinds` are the jobs' environments."""
        self._kinds = kinds
        self._left: dict[type[Env], deque[int]] = {}
        for index, kind in enumerate(kinds):
            if kind.max_concurrent is not None and kind.max_concurrent < 1:
                raise ConfigError(f"{kind.__name__}.max_concurrent is {kind.max_concurrent}; expected at least 1 episode, or None")
            self._left.setdefault(kind, deque()).append(index)
        self._room = {kind: kind.max_concurrent for kind in self._left}

    def take(self) -> int | None:
        """The first job that is left and has room; None where there is none."""
        open_kinds = [kind for kind, left in self._left.items() if left and self._room[kind] != 0]
        if not open_kinds:
            return None
        kind = min(open_kinds, key=lambda kind: self._left[kind][0])
        if (room := self._room[kind]) is not None:
            self._room[kind] = room - 1
        return self._left[kind].popleft()

    def done(self, index: int) -> None:
        """A job's episode has ended, and its environment is closed."""
        kind = self._kinds[index]
        if (room := self._room[kind]) is not None:
            self._room[kind] = room + 1

    def clear(self) -> None:
        """Nothing more is to be begun."""
        self._left.clear()


class _Rollout:
    """A fixed number of tasks take jobs off one list, so that a finished episode's place is taken at once."""

    def __init__(
        self,
        agent: Agent[Any],
        env: EnvFactory,
        jobs: list[Job],
        *,
        run: Recorder | None,
        limits: Limits,
        tag: str,
        progress: bool | None,
    ) -> None:
        gate = WaveGate()
        calls = Calls(gate, threads=limits.threads)
        self._setting = Setting(agent=agent, env=env, limits=limits, gate=gate, calls=calls, tag=tag)
        self._run, self._tag = run, tag
        self._jobs = jobs
        self._queue = _Queue([env.of(job.task).cls for job in jobs])
        self._episodes: list[Episode | None] = [None] * len(jobs)
        self._started = self._finished = self._failed = 0
        self._hung: Counter[str] = Counter()
        self._first: Failure | None = None
        self._unsaved: list[Episode] = []
        self._saved_at = time.monotonic()
        self._progress = ProgressBar(len(jobs), shown=progress, title=tag or "episodes")

    async def finish(self) -> list[Episode]:
        workers = min(self._setting.limits.in_flight, len(self._jobs))
        self._setting.gate.busy = workers
        token = current_gate.set(self._setting.gate)
        try:
            tasks = [asyncio.create_task(self._work()) for _ in range(workers)]
        finally:
            current_gate.reset(token)
        try:
            with self._progress, rare_collections():
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                for task in tasks:
                    if task in done:
                        task.result()
        finally:
            await self._stop(tasks)
            self._save()
        if self._first is not None:
            _log.warning("%d of %d episodes failed; the first: %s", self._failed, len(self._jobs), self._first.text)
        return [episode for episode in self._episodes if episode is not None]

    async def _work(self) -> None:
        try:
            while (index := self._queue.take()) is not None:
                self._started += 1
                episode, failure = await play(self._setting, self._jobs[index])
                self._queue.done(index)
                self._episodes[index] = episode
                self._record(episode, failure)
        finally:
            self._setting.gate.busy -= 1

    def _record(self, episode: Episode, failure: Failure | None) -> None:
        self._finished += 1
        self._unsaved.append(episode)
        if len(self._unsaved) >= _SAVE_EVERY or time.monotonic() - self._saved_at > 1.0:
            self._save()
        if failure is not None:
            self._failed += 1
            self._first = self._first or failure
            self._give_up(failure)
        self._progress.update(self._finished, self._failed, episode.success)

    def _save(self) -> None:
        """Hand what has finished to the run."""
        episodes, self._unsaved = self._unsaved, []
        self._saved_at = time.monotonic()
        if self._run is not None and episodes:
            self._run.save_episodes(episodes, self._tag)
            self._run.spend(reduce(add, (episode.cost for episode in episodes)))

    def _give_up(self, failure: Failure) -> None:
        """Raise once it is certain that too many episodes fail, or that a call of this kind never returns."""
        assert self._first is not None
        if failure.deadline and failure.while_doing not in self._setting.answered:
            self._hung[failure.while_doing] += 1
        too_many = self._failed >= _MIN_FAILURES and self._failed > self._setting.limits.max_error_rate * self._started
        if not (too_many or self._failed == len(self._jobs) or self._hung[failure.while_doing] >= _HANGS):
            return
        kind = PolicyError if self._first.by_policy else EnvError
        raise kind(f"{self._failed} of the first {self._finished} episodes failed. The first: {self._first.text}") from self._first.error

    async def _stop(self, tasks: list[asyncio.Task[None]]) -> None:
        """Cancel what is still running, and give environments the time to close."""
        self._queue.clear()
        running = [task for task in tasks if not task.done()]
        if running:
            self._setting.calls.hurry(_GRACE)
            for task in running:
                if task not in self._setting.closing:
                    task.cancel()
            await asyncio.wait(running, timeout=_GRACE + self._setting.limits.close_s)
        for task in tasks:
            if task.done() and not task.cancelled():
                task.exception()  # one of them is raised already; asyncio would complain about the others
        self._setting.calls.close()
