"""Telling an expert's actions from an agent's (GAIL, arXiv 1606.03476), by a value head that reads each action to its end.

D(s, a) = sigmoid(-V) is how likely the action is the agent's: the discriminator maximises E_agent[log D] + E_expert[log(1 - D)], and
-log D is what a step of the agent's is paid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from whet.data.rows import turn_ends
from whet.learn.learner import Learner
from whet.learn.losses import Loss, Metrics, Tokens, Totals
from whet.types import Example


def discrimination() -> Loss:
    """Binary cross-entropy of what a value head says of actions, for rows of `told_apart`.

        L = sum over actions of  |w| (-log sigmoid(sign(w) V)) / number of actions

    The weight w is above 0 for an expert's action, below for an agent's.
    """

    def compute(logprobs: Tensor, tokens: Tokens, totals: Totals) -> tuple[Tensor, Metrics]:
        assert tokens.value is not None
        signed = tokens.weight.sign() * tokens.value
        loss = -(tokens.weight.abs() * F.logsigmoid(signed)).sum() / totals.tokens
        return loss, {"accuracy": (signed > 0).to(signed.dtype).sum() / totals.tokens}

    return Loss(name="discrimination", compute=compute, value=True)


def told_apart(experts: Sequence[Example], own: Sequence[Example]) -> list[Example]:
    """Rows for `discrimination`: the expert's actions and the agent's, each kind weighing as much as the other."""
    counts = [sum(len(turn_ends(row)) for row in rows) for rows in (experts, own)]
    weights = [sum(counts) / (2 * n) if n else 0.0 for n in counts]
    return [_behind_actions(row, w) for rows, w in zip((experts, own), (weights[0], -weights[1]), strict=True) for row in rows]


def step_rewards(discriminator: Learner, rows: Sequence[Example]) -> list[list[float]]:
    """-log D of each assistant turn of these rows."""
    valued = discriminator.with_values([_behind_actions(row, 1.0) for row in rows])
    return [F.softplus(torch.from_numpy(row.values[row.mask])).tolist() for row in valued if row.values is not None]


def _behind_actions(row: Example, weight: float) -> Example:
    """The row with the token after each action masked in: before that a value head has read the action, and no more."""
    tokens = np.append(row.tokens, row.tokens[-1])  # the last one is never read
    mask = np.zeros(len(tokens), dtype=np.bool_)
    mask[turn_ends(row) + 1] = True
    weights = np.where(mask, weight, 0.0).astype(np.float32)
    return Example(tokens=tokens, mask=mask, weights=weights, origin=row.origin)
