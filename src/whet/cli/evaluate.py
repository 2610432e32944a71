"""`whet eval`: an agent's score on held-out tasks, and a benchmark's own scores where the environment is one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from whet.cli.common import SIZES, Parser, add_agent_options, count, load_agent, positive, print_table
from whet.types import SPLITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from whet.envs.benchmark import Benchmark
    from whet.evals import Evaluation
    from whet.types import Task


def parser(command: str) -> Parser:
    p = Parser(command, "Evaluate an agent on tasks of a split, with intervals; in a benchmark, also by its own rules.")
    add_agent_options(p)
    p.add_argument("--split", choices=SPLITS, default="test")
    p.add_argument(
        "-n",
        "--tasks",
        type=positive,
        default=None,
        metavar="N",
        help=f"how many tasks (default: {SIZES['test_tasks']}, of a benchmark all that it has)",
    )
    p.add_argument("--start", type=count, default=0, metavar="N", help="number of the first task")
    p.add_argument("--repeats", type=positive, default=1, help="attempts at each task")
    p.add_argument("--seed", type=count, default=0, metavar="N")
    p.add_argument("--out", default=None, metavar="DIR", help="keep the episodes and a report there")
    p.add_argument("--resume", action="store_true", help="go on with the evaluation in --out, if there is one")
    p.add_argument("--quiet", action="store_true", help="no progress")
    return p


def main(args: argparse.Namespace) -> None:
    from whet.envs import load_env
    from whet.evals import compare, evaluate
    from whet.evals.benchmarks import benchmark_of
    from whet.report import write_report
    from whet.runs import Run

    env = load_env(args.env)
    benchmark = benchmark_of(env)
    if args.tasks is None:
        args.tasks = sum(benchmark.sizes.values()) if benchmark else SIZES["test_tasks"]
    if args.temperature is None and benchmark:
        args.temperature = benchmark.temperature
    agent = load_agent(args.model, args.temperature)
    config = {key: getattr(args, key) for key in ("env", "model", "split", "tasks", "start", "repeats", "seed", "temperature")}
    if args.out:
        run = Run.create(args.out, config, resume=args.resume, quiet=args.quiet)
    else:
        run = Run.scratch(args.seed, quiet=args.quiet)
    with run:
        tasks = env.tasks(args.split, args.tasks, args.start)
        evaluation = evaluate(agent, env, tasks, repeats=args.repeats, seed=run.seed("evaluation"), run=run, name="final")
    print_table(compare({args.model: [evaluation]}, {}))
    if benchmark:
        print_benchmark(benchmark, tasks, evaluation, args.out)
    if args.out:
        print(f"report: {write_report(Path(args.out))}")


def print_benchmark(benchmark: Benchmark, tasks: Sequence[Task], evaluation: Evaluation, out: str | None) -> None:
    """The benchmark's table on stdout, and what it says as `benchmark.json` in the directory `out`, if there is one."""
    import sys

    from rich.console import Console

    from whet.evals.benchmarks import score_benchmark
    from whet.runs.files import write_atomic

    report = score_benchmark(benchmark, tasks, evaluation)
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=160)
    console.print(report.table())
    console.print("\n".join(report.notes()))
    if out:
        write_atomic(Path(out) / "benchmark.json", json.dumps(report.to_json(), indent=1))
