"""The contract of an environment, as something that runs: `check_env(factory)` says what is broken and how to mend it.

    print(check_env("path/to/file.py:MyEnv"))

Every problem names the environment, the check, the value that was found and the fix. Errors break methods or falsify
results; warnings cost speed or clarity.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

from whet.envs.base import Action, Env, EnvFactory
from whet.envs.probe import Bench, Finding, Found, Hang, Skip, Worker, difference, has, readable, repeat, show, through_json, wrong
from whet.errors import EnvError
from whet.tools.function import Tool
from whet.types import Task, ToolCall

SLOW_MS = 10.0
"""An inline step above this holds up every other episode."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken clause of the contract."""

    env: str
    check: str
    message: str
    fix: str
    warning: bool = False

    def __str__(self) -> str:
        return f"{self.env}: {self.check}: {self.message}. {self.fix}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What `check_env` found."""

    env: str
    problems: tuple[Problem, ...]
    passed: tuple[str, ...]
    skipped: Mapping[str, str]
    """Check -> why it could not be made."""
    step_ms: float
    """Median of plain steps."""
    expert_success: float | None
    """Share of tasks that the expert solved; None without an expert."""

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(p for p in self.problems if not p.warning)

    @property
    def warnings(self) -> tuple[Problem, ...]:
        return tuple(p for p in self.problems if p.warning)

    @property
    def ok(self) -> bool:
        """Whether there are no errors; warnings may remain."""
        return not self.errors

    def raise_errors(self) -> None:
        """Raises EnvError with every error, if there is one."""
        if self.errors:
            raise EnvError("\n".join(map(str, self.errors)))

    def __str__(self) -> str:
        expert = "no expert" if self.expert_success is None else f"expert solves {self.expert_success:.0%}"
        lines = [f"{self.env}: {'keeps' if self.ok else 'breaks'} the contract ({self.step_ms:.2f} ms a step, {expert})"]
        lines += [f"  passed   {name}" for name in self.passed]
        lines += [f"  skipped  {name}: {why}" for name, why in self.skipped.items()]
        lines += [f"  {'warning' if p.warning else 'ERROR  '}  {p.check}: {p.message}. {p.fix}" for p in self.problems]
        return "\n".join(lines)


def check_env(
    env: EnvFactory | type[Env] | str, *, tasks: int = 8, processes: bool = True, deadline: float = 10.0, expert_success: float = 0.9
) -> Report:
    """Try everything that methods rely on, on `tasks` tasks of each split.

    `env` may also be a class or what `load_env` takes. `processes` compares with a second Python process (about a
    second); `deadline` is how many seconds a call may take; `expert_success` is the share of tasks that an expert must
    solve within `max_turns`. Problems are returned, not raised: see `Report.raise_errors`.
    """
    if isinstance(env, str):
        from whet.envs.registry import load_env

        env = load_env(env)
    factory = env if isinstance(env, EnvFactory) else EnvFactory(env)
    bench = Bench(factory, tasks, Worker(deadline), processes, expert_success)
    problems: list[Problem] = []
    passed: list[str] = []
    skipped: dict[str, str] = {}
    broken = ""
    for name, check in CHECKS.items():
        if broken:
            skipped[name] = f"{broken} failed"
            continue
        findings: list[Finding] = []
        try:
            findings.extend(check(bench))
        except Found as found:
            findings.append(found.finding)
        except Skip as skip:
            skipped[name] = str(skip)
            continue
        except Hang as hang:
            fix = "Give what it waits for a time limit of its own."
            findings.append(Finding(f"{hang} did not answer within {deadline:g} s", fix))
            broken = name
        problems += [Problem(factory.name, name, *finding) for finding in dict.fromkeys(findings)]
        if all(finding.warning for finding in findings):
            passed.append(name)
        elif name in FUNDAMENTAL:
            broken = name
    bench.worker.stop()
    steps = bench.worker.seconds.get("step", [])
    return Report(
        env=factory.name,
        problems=tuple(problems),
        passed=tuple(passed),
        skipped=skipped,
        step_ms=1000 * statistics.median(steps) if steps else 0.0,
        expert_success=bench.expert_success,
    )


def _construction(bench: Bench) -> Iterator[Finding]:
    env = bench.make()
    for attribute, low in (("max_turns", 1), ("max_tokens", 1)):
        value = getattr(env, attribute)
        if type(value) is not int or value < low:
            yield Finding(f"{attribute} is {value!r}", f"Set it to a whole number of at least {low}.")
    for attribute in ("name", "instructions"):
        if not isinstance(getattr(env, attribute), str):
            yield Finding(f"{attribute} is {getattr(env, attribute)!r}", "Set it to a string.")
    for attribute in ("replayable", "inline"):
        if not isinstance(getattr(env, attribute), bool):
            yield Finding(f"{attribute} is {getattr(env, attribute)!r}", "Set it to True or False.")
    bench.worker.call("close", env.close, fix="close must work before reset, too: an episode may fail before it begins.")


def _tasks(bench: Bench) -> Iterator[Finding]:
    listed: list[Task] = []
    for split in bench.splits:
        tasks = bench.tasks(split, bench.n)
        if not tasks:
            yield Finding(f"split {split!r} has no tasks", "Give each split some tasks.", warning=split != bench.main)
        if len(tasks) > bench.n:
            yield Finding(f"tasks({split!r}, {bench.n}) returned {len(tasks)} tasks", "Return at most n.")
        for task in tasks:
            if not isinstance(task, Task):
                raise Found(f"tasks({split!r}, {bench.n}) holds a {type(task).__name__}", "Return a list of whet.Task.")
            if task.split != split or task.env not in bench.factory.envs:
                fix = f"Set split={split!r} and env=self.name ({' or '.join(map(repr, bench.factory.envs))})."
                raise Found(f"task {task.id!r} has split {task.split!r} and env {task.env!r}", fix)
            if (data := through_json(task.data)) != dict(task.data):
                fix = "Keep only strings, numbers, booleans, None, lists and dicts with string keys in it."
                raise Found(f"data of task {task.id!r} do not survive JSON: {data if isinstance(data, str) else task.data!r:.200}", fix)
        if tasks != bench.tasks(split, bench.n):
            yield Finding(f"tasks({split!r}, {bench.n}) returned other tasks when asked again", "Derive tasks from their index alone.")
        elif tasks[1:] != bench.tasks(split, max(0, len(tasks) - 1), 1):
            told = f"tasks({split!r}, n, start=1) is not tasks({split!r}, n + 1) without its first"
            yield Finding(told, "Let start skip tasks without changing them.")
        listed += tasks
    yield from _shared(listed)


def _shared(tasks: list[Task]) -> Iterator[Finding]:
    """Tasks that are the same by id, or by seed and data; the first pair of each kind."""
    kinds: tuple[tuple[str, Callable[[Task], str]], ...] = (
        ("the id {0.id!r}", lambda task: task.id),
        ("the seed {0.seed} and their data", lambda task: json.dumps([task.env, task.seed, task.data], sort_keys=True, default=dict)),
    )
    for what, key in kinds:
        first: dict[str, Task] = {}
        for task in tasks:
            if (other := first.setdefault(key(task), task)) is not task:
                told = f"two tasks share {what.format(task)}: {other.id!r} of {other.split} and {task.id!r} of {task.split}"
                yield Finding(told, "Derive ids and seeds from the split's name and the index, as Env.tasks does.")
                break


def _tools(bench: Bench) -> Iterator[Finding]:
    env = bench.make()
    tools = bench.worker.call("tools", lambda: env.tools, fix="Annotate every argument of a @tool method.")
    if not tools and type(env).step is Env.step:
        yield Finding("there are neither tools nor a step", "Mark methods with @tool, or define step(self, action).")
    for tool in tools:
        if not isinstance(tool, Tool):
            raise Found(f"tools holds a {type(tool).__name__}", "Return the Tool of each @tool method, as Env.tools does.")
        if isinstance(through_json(tool.schema()), str):
            yield Finding(f"the schema of tool {tool.name!r} is not JSON", "Give its arguments types and defaults that JSON can hold.")
        if not tool.description:
            yield Finding(f"tool {tool.name!r} has no description", "Write a docstring; the model sees nothing else.", True)


def _reset(bench: Bench) -> tuple[()]:
    for split in bench.splits:
        for task in bench.tasks(split, 2):
            env = bench.make()
            bench.reset(env, task)
            for _ in range(2):
                bench.worker.call("close", env.close, fix="close must be harmless when called twice.")
    return ()


def _steps(bench: Bench) -> tuple[()]:
    for i, task in enumerate(bench.tasks(bench.main, bench.n)):
        bench.traces.append(bench.play(task, bench.actor(i)))
    return ()


def _bad_actions(bench: Bench) -> Iterator[Finding]:
    task = bench.tasks(bench.main, 1)[0]
    for action in wrong(bench.make().tools):
        env = bench.make()
        bench.reset(env, task)
        step = bench.step(env, action)
        if step.success or (step.reward > 0 and env.tools):
            yield Finding(f"a bad action was rewarded with {step.reward:g} ({show(action)})", "Pay only for what the task asks for.")
        elif not step.observation and not (step.terminated or step.truncated):
            yield Finding(f"a bad action got an empty observation ({show(action)})", "Tell the agent what it did wrong.")
        bench.worker.call("close", env.close, fix="close must work in the middle of an episode.")


def _after_the_end(bench: Bench) -> Iterator[Finding]:
    trace = next((t for t in bench.traces if t.done), None)
    if trace is None or not bench.make().replayable:
        raise Skip("no episode that can be repeated came to an end")
    fix = "Raise EnvError when step is called after the end."
    env = bench.make()
    bench.reset(env, trace.task)
    for action in trace.actions:
        bench.step(env, action)
    try:
        step = bench.step(env, trace.actions[-1])
    except Found as found:
        if not isinstance(found.__cause__, EnvError):
            yield Finding(f"after the end, {found.finding.message}", fix, warning=True)
        return
    if step.reward or not (step.terminated or step.truncated):
        told = f"step goes on after the end (reward {step.reward:g}, terminated {step.terminated})"
        yield Finding(told, fix, warning=True)


def _replay(bench: Bench) -> Iterator[Finding]:
    if not bench.make().replayable:
        raise Skip("replayable is False")
    for trace in bench.traces:
        again = bench.play(trace.task, repeat(trace.actions))
        if where := difference(trace.seen, again.seen):
            fix = "Draw everything from random.Random(task.seed), keep state on self only, or set replayable = False."
            yield Finding(f"the same task ({trace.task.id}) and actions gave another episode: {where}", fix)
            return


def _independence(bench: Bench) -> Iterator[Finding]:
    if not bench.make().replayable or len(bench.traces) < 2:
        raise Skip("needs two episodes that can be repeated")
    pair = bench.traces[:2]
    envs = [bench.make() for _ in pair]
    seen = [[readable(bench.reset(env, trace.task))] for env, trace in zip(envs, pair)]
    for i in range(max(len(trace.actions) for trace in pair)):
        for env, trace, told in zip(envs, pair, seen):
            if i < len(trace.actions):
                step = bench.step(env, trace.actions[i])
                told.append([readable(step.observation), step.reward, step.terminated, step.truncated, step.success])
    for trace, told in zip(pair, seen):
        if where := difference(trace.seen, told):
            fix = "Keep an episode's state on self, never on the class or in a module."
            yield Finding(f"two episodes at once disturb each other (task {trace.task.id}): {where}", fix)
            return


def _expert(bench: Bench) -> Iterator[Finding]:
    env = bench.make()
    if not has(env, "expert"):
        raise Skip("it has none")
    fix = "expert must know what to do in every state."
    unsolved = []
    tasks = bench.tasks(bench.main, bench.n)
    for i, task in enumerate(tasks):
        rng = random.Random(i)
        trace = bench.play(task, lambda env, rng=rng: bench.worker.call("expert", env.expert, rng, fix=fix))  # type: ignore[misc]
        if not trace.success:
            ended = "ended without success" if trace.done else f"was not done after {len(trace.actions)} of {env.max_turns} turns"
            unsolved.append(f"{task.id} {ended}")
    bench.expert_success = 1 - len(unsolved) / len(tasks)
    if bench.expert_success < bench.needed:
        told = f"the expert solves {len(tasks) - len(unsolved)} of {len(tasks)} tasks ({unsolved[0]})"
        yield Finding(told, "Mend the expert, raise max_turns, or let step report success.")


def _speed(bench: Bench) -> Iterator[Finding]:
    if not bench.make().inline:
        raise Skip("inline is False")
    for what in ("reset", "step"):
        seconds = bench.worker.seconds.get(what)
        if seconds and (ms := 1000 * statistics.median(seconds)) > SLOW_MS:
            fix = f"Every episode waits for it; set inline = False, which runs it on a thread, or make it faster than {SLOW_MS:g} ms."
            yield Finding(f"{what} takes {ms:.0f} ms", fix, warning=True)


def _other_process(bench: Bench) -> Iterator[Finding]:
    if not bench.processes:
        raise Skip("not asked for")
    cls = bench.factory.cls
    if not bench.factory.spec and ("<locals>" in cls.__qualname__ or cls.__module__ == "__main__"):
        raise Skip("the class cannot be imported by another process")
    options = dict(bench.factory.options)
    if through_json(options) != options and not bench.factory.spec:
        raise Skip("the options do not survive JSON")
    replayable = bench.make().replayable
    request = {
        "spec": bench.factory.spec,
        "module": cls.__module__,
        "name": cls.__qualname__,
        "options": {} if bench.factory.spec else options,
        "n": bench.n,
        "actions": [[asdict(a) for a in trace.actions] for trace in bench.traces] if replayable else [],
    }
    code = f"import sys; sys.path[:] = {sys.path!r}; from whet.envs.check import answer; answer()"
    hash_seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    told = {"input": json.dumps(request, default=dict), "env": os.environ | {"PYTHONHASHSEED": hash_seed}}
    try:
        child = subprocess.run([sys.executable, "-c", code], **told, capture_output=True, text=True, timeout=120)  # type: ignore[call-overload]
    except subprocess.TimeoutExpired as error:
        raise Hang("another process") from error
    if child.returncode:
        raise Found(f"another process failed: {child.stderr.strip().splitlines()[-1]}", "Let the module be imported without side effects.")
    tasks, seen = json.loads(child.stdout.splitlines()[-1])
    if where := difference(through_json([asdict(t) for s in bench.splits for t in bench.tasks(s, bench.n)]), tasks):
        fix = "Use neither hash() nor the order of sets; whet.seeding.derive_seed gives the same seed everywhere."
        yield Finding(f"another process lists other tasks: {where}", fix)
        return
    for trace, told in zip(bench.traces, seen):
        if where := difference(through_json(trace.seen), told):
            fix = "Use neither hash(), nor the order of sets, nor the time, or set replayable = False."
            yield Finding(f"another process plays another episode (task {trace.task.id}): {where}", fix)
            return


CHECKS: dict[str, Callable[[Bench], Iterable[Finding]]] = {
    "construction": _construction,
    "tasks": _tasks,
    "tools": _tools,
    "reset": _reset,
    "step": _steps,
    "bad actions": _bad_actions,
    "after the end": _after_the_end,
    "replay": _replay,
    "independence": _independence,
    "expert": _expert,
    "speed": _speed,
    "processes": _other_process,
}


FUNDAMENTAL = ("construction", "tasks", "tools", "reset", "step")
"""Checks that the later ones build on: when one fails, those would only repeat its message."""


def answer() -> None:
    """The other side of the check `processes`: reads a request from standard input, prints tasks and episodes."""
    request = json.loads(sys.stdin.read())
    if request["spec"]:
        from whet.envs.registry import load_env

        factory = load_env(request["spec"])
    else:
        factory = EnvFactory(getattr(importlib.import_module(request["module"]), request["name"]), request["options"])
    bench = Bench(factory, request["n"], Worker(60.0), False, 0.0)
    tasks = [asdict(task) for split in bench.splits for task in bench.tasks(split, bench.n)]
    seen = []
    for task, actions in zip(bench.tasks(bench.main, bench.n), request["actions"]):
        done = [Action(text=a["text"], tool_calls=tuple(ToolCall(**call) for call in a["tool_calls"])) for a in actions]
        seen.append(bench.play(task, repeat(done)).seen)
    print("\n" + json.dumps([tasks, seen], default=dict))
