"""Credit: from rewards to the advantages that weigh tokens, within a group of episodes or by a critic's values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from whet.config import at_least
from whet.data.rows import turn_ends
from whet.errors import ConfigError
from whet.types import Example

STD_EPSILON = 1e-4
"""Added to a group's standard deviation, as TRL does."""
WHITEN_EPSILON = 1e-8
"""Added to the variance that advantages are whitened by, as TRL does."""


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


@dataclass(frozen=True, kw_only=True)
class PPO:
    """How `learn.ppo` makes use of a batch of episodes. Defaults: ReFT's scripts (arXiv 2401.08967)."""

    kl: float = 0.01
    """What a token costs for each nat that it is likelier than under the reference policy."""
    gamma: float = 1.0
    """Discount from token to token."""
    lam: float = 0.95
    clip: float = 0.2
    clip_value: float = 0.2
    value: float = 5.0
    """Weight of the critic's loss beside the policy's, on a shared backbone."""
    whiten: bool = True
    """Bring the advantages of a batch of episodes to mean 0 and variance 1."""
    epochs: int = 2
    batch_size: int = 32
    """Rows of an optimiser step (value unverified)."""

    def __post_init__(self) -> None:
        at_least(self, 1, "epochs", "batch_size")
        at_least(self, 0, "kl", "gamma", "lam", "clip", "value")
        if max(self.gamma, self.lam, self.clip) > 1 or self.clip_value <= 0:
            raise ConfigError(
                f"gamma={self.gamma}, lam={self.lam}, clip={self.clip}, clip_value={self.clip_value}; "
                "expected the first three in [0, 1] and clip_value > 0"
            )


def gae(rewards: np.ndarray, values: np.ndarray, *, gamma: float = 1.0, lam: float = 0.95) -> np.ndarray:
    """Generalised advantage estimates (arXiv 1506.02438, equation 16) of one episode's N actions, float64 [N].

        A_t = delta_t + gamma lam A_{t+1},    delta_t = r_t + gamma V_{t+1} - V_t

    `rewards` and `values` are [N]. Behind the last action the value is 0: an episode that was cut off is over, too.
    """
    after = np.append(values[1:], 0.0)
    advantages: np.ndarray = rewards + gamma * after - values.astype(np.float64)
    for t in range(len(advantages) - 2, -1, -1):
        advantages[t] += gamma * lam * advantages[t + 1]
    return advantages


def whitened(values: np.ndarray) -> np.ndarray:
    """The values with mean 0 and variance 1 (the sample one, n - 1, as in TRL), float64; of fewer than two, zeros."""
    if values.size < 2:
        return np.zeros(values.shape)
    centred: np.ndarray = values - values.mean()
    return centred / float(np.sqrt(values.var(ddof=1) + WHITEN_EPSILON))


def credited(rows: Sequence[Example], rewards: Sequence[Sequence[float]], how: PPO, *, joined: bool = False) -> list[Example]:
    """The rows with advantages as `weights`, and with the `returns` that a critic is to expect.

    `rewards` has those of each row's assistant turns, paid with a turn's last token. Every token of an action costs
    kl (log pi - log pi_ref), of the policy that sampled. An observation's tokens are no actions: what follows the last token of a
    turn is the first of the next one. A return is advantage (before whitening) plus value. Whitening is over all of the rows.
    With `joined`, so it is from row to row of one origin, which must stand one after another: contexts of one episode, in which what
    is done in an early one may pay in a late one. Raises ConfigError for rewards that do not fit, and for rows without `values`, or,
    for a penalty, without log-probs.
    """
    if not rows:
        return []
    paid = [_paid(row, each, how) for row, each in zip(rows, rewards, strict=True)]
    stretches = [list(each) for _, each in groupby(range(len(rows)), key=lambda i: rows[i].origin if joined else i)]
    estimated = [
        gae(*(np.concatenate([paid[i][part] for i in stretch]) for part in (0, 1)), gamma=how.gamma, lam=how.lam) for stretch in stretches
    ]
    advantages, values = np.concatenate(estimated), np.concatenate([value for _, value in paid])
    weights = whitened(advantages) if how.whiten else advantages
    ends = np.cumsum([len(value) for _, value in paid])[:-1]
    placed = zip(rows, np.split(weights, ends), np.split(advantages + values, ends), strict=True)
    return [dataclasses.replace(row, weights=_placed(row, w), returns=_placed(row, r)) for row, w, r in placed]


def at_end(row: Example, reward: float) -> list[float]:
    """The rewards of the row's assistant turns where all of it is paid with the last one."""
    return [0.0] * (len(turn_ends(row)) - 1) + [reward]


def _paid(row: Example, rewards: Sequence[float], how: PPO) -> tuple[np.ndarray, np.ndarray]:
    """What each of the row's action tokens is paid, its penalty taken off, and its value."""
    ends = turn_ends(row)
    if len(ends) != len(rewards):
        raise ConfigError(f"row {row.origin!r} has {len(ends)} assistant turns and got {len(rewards)} rewards; expected one for each")
    if row.values is None:
        raise ConfigError(f"row {row.origin!r} has no values; learner.with_values(rows) fills them in")
    paid = np.zeros(len(row.tokens))
    paid[ends] = rewards
    if how.kl:
        if row.logprobs is None or row.reference is None:
            lacking = "sampled" if row.logprobs is None else "reference"
            raise ConfigError(f"row {row.origin!r} has no {lacking} log-probs, which the penalty of kl={how.kl} is made from")
        paid -= how.kl * (row.logprobs.astype(np.float64) - row.reference)
    return paid[row.mask], row.values[row.mask]


def _placed(row: Example, values: np.ndarray) -> np.ndarray:
    """Values of the action tokens, float32 [T]."""
    placed = np.zeros(len(row.tokens), dtype=np.float32)
    placed[row.mask] = values
    return placed


def turn_weights(n: int, *, gamma: float) -> list[float]:
    """What the turns of an episode of `n` weigh in DMPO (arXiv 2406.14868): phi_t = gamma^t (1 - gamma^(n-t)) / (1 - gamma^n).

    The first weighs 1, later ones less; they sum to 1 / (1 - gamma) - n gamma^n / (1 - gamma^n). With gamma = 1 they are the limit,
    (n - t) / n, with gamma = 0 the first turn is all.
    """
    if gamma == 1.0:
        return [(n - t) / n for t in range(n)]
    return [float(gamma**t * (1 - gamma ** (n - t)) / (1 - gamma**n)) for t in range(n)]
