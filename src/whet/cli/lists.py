"""`whet methods`, `whet envs` and `whet report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from whet.cli.common import Parser
from whet.errors import MissingExtra


def parser(command: str) -> Parser:
    if command == "report":
        p = Parser(command, "Write report.html for a run or a comparison, and print where it is.")
        p.add_argument("directory", metavar="DIR", help="what --out named")
        return p
    p = Parser(command, f"The {'methods, with their papers' if command == 'methods' else 'environments'} and options.")
    p.add_argument("names", metavar="NAME", nargs="*", help="only these, in full")
    p.set_defaults(command=command)
    return p


def main(args: argparse.Namespace) -> None:
    if hasattr(args, "directory"):
        from whet.report import write_report

        print(write_report(Path(args.directory)))
    elif args.command == "methods":
        show_methods(args.names)
    else:
        show_envs(args.names)


def show_methods(names: list[str]) -> None:
    """All methods in a line each, or the named ones with every option."""
    from whet import config, methods

    for name in names or methods.names():
        try:
            method = methods.get(name)
        except MissingExtra as error:
            print(f"{name:<22} (not available: {error})")
            continue
        needs = f"needs {', '.join(sorted(method.needs))}" if method.needs else ""
        print(f"{name:<22} {method.title}. {method.paper}{f' ({needs})' if needs else ''}")
        fields = config.options(method.config)
        if names:
            for option in fields:
                print(f"    {option.key + '=' + option.default:<28} {option.type:<12} {option.doc}".rstrip())
        else:
            print(f"    {' '.join(f'{option.key}={option.default}' for option in fields)}")
    if not names:
        print("\nwhet methods NAME explains the options.")


def show_envs(names: list[str]) -> None:
    """Bundled environments with what they are and their options; all of them, or the named ones."""
    from whet import envs

    for name in names or envs.names():
        info = envs.describe(name)
        print(f"{name:<10} {info.summary or f'(not available: {info.missing})'}")
        for key, text in info.options.items():
            print(f"    {key}: {text}")
    if not names:
        print("\nYour own: --env path/to/file.py:MyEnv")
