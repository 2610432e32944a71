"""What an environment is like on this machine: how many tasks, how good its expert and chance are, how fast it is."""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import statistics
from pathlib import Path
from typing import Any

from whet.agents import Agent
from whet.envs.base import Env, EnvFactory
from whet.envs.mixture import Mixture
from whet.envs.registry import load_env
from whet.errors import ConfigError, EnvError, PolicyError
from whet.evals.evaluation import evaluate
from whet.policies import load_policy
from whet.rollout import Limits, rollout
from whet.rollout.health import TimedFactory
from whet.types import SPLITS, Score, Split

ENDLESS = 10**7
"""A split that lists a task of this number is taken to have no end."""


def measure(spec: str, *, n: int = 100, timed: int = 20, seed: int = 0) -> dict[str, Any]:
    """Everything that `whet envs` says about an environment with these options, as plain JSON values.

    The expert and chance attempt `n` tasks of the first of dev, test and train that has any. `steps_per_second` is that of a single
    process: one over the median second of a step, the text that the agent sees included, from `timed` episodes one after
    the other.
    """
    env = load_env(spec)
    counts = {split: count(env, split) for split in SPLITS}
    split: Split = next(split for split in ("dev", "test", "train") if counts[split] != 0)
    record: dict[str, Any] = {"spec": spec, "tasks": counts, "split": split, "machine": machine(), "date": str(datetime.date.today())}
    for policy, hook in (("expert", "expert"), ("random", "random_action")):
        record[policy] = _success(env, policy, split, n, seed) if getattr(env.cls, hook) is not getattr(Env, hook) else None
    return record | _speed(env, "random" if record["random"] else "expert", split, timed, seed)


def count(env: EnvFactory, split: Split) -> int | None:
    """How many tasks a split has; None for no end, and 0 where the environment refuses to list any."""
    if isinstance(env, Mixture):  # which would number all tasks before a late one
        sizes = [count(part, split) for part in env.parts]
        return None if None in sizes else sum(size for size in sizes if size is not None)
    try:
        if env.tasks(split, 1, ENDLESS):
            return None
    except ConfigError:
        return 0
    size = 1024
    while len(found := env.tasks(split, size)) == size:
        size *= 4
    return len(found)


def _success(env: EnvFactory, policy: str, split: Split, n: int, seed: int) -> dict[str, Any] | None:
    """The success rate and the mean reward, each with its interval; None where there is no such policy for this environment after all."""
    try:
        found = evaluate(Agent(load_policy(policy)), env, env.tasks(split, n), seed=seed)
    except (PolicyError, EnvError) as error:
        if "has no expert here" in str(error) or "names no random actions" in str(error):
            return None
        raise
    return {"success": _plain(found.success), "reward": _plain(found.reward), "failed": found.n_errors}


def _plain(score: Score) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(score).items() if key in ("mean", "low", "high", "n")}


def _speed(env: EnvFactory, policy: str, split: Split, n: int, seed: int) -> dict[str, Any]:
    """Median milliseconds of `reset` and `step`, played one episode at a time."""
    timed = TimedFactory(env)
    tasks = env.tasks(split, n)
    limits = Limits(in_flight=1, max_error_rate=1.0)
    rollout(Agent(load_policy(policy)), timed, tasks, seed=seed, limits=limits, allow_test=True, progress=False)
    median = {what: statistics.median(call for kinds in timed.seconds.values() for call in kinds[what]) for what in ("reset", "step")}
    return {
        "reset_ms": round(1000 * median["reset"], 3),
        "step_ms": round(1000 * median["step"], 4),
        "steps_per_second": round(1 / max(median["step"], 1e-7)),
    }


def machine() -> str:
    """This machine in a line: processor, cores, memory, system, Python, and how busy it is."""
    info, cpu = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    if info.exists():
        names = (line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name"))
        cpu = next(names, cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30) if hasattr(os, "sysconf") else 0
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GB, {platform.system()}, Python {platform.python_version()}{load}"
