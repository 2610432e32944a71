"""Garbage is looked for less often while episodes are played.

Python looks for garbage in cycles after so many new objects, and every hundredth time through all objects of the process, of which
torch and transformers alone make some 400,000: a quarter of a second each time, in which nothing is decoded. Turns and episodes
are many objects, hold no cycles, and stay; so looking more often finds nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_RARER = 20
"""How many times as many new objects it takes."""
_before: list[tuple[int, int, int]] = []
"""The thresholds to go back to, one entry for each rollout under way."""


@contextmanager
def rare_collections() -> Iterator[None]:
    """Within it, the garbage collector runs a twentieth as often. Rollouts may overlap; the last one puts back what the first one found."""
    _before.append(_before[-1] if _before else gc.get_threshold())
    first, *others = _before[-1]
    gc.set_threshold(_RARER * first, *others)
    try:
        yield
    finally:
        thresholds = _before.pop()
        if not _before:
            gc.set_threshold(*thresholds)
