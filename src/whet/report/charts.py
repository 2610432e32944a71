"""Small drawings in SVG: learning curves with a band over seeds, and intervals on a common scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

Curve = Sequence[float]
"""The values of one metric in one run, in the order in which they were logged."""

_W, _H, _LEFT, _BOTTOM = 320, 150, 38, 18


def curve_chart(title: str, curves: Sequence[Curve], *, share: bool) -> str:
    """The mean of the runs' curves with the band from the lowest to the highest. `share` fixes the axis to 0-1."""
    curves = [c for c in curves if c]
    length = max((len(c) for c in curves), default=0)
    columns = [[v for c in curves if i < len(c) and math.isfinite(v := c[i])] for i in range(length)]
    at = [i for i, column in enumerate(columns) if column]
    if not at:
        return ""
    low = [min(columns[i]) for i in at]
    high = [max(columns[i]) for i in at]
    mean = [sum(columns[i]) / len(columns[i]) for i in at]
    bottom, top = (0.0, 1.0) if share else _bounds(min(low), max(high))

    def x(i: int) -> float:
        return _LEFT + (_W - _LEFT - 6) * (i / max(length - 1, 1))

    def y(v: float) -> float:
        return 6 + (_H - _BOTTOM - 6) * (1 - (v - bottom) / (top - bottom))

    grid = ""
    for v in (bottom, (bottom + top) / 2, top):
        grid += f'<line class="grid" x1="{_LEFT}" x2="{_W - 6}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        grid += f'<text x="{_LEFT - 5}" y="{y(v) + 3:.1f}" text-anchor="end">{_tick(v, share)}</text>'
    grid += f'<text x="{_LEFT}" y="{_H - 3}">1</text><text x="{_W - 6}" y="{_H - 3}" text-anchor="end">{length}</text>'
    band = ""
    if len(curves) > 1:
        outline = [f"{x(i):.1f},{y(v):.1f}" for i, v in zip(at, high)] + [f"{x(i):.1f},{y(v):.1f}" for i, v in reversed(list(zip(at, low)))]
        band = f'<polygon class="band" points="{" ".join(outline)}"/>'
    line = f'<polyline class="line" points="{" ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in zip(at, mean))}"/>'
    hits = "".join(
        f'<circle class="hit" cx="{x(i):.1f}" cy="{y(v):.1f}" r="5"><title>{i + 1}: {v:.4g}{_spread(columns[i])}</title></circle>'
        for i, v in zip(at, mean)
    )
    label = f"{title}: {mean[0]:.3g} at first, {mean[-1]:.3g} at last"
    drawing = f'<svg viewBox="0 0 {_W} {_H}" role="img" aria-label="{escape(label)}">{grid}{band}{line}{hits}</svg>'
    return f"<figure><b>{escape(title)}</b>{drawing}</figure>"


def interval_bar(score: dict[str, Any], seeds: Sequence[float], *, width: int = 190) -> str:
    """A success rate on the scale from 0 to 1: its interval, its mean, and a faint dot for each seed."""
    dots = "".join(f'<circle class="seed" cx="{_at(v, width):.1f}" cy="9" r="2.2"/>' for v in seeds if math.isfinite(v))
    return (
        f'<svg viewBox="0 0 {width} 18" style="width:{width}px" role="img" aria-label="{score["mean"]:.1%}">'
        f'<line class="grid" x1="4" x2="{width - 4}" y1="9" y2="9"/>{dots}'
        f'<line class="interval" x1="{_at(score["low"], width):.1f}" x2="{_at(score["high"], width):.1f}" y1="9" y2="9"/>'
        f'<circle class="dot" cx="{_at(score["mean"], width):.1f}" cy="9" r="3.4"/></svg>'
    )


def _at(value: float, width: int) -> float:
    return 4 + (width - 8) * min(1.0, max(0.0, value))


def _bounds(low: float, high: float) -> tuple[float, float]:
    """Round ends of an axis that hold all values, and 0 where it is near."""
    if 0 < low <= 0.5 * high:
        low = 0.0
    if low == high:
        return low - 0.5, high + 0.5
    step = 10 ** math.floor(math.log10(high - low)) / 2
    return math.floor(low / step) * step, math.ceil(high / step) * step


def _tick(value: float, share: bool) -> str:
    return f"{value:.0%}" if share else f"{value:.3g}"


def _spread(column: Sequence[float]) -> str:
    return f" ({min(column):.4g} to {max(column):.4g})" if len(column) > 1 else ""
