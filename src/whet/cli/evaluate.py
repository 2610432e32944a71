"""`whet eval`: an agent's score on held-out tasks."""

from __future__ import annotations

import argparse
from pathlib import Path

from whet.cli.common import SIZES, Parser, add_agent_options, count, load_agent, positive, print_table
from whet.types import SPLITS


def parser(command: str) -> Parser:
    p = Parser(command, "Evaluate an agent on tasks of a split, with intervals.")
    add_agent_options(p)
    p.add_argument("--split", choices=SPLITS, default="test")
    p.add_argument("-n", "--tasks", type=positive, default=SIZES["test_tasks"], metavar="N", help="how many tasks")
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
    from whet.report import write_report
    from whet.runs import Run

    env = load_env(args.env)
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
    if args.out:
        print(f"report: {write_report(Path(args.out))}")
