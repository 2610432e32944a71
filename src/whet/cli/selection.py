"""`whet data filter` and `whet data mix`: which episodes go into a new store."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.cli.bar import Bar
from whet.cli.common import Parser, count, positive
from whet.cli.data import STORE, add_choice, others, size
from whet.errors import ConfigError
from whet.userfile import load_function

if TYPE_CHECKING:
    from whet.data.filters import Filter
    from whet.types import Episode, Task

_PAGE = 256


class _Add(argparse.Action):
    """Adds a filter to the list, which keeps the order of the command line."""

    def __call__(self, parser: Any, args: argparse.Namespace, values: Any, option_string: str | None = None) -> None:
        args.filters = [*args.filters, (self.dest, values)]


def _share(text: str) -> float:
    try:
        if 0 < float(text) <= 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} was given; expected a number in (0, 1]")


def filter_options(p: Parser) -> None:
    def add(name: str, text: str, **options: Any) -> None:
        p.add_argument(name, action=_Add, default=argparse.SUPPRESS, help=text, **options)

    p.add_argument("store", metavar="STORE", help=STORE)
    p.add_argument("--out", required=True, metavar="STORE", help="a new store, for what is kept")
    p.set_defaults(filters=[])
    add("--success", "keep successes", nargs=0)
    add("--min-reward", "keep rewards of at least this", type=float, metavar="R")
    add("--readable", "keep episodes without empty answers, unreadable calls, and calls of tools that were not offered", nargs=0)
    add("--min-turns", "keep at least this many turns of the assistant", type=count, metavar="N")
    add("--max-turns", "keep at most this many turns of the assistant", type=count, metavar="N")
    add("--max-characters", "keep at most this many characters", type=count, metavar="N")
    add("--max-tokens", "keep at most this many tokens (--model counts those of text)", type=count, metavar="N")
    add("--distinct", "keep the first of equal conversations", nargs=0)
    add("--distinct-by", "keep the first of conversations at least this similar, such as 0.8", type=_share, metavar="S")
    add("--no-overlap", "drop what shares --ngram words with the tasks of this environment, or the episodes of this store", metavar="ENV")
    add("--max-perplexity", "keep at most this perplexity under --model", type=float, metavar="P")
    add("--judge", "keep what a judge gives at least --least: path/to/file.py:FUNCTION of a list of episodes", metavar="SPEC")
    p.add_argument("--least", type=float, default=None, metavar="SCORE", help="for --judge")
    p.add_argument("--ngram", type=positive, default=13, metavar="N", help="words of a run, for --no-overlap")
    p.add_argument(
        "--held-out", type=positive, default=256, metavar="N", help="test and dev tasks of an environment, each, for --no-overlap"
    )
    p.add_argument("--model", default=None, metavar="MODEL", help="for --max-perplexity and --max-tokens: base, a directory or a hub id")
    p.add_argument("--page", type=positive, default=64, metavar="N", help="episodes that a filter looks at at once")
    p.add_argument("--quiet", action="store_true", help="no progress")
    add_choice(p)


def filter_(args: argparse.Namespace) -> None:
    from whet.data import audit, filters
    from whet.data.stores import Stored, new_store, of_split, tag_of

    if not args.filters:
        raise ConfigError("no filter was given; whet data filter --help lists them")
    stored, left_out = Stored.open(args.store), dict[str, int]()
    made = [_made(name, value, args) for name, value in args.filters]
    chosen = of_split(stored.episodes(args.tag), args.split, left_out)
    total = size(stored)
    with Bar(f"filter {stored.name}", quiet=args.quiet) as bar, new_store(args.out) as out:
        kept, account = filters.apply(chosen, made, page=args.page)
        page: list[Episode] = []
        for episode in kept:
            page.append(episode)
            if len(page) == _PAGE:
                out.add((tag_of(e), e) for e in page)
                out.save_drops((1, *drop) for drop in account.take_drops())
                page = []
            bar.update(account.before.n, total, f"{account.after.n:,} kept")
        out.add((tag_of(e), e) for e in page)
        audit.save(out, account, 1, {"store": stored.name, "split": args.split, "left_out": left_out})
    for line in others(left_out):
        print(f"note: {line}", file=sys.stderr)
    print("\n".join(account.lines()))
    print(f"{args.out}: {account.after.n:,} episodes; whet data audit {args.out} --dropped lists what was dropped")


def _made(name: str, value: Any, args: argparse.Namespace) -> Filter:
    """A filter of the command line."""
    from whet.data import filters

    if name in ("success", "readable"):
        return filters.success() if name == "success" else filters.readable()
    if name in ("distinct", "distinct_by"):
        return filters.deduplicate(value if name == "distinct_by" else None)
    if name == "no_overlap":
        return _no_overlap(value, args)
    if name == "max_tokens":
        return filters.max_tokens(value, _policy(args.model) if args.model else None)
    if name == "max_perplexity":
        from whet import learn

        if not args.model:
            raise ConfigError("--max-perplexity needs --model, whose perplexity it is")
        return filters.perplexity(_policy(args.model), learn.with_reference, at_most=value)
    if name == "judge":
        if args.least is None or math.isnan(args.least):
            raise ConfigError("--judge needs --least, the score of what is kept")
        return filters.judged(load_function(value), at_least=args.least, name=value)
    simple: dict[str, Any] = {f.__name__: f for f in (filters.min_reward, filters.min_turns, filters.max_turns, filters.max_characters)}
    made: Filter = simple[name](value)
    return made


def _policy(spec: str) -> Any:
    from whet.cli.common import load_agent

    return load_agent(spec, None).policy


def _no_overlap(spec: str, args: argparse.Namespace) -> Filter:
    from whet.data import filters
    from whet.data.stores import Stored

    held_out: Iterable[Task | Episode]
    if Path(spec).exists():
        held_out = (episode for episode in Stored.open(spec).episodes() if episode.task.split != "train")
        return filters.no_overlap(held_out, n=args.ngram)
    from whet.envs import load_env

    env = load_env(spec)
    held_out = [task for split in ("dev", "test") for task in env.tasks(split, args.held_out)]
    return filters.no_overlap(held_out, n=args.ngram, env=env)


# -- mix -----------------------------------------------------------------------------------------------------------------


def mix_options(p: Parser) -> None:
    p.add_argument("stores", metavar="STORE[=WEIGHT]", nargs="+", help="a .db or a run's directory; its weight is 1 unless given")
    p.add_argument("--out", required=True, metavar="STORE", help="a new store")
    p.add_argument(
        "--eta",
        type=float,
        default=None,
        metavar="P",
        help="of two stores: draw from the first with this probability, else from the second",
    )
    p.add_argument("-n", type=positive, default=None, metavar="N", help="episodes to draw (default: as many as no store would run out of)")
    p.add_argument("--seed", type=count, default=0, metavar="N")
    p.add_argument("--split", choices=("train", "dev"), default="train", help="episodes of tasks of this split")
    p.add_argument("--quiet", action="store_true", help="no progress")


def mix_(args: argparse.Namespace) -> None:
    from whet.data.mixing import mix_stores
    from whet.data.stores import Stored, new_store

    names, weights = zip(*(_weighted(spec) for spec in args.stores))
    if args.eta is not None:
        if len(names) != 2 or set(weights) != {1.0} or not 0 <= args.eta <= 1:
            raise ConfigError(f"--eta is {args.eta} for {len(names)} stores; expected a probability, and two stores without weights")
        weights = (args.eta, 1 - args.eta)
    sources = [Stored.open(name) for name in names]
    with Bar("mix", quiet=args.quiet) as bar, new_store(args.out) as out:
        account = mix_stores(
            sources, weights, out, n=args.n, seed=args.seed, split=args.split, on_page=lambda done, n: bar.update(done, n, "")
        )
        out.note("mixture", json.dumps([asdict(one) for one in account] + [{"seed": args.seed}]))
    total = sum(one.draws for one in account)
    for one in account:
        share = one.draws / total if total else 0.0
        print(f"{one.name}: {one.draws:,} drawn ({share:.1%}) of {one.rows:,} {args.split} episodes, {one.passes:.2f} passes")
    print(f"{args.out}: {total:,} episodes")


def _weighted(spec: str) -> tuple[str, float]:
    name, equals, weight = spec.rpartition("=")
    if not equals or Path(spec).exists():
        return spec, 1.0
    try:
        return name, float(weight)
    except ValueError:
        raise ConfigError(f"{spec!r} was given; expected STORE=WEIGHT, such as {name}=0.5") from None
