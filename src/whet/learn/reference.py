"""What policies give the tokens of rows: log-probs, and divergences between the two contexts of a pair."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from whet.data.packing import Pack, Unit, pack_rows
from whet.errors import ConfigError
from whet.learn.forward import Scorer
from whet.learn.losses import Loss
from whet.policies.local import LocalPolicy
from whet.types import Example, Pair

RowT = TypeVar("RowT", Example, Pair)


def with_reference(rows: Sequence[RowT], policy: LocalPolicy, *, max_pack_tokens: int = 8192) -> list[RowT]:
    """The rows with their `reference` filled in: each masked-in token's log-prob under `policy`, which stays frozen.

    An Example's are those at its temperature, as its sampled ones are; a Pair's are those at temperature 1.
    """
    examples, _ = flatten(rows)
    scorer, pairs = _frozen(policy), bool(rows) and isinstance(rows[0], Pair)
    packs = pack_rows(examples, max_tokens=max_pack_tokens, share=scorer.shares)
    with torch.no_grad():
        filled = _filled(examples, ((pack, scorer(pack, tempered=not pairs)) for pack in packs))
    found: Sequence[Example | Pair] = _paired(cast(Any, rows), filled) if pairs else filled
    return cast(list[RowT], found)


def with_divergences(pairs: Sequence[Pair], policy: LocalPolicy, *, max_pack_tokens: int = 8192) -> list[Pair]:
    """The pairs with `reference` filled in for a loss of divergences: those of `policy`, which stays frozen, between its two rows.

    At each masked-in token of the chosen row KL(chosen's context || rejected's context); zeros in the rejected row. Raises
    ConfigError where the two rows of a pair do not hold the same masked-in tokens.
    """
    examples, units = flatten(pairs)
    scorer = _frozen(policy)
    packs = pack_rows(examples, units, max_tokens=max_pack_tokens, share=scorer.shares)
    with torch.no_grad():
        filled = _filled(examples, ((pack, _divergences(scorer, examples, pack)[1]) for pack in packs))
    return _paired(pairs, filled)


def _filled(examples: Sequence[Example], scored: Iterable[tuple[Pack, Tensor]], name: str = "reference") -> list[Example]:
    """The rows with what was scored at their masked-in tokens, pack by pack, as the array of this name."""
    arrays = [np.zeros(len(row.tokens), dtype=np.float32) for row in examples]
    for pack, scores in scored:
        for row, time, score in zip(pack.rows[pack.row], pack.time, scores.cpu().numpy(), strict=True):
            arrays[row][time] = score
    return [dataclasses.replace(row, **cast(Any, {name: array})) for row, array in zip(examples, arrays, strict=True)]


def _paired(pairs: Sequence[Pair], rows: Sequence[Example]) -> list[Pair]:
    """The pairs with these rows in the place of theirs, chosen and rejected in turn."""
    return [dataclasses.replace(pair, chosen=a, rejected=b) for pair, a, b in zip(pairs, rows[0::2], rows[1::2], strict=True)]


def _frozen(policy: LocalPolicy) -> Scorer:
    scorer = _scorers.get(policy)
    if scorer is None:
        scorer = _scorers[policy] = Scorer(policy.module(share=True).requires_grad_(False))
    return scorer


_scorers: weakref.WeakKeyDictionary[LocalPolicy, Scorer] = weakref.WeakKeyDictionary()


def scores(
    scorer: Scorer, examples: Sequence[Example], pack: Pack, loss: Loss, value_head: nn.Module | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probs [M] of the pack's masked-in tokens and, for a loss that asks for them, its pairs' `divergence` or the `value` [M]."""
    if loss.divergence:
        logprobs, found = _divergences(scorer, examples, pack)
        return logprobs, {"divergence": found}
    if loss.value:
        assert value_head is not None
        logprobs, found = scorer.with_values(pack, value_head, tempered=loss.tempered)
        return logprobs, {"value": found}
    return scorer(pack, tempered=loss.tempered), {}


def with_values(rows: Sequence[Example], scorer: Scorer, value_head: nn.Module, *, max_pack_tokens: int) -> list[Example]:
    """The rows with their `values` filled in: what the value head now expects before each masked-in token."""
    packs = pack_rows(rows, max_tokens=max_pack_tokens, share=scorer.shares)
    with torch.no_grad():
        return _filled(rows, ((pack, scorer.with_values(pack, value_head)[1]) for pack in packs), "values")


def _divergences(scorer: Scorer, examples: Sequence[Example], pack: Pack) -> tuple[Tensor, Tensor]:
    """Log-probs [M], and at the tokens of each pair's first row how its distributions diverge from those in the second; [M], else 0."""
    for i, j in zip(pack.rows[0::2], pack.rows[1::2], strict=True):
        a, b = (examples[k].tokens[examples[k].mask] for k in (i, j))
        if not np.array_equal(a, b):
            raise ConfigError(
                f"the rows {examples[i].origin!r} and {examples[j].origin!r} of a pair hold other answers ({len(a)} and {len(b)} "
                "masked-in tokens); a divergence is taken between two contexts of one answer"
            )
    one, other = np.flatnonzero(pack.row % 2 == 0), np.flatnonzero(pack.row % 2 == 1)
    logprobs, found = scorer.with_divergences(pack, one, other)
    return logprobs, torch.zeros_like(logprobs).index_put((torch.from_numpy(one).to(logprobs.device),), found)


def flatten(rows: Sequence[Example] | Sequence[Pair]) -> tuple[list[Example], list[Unit]]:
    """The single rows, and which of them belong together."""
    examples: list[Example] = []
    units: list[Unit] = []
    for row in rows:
        parts = (row.chosen, row.rejected) if isinstance(row, Pair) else (row,)
        units.append(tuple(range(len(examples), len(examples) + len(parts))))
        examples += parts
    return examples, units
