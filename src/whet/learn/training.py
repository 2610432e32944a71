"""The loop that most methods end in: an optimiser step for each batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from whet.learn.learner import Learner
from whet.learn.losses import Loss
from whet.types import Example, Pair

_SUMMED = frozenset({"rows", "tokens", "computed", "skipped"})


def optimise(learner: Learner, batches: Iterable[Sequence[Example] | Sequence[Pair]], loss: Loss) -> dict[str, float]:
    """One `forward_backward` and one `optim_step` per batch; returns what there is to log of them all.

    Counts (`rows`, `tokens`, `computed`, `skipped`) are summed, `lr` is the last, everything else is the mean over the
    batches. Empty without batches. Raises what the two verbs raise.
    """
    sums: dict[str, float] = defaultdict(float)
    n, last = 0, {}
    for batch in batches:
        last = learner.forward_backward(batch, loss) | learner.optim_step()
        n += 1
        for name, value in last.items():
            sums[name] += value
    return {name: total if name in _SUMMED else last[name] if name == "lr" else total / n for name, total in sums.items()}
