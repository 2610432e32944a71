"""Files that survive `kill -9`: atomic replacement, a log that tolerates a torn end, and a lock that dies with its owner."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from whet.errors import CheckpointError, ConfigError, StorageError, WhetError
from whet.runs.codec import to_json

try:
    import fcntl
except ImportError:  # Windows; runs are then not protected from a second writer
    fcntl = None  # type: ignore[assignment]

_TRIES = 5
"""Attempts at a lock before it is taken to be held."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what a full disk, a quota or missing rights raise, in Python, SQLite or torch, into one StorageError."""
    try:
        yield
    except WhetError:
        raise
    except (OSError, sqlite3.OperationalError) as error:
        raise storage_error(path, error) from error
    except Exception as error:
        # safetensors and torch raise types of their own when a write fails
        if _is_full(path):
            raise storage_error(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error
        if any(sign in str(error) for sign in ("No space left", "failed writing", "unexpected pos")):
            raise storage_error(path, error) from error
        raise


def storage_error(path: Path, error: BaseException) -> StorageError:
    """The one message for everything that can go wrong with a disk."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return StorageError(
        f"cannot write {path}: {reason}. What was written before is intact; free some space or give write access, then go on with --resume."
    )


def _is_full(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(path if path.exists() else path.parent).free < 1 << 16
    return False


def make_directory(path: Path) -> None:
    """Create a directory with its parents. Raises StorageError."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Replace a file by `text` such that a reader, or a kill at any moment, sees the old or the new one whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_directory(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_directory(path: Path, fill: Callable[[Path], object]) -> None:
    """Make a directory whose contents `fill(directory)` writes; it appears under its name only when complete and synced."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with writing(path):  # inside: it looks whether the disk is full, which it no longer is when this is tidied up
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            fill(temporary)
            for file in temporary.rglob("*"):
                if file.is_file():
                    with open(file, "rb") as handle:
                        os.fsync(handle.fileno())
            sync_directory(temporary)
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
            sync_directory(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sync_directory(path: Path) -> None:
    """Make renames inside a directory durable (where the system can)."""
    with contextlib.suppress(OSError, PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class EventLog:
    """JSON lines, appended one at a time. Without a path they are kept in memory."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.offset = 0
        """Bytes (in memory: events) that are whole."""
        self._memory: list[dict[str, Any]] = []
        self._file: int | None = None
        if path is not None:
            with writing(path):
                self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
                self._cut(_whole(path))

    def append(self, event: dict[str, Any]) -> None:
        """Add one event; when this returns, it outlives the process. Raises StorageError, and then has added nothing."""
        if self._file is None:
            self._memory.append(json.loads(to_json(event)))
            self.offset += 1
            return
        assert self.path is not None
        line = to_json(event).encode() + b"\n"
        with writing(self.path):
            try:
                os.lseek(self._file, self.offset, os.SEEK_SET)
                rest = line
                while rest:
                    rest = rest[os.write(self._file, rest) :]
            except BaseException:
                with contextlib.suppress(OSError):
                    self._cut(self.offset)
                raise
        self.offset += len(line)

    def rollback(self, offset: int) -> None:
        """Forget what was added after `offset`. Raises CheckpointError where the log is shorter than that."""
        if offset > self.offset:
            raise CheckpointError(f"{self.path} holds {self.offset} bytes but {offset} were committed; the file was damaged")
        self._cut(offset)

    def sync(self) -> None:
        """Make everything added so far survive a power cut, too."""
        if self._file is not None:
            assert self.path is not None
            with writing(self.path):
                os.fsync(self._file)

    def read(self) -> Iterator[dict[str, Any]]:
        """All whole events, oldest first."""
        if self.path is None:
            yield from list(self._memory)
        else:
            yield from read_events(self.path)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _cut(self, offset: int) -> None:
        if self._file is not None:
            os.ftruncate(self._file, offset)
        else:
            del self._memory[offset:]
        self.offset = offset


def _whole(path: Path) -> int:
    """Bytes up to the end of the last line that ends in a newline."""
    data = path.read_bytes()
    return data.rfind(b"\n") + 1


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a log file. A torn last line is left out; damage before it raises CheckpointError with the line's number."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError as error:
                raise CheckpointError(f"{path}, line {number} is not JSON ({error}); the file was damaged") from error


class Lock:
    """One writer per directory. The kernel frees the lock when its owner dies, however it dies."""

    def __init__(self, path: Path) -> None:
        """Take the lock. Raises ConfigError while another living process holds it."""
        self.path = path
        self._file = self._take()
        with writing(path):
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)

    def _take(self) -> int:
        for _ in range(_TRIES):
            with writing(self.path):
                file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            if fcntl is None or _try_lock(file):
                return file
            os.close(file)
            pid, host = _owner(self.path)
            if host == socket.gethostname() and not _alive(pid):
                # held through a file descriptor that a dead owner's child inherited
                self.path.unlink(missing_ok=True)
            else:
                time.sleep(0.02)  # a reader that looks at the status holds it for an instant
        raise ConfigError(
            f"{self.path.parent} is being written by process {pid} on {host or 'an unknown host'}. "
            "Wait for it, stop it, or choose another --out."
        )

    def release(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def is_locked(path: Path) -> bool:
    """Whether a living process holds this lock."""
    if fcntl is None or not path.exists():
        return False
    file = os.open(path, os.O_RDONLY)
    try:
        return not _try_lock(file) and not (_owner(path)[1] == socket.gethostname() and not _alive(_owner(path)[0]))
    finally:
        os.close(file)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _owner(path: Path) -> tuple[int, str]:
    try:
        pid, host = path.read_text().split()
        return int(pid), host
    except (OSError, ValueError):
        return 0, ""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def recipe_directory(recipe: str) -> str:
    """The name of the directory that holds a recipe's run in a comparison; a method of the user's may have a path for its name."""
    return recipe.replace("/", "_")
