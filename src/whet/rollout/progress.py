"""The bar of a long rollout on a terminal: done, episodes per second, success so far, errors."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_AFTER = 2.0
"""Seconds before a bar appears unasked."""
_EVERY = 0.2


class ProgressBar:
    """Shows nothing off a terminal or in the first two seconds, unless `shown` is True; nothing at all if it is False."""

    def __init__(self, total: int, *, shown: bool | None, title: str) -> None:
        self._total, self._title = total, title
        self._wanted = shown is True or (shown is None and sys.stderr.isatty())
        self._delay = 0.0 if shown else _AFTER
        self._began = self._drawn = time.monotonic()
        self._bar: Progress | None = None
        self._row: TaskID
        self._successes = 0

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, failed: int, success: bool) -> None:
        """One more episode has finished."""
        self._successes += success
        if not self._wanted:
            return
        now = time.monotonic()
        if now - self._began < self._delay or (now - self._drawn < _EVERY and done < self._total):
            return
        self._drawn = now
        if self._bar is None:
            self._start()
        assert self._bar is not None
        rate = done / max(now - self._began, 1e-9)
        text = f"{rate:.1f}/s  success {self._successes / max(done - failed, 1):.0%}" + (f"  {failed} failed" if failed else "")
        self._bar.update(self._row, completed=done, text=text)

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        if console.is_terminal:
            console.file.write("\r\x1b[2K")
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True)
        self._row = self._bar.add_task(self._title, total=self._total, text="")
        self._bar.start()
