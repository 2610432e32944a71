"""Episodes into files of any format, with an account of what the format could not take."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from whet.data import formats
from whet.data.formats import Format, RecordError
from whet.data.formats.base import schemas_of
from whet.data.formats.exact import forked, walks
from whet.data.writing import open_target
from whet.errors import ConfigError, SplitError
from whet.types import Episode


@dataclass
class Account:
    """What became of the episodes of an export. Everything but `records` and `episodes` is to be told to whoever asked for it."""

    records: int = 0
    episodes: int = 0
    """That are in those records."""
    lost: Counter[str] = field(default_factory=Counter)
    """What the format has no place for, and in how many episodes it was."""
    forked: int = 0
    """Episodes that became a record for each of their walks."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Episodes that are in no record, by the reason."""
    unknown_tools: int = 0
    """Episodes that call tools whose schemas are not recorded, so that a prompt made of the record shows none."""

    def lines(self, form: str) -> list[str]:
        """What is to be told, a sentence each."""
        told = (
            [f"{form} has no place for: {', '.join(f'{what} ({n:,} episodes)' for what, n in self.lost.most_common())}"]
            if self.lost
            else []
        )
        told += [f"{self.forked:,} episodes have forks; each of their walks is a record"] if self.forked else []
        told += [f"{n:,} episodes are left out: {why}" for why, n in self.left_out.most_common()]
        if self.unknown_tools:
            told.append(f"{self.unknown_tools:,} episodes call tools whose schemas were not recorded; their records show no tools")
        return told


def export(
    episodes: Iterable[Episode],
    path: str | os.PathLike[str],
    format: str,
    *,
    strict: bool = False,
    bare: bool = False,
    allow_test: bool = False,
    on_record: Callable[[Account], None] | None = None,
) -> Account:
    """Write episodes to a file in a format; it appears when it is complete.

    For a format of preferences the episodes of a task must stand together (`by_task`); of each task the best and the worst
    are taken. With `bare`, extensions of the format are not used. `strict` refuses what would lose or leave out anything.

    Raises SplitError for an episode of a test task, unless `allow_test`; ConfigError for an unknown format or suffix, or with
    `strict` for what would be lost; StorageError where the file cannot be written.
    """
    form, path, account = formats.get(format), Path(path), Account()
    columns = path.suffix == ".parquet"
    if columns and not form.whole:
        raise ConfigError(f"Parquet holds whole episodes: use the format 'whet', not {format!r}, or write {path.with_suffix('.jsonl')}")
    trained = _refusing_test(episodes) if not allow_test else episodes
    with open_target(path) as write:
        for unit in _units(trained, form, account):
            try:
                record, lost = (unit[0], frozenset()) if columns else formats.dump(form, unit, bare=bare)
            except RecordError as error:
                account.left_out[str(error)] += len(unit)
                record, lost = None, frozenset()
            account.lost.update(dict.fromkeys(lost, len(unit)))
            account.unknown_tools += sum(any(turn.tool_calls for turn in e.turns) and not schemas_of(e) for e in unit) * (not form.whole)
            if strict and (found := account.lines(format)):
                raise ConfigError(
                    f"refused: {found[0]} (episode {unit[0].id!r} is the first). Leave out --strict to write it all the same."
                )
            if record is None:
                continue
            write(record)
            account.records, account.episodes = account.records + 1, account.episodes + len(unit)
            if on_record:
                on_record(account)
    return account


def _refusing_test(episodes: Iterable[Episode]) -> Iterator[Episode]:
    for episode in episodes:
        if episode.task.split == "test":
            raise SplitError(
                f"episode {episode.id!r} is of the test task {episode.task.id!r}, and what is exported may be trained on. "
                "Leave it out (--split train), or say that nothing will be trained on it (--allow-test)."
            )
        yield episode


def _units(episodes: Iterable[Episode], form: Format, account: Account) -> Iterator[Sequence[Episode]]:
    """What a record holds."""
    if form.episodes == 2:
        yield from _pairs(episodes, account)
        return
    for episode in episodes:
        if not form.forks and not episode.ok:
            account.left_out["they failed with an error"] += 1
        elif form.forks or not forked(episode):
            yield (episode,)
        else:
            account.forked += 1
            yield from ((walk,) for walk in walks(episode))


def _pairs(episodes: Iterable[Episode], account: Account) -> Iterator[Sequence[Episode]]:
    """The best and the worst episode of each task, as long as one is better. Episodes of a task stand together."""
    seen: set[str] = set()
    group: list[Episode] = []

    def pair() -> Iterator[Sequence[Episode]]:
        whole = [e for e in group if e.ok and not forked(e)]
        account.left_out["they failed with an error, or have forks"] += len(group) - len(whole)
        if not whole:
            return
        best, worst = max(whole, key=lambda e: e.reward), min(whole, key=lambda e: e.reward)
        if best.reward > worst.reward:
            account.left_out["another episode of the task is better or worse"] += len(whole) - 2
            yield best, worst
        else:
            account.left_out["no episode of the task is better than another"] += len(whole)

    for episode in episodes:
        if group and group[0].task.id != episode.task.id:
            yield from pair()
            seen.add(group[0].task.id)
            group = []
            if episode.task.id in seen:
                raise ConfigError(f"the episodes of task {episode.task.id!r} do not stand together; import them into a store first")
        group.append(episode)
    if group:
        yield from pair()
    account.left_out += Counter()
