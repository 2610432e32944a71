"""Intervals and tests, in numpy and the standard library. Every observation is one task: repeats and seeds are averaged first.

So intervals are clustered by task: they say how far a mean would move with other tasks of the same kind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from whet.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A mean difference with its interval, paired by task."""

    mean: float
    low: float
    high: float
    p: float
    """Two-sided, of the hypothesis that the true mean difference is 0."""
    n: int
    """Tasks that both sides have."""
    level: float = 0.95

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return not self.low <= 0 <= self.high

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def t_cdf(t: float, df: float) -> float:
    """P(T <= t) of Student's t with `df` degrees of freedom, through the incomplete beta function."""
    if math.isinf(t):
        return float(t > 0)
    tail = 0.5 * _beta_cdf(df / (df + t * t), df / 2, 0.5)
    return 1 - tail if t > 0 else tail


@cache
def t_quantile(p: float, df: float) -> float:
    """The `t` with `t_cdf(t, df) == p`, by bisection to the last bits of a double."""
    if not 0 < p < 1 or df <= 0:
        raise ConfigError(f"quantile {p} of Student's t with {df} degrees of freedom does not exist; expected 0 < p < 1 and df > 0")
    if p < 0.5:
        return -t_quantile(1 - p, df)
    low, high = 0.0, 1.0
    while t_cdf(high, df) < p:
        low, high = high, high * 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def mean_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Student's interval for the mean of independent `values` [n]; (-inf, inf) from fewer than two."""
    x = np.asarray(values, float)
    if len(x) < 2:
        return -math.inf, math.inf
    half = t_quantile((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return float(x.mean() - half), float(x.mean() + half)


def proportion_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a success rate, from the success rate of each task, `values` [n] in [0, 1].

    With one attempt per task this is Wilson's score interval (with Student's quantile in place of the normal one). With
    several, the number of trials is the effective one, mean (1 - mean) / squared standard error, as Korn and Graubard
    (1998) take it for clustered samples. Unlike Student's interval it does not
    shrink to nothing where every task succeeds.
    """
    x = np.asarray(values, float)
    if len(x) < 2:
        return 0.0, 1.0
    n, p = len(x), float(x.mean())
    square = float(x.var(ddof=1)) / n
    trials = p * (1 - p) / square if square > 0 else float(n)
    t = t_quantile((1 + level) / 2, n - 1)
    centre = (p + t * t / (2 * trials)) / (1 + t * t / trials)
    half = t / (1 + t * t / trials) * math.sqrt(p * (1 - p) / trials + t * t / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference(differences: ArrayLike, *, proportion: bool, level: float = 0.95) -> Difference:
    """Mean of the tasks' `differences` [n] with Student's interval and test.

    Of proportions, two made-up tasks that differ by +1 and -1 are added before the interval and the test (Bonett and
    Price 2012, in the form that it takes for averages over several attempts), so that neither collapses where few tasks differ.
    """
    x = np.asarray(differences, float)
    n = len(x)
    if n < 2:
        return Difference(mean=float(x.mean()) if n else math.nan, low=-math.inf, high=math.inf, p=1.0, n=n, level=level)
    padded = np.append(x, [1.0, -1.0]) if proportion else x
    centre, error = float(padded.mean()), float(padded.std(ddof=1)) / math.sqrt(len(padded))
    df = len(padded) - 1
    half = t_quantile((1 + level) / 2, df) * error
    p = 2 * t_cdf(-abs(centre) / error, df) if error > 0 else float(centre == 0)
    return Difference(mean=float(x.mean()), low=centre - half, high=centre + half, p=p, n=n, level=level)


def _beta_cdf(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22) with Lentz's method."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_cdf(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    tiny = 1e-300
    fraction, c, d = 1.0, 1.0, 0.0
    for i in range(400):
        m = i // 2
        if i == 0:
            term = 1.0
        elif i % 2 == 0:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 + term * d
        d = 1 / (d if abs(d) > tiny else tiny)
        c = 1 + term / c
        c = c if abs(c) > tiny else tiny
        fraction *= c * d
        if abs(1 - c * d) < 1e-15:
            return front * (fraction - 1)
    raise ArithmeticError(f"the incomplete beta function did not converge at x={x}, a={a}, b={b}")
