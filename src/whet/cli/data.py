"""`whet data`: trajectories in and out of stores, filtered, mixed, counted and shown."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from whet.cli.bar import Bar
from whet.cli.common import Parser, positive
from whet.errors import ConfigError, did_you_mean
from whet.types import SPLITS

if TYPE_CHECKING:
    from whet.data.stores import Stored

ACTIONS = {
    "import": "add files to a store: JSON lines or lists, Parquet, saved data sets, runs, other stores",
    "export": "write a store's episodes to a file of another format",
    "filter": "keep what passes some filters, in a new store that holds the audit",
    "mix": "draw from several stores by weight, into a new one",
    "stats": "what a store holds: sources, actors, outcomes, lengths, costs",
    "show": "episodes as text",
    "pairs": "a better and a worse episode of a task side by side, as preference methods would learn from them",
    "audit": "what filters dropped on the way to a store, and why",
}
SOME_BAD = 3
"""Exit code of an import that left out malformed records."""
_SHOWN = 20
"""Malformed records that are printed one by one."""
STORE = "a store (.db), a run's directory, or whet's own .jsonl"
_ELSEWHERE = {"filter": "selection", "mix": "selection", "pairs": "pairs"}


class Parsers:
    """What the command line takes a parser to be, for a command whose first word is another command."""

    def parse_intermixed_args(self, argv: Sequence[str]) -> argparse.Namespace:
        if not argv or argv[0] in ("-h", "--help"):
            print(_usage(), file=sys.stdout if argv else sys.stderr)
            raise SystemExit(0 if argv else 2)
        if argv[0] not in ACTIONS:
            _wrong(f"unknown action {argv[0]!r}. {did_you_mean(argv[0], ACTIONS)}")
        return _parser(argv[0]).parse_intermixed_args(argv[1:])


def _usage() -> str:
    lines = [f"  {name:<8} {text}" for name, text in ACTIONS.items()]
    example = ["whet data import all.db shop.jsonl chats.json", "whet data filter all.db --success --max-turns 20 --out good.db"]
    example += ["whet data export good.db good.jsonl --to trl"]
    return "\n".join(
        [
            "usage: whet data ACTION [options]; whet data ACTION --help says more",
            "",
            *lines,
            "",
            "for example:",
            *(f"  {line}" for line in example),
        ]
    )


def _wrong(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def parser(command: str) -> Parsers:
    return Parsers()


def main(args: argparse.Namespace) -> int:
    code: int = args.act(args) or 0
    return code


def _parser(action: str) -> Parser:
    p = Parser(f"data {action}", f"{ACTIONS[action][0].upper()}{ACTIONS[action][1:]}.")
    home = importlib.import_module(f"whet.cli.{_ELSEWHERE.get(action, 'data')}")
    options: Callable[[Parser], None] = getattr(home, f"{action}_options")
    options(p)
    p.set_defaults(act=getattr(home, f"{action}_"))
    return p


def add_choice(p: Parser, *, test: bool = False) -> None:
    """Which episodes of a store."""
    p.add_argument("--tag", action="append", default=[], metavar="TAG", help="only episodes under this tag (may be repeated)")
    p.add_argument(
        "--split", choices=(*SPLITS, "all") if test else ("train", "dev"), default="train", help="episodes of tasks of this split"
    )


# -- import --------------------------------------------------------------------------------------------------------------


def import_options(p: Parser) -> None:
    from whet.data import formats

    p.add_argument("store", metavar="STORE", help="where to: a .db, made where there is none")
    p.add_argument("files", metavar="FILE", nargs="+", help=".jsonl, .json, also .gz; .parquet; .db; a run's or a data set's directory")
    p.add_argument("--format", choices=formats.names(), default=None, help="of the records (default: what the first one looks like)")
    p.add_argument("--source", default=None, metavar="NAME", help="name of the file in the store (default: its own)")
    p.add_argument("--tag", default=None, metavar="TAG", help="under which the episodes are kept (default: the source)")
    p.add_argument("--env", default="", metavar="NAME", help="the environment of records that name none")
    p.add_argument("--split", choices=SPLITS, default="train", help="the split of records that name none")
    p.add_argument("--actor", default="imported", metavar="NAME", help="who acted, of records that do not say")
    p.add_argument("--outcome", choices=("success", "failure", "unknown"), default="unknown", help="of records that do not say")
    p.add_argument("--quiet", action="store_true", help="no progress")


def import_(args: argparse.Namespace) -> int:
    from whet.data.formats import Origin
    from whet.data.importing import import_file
    from whet.data.stores import writable

    if args.source and len(args.files) > 1:
        raise ConfigError(f"--source names one file, and {len(args.files)} were given; import them one by one")
    store = writable(args.store)
    bad = 0
    try:
        for file in args.files:
            with Bar(f"import {Path(file).name}", quiet=args.quiet) as bar:
                origin = Origin(source=args.source or "", env=args.env, split=args.split, actor=args.actor, outcome=args.outcome)
                complaints = Complaints(file, bar)
                report = import_file(
                    store,
                    file,
                    origin,
                    format=args.format,
                    tag=args.tag,
                    on_bad=complaints,
                    on_page=lambda source, r: bar.update(r.place.offset, source.size, f"{r.episodes:,} episodes, {r.bad:,} malformed"),
                )
            complaints.end()
            wrong = report.bad + report.torn
            before = report.episodes - report.fresh
            known = f" ({before:,} of them by an earlier import)" if before else ""
            form = report.format or "no records"
            print(f"{file}: {report.episodes:,} episodes imported{known}, {wrong:,} malformed records left out [{form}]")
            bad += wrong
    finally:
        store.close()
    return SOME_BAD if bad else 0


class Complaints:
    """Prints malformed records with file and line, the first ones each."""

    def __init__(self, file: str, bar: Bar) -> None:
        self._file, self._bar, self._n = file, bar, 0
        self._unit = "line" if ".json" in file else "row"

    def __call__(self, line: int, why: str) -> None:
        self._n += 1
        if self._n <= _SHOWN:
            from whet.data.text import plain

            self._bar.note(plain(f"{self._file}, {self._unit} {line}: {why}").replace("\n", " "))

    def end(self) -> None:
        if self._n > _SHOWN:
            self._bar.note(f"{self._file}: {self._n - _SHOWN:,} more malformed records")


# -- export --------------------------------------------------------------------------------------------------------------


def export_options(p: Parser) -> None:
    from whet.data import formats

    p.add_argument("store", metavar="STORE", help=STORE)
    p.add_argument("file", metavar="FILE", help=".jsonl, .json, also .gz; .parquet (whet only); without a suffix a data set's directory")
    p.add_argument("--to", choices=formats.names(), required=True, help="the format")
    p.add_argument("--strict", action="store_true", help="refuse where anything would be lost")
    p.add_argument("--bare", action="store_true", help="leave out what the format has no field of its own for")
    p.add_argument("--allow-test", action="store_true", help="episodes of test tasks, too: nothing will be trained on the file")
    p.add_argument("--quiet", action="store_true", help="no progress")
    add_choice(p, test=True)


def export_(args: argparse.Namespace) -> None:
    from whet.data import formats
    from whet.data.exporting import export
    from whet.data.stores import Stored, of_split

    if args.split in ("test", "all") and not args.allow_test:
        raise ConfigError(f"--split {args.split} exports test tasks, which nothing may be trained on. If nothing will be: --allow-test")
    stored, left_out = Stored.open(args.store), dict[str, int]()
    found = stored.by_task(args.tag) if formats.get(args.to).episodes == 2 else stored.episodes(args.tag)
    chosen = of_split(found, None if args.split == "all" else args.split, left_out)
    total = size(stored)
    with Bar(f"export {Path(args.file).name}", quiet=args.quiet) as bar:
        account = export(
            chosen,
            args.file,
            args.to,
            strict=args.strict,
            bare=args.bare,
            allow_test=args.allow_test,
            on_record=lambda a: bar.update(a.episodes, total, f"{a.records:,} records"),
        )
    for line in [*others(left_out), *account.lines(args.to)]:
        print(f"note: {line}", file=sys.stderr)
    print(f"{args.file}: {account.records:,} records of {account.episodes:,} episodes [{args.to}]")


def others(left_out: dict[str, int]) -> Iterator[str]:
    """What is to be told of episodes that are of another split than the one asked for."""
    for split, n in left_out.items():
        yield f"{n:,} episodes of {split} tasks are left out (--split)"


def size(stored: Stored) -> int:
    """How many episodes there are; 0 where nobody knows."""
    return stored.store.count() if stored.store else 0


# -- stats, show, audit --------------------------------------------------------------------------------------------------


def stats_options(p: Parser) -> None:
    p.add_argument("store", metavar="STORE", help=STORE)
    p.add_argument("--json", action="store_true", help="as JSON, with every value")
    add_choice(p, test=True)
    p.set_defaults(split="all")


def stats_(args: argparse.Namespace) -> None:
    from whet.data.importing import imports
    from whet.data.stores import Stored, of_split
    from whet.data.summary import Summary

    stored, summary = Stored.open(args.store), Summary()
    for episode in of_split(stored.episodes(args.tag), None if args.split == "all" else args.split, {}):
        summary.add(episode)
    if args.json:
        print(json.dumps(summary.to_json(), indent=1))
        return
    from whet.data.text import plain

    print("\n".join(map(plain, summary.lines())))
    for report in imports(stored.store) if stored.store else ():
        print(f"  imported from {plain(report.source)}: {report.episodes:,} episodes, {report.bad:,} malformed records [{report.format}]")


def show_options(p: Parser) -> None:
    p.add_argument("store", metavar="STORE", help=STORE)
    p.add_argument("ids", metavar="ID", nargs="*", help="of an episode, or of a task (default: the first episodes)")
    p.add_argument("-n", type=positive, default=3, metavar="N", help="episodes, where no id is given")
    p.add_argument("--outcome", choices=("success", "failure", "unknown", "error"), default=None, help="only these")
    p.add_argument("--longest", type=positive, default=2000, metavar="N", help="characters of a turn")
    add_choice(p, test=True)
    p.set_defaults(split="all")


def show_(args: argparse.Namespace) -> None:
    from whet.data.provenance import outcome_of
    from whet.data.stores import Stored, of_split
    from whet.data.text import lines_of

    stored = Stored.open(args.store)
    found = of_split(stored.episodes(args.tag), None if args.split == "all" else args.split, {})
    if args.ids:
        found = (episode for name in args.ids for episode in stored.find(name))
    shown = 0
    for episode in found:
        if args.outcome is None or outcome_of(episode) == args.outcome:
            print("\n".join(lines_of(episode, longest=args.longest)) + "\n")
            shown += 1
            if shown == args.n and not args.ids:
                break
    if not shown:
        what = f"with the id {' or '.join(map(repr, args.ids))}" if args.ids else "of this kind"
        raise ConfigError(f"{args.store} has no episode {what}; whet data stats says what it holds")


def audit_options(p: Parser) -> None:
    p.add_argument("store", metavar="STORE", help="what whet data filter wrote")
    p.add_argument("--dropped", action="store_true", help="every dropped episode, with the filter and the reason")


def audit_(args: argparse.Namespace) -> None:
    from whet.data import audit
    from whet.data.stores import Stored
    from whet.data.text import plain

    stored = Stored.open(args.store)
    found = audit.load(stored.store) if stored.store else []
    if not found:
        raise ConfigError(f"{args.store} holds no audit; whet data filter writes one into its --out")
    for number, about, account in found:
        print(plain(f"filtered from {about['store']}, {about['split']} tasks"))
        for line in [*others(about["left_out"]), *account.lines()]:
            print(plain(line))
        if args.dropped:
            assert stored.store is not None
            for step, episode, reason in stored.store.drops(number):
                print(plain(f"{account.steps[step].name}\t{episode}\t{reason}").replace("\n", " "))
