"""When a decode engine may decode: whoever drives many episodes at once says so, and batches stop depending on the clock.

A rollout in waves sets a gate, and the engine holds its next decode burst back while an episode that could still ask
for a turn has not asked:

    token = current_gate.set(gate)      # before the episodes' tasks are created, so that they inherit it
    try:
        ...                             # run the episodes; every policy.generate sees the gate
    finally:
        current_gate.reset(token)

A policy reads `current_gate` when it is asked for a turn, so rollouts that share an engine keep their own gates.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol


class Gate(Protocol):
    """Consulted between decode bursts, on the event loop's thread; must be cheap and must not block."""

    def blocked(self) -> bool:
        """Whether decoding must wait: some episode that is not itself waiting for a turn may still ask for one."""
        ...


current_gate: ContextVar[Gate | None] = ContextVar("current_gate", default=None)
"""The gate of the rollout that the running task belongs to; None where engines may decode at once."""
