"""How busy the decode engine is while hundreds of episodes wait for slow tools.

    python benchmarks/bench_latency.py [--in-flight 512] [--latency 0.2] [--episodes 2048] [--json out.json]

Episodes are whet's Search questions, with tools that are coroutines and wait (`asyncio.sleep`) before they answer. The engine
is busy while it computes (`Engine._step`: admission, forward pass, sampling); it is idle while nobody asks for a turn, and
while the thread that it shares with the episodes does something else, such as reading answers. The share is taken

    whole     from the first decode step to the last; the end counts, when few episodes are left;
    steady    from the first decode step to the moment at which the last episode begins, so with all places taken;
    unshared  like whole, but in processor seconds, of the thread in decode steps by those of the thread altogether and the
              seconds that it slept. What other programs took does not count, so this is the figure of a machine of one's own.

An engine that is busy may still waste its time, on small batches or on conversations that it computes again because they
lost their place in its cache. So every round is paired with one without latency, and the benchmark also gives the ratio of
their tokens per second, tokens per step, and prompt tokens computed per episode.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import machine, spread

from whet.agents import Agent
from whet.envs.base import Env, EnvFactory
from whet.envs.search import Search
from whet.policies import load_policy
from whet.policies.engine import Engine
from whet.rollout import Limits, rollout
from whet.tools.function import tool
from whet.types import Task


class SlowSearch(Env):
    """Search's questions and tools, each of which answers after `latency` seconds."""

    instructions = Search.instructions
    max_turns = Search.max_turns
    max_tokens = Search.max_tokens
    begun: list[float] = []  # noqa: RUF012
    """When the episodes began, in order."""

    def __init__(self, latency: float = 0.2) -> None:
        self._search = Search()
        self._latency = latency

    def reset(self, task: Task) -> str:
        SlowSearch.begun.append(time.perf_counter())
        return self._search.reset(task)

    @tool
    async def search(self, query: str) -> str:
        """Read the page of a person."""
        await asyncio.sleep(self._latency)
        return self._search.search(query)

    @tool
    async def answer(self, text: str) -> str:
        """Give the final answer."""
        await asyncio.sleep(self._latency)
        return self.finish("", reward=float(text.strip() == self._search.question.answer))


class Watch:
    """Notes when an engine computes."""

    def __init__(self, engine: Engine) -> None:
        self.steps: list[tuple[float, float]] = []
        self.computed = self.slept = 0.0
        """Processor seconds in decode steps, and seconds in which the event loop had nothing to do."""
        self._engine, self._step = engine, engine._step
        self._first = self._last = 0.0
        """What the thread's processor clock said when the first step began and when the last one ended."""
        engine._step = self._timed  # type: ignore[method-assign]

    def _timed(self) -> bool:
        if not self.steps:
            self._watch_sleep(asyncio.get_running_loop())
            self._first = time.thread_time()
        begin, processor = time.perf_counter(), time.thread_time()
        try:
            return self._step()
        finally:
            self._last = time.thread_time()
            self.computed += self._last - processor
            self.steps.append((begin, time.perf_counter()))

    def _watch_sleep(self, loop: Any) -> None:
        select = loop._selector.select

        def timed(timeout: float | None = None) -> Any:
            begin = time.perf_counter()
            try:
                return select(timeout)
            finally:
                self.slept += time.perf_counter() - begin

        loop._selector.select = timed

    @property
    def unshared(self) -> float:
        """The share of time in which the engine would have computed, had nobody else had the processor."""
        return self.computed / (self._last - self._first + self.slept)

    def busy(self, until: float = float("inf")) -> float:
        """Share of the time from the first step to the last one that began before `until` in which the engine computed."""
        steps = [step for step in self.steps if step[0] < until]
        return sum(end - begin for begin, end in steps) / (steps[-1][1] - steps[0][0])


@dataclass(frozen=True)
class Report:
    """One rollout. Times are wall-clock seconds."""

    seconds: float
    whole: float
    steady: float
    unshared: float
    tokens_per_second: float
    """Sampled, from the first step to the last."""
    tokens_per_step: float
    prompt_per_episode: float
    copied_per_episode: float
    evicted: int
    turns: float
    success: float
    processor: float
    """Processor seconds by wall seconds: below 1, somebody else had the core (with one thread)."""


def measure(args: argparse.Namespace, latency: float) -> Report:
    """One rollout with an engine of its own."""
    policy = load_policy(args.model)
    if args.sessions:
        policy = replace(policy, max_sessions=args.sessions)
    engine = policy.engine
    watch = Watch(engine)
    env = EnvFactory(SlowSearch, {"latency": latency})
    SlowSearch.begun.clear()
    limits = Limits(in_flight=args.in_flight)
    begin, processor = time.perf_counter(), time.process_time()
    episodes = rollout(Agent(policy), env, env.tasks("train", args.episodes), limits=limits, progress=False)
    seconds, processor = time.perf_counter() - begin, time.process_time() - processor
    assert all(episode.ok for episode in episodes)
    n, stats = len(episodes), engine.stats
    return Report(
        seconds=seconds,
        whole=watch.busy(),
        steady=watch.busy(SlowSearch.begun[-1]),
        unshared=watch.unshared,
        tokens_per_second=stats.sampled / (watch.steps[-1][1] - watch.steps[0][0]),
        tokens_per_step=stats.sampled / stats.steps,
        prompt_per_episode=stats.prefilled / n,
        copied_per_episode=stats.copied / n,
        evicted=stats.evicted,
        turns=statistics.fmean(episode.n_actions for episode in episodes),
        success=statistics.fmean(episode.success for episode in episodes),
        processor=processor / seconds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base")
    parser.add_argument("--in-flight", type=int, default=512, help="episodes at once")
    parser.add_argument("--episodes", type=int, default=2048)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds that a tool takes to answer")
    parser.add_argument("--sessions", type=int, help="conversations that the engine's cache holds (default: the policy's)")
    parser.add_argument("--rounds", type=int, default=3, help="pairs that are measured, after one to warm up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    about = machine("whet", "torch")
    print(f"{about['cpu']}, {about['cores']} cores, load {about['load'][0]:.1f}; {args.threads} thread(s), model {args.model}")
    print(f"{args.episodes} episodes, {args.in_flight} in flight, tools take {args.latency:g} s; beside it the same without latency")
    heads = ("busy whole", "steady", "unshared", "tokens/s", "at 0 s", "ratio", "per step", "prompt", "evicted", "core")
    print(" " * 9 + "".join(f"{head:>11}" for head in heads))
    rounds = []
    for number in range(args.rounds + 1):
        slow, fast = measure(args, args.latency), measure(args, 0.0)
        ratio = slow.tokens_per_second / fast.tokens_per_second
        if number:
            rounds.append({"slow": asdict(slow), "fast": asdict(fast), "ratio": ratio})
        cells = (
            f"{slow.whole:.1%}",
            f"{slow.steady:.1%}",
            f"{slow.unshared:.1%}",
            f"{slow.tokens_per_second:,.0f}",
            f"{fast.tokens_per_second:,.0f}",
            f"{ratio:.2f}",
            f"{slow.tokens_per_step:.0f}",
            f"{slow.prompt_per_episode:.0f}",
            f"{slow.evicted:,}",
            f"{slow.processor:.0%}",
        )
        print(f"{f'round {number}' if number else 'warm-up':<9}" + "".join(f"{cell:>11}" for cell in cells), flush=True)
    result = {
        key: spread([r["slow"][key] for r in rounds]) for key in ("whole", "steady", "unshared", "tokens_per_second", "tokens_per_step")
    }
    result["ratio"] = spread([r["ratio"] for r in rounds])
    for key in ("whole", "unshared"):
        print(f"busy, {key}: {result[key]['median']:.1%} ({result[key]['min']:.1%}-{result[key]['max']:.1%})")
    if args.json:
        work = {key: str(value) for key, value in vars(args).items()}
        args.json.write_text(
            json.dumps({"benchmark": "latency", "machine": about, "work": work, **result, "rounds": rounds}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
