"""How an environment's tool calls are made: checked, answered from what is known, waited for, counted and put on record.

Each `Env` object has a `Caller`. What goes wrong with a call falls into one of these classes:

    malformed        the model's text could not be read as a call
    unknown_tool     there is no such tool
    bad_arguments    they do not fit its schema
    tool_error       the tool raised ToolError: the model is told
    timeout          it did not answer in time: the model is told
    infrastructure   it raised anything else: the attempt at the episode is over, and no reward comes of it
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from whet.errors import ToolError, did_you_mean
from whet.tools.cache import RESULTS
from whet.tools.function import Tool
from whet.tools.log import CallRecord, Journal, canonical
from whet.tools.output import to_text
from whet.types import Task, ToolCall, Turn

if TYPE_CHECKING:
    from whet.envs.base import Env, EnvFactory

FAILED = "error: "
"""How the observation of a tool call that failed begins."""
_PROCESS = secrets.token_hex(4)


@dataclass(frozen=True, kw_only=True)
class Situation:
    """Which episode an environment plays; a rollout says so before `reset`."""

    task: Task
    episode: str
    """Id of the episode, the same in each attempt at it and in each run of the same seed."""
    rollout: str
    """Id of this attempt at it, of which this process has no other."""
    factory: EnvFactory

    @functools.cached_property
    def options(self) -> str:
        """The environment's options, as text that is equal for equal ones."""
        return json.dumps(dict(self.factory.options), sort_keys=True, default=repr)

    @functools.cached_property
    def facts(self) -> str:
        """Likewise what is known of the task."""
        return json.dumps([self.task.id, self.task.seed, dict(self.task.data)], sort_keys=True, default=repr)


@dataclass(eq=False)
class _Running:
    """A tool call under way, and what has come of it."""

    call: ToolCall
    tool: Tool | None = None
    outcome: str = "ok"
    result: object = None
    text: str | None = None
    """What the model is shown, once that is certain."""
    key: Hashable = None
    """Under which the result is to be kept, where it may be."""
    cached: bool = False
    recorded: bool = False
    """Whether the answer came from a journal."""
    began: float = field(default_factory=time.perf_counter)

    def failed(self, outcome: str, message: str) -> _Running:
        self.outcome, self.result = outcome, message
        return self


class Caller:
    """Makes the tool calls of one environment, in order, and remembers what came of them.

    It is handed the environment each time rather than holding it: what has no cycles is freed at once.
    """

    def __init__(self) -> None:
        self.situation: Situation | None = None
        self.journal: Journal | None = None
        """Told of every call, and may answer in a tool's place."""
        self.outcomes: Counter[str] = Counter()
        self._calls = self._steps = 0
        self._alone = secrets.token_hex(4)

    @property
    def task(self) -> Task | None:
        return self.situation.task if self.situation else None

    @property
    def rollout(self) -> str:
        """An id that no other attempt at any episode has, in any process."""
        return f"{self.situation.rollout if self.situation else self._alone}-{_PROCESS}"

    def run(self, env: Env, calls: Sequence[ToolCall]) -> tuple[Turn, ...] | Awaitable[tuple[Turn, ...]]:
        """Make the calls of one action up to the one that ends the episode; the turns that answer them."""
        self._steps += 1
        turns: list[Turn] = []
        for i, call in enumerate(calls):
            running = self._begin(env, call)
            if inspect.isawaitable(running.result):
                return self._run_on(env, running, calls[i + 1 :], turns)
            turns.append(self._end(env, running))
            if env._finished:
                break
        return tuple(turns)

    async def _run_on(self, env: Env, running: _Running, left: Sequence[ToolCall], turns: list[Turn]) -> tuple[Turn, ...]:
        """The rest of `run`, from the first call on whose result must be waited for."""
        while True:
            if inspect.isawaitable(running.result):
                await self._wait(env, running, running.result)
            turns.append(self._end(env, running))
            if env._finished or not left:
                return tuple(turns)
            running, left = self._begin(env, left[0]), left[1:]

    def _begin(self, env: Env, call: ToolCall) -> _Running:
        """Check a call and make it; its result may still have to be waited for."""
        running = _Running(call)
        if self.journal is not None and self._recorded(env, running, self.journal):
            return running
        known = {t.name: t for t in env.tools}
        running.tool = tool = known.get(call.name)
        if call.error:
            return running.failed("malformed", call.error)
        if tool is None:
            return running.failed("unknown_tool", f"unknown tool {call.name!r}. {did_you_mean(call.name, known)}")
        try:
            arguments = tool.check(call.arguments)
        except ValueError as error:
            return running.failed("bad_arguments", str(error))
        if tool.pure:
            running.key = self._key(env, tool, call)
            if (kept := RESULTS.get(running.key)) is not None:
                running.text, running.cached = kept, True
                return running
        try:
            running.result = env.call_tool(call.name, arguments)
        except ToolError as error:
            return running.failed(error.outcome, str(error))
        except Exception as error:
            self._broken(env, running, error)
            raise
        return running

    def _recorded(self, env: Env, running: _Running, journal: Journal) -> bool:
        """Take the journal's answer, if it has one."""
        record = journal.answer(self._record(env, running), self.task, self._calls)
        if record is None:
            return False
        if record.end is not None:
            env.finish(reward=record.end[0], success=record.end[1])
        running.outcome, running.text, running.recorded = record.outcome, record.output, True
        return True

    async def _wait(self, env: Env, running: _Running, result: Awaitable[object]) -> None:
        """Wait for a result, no longer than the environment's `tool_timeout`."""
        limit = env._deadline_of(running.call.name)
        try:
            async with asyncio.timeout(limit) as deadline:
                running.result = await result
        except ToolError as error:
            running.failed(error.outcome, str(error))
        except TimeoutError as error:
            if not deadline.expired():  # what the tool itself ran into
                self._broken(env, running, error)
                raise
            running.failed("timeout", f"{running.call.name} did not answer within {limit:g} s")
        except Exception as error:
            self._broken(env, running, error)
            raise

    def _end(self, env: Env, running: _Running) -> Turn:
        """Count a call that has its result, and make the turn that shows it."""
        if running.text is None:
            limit = running.tool.max_output if running.tool else None
            running.text = to_text(running.result, limit or env.max_output)
            if running.outcome != "ok":
                running.text = f"{FAILED}{running.text}"
            elif running.key is not None and not env._finished:
                RESULTS.put(running.key, running.text)
        self._tell(env, running)
        call = running.call
        return Turn(role="tool", name=call.name, call_id=call.id, content=running.text)

    def _broken(self, env: Env, running: _Running, error: Exception) -> None:
        """A call raised what no model is to see."""
        running.outcome, running.text = "infrastructure", to_text(f"{type(error).__name__}: {error}", env.max_output)
        self._tell(env, running)

    def _tell(self, env: Env, running: _Running) -> None:
        self.outcomes[running.outcome] += 1
        if self.journal is not None and not running.recorded:
            self.journal.write(self._record(env, running), self.task, self._calls)
        self._calls += 1

    def _record(self, env: Env, running: _Running) -> CallRecord:
        call, situation = running.call, self.situation
        return CallRecord(
            name=call.name,
            arguments=call.arguments,
            error=call.error,
            outcome=running.outcome,
            output=running.text or "",
            seconds=time.perf_counter() - running.began,
            cached=running.cached,
            end=env._finished,
            episode=situation.episode if situation else "",
            rollout=self.rollout,
            step=self._steps,
        )

    def _key(self, env: Env, tool: Tool, call: ToolCall) -> Hashable:
        """What calls have in common that a pure tool answers alike."""
        scope: tuple[Hashable, ...] = (self,)  # played by hand: this episode
        if self.situation is not None:
            scope = (self.situation.options, "" if tool.pure == "global" else self.situation.facts)
        kind: Hashable = cast(Hashable, type(env))
        return kind, tool.name, canonical(call.arguments), *scope


def caller_of(env: Env) -> Caller:
    """What makes the tool calls of this environment."""
    found: Caller | None = env.__dict__.get("_caller")
    if found is None:
        found = env.__dict__["_caller"] = Caller()
    return found
