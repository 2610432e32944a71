"""What preference losses learn from: rows side by side.

unpaired    rows that are good or bad by themselves, each beside a mismatched one (`learn.kto`)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from whet.errors import ConfigError
from whet.types import Example, Pair


def unpaired(rows: Sequence[Example], good: Sequence[bool], *, desirable: float = 1.0, undesirable: float = 1.0) -> list[Pair]:
    """Rows that are good or bad by themselves, as `learn.kto` takes them.

    Of each pair `chosen` is the row, its tokens weighing `desirable` or `-undesirable`; `rejected`, of weight 0, is mismatched:
    the row's prompt (all before its first masked-in token) with the answer of the row before it that has another prompt. From
    those the loss takes its zero. Raises ConfigError for another number of labels than rows, and for weights below 0.
    """
    if len(rows) != len(good):
        raise ConfigError(f"there are {len(rows)} rows and {len(good)} labels; expected one for each")
    if desirable < 0 or undesirable < 0:
        raise ConfigError(f"desirable is {desirable} and undesirable is {undesirable}; expected 0 or more")
    begins = [int(np.argmax(row.mask)) for row in rows]
    prompts = [row.tokens[:begin].tobytes() for row, begin in zip(rows, begins, strict=True)]
    pairs = []
    for i, (row, is_good) in enumerate(zip(rows, good, strict=True)):
        others = ((i - k) % len(rows) for k in range(1, len(rows) + 1))
        other = next((j for j in others if prompts[j] != prompts[i]), i - 1)
        weight = desirable if is_good else -undesirable
        mismatched = _joined(row, begins[i], rows[other], begins[other])
        pairs.append(Pair(chosen=_weighing(row, weight), rejected=_weighing(mismatched, 0.0), margin=weight, origin=row.origin))
    return pairs


def _weighing(row: Example, weight: float) -> Example:
    return dataclasses.replace(row, weights=np.where(row.mask, weight, 0.0).astype(np.float32))


def _joined(row: Example, begin: int, other: Example, other_begin: int) -> Example:
    """The first row's prompt with the other's answer; without log-probs, which belonged to other contexts."""
    tokens = np.concatenate([row.tokens[:begin], other.tokens[other_begin:]])
    mask = np.concatenate([row.mask[:begin], other.mask[other_begin:]])
    return Example(tokens=tokens, mask=mask, weights=mask.astype(np.float32), origin=f"{row.origin} with {other.origin}")
