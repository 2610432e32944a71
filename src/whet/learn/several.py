"""Learners that are trained side by side, as one state of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, TypeVar


class _Stateful(Protocol):
    def save_state(self, directory: str | Path) -> None: ...
    def load_state(self, directory: str | Path) -> None: ...


L = TypeVar("L", bound=_Stateful)


class Learners(dict[str, L]):
    """Learners by their names: `Learners(generator=..., attacker=...)`. Each is saved in a directory of its own."""

    def save_state(self, directory: str | Path) -> None:
        """Raises what `Learner.save_state` raises."""
        for name, learner in self.items():
            learner.save_state(Path(directory) / name)

    def load_state(self, directory: str | Path) -> None:
        """Raises CheckpointError, as `Learner.load_state` does."""
        for name, learner in self.items():
            learner.load_state(Path(directory) / name)
