"""`whet data pairs`: what the pair builders find in a store, side by side."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from whet.cli.common import Parser, positive
from whet.cli.data import STORE, add_choice
from whet.errors import ConfigError
from whet.userfile import load_function

if TYPE_CHECKING:
    from whet.data import Contrast
    from whet.types import Episode, Turn


def pairs_options(p: Parser) -> None:
    from whet.data.pairs import KINDS

    p.add_argument("store", metavar="STORE", help=f"{STORE[: STORE.rindex(',')]}")
    p.add_argument("ids", metavar="TASK", nargs="*", help="only pairs of these tasks")
    p.add_argument("-n", type=positive, default=3, metavar="N", help="pairs of each kind that are shown; all are counted")
    p.add_argument("--kind", action="append", choices=KINDS, default=None, help="only these (may be repeated)")
    p.add_argument("--least", type=float, default=0.0, metavar="X", help="leave out pairs that differ by no more than this")
    p.add_argument("--labels", default=None, metavar="FILE", help='go by labels: JSON lines {"id": an episode\'s, "worth": a number}')
    p.add_argument("--judge", default=None, metavar="SPEC", help="go by a judge: path/to/file.py:FUNCTION of a list of episodes")
    p.add_argument("--width", type=positive, default=None, metavar="N", help="columns (default: the terminal's)")
    p.add_argument("--longest", type=positive, default=400, metavar="N", help="characters of a turn")
    add_choice(p, test=True)


def pairs_(args: argparse.Namespace) -> None:
    from whet.data.pairs import KINDS, contrasts
    from whet.data.stores import Stored, of_split

    stored = Stored.open(args.store)
    split = None if args.split == "all" else args.split
    width = args.width or shutil.get_terminal_size().columns
    margins: dict[str, list[float]] = {kind: [] for kind in args.kind or KINDS}
    good = bad = 0
    for task, group in itertools.groupby(of_split(stored.by_task(args.tag), split, {}), key=lambda episode: episode.task.id):
        if args.ids and task not in args.ids:
            continue
        episodes = valued(list(group), args.labels, args.judge)
        good, bad = good + sum(e.success for e in episodes if e.ok), bad + sum(not e.success for e in episodes if e.ok)
        for contrast in contrasts(episodes, list(margins), least=args.least):
            margins[contrast.kind].append(contrast.margin)
            if len(margins[contrast.kind]) <= args.n:
                print("\n".join(side_by_side(contrast, width, args.longest)) + "\n")
    for kind, found in margins.items():
        about = f", margin {fmean(found):.3g} on average, {min(found):.3g} to {max(found):.3g}" if found else ""
        print(f"{kind:<10}{len(found):>8,} pairs{about}")
    print(f"{'unpaired':<10}{good + bad:>8,} episodes, {good:,} of them good by themselves")


def valued(episodes: Sequence[Episode], labels: str | None, judge: str | None) -> list[Episode]:
    """The episodes with what they are worth as their reward; those without a label, or a judge's score, are left out."""
    if labels and judge:
        raise ConfigError("--labels and --judge both say what an episode is worth; give one of them")
    if labels:
        worth = _labels(labels)
        return [dataclasses.replace(e, reward=worth[e.id]) for e in episodes if e.id in worth]
    if judge:
        verdicts = load_function(judge)(list(episodes))
        both = zip(episodes, verdicts, strict=True)
        return [dataclasses.replace(e, reward=float(v.score)) for e, v in both if v.score is not None]
    return list(episodes)


def _labels(path: str) -> dict[str, float]:
    try:
        records = [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]
        return {str(record["id"]): float(record["worth"]) for record in records}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f'{path} holds no labels; expected lines such as {{"id": "an/episode#0", "worth": 1}} ({error!r})') from error


def side_by_side(contrast: Contrast, width: int, longest: int) -> Iterator[str]:
    """Where the pair comes from, what both begin with, and how each goes on: the better one on the left."""
    from whet.data.text import plain

    one, other = contrast.better, contrast.worse
    yield plain(f"== {contrast.kind}: {one.task.id}, margin {contrast.margin:.3g}")
    yield plain(f"   chosen   {one.id} ({_about(one)})")
    yield plain(f"   rejected {other.id} ({_about(other)})")
    shared, left, right = _parts(contrast)
    for turn in shared:
        yield from textwrap.wrap(plain(_told(turn, longest)), width, subsequent_indent="    ")
    half = (width - 3) // 2
    columns = (_column(turns, half, longest) for turns in (left, right))
    for a, b in itertools.zip_longest(*columns, fillvalue=""):
        yield f"{a:<{half}} | {b}".rstrip()


def _about(episode: Episode) -> str:
    fork = episode.tags.get("fork")
    begun = f", from action {fork['actions'] + 1} of {fork['episode']}" if fork else ""
    return f"{episode.tags.get('actor', '-')}, reward {episode.reward:.3g}{begun}"


def _parts(contrast: Contrast) -> tuple[Sequence[Turn], Sequence[Turn], Sequence[Turn]]:
    """The turns that both begin with, and those of each from there to the end of what the preference is about."""
    one, other = contrast.better.turns, contrast.worse.turns
    same = next((i for i, (a, b) in enumerate(zip(one, other)) if _said(a) != _said(b)), None)
    cut = min(len(one), len(other)) if same is None else same
    return one[:cut], _until(one, contrast.stop)[cut:], _until(other, contrast.stop)[cut:]


def _said(turn: Turn) -> object:
    return turn.role, turn.content, turn.tool_calls


def _until(turns: Sequence[Turn], stop: int | None) -> Sequence[Turn]:
    """The turns up to the action before which the preference ends."""
    at = [i for i, turn in enumerate(turns) if turn.trained]
    return turns if stop is None or stop >= len(at) else turns[: at[stop - 1] + 1]


def _told(turn: Turn, longest: int) -> str:
    from whet.transcript import line

    text = line(turn)
    return f"{turn.role}: {text if len(text) <= longest else text[:longest] + ' ...'}"


def _column(turns: Iterable[Turn], width: int, longest: int) -> list[str]:
    from whet.data.text import plain

    return [row for turn in turns for row in textwrap.wrap(plain(_told(turn, longest)), width, subsequent_indent="  ")]
