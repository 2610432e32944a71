"""What `check_env` tries environments with: a worker that survives hangs, episodes that are played, actions made up."""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from whet.envs.base import Action, Env, EnvFactory, Step
from whet.tools.function import Tool
from whet.types import Split, Task, ToolCall, Turn

GARBAGE = ("", "qwerty asdf", '\x00\u2603 {"name": [}', "word " * 500)


class Finding(NamedTuple):
    """What is wrong, with the value, and what to do about it."""

    message: str
    fix: str
    warning: bool = False


class Found(Exception):
    """A finding that ends its check."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.finding = Finding(message, fix)


class Skip(Exception):
    """Why a check cannot be made."""


class Hang(Exception):
    """The environment did not answer; nothing more can be asked of it."""


class Worker:
    """Runs plain functions and coroutines of environments on one thread with one loop, so that a hang can be survived."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.seconds: dict[str, list[float]] = {}
        """Of plain functions, by what they are."""
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="check_env", daemon=True).start()

    def call(self, what: str, function: Callable[..., Any], *args: Any, fix: str) -> Any:
        """The function's result, awaited where it is awaitable. Raises Found where it raises, Hang where it hangs."""

        async def run() -> Any:
            begin = time.perf_counter()
            result = function(*args)
            if isinstance(result, Awaitable):
                return await result
            self.seconds.setdefault(what, []).append(time.perf_counter() - begin)
            return result

        begin = time.monotonic()
        future = asyncio.run_coroutine_threadsafe(run(), self._loop)
        try:
            return future.result(self.deadline)
        except Exception as error:
            if isinstance(error, TimeoutError) and time.monotonic() - begin >= self.deadline:
                raise Hang(what) from error
            frame = traceback.extract_tb(error.__traceback__)[-1]
            at = f"{os.path.basename(frame.filename)} line {frame.lineno}"
            raise Found(f"{what} raised {type(error).__name__}: {error} ({at})", fix) from error

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)


@dataclass
class Trace:
    """An episode that was played: what was done and what came back."""

    task: Task
    seen: list[Any] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    done: bool = False
    success: bool = False


@dataclass
class Bench:
    """What the checks share."""

    factory: EnvFactory
    n: int
    worker: Worker
    processes: bool
    needed: float
    traces: list[Trace] = field(default_factory=list)
    expert_success: float | None = None

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that the environment has."""
        return self.factory.cls.splits

    @property
    def main(self) -> Split:
        """The split whose tasks are played: train, where there is one."""
        return "train" if "train" in self.splits else self.splits[0]

    def make(self) -> Env:
        env = self.worker.call("__init__", self.factory, fix="An environment must be made without arguments beyond its options.")
        if not isinstance(env, Env):
            raise Found(f"the factory made a {type(env).__name__}", "Subclass whet.Env.")
        return env

    def tasks(self, split: Split, n: int, start: int = 0) -> list[Task]:
        fix = "tasks(split, n, start) must work before reset and list fewer tasks where there are fewer."
        return list(self.worker.call("tasks", self.make().tasks, split, n, start, fix=fix))

    def reset(self, env: Env, task: Task) -> str | tuple[Turn, ...]:
        seen = self.worker.call("reset", env.reset, task, fix=f"reset must accept every task that tasks() lists, such as {task.id!r}.")
        if problem := _observation_problem("reset", seen):
            raise Found(problem.message, problem.fix)
        return seen  # type: ignore[no-any-return]

    def step(self, env: Env, action: Action) -> Step:
        told = f"the action was {show(action)}"
        fix = f"What an agent does wrong must come back as an observation, not as an exception ({told})."
        step = self.worker.call("step", env.step, action, fix=fix)
        for problem in _step_problems(step):
            raise Found(f"{problem.message} ({told})", problem.fix)
        return step  # type: ignore[no-any-return]

    def play(self, task: Task, act: Callable[[Env], Action | None], limit: int | None = None) -> Trace:
        """An episode to its end or to the turn limit."""
        env, trace = self.make(), Trace(task)
        trace.seen.append(readable(self.reset(env, task)))
        for _ in range(limit or env.max_turns):
            action = act(env)
            if action is None:
                break
            step = self.step(env, action)
            trace.actions.append(action)
            trace.seen.append([readable(step.observation), step.reward, step.terminated, step.truncated, step.success])
            if step.terminated or step.truncated:
                trace.done, trace.success = True, step.success
                break
        self.worker.call("close", env.close, fix="close must work after an episode.")
        return trace

    def actor(self, seed: int) -> Callable[[Env], Action | None]:
        """Sensible actions: the expert's with slips, else random ones, else calls made up from the tools' schemas."""
        rng = random.Random(seed)

        def act(env: Env) -> Action | None:
            action = None
            if has(env, "expert") and rng.random() < 0.8:
                action = self.worker.call("expert", env.expert, rng, fix="expert must know what to do in every state.")
            if action is None and has(env, "random_action"):
                action = self.worker.call("random_action", env.random_action, rng, fix="random_action must work in every state.")
            action = made_up(env.tools, rng) if action is None else action
            if not isinstance(action, Action):
                raise Found(f"expert or random_action returned a {type(action).__name__}", "Return an Action or None.")
            return action

        return act


def repeat(actions: Sequence[Action]) -> Callable[[Env], Action | None]:
    left = iter(actions)
    return lambda env: next(left, None)


def has(env: Env, hook: str) -> bool:
    return getattr(type(env), hook) is not getattr(Env, hook)


def show(action: Action) -> str:
    if not action.tool_calls:
        return f"text {action.text[:40]!r}"
    call = action.tool_calls[0]
    return f"call {call.name}({json.dumps(dict(call.arguments), default=str)[:60]})" + (f" with error {call.error!r}" if call.error else "")


def readable(observation: str | tuple[Turn, ...]) -> Any:
    return observation if isinstance(observation, str) else [[t.role, t.name, t.content] for t in observation]


def through_json(value: Any) -> Any:
    """The value after a round through JSON, or the error's text where it does not get through."""
    try:
        return json.loads(json.dumps(value, default=_mapping))
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def _mapping(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} {value!r:.80} is not JSON")


def difference(expected: Any, found: Any) -> str:
    """Where two lists first differ; empty where they do not."""
    for i, (a, b) in enumerate(zip(expected, found)):
        if a != b:
            return f"at {i}, {a!r:.120} became {b!r:.120}"
    return f"{len(expected)} steps became {len(found)}" if len(expected) != len(found) else ""


def _observation_problem(what: str, seen: Any) -> Finding | None:
    if isinstance(seen, str):
        return None if seen or what != "reset" else Finding("reset returned an empty string", "Return what the agent sees first.")
    if not isinstance(seen, tuple) or not all(isinstance(turn, Turn) for turn in seen):
        return Finding(f"{what} returned {type(seen).__name__} {seen!r:.60} as observation", "Return a str, or a tuple of whet.Turn.")
    if any(turn.role == "assistant" or turn.tokens for turn in seen):
        return Finding(f"{what} returned an assistant's turn or tokens", "Leave both to the policy; use the roles system, user and tool.")
    return None if seen or what != "reset" else Finding("reset returned no turns", "Return what the agent sees first.")


def _step_problems(step: Any) -> Iterator[Finding]:
    if not isinstance(step, Step):
        yield Finding(f"step returned {type(step).__name__} {step!r:.60}", "Return a whet.envs.Step.")
        return
    if problem := _observation_problem("step", step.observation):
        yield problem
    if (
        isinstance(step.reward, bool)
        or not isinstance(step.reward, (int, float))
        or step.reward != step.reward
        or abs(step.reward) == float("inf")
    ):
        yield Finding(f"the reward is {step.reward!r} of type {type(step.reward).__name__}", "Make it a finite float.")
    for flag in ("terminated", "truncated", "success"):
        if type(getattr(step, flag)) is not bool:
            yield Finding(f"{flag} is {getattr(step, flag)!r} of type {type(getattr(step, flag)).__name__}", "Make it True or False.")
    if step.terminated and step.truncated:
        yield Finding(
            "a step is both terminated and truncated", "The first is the task's own end, the second a cut from outside; choose one."
        )
    if step.success and not (step.terminated or step.truncated):
        yield Finding("a step reports success, but the episode goes on", "Set success on the last step only, together with terminated.")
    if not isinstance(step.info, Mapping) or isinstance(through_json(step.info), str):
        fix = "It is stored with the episode; keep only strings, numbers, booleans, lists and dicts in it."
        yield Finding(f"info is not JSON: {step.info!r:.80}", fix)


def wrong(tools: tuple[Tool, ...]) -> Iterator[Action]:
    """Answers that an untrained model gives."""
    for text in GARBAGE:
        yield Action(text=text)
    calls = [ToolCall(name="no_such_tool"), ToolCall(name="", error="the tool call is not valid JSON")]
    for tool in tools:
        properties = list(tool.parameters.get("properties", ()))
        if tool.parameters.get("required"):
            calls.append(ToolCall(name=tool.name))
            calls.append(ToolCall(name=tool.name, arguments={name: {"x": [None]} for name in properties}))
        calls.append(ToolCall(name=tool.name, arguments={"no_such_argument": 1}))
    for call in calls:
        yield Action(tool_calls=(call,))


def made_up(tools: tuple[Tool, ...], rng: random.Random) -> Action:
    """A call with arguments of the right types, or some text where there are no tools."""
    if not tools:
        return Action(text=rng.choice(("yes", "no", "1", "look")))
    tool = rng.choice(tools)
    definitions = tool.parameters.get("$defs", {})
    arguments = {name: _value(spec, definitions, rng) for name, spec in tool.parameters.get("properties", {}).items()}
    return Action(tool_calls=(ToolCall(name=tool.name, arguments=arguments, id="call_0"),))


def _value(spec: Mapping[str, Any], definitions: Mapping[str, Any], rng: random.Random) -> Any:
    """A value of a JSON schema."""
    if "$ref" in spec:
        return _value(definitions[spec["$ref"].rpartition("/")[2]], definitions, rng)
    if "enum" in spec:
        return rng.choice(spec["enum"])
    if "const" in spec:
        return spec["const"]
    for union in ("anyOf", "oneOf", "allOf"):
        if union in spec:
            return _value(rng.choice(spec[union]), definitions, rng)
    kinds: dict[str, Callable[[], Any]] = {
        "integer": lambda: rng.randint(0, 9),
        "number": lambda: round(rng.random() * 10, 1),
        "boolean": lambda: rng.random() < 0.5,
        "null": lambda: None,
        "array": lambda: [_value(spec.get("items", {}), definitions, rng) for _ in range(rng.randint(0, 2))],
        "object": lambda: {key: _value(part, definitions, rng) for key, part in spec.get("properties", {}).items()},
    }
    return kinds.get(spec.get("type", ""), lambda: rng.choice(("one", "two", "red", "lamp")))()
