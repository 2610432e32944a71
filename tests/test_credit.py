"""Advantages against values worked out by hand."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.learn import group_advantages, leave_one_out_advantages, turn_weights

# Rewards 1, 0, 0, 0: mean 1/4; deviations 3/4, -1/4, -1/4, -1/4; sum of squares 9/16 + 3/16 = 3/4; sample variance
# (3/4) / 3 = 1/4, so std 1/2, and with the added 1e-4 each deviation is divided by 0.5001.
REWARDS = [1.0, 0.0, 0.0, 0.0]


def test_group_advantages_by_hand() -> None:
    assert group_advantages(REWARDS) == pytest.approx([0.75 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001], abs=1e-12)
    assert group_advantages(REWARDS, normalize_std=False) == [0.75, -0.25, -0.25, -0.25]


def test_leave_one_out_by_hand() -> None:
    # The first is compared with the mean of three zeros, each other one with the mean of 1, 0, 0.
    assert leave_one_out_advantages(REWARDS) == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])


@pytest.mark.parametrize("rewards", [[], [0.7], [0.1, 0.1, 0.1]])
def test_groups_that_tell_nothing_get_zeros(rewards: list[float]) -> None:
    assert group_advantages(rewards) == leave_one_out_advantages(rewards) == [0.0] * len(rewards)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=9))
def test_leave_one_out_is_a_multiple_of_the_centred_rewards(rewards: list[float]) -> None:
    n = len(rewards)
    np.testing.assert_allclose(
        leave_one_out_advantages(rewards), np.array(group_advantages(rewards, normalize_std=False)) * n / (n - 1), atol=1e-9
    )
    assert sum(group_advantages(rewards)) == pytest.approx(0.0, abs=1e-6)


def test_rows_packs_and_credit_come_without_torch() -> None:
    code = "import sys, whet.data; from whet.learn import group_advantages; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_turn_weights_by_hand() -> None:
    # gamma 1/2, three turns: (1 - 1/8), 1/2 (1 - 1/4), 1/4 (1 - 1/2), all over 1 - 1/8
    assert turn_weights(3, gamma=0.5) == pytest.approx([1.0, (3 / 8) / (7 / 8), (1 / 8) / (7 / 8)])
    assert turn_weights(1, gamma=0.7) == [1.0], "of one turn, DMPO is DPO"
    assert turn_weights(4, gamma=0.0) == [1.0, 0.0, 0.0, 0.0]
    assert turn_weights(4, gamma=1.0) == [1.0, 0.75, 0.5, 0.25]
    assert turn_weights(4, gamma=1 - 1e-6) == pytest.approx([1.0, 0.75, 0.5, 0.25], abs=1e-5)


@given(st.integers(1, 30), st.floats(0.01, 0.99))
def test_turn_weights_sum_as_the_paper_says(n: int, gamma: float) -> None:
    # sum over t of the discounted occupancies: each state-action up to the end counts gamma^t, normalised by sum gamma^t:
    # phi_t = sum_{k >= t} gamma^k / sum_k gamma^k, so that sum_t phi_t = sum_k (k + 1) gamma^k / sum_k gamma^k
    weights, discounts = turn_weights(n, gamma=gamma), [gamma**k for k in range(n)]
    assert weights == pytest.approx([sum(discounts[t:]) / sum(discounts) for t in range(n)])
    assert sum(weights) == pytest.approx(sum((k + 1) * d for k, d in enumerate(discounts)) / sum(discounts))
    assert sum(weights) == pytest.approx(1 / (1 - gamma) - n * gamma**n / (1 - gamma**n), rel=1e-6)
