"""Credit: from the returns of a group's episodes to the advantages that weigh their tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

STD_EPSILON = 1e-4
"""Added to a group's standard deviation, as TRL does."""


def group_advantages(rewards: Sequence[float], *, normalize_std: bool = True) -> list[float]:
    """Advantages of one group of rewards (GRPO, arXiv 2402.03300, section 4.1.2): A_i = (R_i - mean R) / (std R + 1e-4).

    The paper does not say which standard deviation; this is the sample one (n - 1), as in TRL. `normalize_std=False`
    leaves A_i = R_i - mean R (Dr. GRPO, arXiv 2503.20783), which does not blow up groups that are nearly solved or
    nearly failed. A group of equal rewards, or of one, gets zeros.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if values.size == 0 or np.ptp(values) == 0.0:
        return [0.0] * values.size
    centred = values - values.mean()
    if normalize_std:
        centred = centred / (values.std(ddof=1) + STD_EPSILON)
    return [float(a) for a in centred]


def leave_one_out_advantages(rewards: Sequence[float]) -> list[float]:
    """A_i = R_i - mean of the others' rewards (RLOO, arXiv 2402.14740, equation 8); zero for a group of one.

    Equals n / (n - 1) times the advantages without standard deviation.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if values.size < 2 or np.ptp(values) == 0.0:
        return [0.0] * values.size
    others = (values.sum() - values) / (values.size - 1)
    return [float(a) for a in values - others]


def turn_weights(n: int, *, gamma: float) -> list[float]:
    """What the turns of an episode of `n` weigh in DMPO (arXiv 2406.14868): phi_t = gamma^t (1 - gamma^(n-t)) / (1 - gamma^n).

    The first weighs 1, later ones less; they sum to 1 / (1 - gamma) - n gamma^n / (1 - gamma^n). With gamma = 1 they are the limit,
    (n - t) / n, with gamma = 0 the first turn is all.
    """
    if gamma == 1.0:
        return [(n - t) / n for t in range(n)]
    return [float(gamma**t * (1 - gamma ** (n - t)) / (1 - gamma**n)) for t in range(n)]
