"""`whet methods`, `whet envs` and `whet report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.cli.common import Parser, positive
from whet.errors import ConfigError, MissingExtra
from whet.types import SPLITS

if TYPE_CHECKING:
    from whet.envs import EnvInfo


def parser(command: str) -> Parser:
    if command == "report":
        p = Parser(command, "Write report.html for a run or a comparison, and print where it is.")
        p.add_argument("directory", metavar="DIR", help="what --out named")
        return p
    p = Parser(command, f"The {'methods, with their papers' if command == 'methods' else 'environments'} and options.")
    p.add_argument("names", metavar="NAME", nargs="*", help="only these, in full")
    if command == "envs":
        p.add_argument("--measure", action="store_true", help="measure them here: their experts, chance and speed; NAME may have options")
        p.add_argument("-n", "--tasks", type=positive, default=100, metavar="N", help="tasks that --measure attempts")
    p.set_defaults(command=command)
    return p


def main(args: argparse.Namespace) -> None:
    if hasattr(args, "directory"):
        from whet.report import write_report

        print(write_report(Path(args.directory)))
    elif args.command == "methods":
        show_methods(args.names)
    elif args.measure:
        measure_envs(args.names, args.tasks)
    else:
        show_envs(args.names)


def show_methods(names: list[str]) -> None:
    """All methods in a line each, or the named ones with every option."""
    from whet import config, methods, presets

    for name in names or methods.names():
        try:
            method = methods.get(name)
        except MissingExtra as error:
            print(f"{name:<22} (not available: {error})")
            continue
        needs = f"needs {', '.join(sorted(method.needs))}" if method.needs else ""
        print(f"{name:<22} {method.title}. {method.paper}{f' ({needs})' if needs else ''}")
        fields = config.options(method.config)
        shown = presets.home("quick", name)
        print(f"    {method.parts}{f'; shown on: {shown}' if shown else ''}")
        if names:
            for option in fields:
                print(f"    {option.key + '=' + option.default:<28} {option.type:<12} {option.doc}".rstrip())
        else:
            print(f"    {' '.join(f'{option.key}={option.default}' for option in fields)}")
    if not names:
        print("\nwhet methods NAME explains the options. One of your own: whet run path/to/my_method.py (see docs/methods.md).")


def show_envs(names: list[str]) -> None:
    """A table of all bundled environments, or everything about the named ones."""
    from whet import envs

    if names:
        for name in names:
            print("\n".join(_env_page(envs.describe(name))))
        return
    found = [envs.glance(name) for name in envs.names()]
    print_envs(found)
    print("\nYour own: --env path/to/file.py:MyEnv. Several at once: --env 'search:hops=1 + babyai'.")
    print("whet envs NAME says more, and whet envs NAME --measure measures here.")


def print_envs(found: Sequence[EnvInfo]) -> None:
    """One row for each environment, as wide as the terminal allows; then what is missing here, and where was measured."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=160)
    head = ["environment", "tasks train/dev/test", "expert [95%], n", "random [95%], n", "steps/s", "install", "licence", "here"]
    rows = [_env_row(info) for info in found]
    for name in ("licence", "install", "steps/s", "tasks train/dev/test"):
        widths = [max(map(len, column)) + 2 for column in zip(head, *rows)]
        if sum(widths) <= console.width:
            break
        at = head.index(name)
        del head[at]
        for row in rows:
            del row[at]
    table = Table(header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in head:
        table.add_column(name, justify="right" if name in ("steps/s", "install") else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    longest = max(len(info.name) for info in found)
    for info in found:
        print(f"{info.name:<{longest}}  {info.summary}".rstrip())
    for info in found:
        if info.missing:
            print(f"\n{info.name} needs more: {info.missing}")
    print()
    where = sorted({(row["machine"].split(", load")[0], row["date"]) for info in found if info.measured for row in info.measured["rows"]})
    for machine in dict.fromkeys(machine for machine, _ in where):
        dates = [date for name, date in where if name == machine]
        print(f"Measured on {machine}, {dates[0]}{f' to {dates[-1]}' if dates[-1] != dates[0] else ''}; steps/s of one process.")


def _env_row(info: EnvInfo) -> list[str]:
    here = "needs more" if info.missing else "yes"
    if not info.measured or not info.measured["rows"]:
        return [info.name, "", "", "", "", _install(info.measured), (info.measured or {}).get("licence", ""), here]
    row = info.measured["rows"][0]
    return [
        info.name + (f" (+{len(info.measured['rows']) - 1})" if len(info.measured["rows"]) > 1 else ""),
        _sizes(row),
        _rate(row["expert"]),
        _rate(row["random"]),
        f"{row['steps_per_second']:,}",
        _install(info.measured),
        info.measured["licence"],
        here,
    ]


def _env_page(info: EnvInfo) -> Iterator[str]:
    """Everything about an environment."""
    yield f"{info.name}  {info.summary}"
    if info.missing:
        yield f"    not usable here: {info.missing}"
    for key, text in info.options.items():
        yield f"    {key}: {text}"
    if info.measured:
        install, also = info.measured.get("install"), info.measured.get("also")
        told = f"{install['command']} ({install['mb']:,} MB, {install['seconds']:,} s)" if install else "" if also else "nothing"
        yield f"    licence: {info.measured['licence']}"
        yield f"    to install: {' and '.join(filter(None, (told, also)))}"
        yield from _measured(info.measured["rows"])


def _measured(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What was measured, a block for each set of options."""
    for row in rows:
        yield f"    {row['spec']}"
        yield f"        tasks train/dev/test: {_sizes(row)}"
        for policy in ("expert", "random"):
            if row[policy]:
                reward = row[policy]["reward"]
                paid = f"; reward {reward['mean']:.3f} [{reward['low']:.3f}, {reward['high']:.3f}]"
                yield f"        {policy}: success {_rate(row[policy])} {row['split']} tasks{paid}"
        yield f"        {row['steps_per_second']:,} steps/s of one process; median reset {row['reset_ms']:g} ms, step {row['step_ms']:g} ms"
        yield f"        measured {row['date']} on {row['machine']}"


def _sizes(row: Mapping[str, Any]) -> str:
    return "/".join("endless" if row["tasks"][s] is None else f"{row['tasks'][s]:,}" for s in SPLITS).replace(
        "endless/endless/endless", "endless"
    )


def _rate(found: Mapping[str, Any] | None) -> str:
    """Such as `0.95 [0.91, 0.98], 200`; a dash where there is none."""
    if not found:
        return "-"
    s = found["success"]
    return f"{s['mean']:.2f} [{s['low']:.2f}, {s['high']:.2f}], {s['n']}"


def _install(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    install = found.get("install")
    return f"{install['mb']:,} MB, {install['seconds']:,} s" if install else "-"


def measure_envs(specs: list[str], n: int) -> None:
    """Measure environments on this machine, and print what came of it."""
    if not specs:
        raise ConfigError("--measure needs the environments to measure, such as whet envs search:hops=3 --measure")
    from whet.evals.environments import measure

    for spec in specs:
        print("\n".join(_measured([measure(spec, n=n)])))
