"""One episode: reset, then turns of policy and environment until something ends it; again from the start if that broke."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
import itertools
import logging
import math
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from whet.agents import Agent
from whet.envs.base import Action, Env, EnvFactory, Step
from whet.envs.calling import Situation, caller_of
from whet.errors import CannotReplay, ConfigError, ContextFull, EnvError, MissingExtra, PolicyError, PolicyUnavailable, StorageError
from whet.policies.base import Request
from whet.rollout import replay
from whet.rollout.calls import Calls, DeadlineError, WaveGate
from whet.rollout.limits import Limits
from whet.rollout.replay import Prefix, ReplayDiverged
from whet.seeding import derive_seed
from whet.tools.function import Tool
from whet.types import Cost, Episode, Stop, Task, Turn

_log = logging.getLogger("whet.rollout")
_FATAL = (ConfigError, MissingExtra, CannotReplay, ReplayDiverged, StorageError)
"""What no other attempt and no other episode can escape: it ends the rollout."""
_BACKOFF = 0.25
"""Seconds before the second attempt at something that lies outside this process; doubled each time."""
_HERE = str(Path(__file__).parent)
_sessions = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Job:
    """An episode to be played."""

    task: Task
    id: str
    seed: int
    prefix: Prefix | None = None


class SharedClock:
    """Divides the time that passes among the episodes in flight, so that their seconds add up to the rollout's own."""

    def __init__(self) -> None:
        self._share = 0.0
        self._at = time.perf_counter()
        self._playing = 0

    def start(self) -> float:
        """The reading at an episode's beginning, to be handed to `stop`."""
        self._tick()
        self._playing += 1
        return self._share

    def stop(self, started: float) -> float:
        """The episode's share, in seconds."""
        self._tick()
        self._playing -= 1
        return self._share - started

    def _tick(self) -> None:
        now = time.perf_counter()
        if self._playing:
            self._share += (now - self._at) / self._playing
        self._at = now


@dataclass
class Setting:
    """What the episodes of a rollout have in common."""

    agent: Agent[Any]
    env: EnvFactory
    limits: Limits
    gate: WaveGate
    calls: Calls
    tag: str = ""
    clock: SharedClock = field(default_factory=SharedClock)
    closing: set[asyncio.Task[Any]] = field(default_factory=set)
    """Tasks that are closing their environment; these are not cancelled."""
    answered: set[str] = field(default_factory=set)
    """Which of `reset`, `turn` and `step` have ever returned."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an attempt broke off."""

    error: Exception
    reason: str
    text: str
    passing: bool
    """Whether another attempt may go better."""
    while_doing: str
    """`reset`, `turn` (the policy's) or `step`."""

    @property
    def by_policy(self) -> bool:
        return self.while_doing == "turn"

    @property
    def deadline(self) -> bool:
        return isinstance(self.error, DeadlineError)


async def play(setting: Setting, job: Job) -> tuple[Episode, Failure | None]:
    """Play an episode, with retries. Whatever happens to it becomes part of the record; only fatal errors are raised."""
    started = setting.clock.start()
    spent = Cost()
    broken: Counter[str] = Counter()
    try:
        for tried in itertools.count(1):
            attempt = _Attempt(setting, job)
            failure = None
            try:
                stop, reason = await attempt.run()
            except _FATAL:
                raise
            except Exception as error:
                failure = attempt.failure(error)
                stop, reason = Stop.ERROR, failure.reason
            finally:
                await attempt.close()
            spent += attempt.cost
            broken.update([failure.reason] if failure is not None else ())
            if failure is None or not failure.passing or tried > setting.limits.retries:
                break
            if failure.by_policy or not attempt.factory.cls.inline:
                await _pause(setting.gate, _BACKOFF * 2 ** (tried - 1))
    finally:
        seconds = setting.clock.stop(started)
    cost = spent + Cost(episodes=1, seconds=seconds)
    tags = {**attempt.tags(), **({"attempts": tried, "broken": dict(sorted(broken.items()))} if tried > 1 else {})}
    episode = Episode(
        id=job.id,
        task=job.task,
        turns=tuple(attempt.turns),
        stop=stop,
        reason=reason,
        reward=attempt.reward,
        success=attempt.success and failure is None,
        error=failure.text if failure else None,
        policy=setting.agent.policy.version,
        seed=job.seed,
        cost=cost,
        tags=tags,
    )
    return episode, failure


async def _pause(gate: WaveGate, seconds: float) -> None:
    gate.busy -= 1
    try:
        await asyncio.sleep(seconds)
    finally:
        gate.busy += 1


class _Attempt:
    """One try at an episode, with what has come of it so far."""

    def __init__(self, setting: Setting, job: Job) -> None:
        self.setting, self.job = setting, job
        self.factory = setting.env.of(job.task)
        self.policy = setting.agent.policy
        self.turns: list[Turn] = []
        self.reward = 0.0
        self.success = False
        self.cost = Cost()
        self._env: Env | None = None
        self._tools: tuple[Tool, ...] = ()
        self._actions = 0
        self._last: Step | None = None
        self._begin = 0  # where the present context begins among the turns
        self._doing = "reset"
        self._over = self._hung = False
        self._until = time.monotonic() + setting.limits.episode_s
        self._session = f"{job.id}@{next(_sessions)}"

    async def run(self) -> tuple[Stop, str]:
        """Play to the end; how it stopped, and why. Raises whatever breaks on the way."""
        env = await self._reset()
        while True:
            if self._last is not None and self._last.terminated:
                return Stop.TERMINATED, str(self._last.info.get("reason") or "terminated")
            if self._last is not None and self._last.truncated:
                return Stop.TRUNCATED, str(self._last.info.get("reason") or "truncated")
            if self._actions >= env.max_turns:
                return Stop.TRUNCATED, "max_turns"
            try:
                turn = await self._generate(env)
            except ContextFull:
                return Stop.TRUNCATED, "context"
            self._append(turn)
            try:
                self._observe(await self._step(env, turn))
            except ContextFull:
                return Stop.TRUNCATED, "context"

    async def close(self) -> None:
        """Release what the policy keeps for this attempt, and close its environment."""
        self._over = True
        task = asyncio.current_task()
        assert task is not None
        self.setting.closing.add(task)
        try:
            self.policy.release(self._session)
            if self._env is not None:
                await self._close(self._env)
        finally:
            self.setting.closing.discard(task)

    async def _close(self, env: Env) -> None:
        if type(env).close is Env.close:
            return
        limits, calls = self.setting.limits, self.setting.calls
        try:
            if inspect.iscoroutinefunction(env.close):
                await calls.wait(env.close(), limits.close_s)
            else:
                # Behind a call that hung stands a wave that may hang as well; what was hung is closed beside it.
                await calls.call(env.close, limits.close_s, inline=env.inline, apart=self._hung)
        except Exception as error:
            _log.warning("environment %r, task %r: close() failed: %s: %s", env.name, self.job.task.id, type(error).__name__, error)

    async def _reset(self) -> Env:
        """A new environment at its beginning, or behind the prefix."""
        setting, task = self.setting, self.job.task

        def make() -> Any:
            env = self._env = self.factory()
            if self._over:  # the constructor outlived its deadline, and nobody else is left to close what it made
                env.close()
                raise EnvError("made too late")
            caller_of(env).situation = Situation(task=task, episode=self.job.id, rollout=self._session, factory=self.factory)
            return env.reset(task)

        observation = await setting.calls.call(make, self._left(self._limit("reset")[0]), inline=self.factory.cls.inline)
        self.setting.answered.add("reset")
        env = self._env
        assert env is not None
        self._tools = env.tools
        seen = _turns(observation, "reset")
        if self.job.prefix is None or not self.job.prefix.turns:
            self._observe(self._opening(env, observation, "reset"))
        else:
            await self._replay(env, self.job.prefix, seen)
        return env

    async def _replay(self, env: Env, prefix: Prefix, seen: tuple[Turn, ...]) -> None:
        task = self.job.task
        opening, actions = replay.split(prefix.turns)
        replay.compare(task, 0, opening, seen)
        self._observe(opening)
        for number, (turn, recorded) in enumerate(actions, start=1):
            if self._last is not None and (self._last.terminated or self._last.truncated):
                raise ReplayDiverged(
                    f"replay diverged: environment {task.env!r}, task {task.id!r} ended after action {number - 1}, "
                    f"but {len(actions)} were recorded. Make it deterministic, or set `replayable = False`."
                )
            self._observe((turn,))
            seen = await self._step(env, turn)
            if recorded or number < len(actions):
                replay.compare(task, number, recorded, seen)
            self._observe(recorded or seen)

    def _observe(self, new: Sequence[Turn]) -> None:
        """Append turns, read by the policy where they are not yet."""
        if not new:
            return
        if not new[-1].tokens:  # of turns that were read together, the last one holds the tokens of all
            self._doing = "turn"
            new = self.policy.observe(tuple(self.turns[self._begin :]), new, self._tools)
        for turn in new:
            self._append(turn)

    def _append(self, turn: Turn) -> None:
        parent = len(self.turns) - 1 if len(self.turns) > self._begin else None
        self.turns.append(turn if turn.parent == parent else replace(turn, parent=parent))

    async def _generate(self, env: Env) -> Turn:
        self._doing = "turn"
        sampling = self.setting.agent.sampling
        request = Request(
            turns=tuple(self.turns[self._begin :]),
            tools=env.tools,  # some environments hand out another one later
            sampling=sampling,
            max_tokens=sampling.max_tokens or env.max_tokens,
            seed=derive_seed(self.job.seed, self._actions),
            session=self._session,
            env=env,
        )
        limit = self._left(self.setting.limits.turn_s)
        self.setting.gate.busy -= 1
        try:
            async with asyncio.timeout(limit) as deadline:
                turn: Turn = await self.policy.generate(request)
        except TimeoutError:
            if deadline.expired():
                raise DeadlineError(limit) from None
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise PolicyUnavailable("the policy dropped the request") from None
        finally:
            self.setting.gate.busy += 1
        self.setting.answered.add("turn")
        self.cost += replace(turn.cost, seconds=0.0) if turn.cost.seconds else turn.cost
        return turn

    async def _step(self, env: Env, turn: Turn) -> tuple[Turn, ...]:
        """Do what the last turn says; the turns that come back."""
        self._doing = "step"
        self._actions += 1
        self.cost += Cost(env_steps=1)
        calls, step_s = self.setting.calls, self._limit("step")[0]
        limit = self._left(step_s)
        # Coroutine tools have deadlines of their own, which the model is to see; so this one must come after them.
        with_tools = self._left(step_s + env.tool_timeout * len(turn.tool_calls))
        action = Action(text=turn.content, tool_calls=turn.tool_calls)
        if inspect.iscoroutinefunction(env.step):
            step = await calls.wait(env.step(action), limit)
        elif _only_waits(env, action):
            found: Any = env.step(action)
            step = await calls.wait(found, with_tools) if inspect.isawaitable(found) else found
        else:
            step = await calls.call(partial(env.step, action), limit, inline=env.inline, awaited=with_tools)
        self.setting.answered.add("step")
        if not isinstance(step, Step):
            raise EnvError(f"step returned {type(step).__name__}; expected whet.envs.Step")
        reward = float(step.reward)
        if not math.isfinite(reward):
            raise EnvError(f"step returned the reward {reward}; expected a finite number")
        if self.turns[-1].reward != reward:
            self.turns[-1] = replace(self.turns[-1], reward=reward)
        self.reward += reward
        self.success = step.success
        self._last = step
        if not step.fresh:
            return _turns(step.observation, "step")
        self._begin = len(self.turns)
        self.policy.release(self._session)
        return self._opening(env, step.observation, "step")

    def _opening(self, env: Env, observation: Any, source: str) -> tuple[Turn, ...]:
        """An observation behind the agent's prompt."""
        told = observation if isinstance(observation, str) else _turns(observation, source)
        return self.setting.agent.prompt(self.job.task, env.instructions, told)

    def _limit(self, name: str) -> tuple[float, str]:
        """The seconds that `reset`, `step`, `turn` or `episode` may take, and what says so."""
        given: float | None = getattr(self.setting.limits, f"{name}_s")
        if given is not None:
            return given, f"Limits.{name}_s"
        return getattr(self._env or self.factory.cls, f"{name}_timeout"), f"the environment's {name}_timeout"

    def _left(self, limit: float) -> float:
        """Seconds for the next call: its own limit, or what is left of the episode's."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise DeadlineError(self.setting.limits.episode_s)
        return min(limit, left)

    def failure(self, error: Exception) -> Failure:
        """What broke, named by environment, task and turn, with the last lines of the traceback."""
        place = {"reset": "reset", "turn": f"the policy's turn {self._actions + 1}", "step": f"step {self._actions}"}[self._doing]
        where = f"environment {self.factory.name!r}, task {self.job.task.id!r}, {place}"
        if isinstance(error, DeadlineError):
            self._hung = True
            name = "episode" if time.monotonic() >= self._until else self._doing
            limit, source = self._limit(name)
            text = f"{where}: still running after {limit:g} s ({source})"
            lines, reason, passing = error.where, f"{name}_deadline", False
        else:
            text = f"{where}: {type(error).__name__}: {error}"
            lines = _frames(error)
            reason = type(error).__name__
            passing = isinstance(error, PolicyUnavailable) or not isinstance(error, PolicyError)
        text = f"{text}\n{lines}".rstrip()
        return Failure(error=error, reason=reason, text=text, passing=passing, while_doing=self._doing)

    def tags(self) -> dict[str, Any]:
        """Where the episode came from (see `Episode.tags`)."""
        agent, prefix = self.setting.agent, self.job.prefix
        notes = (*agent.memory.get("", ()), *agent.memory.get(self.job.task.id, ()))
        instructions = self._env.instructions if self._env is not None else ""
        told = (instructions, agent.instructions, notes, *([agent.suffix] if agent.suffix else []))
        tags: dict[str, Any] = {
            "actor": getattr(self.policy, "actor", "self"),
            "temperature": agent.sampling.temperature,
            "prompt": hashlib.blake2b(repr(told).encode(), digest_size=4).hexdigest(),
            "info": dict(self._last.info) if self._last is not None else {},
        }
        if self._tools:
            tags["schemas"] = _schemas(self._tools)
        if self.setting.tag:
            tags["tag"] = self.setting.tag
        if self._env is not None and (outcomes := caller_of(self._env).outcomes):
            tags["tools"] = dict(sorted(outcomes.items()))
        if prefix is not None:
            tags["fork"] = {"episode": prefix.origin, "actions": prefix.actions}
        return tags


@functools.lru_cache(maxsize=1000)
def _schemas(tools: tuple[Tool, ...]) -> list[dict[str, Any]]:
    """What the prompt said of the tools. Episodes share it, and nobody changes it."""
    return [tool.schema() for tool in tools]


def _only_waits(env: Env, action: Action) -> bool:
    """Whether all that an action asks for is coroutine tools: then no code that could hold a thread up runs in `step`.

    Such a step needs no thread, and decoding goes on while it is under way.
    """
    cls = type(env)
    if not action.tool_calls or cls.step is not Env.step or cls.call_tool is not Env.call_tool:
        return False
    return all(inspect.iscoroutinefunction(getattr(cls, call.name, None)) for call in action.tool_calls)


def _frames(error: Exception) -> str:
    """The last lines of a traceback that are not this package's own."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_HERE)]
    return "".join(traceback.format_list(frames[-3:])) if not isinstance(error, PolicyError) else ""


def _turns(observation: Any, source: str) -> tuple[Turn, ...]:
    """An observation as turns. Raises EnvError for anything that is none."""
    if isinstance(observation, str):
        return (Turn(role="user", content=observation),) if observation else ()
    if not isinstance(observation, (tuple, list)) or not all(isinstance(turn, Turn) for turn in observation):
        raise EnvError(f"{source} gave an observation of type {type(observation).__name__}; expected a str or a tuple of Turns")
    if any(turn.role == "assistant" for turn in observation):
        raise EnvError(
            f"{source} gave an assistant turn as an observation, and learning takes those for the policy's own; "
            "show demonstrations in `instructions` or in a user turn"
        )
    return tuple(observation)
