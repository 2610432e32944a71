"""Runs the comparisons of a family of methods, and keeps their results as data.

    python scripts/leaderboard.py FAMILY [METHOD ...] [--seeds 3] [--workers 2]

A method that is compared in several places has an entry METHOD@PLACE for each. A comparison that was interrupted goes on where
it was; one that is finished costs nothing, nor does a stage that another of the family has made with the same settings. Results go to
results/FAMILY/METHOD.json, and the table of all that are there to results/FAMILY.md. The agents act at temperature 1, as they did
in training; how they do greedily stands beside it, since a method may do no more than make sharper what the agent did anyway.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from whet import load_env, methods, presets
from whet.cli.common import load_agent
from whet.cli.compare import BASE
from whet.evals import Comparison, Evaluation, evaluate
from whet.runs.files import recipe_directory

ROOT = Path(__file__).parents[1]
MODEL = "base"
"""What all of them begin with, and what the recipe `BASE` shows as it is."""
ETO = "sft+eto"
"""What is held against this besides the baseline of its paper, where it stands in the comparison."""
GREEDY = (
    "The greedy difference is that of the same agents on the same tasks at temperature 0. Where it is much smaller, most of what was\n"
    "gained is that the agent does more reliably what it thought best before."
)


def run(family: str, name: str, entry: dict[str, Any], seeds: int, workers: int) -> bool:
    """One comparison, in runs/leaderboard/FAMILY/METHOD; whether it was finished."""
    out = ROOT / "runs" / "leaderboard" / family / name
    for other, its in presets.FAMILIES[family].items():
        if other != name:
            take_over(out.parent / other, out, [r for r in entry["recipes"] if r in its["recipes"] and same(r, entry, its)], seeds)
    command = [sys.executable, "-m", "whet.cli", "compare", "--env", entry["env"], "--model", MODEL]
    command += ["--preset", f"{family}/{name}", "--recipes", ",".join(entry["recipes"]), "--baseline", entry["baseline"]]
    command += ["--seeds", str(seeds), "--workers", str(workers), "--out", str(out)]
    if subprocess.run(command).returncode:
        return False
    (ROOT / "results" / family).mkdir(parents=True, exist_ok=True)
    record = json.loads((out / "comparison.json").read_text())
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    record["greedy"] = {recipe: greedily(out, recipe, entry, found) for recipe, found in record["evaluations"].items()}
    record["made"] = {"date": str(datetime.date.today()), "machine": machine, "claim": entry["claim"]}
    (ROOT / "results" / family / f"{name}.json").write_text(json.dumps(record, separators=(",", ":")) + "\n")
    return True


def greedily(out: Path, recipe: str, entry: dict[str, Any], sampled: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A recipe's agents, of each seed, on the same test tasks at temperature 0. An evaluation is kept beside its run."""
    env, sizes, found = load_env(entry["env"]), entry[""], []
    for number, before in enumerate(map(Evaluation.from_json, sampled)):
        place = out / f"seed{number}" / recipe_directory(recipe)
        if not (place / "greedy.json").exists():
            tasks = env.tasks("test", sizes["test_tasks"], sizes["test_start"])
            after = evaluate(load_agent(MODEL if recipe == BASE else str(place), 0.0), env, tasks, seed=before.seed, name="greedy")
            (place / "greedy.json").write_text(json.dumps(after.to_json()))
        found.append(json.loads((place / "greedy.json").read_text()))
    return found


def same(recipe: str, one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two entries run a recipe alike."""
    used = ["env", "", *(part.partition(":")[0] for part in recipe.split("+"))]
    return all(one.get(key) == other.get(key) for key in used)


def take_over(source: Path, out: Path, recipes: list[str], seeds: int) -> None:
    """Copy the finished runs of these recipes and of what they go on from."""
    stages = {"+".join(recipe.split("+")[:n]) for recipe in recipes for n in range(1, recipe.count("+") + 2)}
    for place in (f"seed{seed}/{recipe_directory(stage)}" for seed in range(seeds) for stage in sorted(stages)):
        done = source / place / "status"
        if done.exists() and done.read_text().strip() == "done" and not (out / place).exists():
            shutil.copytree(source / place, out / place)


def table(family: str) -> str:
    """A row for each comparison, as Markdown: the claim, then its notes; then each comparison in full."""
    records = {path: json.loads(path.read_text()) for path in sorted((ROOT / "results" / family).glob("*.json"))}
    eto = any(ETO in record["evaluations"] for record in records.values())
    tried = any("greedy" in record for record in records.values())
    head = ["method", "paper", "environment", "held against", "tasks, seeds", "success [95%]", "the other's", "difference"]
    head += [*(["against ETO"] if eto else []), *(["greedy difference"] if tried else []), "steps", "made"]
    lines, wholes, halves = [head, ["---"] * len(head)], [], defaultdict[int, list[float]](list)
    for path, record in records.items():
        comparison, method = Comparison.load(path), methods.get(presets.shown(path.stem))
        entry, made = presets.FAMILIES[family].get(path.stem, {}), record["made"]
        rows = {row.recipe: row for row in comparison.rows if not row.part}
        ours = rows[made["claim"]]
        other = rows[ours.baseline or ""]
        metric = entry.get("metric", "success")
        evaluation = next(iter(comparison.evaluations.values()))[0]
        size = f"{ours.success.n}, {len(ours.seeds)}"
        scores = [points(getattr(row, metric)) for row in (ours, other)]
        difference = comparison.difference(ours.recipe, other.recipe, metric)
        scores.append(points(difference, "+"))
        halves[difference.n].append(50 * (difference.high - difference.low))
        scores[0] += "" if metric == "success" else f" {metric}"
        notes = [entry.get("note", "")]
        if eto:
            scores.append(points(comparison.difference(ours.recipe, ETO, metric), "+") if ETO in rows else "")
        if tried:
            scores.append("")
        if "greedy" in record:
            evaluations = {recipe: tuple(map(Evaluation.from_json, found)) for recipe, found in record["greedy"].items()}
            greedy = Comparison(evaluations=evaluations, baselines={})
            scores[-1] = points(greedy.difference(ours.recipe, other.recipe, metric), "+")
            notes.insert(0, besides(comparison, greedy, ours.recipe, metric))
        heading = ", on ".join([method.title, *path.stem.split("@")[1:]])
        steps = f"{env_steps(record, ours.recipe)} / {env_steps(record, other.recipe)}"
        lines.append([method.name, method.paper, evaluation.env, other.recipe, size, *scores, steps, f"{made['date']}, {made['machine']}"])
        wholes.append("\n\n".join([f"## {heading}", comparison.markdown().strip(), *filter(None, notes)]) + "\n")
    rows_of = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    about = (
        f"Made by `make leaderboard FAMILY={family}`. Success on held-out test tasks, sampled at temperature 1; intervals are clustered\n"
        "by task, differences paired by task and seed. Steps are the environment's, replayed ones included, ours / the other's.\n"
        "Who speaks by a script is named under each comparison.\n"
        f"Half the interval of a difference is {', '.join(sharpness(n, found) for n, found in sorted(halves.items()))}."
    )
    return "\n\n".join([about, *([GREEDY] if tried else []), rows_of, "\n".join(wholes)])


def besides(comparison: Comparison, greedy: Comparison, claim: str, metric: str) -> str:
    """Of each recipe, as Markdown: success at temperature 0; how many tokens the agent samples in an episode at temperature 1; where
    something else is compared than success, that too, at both temperatures; and by how much the claimed one is better in that."""
    other = [] if metric == "success" else [metric, f"{metric}, greedy"]
    head = ["recipe", "greedy [95%]", "tokens an episode", *other, f"{claim} is better by"]
    lines = [head, ["---"] * len(head)]
    for recipe, found in comparison.evaluations.items():
        tokens = sum(e.cost.sampled_tokens for e in found) / sum(e.n_episodes for e in found)
        more = [points(c.score(recipe, metric)) for c in (comparison, greedy)] if other else []
        more.append(points(comparison.difference(claim, recipe, metric), "+") if recipe != claim else "")
        lines.append([recipe, points(greedy.score(recipe)), f"{tokens:.1f}", *more])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def env_steps(record: dict[str, Any], recipe: str) -> str:
    """Environment steps that making one agent took, mean over seeds."""
    return f"{record['costs'].get(recipe, {}).get('env_steps', 0):,}"


def sharpness(n: int, halves: list[float]) -> str:
    """What so many tasks can tell apart."""
    return f"{median(halves):.1f} points with {n} tasks ({min(halves):.1f} to {max(halves):.1f}, median of {len(halves)})"


def points(value: Any, sign: str = "") -> str:
    """A mean with its interval, in points of a hundred."""
    return f"{100 * value.mean:{sign}.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=sorted(presets.FAMILIES))
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="only these, in all their places or in one (METHOD@PLACE)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    board = presets.FAMILIES[args.family]
    known = {*board, *map(presets.shown, board)}
    if unknown := set(args.methods) - known:
        parser.error(f"not in {args.family}: {', '.join(sorted(unknown))}; expected {', '.join(sorted(known))}")
    wanted = [name for name in board if not args.methods or {name, presets.shown(name)} & set(args.methods)]
    failed = [name for name in wanted if not run(args.family, name, board[name], args.seeds, args.workers)]
    if (ROOT / "results" / args.family).exists():
        (ROOT / "results" / f"{args.family}.md").write_text(table(args.family))
    for name in failed:
        print(f"error: the comparison of {name} was not finished", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
