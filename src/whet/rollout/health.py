"""How an environment bears training: episodes at full concurrency, timed, counted, replayed, with an eye on what they leave behind.

`examine` plays in the process that calls it; `whet preflight` calls it in a process of its own, so that memory, files and
processes are the environment's. Counts of processes, files and memory come from /proc and are None where there is none.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from random import Random
from typing import Any

from whet.agents import Agent
from whet.envs.base import Action, Env, EnvFactory
from whet.envs.probe import has, made_up
from whet.errors import WhetError
from whet.policies.base import Request
from whet.policies.scripted import ScriptedPolicy
from whet.rollout.limits import Limits
from whet.rollout.replay import Prefix
from whet.rollout.runner import rollout
from whet.seeding import derive_seed
from whet.types import Cost, Episode, Task

CHUNKS = 10
"""Rollouts that the episodes are divided into; between two of them nothing is under way, and is looked at."""
REPLAYED = 16
_SETTLE = 2.0
"""Seconds that threads and processes get to end after a rollout."""
_END = 20.0
"""Seconds that a program gets to end after it has said all that it has to say."""
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


# -- what a process holds ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Vitals:
    """What this process holds at a moment when no episode is under way."""

    episodes: int
    """Played so far."""
    processes: int | None
    """Children, and theirs."""
    files: int | None
    """Open file descriptors, sockets included."""
    threads: int
    memory: int | None
    """Resident, in bytes, without children."""
    process_memory: int | None
    """Of the children, in bytes."""
    temporary: int
    """Files and directories under the temporary directory."""


def vitals(episodes: int) -> Vitals:
    """What this process holds now."""
    gc.collect()
    proc = Path("/proc/self")
    children = descendants(os.getpid())
    return Vitals(
        episodes=episodes,
        processes=None if children is None else len(children),
        files=len(os.listdir(proc / "fd")) - 1 if proc.exists() else None,  # one is that of the listing
        threads=threading.active_count(),
        memory=_resident(os.getpid()),
        process_memory=None if children is None else sum(_resident(pid) or 0 for pid in children),
        temporary=sum(len(directories) + len(files) for _, directories, files in os.walk(tempfile.gettempdir())),
    )


def settled(episodes: int) -> Vitals:
    """The vitals once nothing ends any more: threads and processes are given a moment for it."""
    until, last = time.monotonic() + _SETTLE, vitals(episodes)
    while time.monotonic() < until:
        time.sleep(0.1)
        now = vitals(episodes)
        if (now.threads, now.processes, now.files) == (last.threads, last.processes, last.files):
            return now
        last = now
    return last


def descendants(root: int) -> list[int] | None:
    """Ids of the living processes below one; None where there is no /proc."""
    if not Path("/proc/self/stat").exists():
        return None
    below: dict[int, list[int]] = {}
    for pid, parent, _ in living():
        below.setdefault(parent, []).append(pid)
    found, open_ends = [], [root]
    while open_ends:
        children = below.get(open_ends.pop(), [])
        found += children
        open_ends += children
    return found


def living() -> Iterator[tuple[int, int, int]]:
    """Id, parent and session of every process that is not a zombie. What is waited for by nobody is held by nothing else."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                text = Path("/proc", entry, "stat").read_text(errors="replace")
            except OSError:  # it has ended meanwhile
                continue
            state, parent, _, session = text.rpartition(")")[2].split()[:4]
            if state != "Z":
                yield int(entry), int(parent), int(session)


def _resident(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return None


# -- playing -------------------------------------------------------------------------------------------------------------


class TimedFactory(EnvFactory):
    """Another factory whose environments note how long `reset` and `step` take, by the name of the task's environment."""

    inner: EnvFactory
    seconds: dict[str, dict[str, list[float]]]

    def __init__(self, inner: EnvFactory, seconds: dict[str, dict[str, list[float]]] | None = None, label: str = "") -> None:
        object.__setattr__(self, "inner", inner)
        object.__setattr__(self, "seconds", {} if seconds is None else seconds)
        object.__setattr__(self, "label", label or inner.name)
        object.__setattr__(self, "_parts", {})
        super().__init__(inner.cls, inner.options, inner.spec)

    label: str
    _parts: dict[str, TimedFactory]

    def __call__(self) -> Env:
        env = self.inner()
        kept = self.seconds.setdefault(self.label, {"reset": [], "step": []})
        for name in ("reset", "step"):
            setattr(env, name, _timed(getattr(env, name), kept[name]))
        return env

    @property
    def envs(self) -> tuple[str, ...]:
        return self.inner.envs

    def of(self, task: Task) -> EnvFactory:
        if task.env not in self._parts:
            self._parts[task.env] = TimedFactory(self.inner.of(task), self.seconds, task.env)
        return self._parts[task.env]

    def tasks(self, split: Any, n: int, start: int = 0) -> tuple[Task, ...]:
        return self.inner.tasks(split, n, start)


def _timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The function, which notes its seconds; those of what it returns, where that has to be awaited."""

    async def finish(result: Awaitable[Any], begin: float) -> Any:
        try:
            return await result
        finally:
            seconds.append(time.perf_counter() - begin)

    async def coroutine(*args: Any) -> Any:
        return await finish(function(*args), time.perf_counter())

    def plain(*args: Any) -> Any:
        begin, result = time.perf_counter(), None
        try:
            result = function(*args)
        finally:
            if not isinstance(result, Awaitable):
                seconds.append(time.perf_counter() - begin)
        return finish(result, begin) if isinstance(result, Awaitable) else result

    return coroutine if inspect.iscoroutinefunction(function) else plain


def player(policy: str) -> ScriptedPolicy:
    """Acts by the `expert`, at `random`, or `mixed`: mostly by the expert.

    Where the environment lacks one, by the other; where it has neither, by calls made up from its tools' schemas.
    """

    def act(request: Request, rng: Random) -> Action:
        env = request.env
        assert env is not None, "a rollout hands scripted policies the environment"
        expert = policy == "expert" or (policy == "mixed" and rng.random() < 0.8)
        hooks = ("expert", "random_action") if expert else ("random_action", "expert")
        found = (getattr(env, hook)(rng) for hook in hooks if has(env, hook))
        return next((action for action in found if action is not None), None) or made_up(request.tools, rng)

    return ScriptedPolicy(act, version=policy, actor=policy)


@dataclass
class Examination:
    """What came of the episodes. `to_json` gives what `whet preflight --json` writes."""

    env: str
    concurrency: int
    policy: str
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of each environment: what its class says about how it is called."""
    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Environment -> `reset` and `step` -> seconds of each call."""
    played: int = 0
    steps: int = 0
    succeeded: int = 0
    wall: float = 0.0
    """Seconds of the rollouts."""
    stops: Counter[str] = field(default_factory=Counter)
    tools: Counter[str] = field(default_factory=Counter)
    """Tool calls by outcome class."""
    errors: Counter[str] = field(default_factory=Counter)
    """Failed episodes by reason."""
    examples: dict[str, str] = field(default_factory=dict)
    """The first message of each reason."""
    vitals: list[Vitals] = field(default_factory=list)
    broken: str = ""
    """Why the rollouts were given up, if they were."""
    replayed: dict[str, list[str]] = field(default_factory=dict)
    """`here` and `elsewhere` (another process) -> what diverged."""
    n_replayed: int = 0
    sample: list[Episode] = field(default_factory=list)
    """Episodes to replay."""

    # A rollout writes to it as to a run.
    def save_episodes(self, episodes: Sequence[Episode], tag: str) -> None:
        for episode in episodes:
            self.played += 1
            self.steps += episode.cost.env_steps
            self.succeeded += episode.success
            self.stops[episode.stop.value] += 1
            self.tools.update(episode.tags.get("tools", {}))
            if not episode.ok:
                self.errors[episode.reason] += 1
                self.examples.setdefault(episode.reason, episode.error or "")
            elif episode.n_actions and sum(e.task.env == episode.task.env for e in self.sample) < REPLAYED:
                self.sample.append(episode)

    def spend(self, cost: Cost) -> None:
        """Costs are not kept."""

    def to_json(self) -> dict[str, Any]:
        record = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "sample"}
        return record | {"vitals": [asdict(v) for v in self.vitals]}


def examine(env: EnvFactory, *, episodes: int = 1000, concurrency: int = 64, policy: str = "mixed", seed: int = 0) -> Examination:
    """Play the environment's train tasks (again and again, where there are few), and look at what is left after each chunk.

    An episode that fails is not tried again, so that all failures are seen. Nothing is raised for what the environment does.
    """
    found = Examination(env.spec or env.name, concurrency, policy)
    timed = TimedFactory(env, found.seconds)
    tasks = env.tasks("train", episodes)
    limits = Limits(in_flight=concurrency, retries=0, max_error_rate=1.0)
    agent = Agent(player(policy))
    n_chunks = max(4, min(CHUNKS, episodes // concurrency))
    size = -(-episodes // n_chunks)
    for task in tasks:
        if task.env not in found.facts:
            found.facts[task.env] = facts(env.of(task).cls)
    found.vitals.append(settled(0))
    for number in range(n_chunks if tasks else 0):
        chunk = [tasks[(number * size + i) % len(tasks)] for i in range(min(size, episodes - number * size))]
        begin = time.perf_counter()
        try:
            rollout(agent, timed, chunk, seed=derive_seed(seed, number), run=found, limits=limits, tag=f"{number}", progress=False)
        except WhetError as error:
            found.broken = str(error)
            break
        finally:
            found.wall += time.perf_counter() - begin
        found.vitals.append(settled(found.played))
        print(f"{found.played} of {episodes} episodes, {sum(found.errors.values())} failed", file=sys.stderr, flush=True)
    if not tasks:
        found.broken = "it lists no train tasks"
    return found


def facts(cls: type[Env]) -> dict[str, Any]:
    """What an environment's class says about how it is called."""
    names = ("inline", "replayable", "max_concurrent", "reset_timeout", "step_timeout", "tool_timeout")
    return {name: getattr(cls, name) for name in names}


# -- replay --------------------------------------------------------------------------------------------------------------


def diverging(env: EnvFactory, episodes: Sequence[Episode]) -> list[str]:
    """What differs where the actions of these episodes are taken once more, one episode at a time; a line for each that does."""
    differences, agent = [], Agent(player("random"))
    for episode in episodes:
        prefix = Prefix.of(episode, actions=episode.n_actions)
        try:
            again = rollout(agent, env, [episode.task], prefix=[prefix], limits=Limits(retries=0), progress=False)[0]
        except WhetError as error:
            differences.append(str(error).splitlines()[0])
            continue
        before, after = ((e.stop.value, e.reason, e.reward, e.success) for e in (episode, again))
        if before != after:
            differences.append(f"task {episode.task.id!r} ended as {before}, and as {after} when the same actions were taken again")
    return differences


def elsewhere(spec: str, episodes: Sequence[Episode]) -> list[str]:
    """As `diverging`, in another process with another hash seed."""
    from whet.runs.codec import encode

    request = json.dumps({"env": spec, "episodes": [encode(episode) for episode in episodes]})
    code = f"import sys; sys.path[:] = {sys.path!r}; from whet.rollout.health import answer; answer()"
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    with tempfile.TemporaryDirectory() as directory, open(Path(directory, "error"), "w+b") as said:
        out = Path(directory, "answer.json")
        command, env = [sys.executable, "-c", code, str(out)], os.environ | {"PYTHONHASHSEED": seed}
        # no pipes to read from: the environment's own processes would inherit them, and keep them open
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said, env=env)
        ended = finish(child, request, out)
        if not out.exists():
            said.seek(0)
            last = (said.read().decode(errors="replace").strip().splitlines() or [f"it ended with {ended}"])[-1]
            return [f"another process could not replay: {last}"]
        found: list[str] = json.loads(out.read_text())
        return found


def finish(child: subprocess.Popen[bytes], request: str, out: Path) -> int | None:
    """Hand a process its request and wait until it has ended; its exit code, or None for one that had to be killed.

    That is one that does not end although it has written `out`, because of threads that are not daemons.
    """
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(request.encode())
        child.stdin.close()
    written = None
    while (code := child.poll()) is None:
        time.sleep(0.02)
        if written is None and out.exists():
            written = time.monotonic()
        if written is not None and time.monotonic() - written > _END:
            child.kill()
            child.wait()
            return None
    return code


def _write(path: str, value: Any) -> None:
    """Write JSON to a file that appears when it is complete."""
    part = Path(f"{path}.part")
    part.write_text(json.dumps(value))
    part.replace(path)


def answer() -> None:
    """The other side of `elsewhere`: reads a request from standard input, writes the differences to the file that it is given."""
    from whet.envs.registry import load_env
    from whet.runs.codec import decode

    request = json.loads(sys.stdin.read())
    found = diverging(load_env(request["env"]), [decode(text) for text in request["episodes"]])
    _write(sys.argv[1], found)


def worker() -> None:
    """The process of `whet preflight`: reads a request from standard input, writes what it found to the file that it is given."""
    from whet.envs.registry import load_env

    request = json.loads(sys.stdin.read())
    env = load_env(request["env"])
    found = examine(env, **{key: request[key] for key in ("episodes", "concurrency", "policy", "seed")})
    sample = [episode for episode in found.sample if found.facts[episode.task.env]["replayable"]]
    found.n_replayed = len(sample)
    found.replayed = {"here": diverging(env, sample), "elsewhere": elsewhere(request["env"], sample) if sample else []}
    stubborn = [t.name for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()]
    _write(sys.argv[1], found.to_json() | {"threads_left": stubborn})
