"""Puts results where readers look: results/NAME.json and NAME.md of comparisons, results/benchmarks.md, and README's tables.

    python scripts/results.py [NAME=RUN_DIRECTORY ...]

Without arguments it only writes again what follows from the JSON files that are committed.
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


def keep(name: str, directory: Path) -> None:
    """Copy a comparison into results/, with where and when it was made."""
    text = (directory / "comparison.json").read_text()
    (ROOT / "results").mkdir(exist_ok=True)
    (ROOT / "results" / f"{name}.json").write_text(text)
    made = f"{datetime.date.today()}, {platform.machine()}, Python {platform.python_version()}, {os.cpu_count()} cores, no GPU"
    table = Comparison.load(ROOT / "results" / f"{name}.json").markdown().strip()
    (ROOT / "results" / f"{name}.md").write_text(f"Made {made}, by `make {'demo' if name == 'search' else 'leaderboard'}`.\n\n{table}\n")


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
    (ROOT / "results" / "benchmarks.md").write_text("\n".join(lines) + "\n")


def _row(what: str, other: str, setting: str, ratio: dict[str, float], rounds: int, result: dict[str, Any]) -> str:
    """One thread each; the load average tells how much else the machine was doing."""
    about = result["machine"]
    times = f"{ratio['median']:.1f} ({ratio['min']:.1f}-{ratio['max']:.1f})"
    return f"| {what} | {other} | {setting} | {times} | {rounds} | {about['load'][0]:.1f} on {about['cores']} cores |"


def main() -> None:
    benchmarks()
    for argument in sys.argv[1:]:
        name, _, directory = argument.partition("=")
        keep(name, Path(directory))
    readme = (ROOT / "README.md").read_text()
    for record in sorted((ROOT / "results").glob("*.json")):
        start, end = f"<!-- results/{record.name} -->", f"<!-- /results/{record.name} -->"
        before, found, rest = readme.partition(start)
        if found:
            table = Comparison.load(record).markdown().strip()
            readme = f"{before}{start}\n\n{table}\n\n{end}{rest.partition(end)[2]}"
    (ROOT / "README.md").write_text(readme)


if __name__ == "__main__":
    main()
