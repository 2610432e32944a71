"""The loop that most methods end in: an optimiser step for each batch; and what fine-tuning systems share around it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from whet import learn
from whet.learn.learner import Learner
from whet.learn.lora import Lora
from whet.learn.losses import Loss
from whet.learn.reference import with_reference
from whet.policies.local import LocalPolicy
from whet.types import Example, Pair

SUMMED = frozenset({"rows", "tokens", "computed", "skipped"})
"""Of what a step logs, what is added up over several."""


class FineTuning(Protocol):
    """What `learner_for` reads of a method's config."""

    @property
    def epochs(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def warmup(self) -> float:
        """Share of the steps in which the learning rate rises."""
        ...

    @property
    def lora(self) -> Lora | None: ...


def learner_for(policy: Any, cfg: FineTuning, per_epoch: int) -> Learner:
    """A learner for `cfg.epochs` epochs of `per_epoch` steps: a warm-up, then a cosine to zero. Raises ConfigError as Learner does."""
    total = cfg.epochs * per_epoch
    return learn.Learner(policy, lr=cfg.lr, schedule="cosine", warmup_steps=int(cfg.warmup * total), total_steps=total, lora=cfg.lora)


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
    return {name: total if name in SUMMED else last[name] if name == "lr" else total / n for name, total in sums.items()}


def mean_nll(rows: Sequence[Example], policy: LocalPolicy) -> np.ndarray:
    """Of each row the mean negative log-likelihood of its masked-in tokens under `policy`, float64 [rows]."""
    scored = with_reference(rows, policy)
    return np.array([-float(np.mean(row.reference[row.mask], dtype=np.float64)) for row in scored if row.reference is not None])


def worst_turn_nll(rows: Sequence[Example], policy: LocalPolicy) -> np.ndarray:
    """As `mean_nll`, of each row's assistant turn of which it is highest, float64 [rows]."""
    found = []
    for row in with_reference(rows, policy):
        assert row.reference is not None
        spoken = np.flatnonzero(row.mask)
        turns = np.split(row.reference[spoken], np.flatnonzero(np.diff(spoken) > 1) + 1)
        found.append(max(-float(np.mean(turn, dtype=np.float64)) for turn in turns))
    return np.array(found)
