"""How far a run is, in one line on stderr: rewritten in place on a terminal, now and then as a plain line elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

_EVERY = 10.0
"""Seconds between plain lines."""


class Progress:
    """The console line of a run. `quiet` shows nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._shown = 0.0
        self._open = False
        self._phase, self._total, self._first = "", 0, 0
        self._began = time.monotonic()

    def begin(self, phase: str, first: int, total: int) -> None:
        """A phase of `total` steps begins (or goes on) at step `first`."""
        self._phase, self._first, self._total = phase, first, total
        self._began = time.monotonic()

    def step(self, done: int, metrics: Mapping[str, object], episodes_per_second: float) -> None:
        """`done` steps of the phase are finished; `metrics` are the latest that were logged."""
        if self.quiet:
            return
        now = time.monotonic()
        if not self._terminal and done < self._total and now - self._shown < _EVERY:
            return
        self._shown = now
        parts = [f"{self._phase} {done}/{self._total}"]
        parts += [f"{key} {value:.3g}" for key in ("reward", "loss") if isinstance(value := metrics.get(key), float)]
        if isinstance(success := metrics.get("success"), float):
            parts.append(f"success {success:.0%}")
        if episodes_per_second:
            parts.append(f"{episodes_per_second:.1f} episodes/s")
        if self._first < done < self._total:
            left = (now - self._began) / (done - self._first) * (self._total - done)
            parts.append(f"{duration(left)} left")
        self._write("  ".join(parts))

    def note(self, text: str) -> None:
        """A line that stays, such as where the run lies."""
        if not self.quiet:
            self.end()
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def end(self) -> None:
        """Leave the current line standing."""
        if self._open:
            sys.stderr.write("\n")
            sys.stderr.flush()
            self._open = False

    def _write(self, text: str) -> None:
        if self._terminal:
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            sys.stderr.write("\r\x1b[2K" + text[: width - 1])
            self._open = True
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """Such as `42s`, `3:07` or `1:02:03`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
