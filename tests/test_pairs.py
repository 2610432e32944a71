"""Pair builders against cases made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from whet.data import unpaired
from whet.errors import ConfigError
from whet.types import Example


def row(prompt: list[int], answer: list[int], origin: str = "") -> Example:
    mask = np.array([False] * len(prompt) + [True] * len(answer))
    return Example(tokens=np.array(prompt + answer), mask=mask, weights=mask.astype(np.float32), origin=origin)


# -- unpaired ----------------------------------------------------------------------------------------------------------------


def test_unpaired_rows_stand_beside_another_prompts_answer() -> None:
    rows = [row([1, 2], [10], "a"), row([1, 2], [11, 12], "b"), row([3], [13], "c")]
    pairs = unpaired(rows, [True, False, True], desirable=1.5, undesirable=0.5)
    assert [pair.chosen.weights.tolist() for pair in pairs] == [[0, 0, 1.5], [0, 0, -0.5, -0.5], [0, 1.5]]
    assert [pair.margin for pair in pairs] == [1.5, -0.5, 1.5]
    # rows 0 and 1 share a prompt, so that both take row 2's answer; row 2 takes row 1's
    assert [pair.rejected.tokens.tolist() for pair in pairs] == [[1, 2, 13], [1, 2, 13], [3, 11, 12]]
    assert [pair.rejected.mask.tolist() for pair in pairs] == [[False, False, True], [False, False, True], [False, True, True]]
    assert not any(pair.rejected.weights.any() for pair in pairs)
    assert [(pair.origin, pair.rejected.origin) for pair in pairs] == [("a", "a with c"), ("b", "b with c"), ("c", "c with b")]


def test_unpaired_rows_of_one_prompt_take_the_answer_before() -> None:
    pairs = unpaired([row([1], [10]), row([1], [11])], [True, True])
    assert [pair.rejected.tokens.tolist() for pair in pairs] == [[1, 11], [1, 10]]


def test_unpaired_keeps_observations_between_actions() -> None:
    other = row([3], [13, 14, 15])
    other.mask[2] = False  # an observation
    pair = unpaired([row([1, 2], [10]), other], [True, False])[0]
    assert pair.rejected.tokens.tolist() == [1, 2, 13, 14, 15]
    assert pair.rejected.mask.tolist() == [False, False, True, False, True]


@pytest.mark.parametrize(
    ("good", "options", "message"), [([True], {}, "2 rows and 1 labels"), ([True] * 2, {"desirable": -1.0}, "is -1.0")]
)
def test_unpaired_refuses(good: list[bool], options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        unpaired([row([1], [2]), row([3], [4])], good, **options)
