"""A run is a directory, and a program that is killed and started again continues it.

    config.json   what it takes to repeat the run
    events.jsonl  what happened, line by line, as it happened
    episodes.db   every episode with its tokens
    checkpoints/  the state after the last step of the phase under way, and after each finished phase
    evals/        evaluations
    commit.json   how far the run is: the steps that are done, and how much of the files above belongs to them
    status        running, done, failed or interrupted

Resuming works by doing everything again except what is committed. A committed step is not yielded again by `Run.steps`;
what lies between phases is executed again, and until the last commit is reached nothing is written, because the log has
it already. What had been written after the last commit is thrown away first, and redone. So the log of a resumed run
equals that of an undisturbed one, as long as the program is deterministic given `Run.seed`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, unquote

from whet import __version__
from whet.errors import CheckpointError, ConfigError, StorageError
from whet.runs.codec import cost_to_json, to_json
from whet.runs.files import EventLog, Lock, is_locked, make_directory, read_events, write_atomic, write_directory
from whet.runs.progress import Progress
from whet.runs.store import EpisodeStore
from whet.seeding import derive_seed
from whet.types import Cost, Episode

FORMAT = 1
"""Version of the directory's layout."""
_PACKAGES = ("torch", "transformers", "peft", "numpy", "minigrid", "gymnasium", "openai")
T = TypeVar("T")
_SAVING = 0.05
"""Share of a run's time that unasked checkpoints may take."""


class Saveable(Protocol):
    """State that a run saves and restores: a learner, or a `JsonState`."""

    def save_state(self, directory: Path) -> object: ...
    def load_state(self, directory: Path) -> object: ...


class JsonState(dict[str, Any]):
    """State of plain JSON values for methods without a learner: `state = JsonState(memory={})`."""

    def save_state(self, directory: Path) -> None:
        (directory / "state.json").write_text(to_json(dict(self)))

    def load_state(self, directory: Path) -> None:
        self.clear()
        self.update(json.loads((directory / "state.json").read_text()))


@dataclass
class _Phase:
    done: int = 0
    finished: bool = False
    checkpoint: str | None = None


@dataclass
class _Commit:
    """The contents of commit.json."""

    phases: dict[str, _Phase] = field(default_factory=dict)
    last: str | None = None
    events: int = 0
    episodes: int = 0
    cost: Cost = field(default_factory=Cost)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def read(cls, path: Path) -> _Commit:
        if not path.exists():
            return cls()
        try:
            record = json.loads(path.read_text())
            phases = {name: _Phase(**phase) for name, phase in record.pop("phases").items()}
            return cls(phases=phases, cost=Cost(**record.pop("cost")), **record)
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); the run cannot be resumed. Start it anew in another --out.") from error


class Run:
    """What a method writes to. Made by `Run.create`, `Run.open` (for reading) or `Run.scratch` (nothing on disk).

    Used as a context manager it sets the status when it ends: done, failed, or interrupted (Ctrl-C).
    """

    def __init__(self, directory: Path | None, config: Mapping[str, Any], *, writer: bool, quiet: bool = False) -> None:
        """Use `create`, `open` or `scratch` instead."""
        self.path = directory
        self.config = dict(config)
        self.budget: int | None = config.get("budget")
        """Episodes after which `steps` stops; None for no limit."""
        self.env_steps: int | None = config.get("env_steps")
        """Environment steps after which it stops, replayed ones included; None for no limit."""
        self.progress = Progress(quiet=quiet)
        self._lock = Lock(directory / "lock") if directory and writer else None
        self._commit_state = _Commit.read(directory / "commit.json") if directory else _Commit()
        self._cost = self._before = self._commit_state.cost
        self._evaluations: dict[str, dict[str, Any]] = {}
        self._replaying = writer and self._commit_state.last is not None
        self._phase: str | None = None
        self._names: dict[str, int] = {}
        self._metrics: dict[str, object] = {}
        self._began = time.monotonic()
        self._saving = 0.0
        self._log: EventLog | None = None
        self._store: EpisodeStore | None = None
        if writer:
            try:
                self._log = EventLog(directory / "events.jsonl" if directory else None)
                self._store = EpisodeStore(directory / "episodes.db" if directory else None)
                self._log.rollback(self._commit_state.events)
                self._store.rollback(self._commit_state.episodes)
            except BaseException:
                self.close()
                raise

    # -- making and opening ------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: str | os.PathLike[str], config: Mapping[str, Any], *, resume: bool = False, quiet: bool = False) -> Run:
        """Begin a run in a new directory, or with `resume` continue the one that is there (if there is one).

        `config` is JSON-able and holds at least `seed`. Raises ConfigError where the directory is taken, in use, or of
        another config; StorageError where it cannot be written.
        """
        directory = Path(path)
        config = json.loads(to_json(dict(config)))
        if (directory / "config.json").exists():
            if not resume:
                raise ConfigError(f"{directory} holds a run already. Continue it with --resume, or choose another --out.")
            _same_config(directory, config)
        else:
            make_directory(directory)
            make_directory(directory / "evals")
            write_atomic(directory / "config.json", json.dumps({"config": config, "whet": _provenance()}, indent=1))
        run = cls(directory, config, writer=True, quiet=quiet)
        run.set_status("running")
        _tidy(directory)
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """A run for reading, while it is being written or afterwards. Raises CheckpointError where there is none."""
        directory = Path(path)
        if not (directory / "config.json").exists():
            raise CheckpointError(f"{directory} is not a run directory (it has no config.json). Give the directory that --out named.")
        return cls(directory, _read_config(directory)["config"], writer=False)

    @classmethod
    def scratch(cls, seed: int = 0, *, budget: int | None = None, env_steps: int | None = None, quiet: bool = True) -> Run:
        """A run that leaves nothing on disk: for callers who pass none."""
        return cls(None, {"seed": seed, "budget": budget, "env_steps": env_steps}, writer=True, quiet=quiet)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.end()
        try:
            if kind is not None:
                self.set_status("interrupted" if issubclass(kind, (KeyboardInterrupt, SystemExit)) else "failed", quietly=True)
            elif self._replaying:
                self.set_status("failed")
                raise CheckpointError(
                    f"{self.path} was interrupted in phase {self._commit_state.last!r}, which the resumed program never reached; it "
                    "differs from the one that began the run. Start it anew in another --out."
                )
            else:
                self.set_status("done")
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the files and of the lock."""
        if self._log:
            self._log.close()
        if self._store:
            self._store.close()
        if self._lock:
            self._lock.release()

    # -- what happened -----------------------------------------------------------------------------------------------

    def seed(self, *names: object) -> int:
        """The seed that these names have in this run."""
        return derive_seed(self.config.get("seed", 0), *names)

    def event(self, kind: str, **data: Any) -> None:
        """Append one event: `kind`, the time, and JSON-able data."""
        if not self._replaying:
            self._writer(self._log).append({"kind": kind, "time": round(time.time(), 3), **data})

    def log(self, step: int, **metrics: Any) -> None:
        """The metrics of a step. Standard keys: reward, success, loss, grad_norm, episodes, tokens, seconds.

        The total cost so far is added, so that curves can be drawn over episodes as well as over steps.
        """
        values = {key: _number(value) for key, value in metrics.items() if value is not None}
        self._metrics = values
        self.event("log", phase=self._phase or "", step=step, metrics=values, spent=cost_to_json(self._cost))

    def save_episodes(self, episodes: Iterable[Episode], tag: str) -> None:
        """Keep episodes under a tag, such as `train`. Their cost is not counted by this; see `spend`."""
        if not self._replaying:
            self._writer(self._store).save(episodes, tag)

    def spend(self, cost: Cost) -> None:
        """Count a cost into `cost`, against the budget. Its seconds are left out: `steps` takes the time itself."""
        if not self._replaying:
            self._cost = self._cost + replace(cost, seconds=0.0)

    @property
    def cost(self) -> Cost:
        """Everything spent so far, before interruptions included (but not what had to be done again).

        `seconds` is wall-clock time inside of `steps`, without the saving of checkpoints.
        """
        return self._cost

    @property
    def spent(self) -> bool:
        """Whether the budget of episodes or that of environment steps is used up."""
        limits = ((self.budget, self._cost.episodes), (self.env_steps, self._cost.env_steps))
        return any(limit is not None and used >= limit for limit, used in limits) and not self._replaying

    # -- steps and resuming ------------------------------------------------------------------------------------------

    def steps(
        self, n: int, state: Saveable | None = None, *, name: str = "step", every: int | None = None, practice: bool = True
    ) -> Iterator[int]:
        """The numbers of the steps still to do, out of `range(n)`; ends early when the budget is spent.

        With `practice=False` it does not: these steps take no episodes, but learn from what there is.

        Of a resumed run, `state` (a learner, or a `JsonState`) is restored first, and committed steps are left out. A step
        is finished when the next is asked for; it is then committed, with a checkpoint of `state`: every `every` steps,
        or, if None, whenever saving has taken less than a twentieth of the time so far. The last step always is.
        A `break` out of the loop leaves its last step uncommitted; a resumed run does that step again.

        Phases follow one another under different `name`s (a repeated one is numbered). Inside another phase's step,
        `steps` only counts: the outer step is what is committed.
        """
        if every is not None and every < 1:
            raise ConfigError(f"every is {every}; expected a number of steps of at least 1, or None")
        if self._phase is not None:
            yield from self._inner(n, name)
            return
        key = self.unique(name)
        phase = self._commit_state.phases.get(key, _Phase())
        if phase.checkpoint is not None and state is not None:
            self._restore(phase.checkpoint, state)
        self._reached(key)
        if phase.finished:
            return
        self._phase = key
        self.progress.begin(key, phase.done, n)
        done = phase.done
        try:
            for step in range(phase.done, n):
                if practice and self.spent:
                    break
                began = time.monotonic()
                yield step
                done = step + 1
                if not self._replaying:
                    self._cost = replace(self._cost, seconds=self._cost.seconds + time.monotonic() - began)
                self.progress.step(done, self._metrics, self._rate())
                if done < n and self._due(done, every):
                    self._commit(key, done, state)
            self._commit(key, done, state, finished=True)
        finally:
            self._phase = None

    def already(self, key: str) -> bool:
        """Whether `commit(key)` was reached before an interruption, so that the work it stands for can be left out."""
        if key not in self._commit_state.phases:
            return False
        self._reached(key)
        return True

    def commit(self, key: str) -> None:
        """Mark work outside of `steps` as done. Inside a step it does nothing: the step is what is committed."""
        if self._phase is None:
            self._commit(key, 1, None, finished=True)

    @property
    def replaying(self) -> bool:
        """Whether a resumed run is still on its way to where it was interrupted; what it writes is then in the log already."""
        return self._replaying

    def _inner(self, n: int, name: str) -> Iterator[int]:
        outer = self._phase
        self._phase = inner = f"{outer}/{name}"
        try:
            for step in range(n):
                if self.spent:
                    break
                yield step
        finally:
            if self._phase == inner:
                self._phase = outer

    def unique(self, name: str) -> str:
        """`name`, numbered where this program has used it before: the key of a phase, the same in every resumption."""
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"

    def _reached(self, key: str) -> None:
        if key == self._commit_state.last:
            self._replaying = False

    def _restore(self, checkpoint: str, state: Saveable) -> None:
        assert self.path is not None
        directory = self.path / "checkpoints" / checkpoint
        if not directory.is_dir():
            raise CheckpointError(f"{directory} is missing, so the run cannot be resumed. Start it anew in another --out.")
        state.load_state(directory)

    def _due(self, done: int, every: int | None) -> bool:
        if every is not None:
            return done % every == 0
        return self._saving <= _SAVING * (time.monotonic() - self._began)

    def _commit(self, key: str, done: int, state: Saveable | None, *, finished: bool = False) -> None:
        if self.path is None or self._replaying:
            return
        began = time.monotonic()
        log, store = self._writer(self._log), self._writer(self._store)
        before = self._commit_state.phases.get(key, _Phase())
        name = None
        if state is not None:
            name = f"{quote(key, safe='')}-{done}{'-final' if finished else ''}"
            write_directory(self.path / "checkpoints" / name, state.save_state)
        log.sync()
        store.sync()
        phases = {**self._commit_state.phases, key: _Phase(done=done, finished=finished, checkpoint=name)}
        after = _Commit(phases=phases, last=key, events=log.offset, episodes=store.position, cost=self._cost)
        write_atomic(self.path / "commit.json", after.to_json())
        self._commit_state = after
        if before.checkpoint not in (None, name):
            shutil.rmtree(self.path / "checkpoints" / str(before.checkpoint), ignore_errors=True)
        self._saving += time.monotonic() - began

    def _rate(self) -> float:
        """Episodes per second since this process began."""
        return (self._cost.episodes - self._before.episodes) / max(time.monotonic() - self._began, 1e-9)

    # -- evaluations, status, reading --------------------------------------------------------------------------------

    def save_evaluation(self, name: str, record: Mapping[str, Any]) -> None:
        """Keep an evaluation, as JSON, under `evals/`."""
        self._evaluations[name] = json.loads(to_json(dict(record)))
        if self.path is not None and not self._replaying:
            write_atomic(self.path / "evals" / f"{quote(name, safe='')}.json", json.dumps(self._evaluations[name]))

    def evaluations(self) -> dict[str, dict[str, Any]]:
        """The evaluations of this run by name."""
        if self.path is None:
            return dict(self._evaluations)
        files = sorted((self.path / "evals").glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
        return {unquote(file.stem): _read_json(file) for file in files}

    def set_status(self, status: str, *, quietly: bool = False) -> None:
        """Write the status; `quietly` where another error is under way already."""
        if self.path is not None:
            try:
                write_atomic(self.path / "status", status + "\n")
            except StorageError:
                if not quietly:
                    raise

    @property
    def status(self) -> str:
        """`running`, `done`, `failed` or `interrupted`; a run whose process was killed is interrupted."""
        if self.path is None:
            return "running"
        path = self.path / "status"
        status = path.read_text().strip() if path.exists() else "interrupted"
        return "interrupted" if status == "running" and not self._lock and not is_locked(self.path / "lock") else status

    def events(self, kind: str | None = None) -> Iterator[dict[str, Any]]:
        """Events of a kind (None: all), oldest first; a torn last line is left out."""
        if self._log is not None:
            found = self._log.read()
        else:
            assert self.path is not None
            found = read_events(self.path / "events.jsonl")
        return (event for event in found if kind is None or event["kind"] == kind)

    def load_episodes(self, tag: str | None = None) -> Iterator[Episode]:
        """The episodes of a tag (None: all), oldest first, read from disk as they are asked for."""
        store = self.store
        return store.load(tag) if store else iter(())

    @property
    def store(self) -> EpisodeStore | None:
        """The episode store; None for a run being read that has none yet."""
        if self._store is None and self.path is not None and (self.path / "episodes.db").exists():
            self._store = EpisodeStore(self.path / "episodes.db", read_only=True)
        return self._store

    def _writer(self, part: T | None) -> T:
        if part is None:
            raise ConfigError(f"{self.path} was opened for reading; use Run.create(path, config, resume=True) to write to it")
        return part


def _tidy(directory: Path) -> None:
    """Remove what a killed process was in the middle of writing: hidden files and directories, replaced when complete."""
    for pattern in (".*.tmp*", "evals/.*.tmp*", "checkpoints/.*.tmp*"):
        for stray in directory.glob(pattern):
            if stray.is_dir():
                shutil.rmtree(stray, ignore_errors=True)
            else:
                stray.unlink(missing_ok=True)


def _same_config(directory: Path, config: Mapping[str, Any]) -> None:
    old = _read_config(directory)["config"]
    different = sorted(key for key in {*old, *config} if old.get(key) != config.get(key))
    if different:
        changes = "; ".join(f"{key}: was {old.get(key)!r}, is {config.get(key)!r}" for key in different)
        raise ConfigError(
            f"{directory} was begun with another config ({changes}). Resume it with the same options, or choose another --out."
        )


def _read_config(directory: Path) -> dict[str, Any]:
    record = _read_json(directory / "config.json")
    if not isinstance(record.get("config"), dict) or record.get("whet", {}).get("format") != FORMAT:
        raise CheckpointError(
            f"{directory / 'config.json'} is not of a run that this whet can read: it has format "
            f"{record.get('whet', {}).get('format')!r}, expected {FORMAT}."
        )
    return record


def _read_json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path} holds {type(record).__name__}, expected a JSON object")
    return record


def _provenance() -> dict[str, Any]:
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "format": FORMAT,
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "command": sys.argv,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _number(value: Any) -> Any:
    """Scalars of numpy and torch as Python numbers; anything else as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
