"""A bar on a terminal for commands that go through many records; nothing elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_EVERY = 0.2
_AFTER = 1.0
"""Seconds before there is a bar."""


class Bar:
    """Used as a context manager around the work."""

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        self._title = title
        self._wanted = not quiet and sys.stderr.isatty()
        self._began = self._drawn = time.monotonic()
        self._bar: Progress | None = None
        self._row: TaskID

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int, text: str) -> None:
        """`done` of `total` (0: nobody knows) have been gone through."""
        now = time.monotonic()
        if not self._wanted or now - self._began < _AFTER or now - self._drawn < _EVERY:
            return
        self._drawn = now
        if self._bar is None:
            self._start()
        assert self._bar is not None
        self._bar.update(self._row, completed=done, total=total or None, text=text)

    def note(self, text: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._row = self._bar.add_task(self._title, total=None, text="")
        self._bar.start()
