"""`whet run METHOD`: improve an agent with one method, and evaluate it on held-out tasks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.cli.common import (
    SIZES,
    Parser,
    add_agent_options,
    add_general_option,
    add_size_options,
    count,
    general,
    load_agent,
    make_data,
    note_untuned,
    positive,
    preset,
    print_table,
    save_agent,
    script_note,
    untuned_note,
)
from whet.config import configure, parse_overrides, to_json

if TYPE_CHECKING:
    from whet.envs.base import EnvFactory
    from whet.runs import Run


def parser(command: str) -> Parser:
    p = Parser(command, "Improve an agent with one method, and evaluate it on held-out tasks. Options of the method: whet methods METHOD.")
    p.add_argument("method", metavar="METHOD", help="see whet methods; one of your own is path/to/my_method.py")
    p.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="options of the method, such as steps=20")
    add_agent_options(p, env_required=False)
    add_size_options(p)
    add_general_option(p)
    p.add_argument("--seed", type=count, default=0, metavar="N", help="everything random follows from it")
    p.add_argument("--budget", type=positive, default=None, metavar="N", help="stop after this many episodes of practice")
    p.add_argument("--env-steps", type=positive, default=None, metavar="N", help="stop after this many environment steps of practice")
    p.add_argument("--preset", default=None, help="settings for this environment and method, such as demo")
    p.add_argument("--out", default=None, metavar="DIR", help="the run's directory (default: runs/ENV-METHOD-seedN)")
    p.add_argument("--resume", action="store_true", help="go on with the run in --out, if there is one")
    p.add_argument("--no-baseline", action="store_true", help="do not evaluate the agent as it was before")
    p.add_argument("--quiet", action="store_true", help="no progress")
    p.set_defaults(wrong_usage=p.error)
    return p


def main(args: argparse.Namespace) -> None:
    from whet import methods, presets
    from whet.envs import load_env
    from whet.runs import Run

    method = methods.get(args.method)
    spec: str = args.env or presets.home(args.preset, args.method) or ""
    if not spec:
        args.wrong_usage("--env is missing; say which environment, such as --env search:hops=1-3, or take --preset quick, which names one")
    env = load_env(spec)
    overrides, outer = preset(args.preset, env, args.method)
    cfg: Any = configure(method.config, overrides | parse_overrides(args.overrides), of=f"method {args.method!r}")
    sizes = {name: _first(getattr(args, name), outer.get(name), default) for name, default in SIZES.items()}
    temperature = _first(args.temperature, outer.get("temperature"), None)
    config = {
        "method": args.method,
        "cfg": to_json(cfg),
        "env": spec,
        "model": args.model,
        "seed": args.seed,
        "budget": _first(args.budget, outer.get("budget"), None),
        "env_steps": _first(args.env_steps, outer.get("env_steps"), None),
        "temperature": temperature,
        **sizes,
    }
    conversations = general(method, args.general)
    config |= {"general": conversations} if conversations else {}
    agent = load_agent(args.model, temperature)
    out = Path(args.out or f"runs/{env.name}-{method.name}-seed{args.seed}")
    with Run.create(out, config, resume=args.resume, quiet=args.quiet) as run:
        from whet.evals import evaluate
        from whet.report import write_report

        if (note := note_untuned(run, agent, method, cfg)) and not args.quiet:
            print(f"note: {note}", file=sys.stderr)
        test, data = env.tasks("test", sizes["test_tasks"], sizes["test_start"]), make_data(env, method, sizes, run, conversations)
        if not args.no_baseline:
            evaluate(agent, env, test, seed=run.seed("evaluation"), run=run, name="before")
        better = method.function(agent, data, env=env, run=run, cfg=cfg)
        save_agent(better, out, args.model)
        evaluate(better, env, test, seed=run.seed("evaluation"), run=run, name="final")
    page = write_report(out)
    _print_result(out, env, run, page)


def _print_result(out: Path, env: EnvFactory, run: Run, page: Path) -> None:
    from whet.evals import Evaluation, compare

    found = {name: [Evaluation.from_json(record)] for name, record in run.evaluations().items() if name in ("before", "final")}
    method = str(run.config["method"])
    names = {"before": "before", "final": method}
    shown = {names[name]: found[name] for name in ("before", "final") if name in found}
    notes = script_note({names["final"]: run}) + untuned_note({names["final"]: run})
    table = compare(shown, "before" if "before" in shown else {}, costs={names["final"]: run.cost}, notes=notes)
    print_table(table)
    print(f"run: {out}\nreport: {page}")


def _first(*values: Any) -> Any:
    """The first value that is not None."""
    return next((value for value in values if value is not None), None)
