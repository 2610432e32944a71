"""The state of a comparison's jobs while they run: a live table on a terminal, a line per change elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from whet.runs.progress import duration

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from whet.cli.jobs import Job

_TAIL = 8192


class Status:
    """Shows jobs as they change. Used as a context manager around the pool's loop."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._live: Live | None = None
        self._said: dict[tuple[str, int], str] = {}
        self._shown = 0.0

    def __enter__(self) -> Status:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def show(self) -> None:
        """Bring what is shown up to date."""
        if self._live is None:
            self._say()
        elif time.monotonic() - self._shown > 0.9:
            self._shown = time.monotonic()
            self._live.update(self._table(), refresh=True)

    def _say(self) -> None:
        for job in self._jobs:
            key = (job.recipe, job.seed)
            if self._said.get(key, "waiting") != job.state:
                took = f" after {duration(job.seconds)}" if job.seconds and job.state in ("done", "failed") else ""
                print(f"seed {job.seed}  {job.recipe}: {job.state}{took}", file=sys.stderr, flush=True)
            self._said[key] = job.state

    def _table(self) -> Table:
        from rich.table import Table

        done = sum(job.state == "done" for job in self._jobs)
        table = Table(title=f"{done} of {len(self._jobs)} done", title_justify="left", box=None, pad_edge=False, show_header=False)
        for job in self._jobs:
            if job.state != "waiting":
                took = time.monotonic() - job.began if job.state == "running" else job.seconds
                progress = last_log(job.directory / "events.jsonl") if job.state == "running" else ""
                table.add_row(f"seed {job.seed}", job.recipe, job.state, duration(took) if took else "", progress)
        return table


def last_log(path: Path) -> str:
    """The newest metrics of a run in a few words, from the end of its event log."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return ""
    for line in reversed(lines):
        event = _event(line)
        if event.get("kind") == "log":
            metrics = {key: event["metrics"][key] for key in ("reward", "success", "loss") if key in event["metrics"]}
            values = [f"{key} {value:.3g}" for key, value in metrics.items() if isinstance(value, (int, float))]
            return "  ".join([f"{event['phase']} {event['step'] + 1}", *values])
    return ""


def _event(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}
