"""Puts the results of comparisons where readers look: results/NAME.json and NAME.md, and the tables in README.

    python scripts/results.py [NAME=RUN_DIRECTORY ...]

Without arguments it only writes the tables of what is committed into README again.
"""

from __future__ import annotations

import datetime
import os
import platform
import sys
from pathlib import Path

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


def main() -> None:
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
