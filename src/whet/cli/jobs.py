"""The stages of a comparison as processes: a pool of workers, where each waits for the stage that it goes on from."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from whet.errors import CheckpointError, StorageError
from whet.runs import Run
from whet.runs.files import make_directory


@dataclass
class Job:
    """One stage of a recipe with one seed."""

    recipe: str
    seed: int
    directory: Path
    command: list[str]
    after: str | None
    """The recipe that this stage goes on from."""
    state: str = "waiting"
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    began: float = 0.0
    seconds: float = 0.0

    @property
    def log(self) -> Path:
        """What the process printed."""
        return self.directory.with_name(self.directory.name + ".log")

    def is_done(self) -> bool:
        """Whether its run was finished and evaluated, by this process or an earlier one."""
        with contextlib.suppress(CheckpointError):
            run = Run.open(self.directory)
            return run.status == "done" and "final" in run.evaluations()
        return False

    def last_line(self) -> str:
        """What the process printed last."""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1].removeprefix("error: ") if lines else "it said nothing"


def run_all(jobs: list[Job], workers: int, show: Callable[[], None]) -> None:
    """Run the jobs, each after the one that it goes on from, `show` again and again. Ctrl-C ends the processes, which keep what they
    have. Raises StorageError if one cannot be started; one that fails has this state."""
    for job in jobs:
        job.state = "done" if job.is_done() else "waiting"
    try:
        while any(job.state in ("waiting", "running") for job in jobs):
            _collect(jobs)
            _start(jobs, workers)
            show()
            time.sleep(0.2)
    except BaseException:
        _end(jobs)
        raise
    show()


def _start(jobs: list[Job], workers: int) -> None:
    running = sum(job.state == "running" for job in jobs)
    states = {(job.recipe, job.seed): job.state for job in jobs}
    for job in jobs:
        before = states[job.after, job.seed] if job.after else "done"
        if job.state == "waiting" and before in ("failed", "left out"):
            job.state = states[job.recipe, job.seed] = "left out"
        elif job.state == "waiting" and before == "done" and running < workers:
            running += 1
            make_directory(job.directory.parent)
            threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
            try:
                with open(job.log, "ab") as log:
                    # a session of its own, so that Ctrl-C reaches it only through us, once
                    job.process = subprocess.Popen(
                        job.command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        env={**os.environ, **threads, "TOKENIZERS_PARALLELISM": "false"},
                        start_new_session=True,
                    )
            except OSError as error:
                raise StorageError(f"cannot start {job.recipe} with seed {job.seed}: {error}") from error
            job.state, job.began = "running", time.monotonic()


def _collect(jobs: list[Job]) -> None:
    for job in jobs:
        if job.state == "running" and job.process and job.process.poll() is not None:
            job.seconds = time.monotonic() - job.began
            job.state = "done" if job.process.returncode == 0 and job.is_done() else "failed"


def _end(jobs: list[Job]) -> None:
    running = [job.process for job in jobs if job.state == "running" and job.process]
    for process in running:
        process.terminate()
    until = time.monotonic() + 10
    for process in running:
        try:
            process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
