"""Monte-Carlo values of many prefixes: one batched rollout against one episode after another.

    python benchmarks/bench_values.py [--prefixes 1000] [--completions 5] [--single 100] [--rounds 3] [--json out.json]

The prefixes are those of the embedded model's own Search episodes, as IPR asks about them. One by one stands for a program that
completes one prefix at a time, with the same engine but nothing to share with; it is done for `--single` of the prefixes, spread
evenly, and compared by completions per second. Of the batch it also says how many prompt tokens were computed and how many were
copied from a session that had them, with the prefix's environment steps left out: those are taken again for each completion.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from common import machine, spread

from whet.agents import Agent
from whet.envs import load_env
from whet.policies import load_policy
from whet.rollout import rollout
from whet.rollout.values import Beginning, prefix_values


def beginnings(n: int, env: str) -> list[Beginning]:
    """The first `n` prefixes of the model's own episodes."""
    factory, found = load_env(env), list[Beginning]()
    agent, start = Agent(load_policy("base")), 0
    while len(found) < n:
        for episode in rollout(agent, factory, factory.tasks("train", n, start), progress=False):
            found += [(episode, k) for k in range(episode.n_actions)]
        start += n
    return found[:n]


def timed(asked: list[Beginning], args: argparse.Namespace, *, batched: bool) -> dict[str, float]:
    """Completions per second, and prompt tokens for each completion."""
    policy, env = load_policy("base"), load_env(args.env)
    scorer, begin, processor = Agent(policy), time.perf_counter(), time.process_time()
    if batched:
        prefix_values(scorer, env, asked, n=args.completions)
    else:
        for beginning in asked:
            for k in range(args.completions):
                prefix_values(scorer, env, [beginning], n=1, seed=k)
    n, seconds, stats = len(asked) * args.completions, time.perf_counter() - begin, policy.engine.stats
    return {
        "per_second": n / seconds,
        "core": (time.process_time() - processor) / seconds,
        "computed": stats.prefilled / n,
        "copied": stats.copied / n,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="search:hops=1-3")
    parser.add_argument("--prefixes", type=int, default=1000)
    parser.add_argument("--completions", type=int, default=5, help="of each prefix")
    parser.add_argument("--single", type=int, default=100, help="prefixes that are done one by one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    about = machine("whet", "torch")
    print(f"{about['cpu']}, {about['cores']} cores, load {about['load'][0]:.1f}; 1 thread; {args.env}")
    asked = beginnings(args.prefixes, args.env)
    some = asked[:: max(1, len(asked) // args.single)][: args.single]
    rounds = []
    for number in range(args.rounds):
        single, batch = timed(some, args, batched=False), timed(asked, args, batched=True)
        ratio = batch["per_second"] / single["per_second"]
        rounds.append({"single": single, "batched": batch, "ratio": ratio})
        print(
            f"round {number + 1}: {args.prefixes} prefixes x {args.completions} batched {batch['per_second']:.0f}/s, one by one "
            f"{single['per_second']:.1f}/s, batched / one by one {ratio:.1f}; prompt tokens computed for each completion "
            f"{batch['computed']:.0f} and {single['computed']:.0f}, copied {batch['copied']:.0f} and {single['copied']:.0f}",
            flush=True,
        )
    result = spread([r["ratio"] for r in rounds])
    print(f"batched / one by one: {result['median']:.1f} ({result['min']:.1f}-{result['max']:.1f})")
    if args.json:
        work = {key: str(value) for key, value in vars(args).items()}
        args.json.write_text(
            json.dumps({"benchmark": "values", "machine": about, "work": work, "ratio": result, "rounds": rounds}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
