"""Where commands read episodes from and write them to: a store, a run's, or whet's own JSON lines."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from whet.data import formats
from whet.data.formats import Origin, RecordError
from whet.data.formats.base import sourced
from whet.data.records import Place, open_source
from whet.errors import ConfigError
from whet.runs import EpisodeStore
from whet.runs.files import writing
from whet.types import Episode, Split

_PAGE = 256


@dataclass(frozen=True)
class Stored:
    """Episodes on disk, with where they come from. Raises ConfigError and CheckpointError where there are none."""

    path: Path
    name: str
    """Source of the episodes that name none: the run, or the file."""
    store: EpisodeStore | None
    """None of JSON lines."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Stored:
        """A store (`x.db`), a run's directory, or JSON lines of whet's own format."""
        path = Path(path)
        if not path.exists():
            raise ConfigError(f"there is no {path}; expected a store (.db), a run's directory, or whet's own .jsonl")
        file = path / "episodes.db" if path.is_dir() else path
        if path.is_dir() and not file.exists():
            raise ConfigError(f"{path} is no run: it has no episodes.db")
        if ".jsonl" in file.suffixes:
            return cls(path, path.name, None)
        if file.suffix != ".db":
            raise ConfigError(
                f"{path} is no store; expected .db, a run's directory, or whet's own .jsonl. Import it first (whet data import)."
            )
        return cls(path, path.resolve().name, EpisodeStore(file, read_only=True))

    def episodes(self, tags: Sequence[str] = ()) -> Iterator[Episode]:
        """All of them, or those under these tags, oldest first."""
        return (episode for _, episode in self.tagged(tags))

    def tagged(self, tags: Sequence[str] = ()) -> Iterator[tuple[str, Episode]]:
        """As `episodes`, each with its tag; in JSON lines that is the tag of the rollout, if there was one."""
        if self.store is None:
            found = ((tag_of(e), e) for e in self._lines())
        else:
            found = ((tag, self.known(e)) for _, tag, e in self.store.rows())
        return ((tag, e) for tag, e in found if not tags or tag in tags)

    def by_task(self, tags: Sequence[str] = ()) -> Iterator[Episode]:
        """As `episodes`, those of a task together. Raises ConfigError for JSON lines, which are read in their order only."""
        if self.store is None:
            raise ConfigError(f"{self.path} would have to be sorted by task; import it into a store first (whet data import)")
        rows = self.store.numbers(by_task=True)
        for start in range(0, len(rows), _PAGE):
            yield from (self.known(e) for tag, e in self.store.at(rows[start : start + _PAGE]) if not tags or tag in tags)

    def find(self, name: str) -> Iterator[Episode]:
        """The episodes with this id, or of the task with this id."""
        if self.store is not None:
            return (self.known(e) for e in self.store.find(name))
        return (e for e in self._lines() if name in (e.id, e.task.id))

    def known(self, episode: Episode) -> Episode:
        """The episode with its source."""
        return sourced(episode, self.name)

    def _lines(self) -> Iterator[Episode]:
        form = formats.get("whet")
        for item in open_source(self.path).read(Place()):
            try:
                if item.error is not None:
                    raise RecordError(item.error)
                yield from formats.load(form, item.record, Origin(source=self.name))
            except RecordError as error:
                raise ConfigError(f"{self.path}, line {item.line}: {error}. Import it to leave out what cannot be read.") from error


def tag_of(episode: Episode) -> str:
    """The tag of the rollout that an episode is from; of an imported one its source."""
    return str(episode.tags.get("tag") or episode.tags.get("source", ""))


def of_split(episodes: Iterable[Episode], split: Split | None, left_out: dict[str, int]) -> Iterator[Episode]:
    """The episodes of a split (None: of all); the others are counted, by their split."""
    for episode in episodes:
        if split is None or episode.task.split == split:
            yield episode
        else:
            left_out[episode.task.split] = left_out.get(episode.task.split, 0) + 1


@contextlib.contextmanager
def new_store(path: str | os.PathLike[str]) -> Iterator[EpisodeStore]:
    """A store that stands under its name when the block has ended without an error, and not before.

    Raises ConfigError where there is a file already, or for another suffix than .db; StorageError where it cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise ConfigError(f"{path} exists already; choose another --out")
    if path.suffix != ".db":
        raise ConfigError(f"--out is {path}; expected a store, such as {path.with_suffix('.db')}")
    temporary = path.with_name(f".{path.name}.tmp")
    _remove(temporary)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    store = EpisodeStore(temporary)
    try:
        yield store
        store.sync()
        store.close()
        with writing(path):
            os.replace(temporary, path)
    except BaseException:
        store.close()
        _remove(temporary)
        raise


def _remove(path: Path) -> None:
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        path.with_name(name).unlink(missing_ok=True)


def writable(path: str | os.PathLike[str]) -> EpisodeStore:
    """A store to add episodes to, made where there is none. Raises ConfigError for a run, whose episodes are its own."""
    path = Path(path)
    if path.is_dir() or path.name == "episodes.db":
        raise ConfigError(f"{path} is a run's, and runs are not added to; import it into a store of its own, such as data.db")
    if path.suffix != ".db":
        raise ConfigError(f"{path} is no store; expected a name such as {path.with_suffix('.db')}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return EpisodeStore(path)
