"""`whet compare`: recipes x seeds, each a run of its own, in a pool of processes; then one table.

A recipe is methods joined by `+`; `base` is the agent as it is. A method may be given options of its own behind colons, as in
`sft+grpo:kl=0.1`, so that variants of it stand side by side, and may be a file of the user's, as in `sft+hybrids/mine.py`. Recipes
share their beginnings: `sft+eto` and `sft+grpo` go on from one and the same `sft` of their seed. Every stage is a run directory,
`OUT/seed0/sft+eto`, made by `whet run`, so a comparison that is interrupted is continued by starting it again.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.cli.common import (
    LIMITS,
    SIZES,
    Parser,
    add_agent_options,
    add_general_option,
    add_size_options,
    positive,
    preset,
    print_table,
    script_note,
    untuned_note,
)
from whet.cli.jobs import Job, run_all
from whet.cli.status import Status
from whet.config import configure, parse_overrides
from whet.errors import CheckpointError, ConfigError, WhetError, did_you_mean
from whet.runs import Run
from whet.runs.files import Lock, make_directory, recipe_directory, write_atomic
from whet.types import Cost

if TYPE_CHECKING:
    from whet.evals import Comparison

BASE = "base"


def parser(command: str) -> Parser:
    p = Parser(command, "Run several recipes over several seeds, and put them side by side on the same held-out tasks.")
    p.add_argument("overrides", metavar="METHOD.KEY=VALUE", nargs="*", help="options of methods, such as grpo.steps=20")
    add_agent_options(p)
    add_size_options(p)
    add_general_option(p)
    p.add_argument(
        "--recipes",
        required=True,
        metavar="LIST",
        help="methods joined by +, such as base,sft,sft+grpo,sft+grpo:kl=0.1,sft+path/to/mine.py",
    )
    p.add_argument("--seeds", type=positive, default=3, metavar="N", help="every recipe is run with the seeds 0 to N-1")
    p.add_argument("--workers", type=positive, default=2, metavar="N", help="processes at a time, with one thread each")
    p.add_argument("--baseline", default=None, metavar="RECIPE", help="compare with this one (default: the recipe without its last method)")
    p.add_argument("--budget", type=positive, default=None, metavar="N", help="episodes of practice per stage")
    p.add_argument("--env-steps", type=positive, default=None, metavar="N", help="environment steps of practice per stage")
    p.add_argument("--preset", default=None, help="settings for this environment and method, such as demo")
    p.add_argument("--out", required=True, metavar="DIR", help="where the runs go; the same again goes on with them")
    return p


def main(args: argparse.Namespace) -> int:
    recipes = [name.strip() for name in args.recipes.split(",") if name.strip()]
    stages = _stages(recipes)
    _check_options(args, stages)
    out = Path(args.out)
    make_directory(out)
    lock = Lock(out / "lock")
    try:
        _same_settings(out, args)
        jobs = _jobs(args, stages, out)
        with Status(jobs) as status:
            run_all(jobs, args.workers, status.show)
        failed = [job for job in jobs if job.state == "failed"]
        for job in failed:
            print(f"error: {job.recipe} with seed {job.seed} failed: {job.last_line()} (all of it: {job.log})", file=sys.stderr)
        _finish(args, recipes, jobs, out)
        return 1 if failed else 0
    finally:
        lock.release()


def _stages(recipes: list[str]) -> list[str]:
    """The recipes and what they go on from, each once, in an order in which they can be run."""
    if not recipes:
        raise ConfigError("--recipes is empty; expected recipes such as base,sft,sft+grpo")
    stages: dict[str, None] = {}
    for recipe in recipes:
        parts = recipe.split("+")
        if BASE in parts and recipe != BASE:
            raise ConfigError(f"recipe {recipe!r} contains 'base', which stands alone: every recipe begins with the base agent")
        for i in range(len(parts)):
            stages["+".join(parts[: i + 1])] = None
    return list(stages)


def _check_options(args: argparse.Namespace, stages: list[str]) -> None:
    """Refuse now what would be refused later: unknown names, config keys and values."""
    from whet import methods
    from whet.envs import load_env

    env = load_env(args.env)
    parts = sorted({part for stage in stages for part in stage.split("+")} - {BASE})
    overrides = _by_method(args.overrides, _methods(stages))
    for part in parts:
        name, own = _method(part)
        settings = preset(args.preset, env, name)[0] | overrides.get(name, {}) | own
        configure(methods.get(name).config, settings, of=f"method {name!r}")
    if args.baseline is not None and args.baseline not in stages:
        raise ConfigError(f"--baseline {args.baseline!r} is not among the recipes. {did_you_mean(args.baseline, stages)}")


def _method(part: str) -> tuple[str, dict[str, str]]:
    """A part of a recipe: the method's name and the options that stand behind it."""
    name, *texts = part.split(":")
    return name, parse_overrides(texts)


def _methods(stages: list[str]) -> list[str]:
    """The names of all methods in these recipes."""
    return sorted({_method(part)[0] for stage in stages for part in stage.split("+")} - {BASE})


def _by_method(texts: list[str], used: list[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    named = {Path(name).stem: name for name in used}
    for key, value in parse_overrides(texts).items():
        method, dot, rest = key.partition(".")
        if not dot or method not in named:
            raise ConfigError(f"{key!r} names no method of the recipes; expected METHOD.KEY=VALUE. {did_you_mean(method, named)}")
        found.setdefault(named[method], {})[rest] = value
    return found


def _same_settings(out: Path, args: argparse.Namespace) -> None:
    """Runs in one comparison share these; a comparison that is continued with others would mix two experiments."""
    keys = ("env", "model", "temperature", "preset", *LIMITS, "general", *SIZES)
    settings = {key: getattr(args, key) for key in keys} | {"overrides": sorted(args.overrides)}
    path = out / "compare.json"
    if path.exists():
        try:
            old = json.loads(path.read_text())
        except ValueError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        different = [f"{key}: was {old.get(key)!r}, is {settings[key]!r}" for key in settings if old.get(key) != settings[key]]
        if different:
            raise ConfigError(f"{out} holds a comparison with other settings ({'; '.join(different)}). Choose another --out.")
    write_atomic(path, json.dumps(settings, indent=1))


def _jobs(args: argparse.Namespace, stages: list[str], out: Path) -> list[Job]:
    """Seed by seed, so that an interrupted comparison has whole seeds to show."""
    overrides = _by_method(args.overrides, _methods(stages))
    jobs = []
    for seed in range(args.seeds):
        for stage in stages:
            before, _, part = stage.rpartition("+")
            method, own = _method(part)
            directory = _place(out, seed, stage)
            model = str(_place(out, seed, before)) if before else args.model
            command = [sys.executable, "-m", "whet.cli", "eval" if stage == BASE else "run"]
            if stage != BASE:
                command += [method, *(f"{k}={v}" for k, v in (overrides.get(method, {}) | own).items()), "--no-baseline"]
            command += ["--env", args.env, "--model", model, "--seed", str(seed), "--out", str(directory), "--resume", "--quiet"]
            command += _passed_on(args, stage)
            jobs.append(Job(recipe=stage, seed=seed, directory=directory, command=command, after=before or None))
    return jobs


def _place(out: Path, seed: int, stage: str) -> Path:
    """The directory of a stage's run."""
    return out / f"seed{seed}" / recipe_directory(stage)


def _passed_on(args: argparse.Namespace, stage: str) -> list[str]:
    """The options that a stage's process gets as they are."""
    passed = []
    if stage == BASE:
        # what a preset would say to the other recipes holds for the agent that they are compared with
        for option, key in (("--tasks", "test_tasks"), ("--start", "test_start"), ("--temperature", "temperature")):
            value = _common(args, key)
            passed += [] if value is None else [option, str(value)]
        return passed
    for key in (*SIZES, *LIMITS, "temperature", "preset", "general"):
        if getattr(args, key) is not None:
            passed += [f"--{key.replace('_', '-')}", str(getattr(args, key))]
    return passed


def _common(args: argparse.Namespace, key: str) -> Any:
    """An option of the recipes' evaluation, from the command line or the preset of their methods."""
    if getattr(args, key) is not None:
        return getattr(args, key)
    from whet.envs import load_env

    methods = _methods([recipe.rpartition("+")[2] for recipe in args.recipes.split(",")])
    found = [preset(args.preset, load_env(args.env), method)[1].get(key) for method in methods]
    return next((value for value in found if value is not None), SIZES.get(key))


# -- the table -----------------------------------------------------------------------------------------------------------


def _finish(args: argparse.Namespace, recipes: list[str], jobs: list[Job], out: Path) -> None:
    """Write comparison.json and report.html and print the table, over the seeds that all finished recipes have."""
    from whet.report import write_report

    comparison = _comparison(args, recipes, jobs)
    write_atomic(out / "comparison.json", json.dumps(comparison.to_json()))
    page = write_report(out)
    print_table(comparison)
    print(f"runs: {out}\nreport: {page}")


def _comparison(args: argparse.Namespace, recipes: list[str], jobs: list[Job]) -> Comparison:
    from whet.evals import Evaluation, compare

    done = {(job.recipe, job.seed): job for job in jobs if job.state == "done"}
    shown = [recipe for recipe in recipes if any((recipe, seed) in done for seed in range(args.seeds))]
    seeds = [seed for seed in range(args.seeds) if all((recipe, seed) in done for recipe in shown)]
    if not shown or not seeds:
        raise WhetError("no seed was finished for all recipes, so there is nothing to compare")
    notes = [f"{recipe} is left out: none of its runs finished" for recipe in recipes if recipe not in shown]
    if len(seeds) < args.seeds:
        notes.append(f"only the seeds {', '.join(map(str, seeds))} are shown: the others were not finished for all recipes")
    notes += _expert_note({recipe: done[recipe, seeds[0]] for recipe in shown})
    runs = {recipe: Run.open(done[recipe, seeds[0]].directory) for recipe in shown}
    notes += script_note(runs) + untuned_note(runs)
    found = {r: [Evaluation.from_json(Run.open(done[r, seed].directory).evaluations()["final"]) for seed in seeds] for r in shown}
    costs = {recipe: _cost(recipe, seeds, done) for recipe in shown if recipe != BASE}
    baselines: Any = args.baseline if args.baseline in shown else {r: b for r in shown if (b := _parent(r, shown)) is not None}
    return compare(found, baselines, costs=costs, notes=notes)


def _expert_note(jobs: dict[str, Job]) -> list[str]:
    """How many expert episodes each recipe's last stage had: they are no practice, but somebody must have made them."""
    counts = {recipe: event["successful"] for recipe, job in jobs.items() for event in Run.open(job.directory).events("experts")}
    return [f"Expert episodes given: {', '.join(f'{recipe} {n}' for recipe, n in counts.items())}."] if counts else []


def _parent(recipe: str, shown: list[str]) -> str | None:
    """The longest beginning of the recipe that is in the table, else the base agent."""
    parts = recipe.split("+")
    candidates = ["+".join(parts[:i]) for i in range(len(parts) - 1, 0, -1)] + [BASE]
    return next((name for name in candidates if name in shown and name != recipe), None)


def _cost(recipe: str, seeds: list[int], done: dict[tuple[str, int], Job]) -> Cost:
    """What the recipe's agent took with all its stages, mean over the seeds."""
    parts = recipe.split("+")
    stages = ["+".join(parts[: i + 1]) for i in range(len(parts))]
    total = reduce(add, (Run.open(done[stage, seed].directory).cost for stage in stages for seed in seeds), Cost())
    n = len(seeds)
    return replace(
        total,
        episodes=round(total.episodes / n),
        env_steps=round(total.env_steps / n),
        prompt_tokens=round(total.prompt_tokens / n),
        sampled_tokens=round(total.sampled_tokens / n),
        seconds=total.seconds / n,
        money=total.money / n,
    )
