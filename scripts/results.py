"""Puts results where readers look: results/NAME.json and NAME.md of comparisons, results/benchmarks.md, and the tables of pages.

    python scripts/results.py [NAME=RUN_DIRECTORY ...]

NAME may stand in a directory, such as trained/sql; `curves/NAME=RUN_DIRECTORY` keeps the success on train tasks that a single run
logged, environment by environment. Without arguments it only writes again what follows from the JSON files that are committed.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from whet.evals import Comparison

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/training.md", "docs/methods.md")
"""Where tables stand, each between `<!-- results/NAME.json -->` and `<!-- /results/NAME.json -->`."""
BLOCKS = 5
"""Rows of a table of curves: each is the mean over a part of the steps."""


def keep(name: str, directory: Path) -> None:
    """Copy a comparison into results/, with where and when it was made."""
    to = ROOT / "results" / f"{name}.json"
    to.parent.mkdir(exist_ok=True, parents=True)
    to.write_text((directory / "comparison.json").read_text())
    if "/" in name:
        return
    made = f"{datetime.date.today()}, {platform.machine()}, Python {platform.python_version()}, {os.cpu_count()} cores, no GPU"
    table = Comparison.load(to).markdown().strip()
    to.with_suffix(".md").write_text(f"Made {made}, by `make {'demo' if name == 'search' else 'leaderboard'}`.\n\n{table}\n")


def keep_curves(name: str, directory: Path) -> None:
    """The success on train tasks that a run logged at each step, environment by environment."""
    events = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    logs = [event for event in events if event["kind"] == "log" and "success" in event["metrics"]]
    steps = [event["metrics"] for event in logs]
    keys = sorted({key for metrics in steps for key in metrics if key.startswith("success/")})
    curves = {key.partition("/")[2]: [metrics.get(key) for metrics in steps] for key in keys}
    to = ROOT / "results" / f"{name}.json"
    to.parent.mkdir(exist_ok=True, parents=True)
    to.write_text(json.dumps({"run": directory.name, "episodes": logs[-1]["spent"]["episodes"], "curves": curves}, indent=1) + "\n")


def curves_table(found: dict[str, Any]) -> str:
    """A row for each part of the steps, a column for each environment."""
    curves = found["curves"]
    steps = len(next(iter(curves.values())))
    lines = ["| steps | " + " | ".join(curves) + " |", "| --- |" + " --- |" * len(curves)]
    for part in range(BLOCKS):
        at = range(part * steps // BLOCKS, (part + 1) * steps // BLOCKS)
        seen = [[curve[i] for i in at if curve[i] is not None] for curve in curves.values()]
        cells = [f"{sum(values) / len(values):.0%}" if values else "" for values in seen]
        lines.append(f"| {at[0] + 1}–{at[-1] + 1} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def benchmarks() -> None:
    """results/benchmarks.md from what `make bench` wrote."""
    generate, grpo = (json.loads((ROOT / "results" / f"bench_{name}.json").read_text()) for name in ("generate", "grpo"))
    lines = [
        "Speed of sampling and training, written by `make bench` and `scripts/results.py`; what is compared: `benchmarks/README.md`.",
        "",
        "| what | against | setting | times as fast: median (range) | rounds | load of the machine |",
        "|---|---|---|---|---|---|",
    ]
    for m in generate["measured"]:
        setting = f"{m['work']['episodes']} episodes of {m['work']['turns']} turns"
        other = f"a loop over `transformers` {generate['machine']['transformers']} `generate`"
        lines.append(_row("sampled tokens per processor second", other, setting, m["ratio"], generate["rounds"], generate))
    work, other = grpo["work"], f"TRL {grpo['machine']['trl']} `GRPOTrainer`"
    setting = f"{work['tasks'] * work['group']} episodes a step"
    for what, key in (("episodes per second", "seconds"), ("episodes per processor second", "processor")):
        lines.append(_row(f"multi-turn GRPO with tools: {what}", other, setting, grpo["ratios"][key], len(grpo["rounds"]) - 1, grpo))
    latency = ROOT / "results" / "bench_latency.json"
    if latency.exists():
        lines += ["", *_busy(json.loads(latency.read_text()))]
    (ROOT / "results" / "benchmarks.md").write_text("\n".join(lines) + "\n")


def _busy(found: dict[str, Any]) -> list[str]:
    """How much of the time the decode engine computes while tools wait."""
    work, load, cores = found["work"], found["machine"]["load"][0], found["machine"]["cores"]
    whole, steady, unshared = ("{median:.1%} ({min:.1%}-{max:.1%})".format(**found[key]) for key in ("whole", "steady", "unshared"))
    return [
        f"{work['episodes']} episodes, {work['in_flight']} in flight, against tools that take {work['latency']} s: the decode engine "
        f"computes {whole} of the time, {steady} while all places are taken, {unshared} by processor seconds; tokens per second are "
        "{median:.2f} ({min:.2f}-{max:.2f}) times those without latency. ".format(**found["ratio"])
        + f"Median and range of {len(found['rounds'])} rounds, load {load:.1f} on {cores} cores."
    ]


def _row(what: str, other: str, setting: str, ratio: dict[str, float], rounds: int, result: dict[str, Any]) -> str:
    """One thread each; the load average tells how much else the machine was doing."""
    about = result["machine"]
    times = f"{ratio['median']:.1f} ({ratio['min']:.1f}-{ratio['max']:.1f})"
    return f"| {what} | {other} | {setting} | {times} | {rounds} | {about['load'][0]:.1f} on {about['cores']} cores |"


def table_of(record: Path) -> str:
    found = json.loads(record.read_text())
    return curves_table(found) if "curves" in found else Comparison.load(record).markdown().strip()


def fill(page: Path) -> None:
    """Write a page's tables again."""
    text = page.read_text()
    for record in sorted((ROOT / "results").rglob("*.json")):
        name = record.relative_to(ROOT)
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, found, rest = text.partition(start)
        if found:
            text = f"{before}{start}\n\n{table_of(record)}\n\n{end}{rest.partition(end)[2]}"
    page.write_text(text)


def main() -> None:
    benchmarks()
    for argument in sys.argv[1:]:
        name, _, directory = argument.partition("=")
        (keep_curves if name.startswith("curves/") else keep)(name, Path(directory))
    for page in PAGES:
        fill(ROOT / page)


if __name__ == "__main__":
    main()
