"""Losses against values worked out by hand, and exact denominators however a batch is cut."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from whet.errors import ConfigError
from whet.learn import dpo, ipo, kto, mito, nll, policy_gradient, simpo
from whet.learn.heads import Hidden, Logits
from whet.learn.losses import Loss, Tokens, Totals

LN2 = math.log(2.0)


def batch(
    rows: list[int],
    weights: list[float],
    old: list[float] | None = None,
    reference: list[float] | None = None,
    divergence: list[float] | None = None,
) -> Tokens:
    def tensor(x: list[float] | None) -> Tensor | None:
        return None if x is None else torch.tensor(x, dtype=torch.float64)

    weight = tensor(weights)
    assert weight is not None
    others = {"old": tensor(old), "reference": tensor(reference), "divergence": tensor(divergence)}
    return Tokens(row=torch.tensor(rows), weight=weight, n_rows=max(rows) + 1, **others)


def run(loss: Loss, logprobs: list[float], tokens: Tokens, totals: Totals) -> tuple[float, dict[str, float], list[float]]:
    x = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    value, metrics = loss.compute(x, tokens, totals)
    value.backward()
    assert x.grad is not None
    return float(value), {name: float(m) for name, m in metrics.items()}, x.grad.tolist()


# Two rows: the first with tokens of log-prob -1 and -2, the second with one of -3.
ROWS, LOGPROBS = [0, 0, 1], [-1.0, -2.0, -3.0]
TOTALS = Totals(tokens=3, rows=2)


def test_nll_over_tokens_by_hand() -> None:
    value, metrics, grad = run(nll(), LOGPROBS, batch(ROWS, [1.0, 1.0, 1.0]), TOTALS)
    assert value == metrics["nll"] == pytest.approx((1 + 2 + 3) / 3)
    assert grad == pytest.approx([-1 / 3] * 3)


def test_nll_with_weights_by_hand() -> None:
    # (1 * 1 + 0 * 2 + 2 * 3) / 3; the denominator counts tokens, not weights, and the metric is unweighted
    value, metrics, grad = run(nll(), LOGPROBS, batch(ROWS, [1.0, 0.0, 2.0]), TOTALS)
    assert value == pytest.approx(7 / 3)
    assert metrics["nll"] == pytest.approx(2.0)
    assert grad == pytest.approx([-1 / 3, 0.0, -2 / 3])


def test_nll_over_rows_by_hand() -> None:
    # row 0: (1 + 2) / 2 = 1.5, row 1: 3; their mean 2.25
    value, _, grad = run(nll(normalise="row"), LOGPROBS, batch(ROWS, [1.0, 1.0, 1.0]), TOTALS)
    assert value == pytest.approx(2.25)
    assert grad == pytest.approx([-1 / 4, -1 / 4, -1 / 2])


def test_dpo_by_hand() -> None:
    # One pair. Chosen: tokens -1, -2 against the reference's -2, -2, so D = 1; rejected: -3 against -1, so D = -2.
    # margin = 0.5 (1 + 2) = 1.5; loss = log(1 + e^-1.5); d loss / d logprob = -/+ beta sigmoid(-1.5)
    tokens = batch([0, 0, 1], [1.0] * 3, reference=[-2.0, -2.0, -1.0])
    value, metrics, grad = run(dpo(beta=0.5), LOGPROBS, tokens, Totals(tokens=3, rows=2, pairs=1))
    assert value == pytest.approx(math.log1p(math.exp(-1.5)))
    slope = 0.5 / (1 + math.exp(1.5))
    assert grad == pytest.approx([-slope, -slope, slope])
    assert metrics == pytest.approx({"accuracy": 1.0, "margin": 1.5, "reward_chosen": 0.5, "reward_rejected": -1.0})


def test_dpo_starts_at_log_2_and_adds_the_chosen_rows_likelihood() -> None:
    # policy = reference: margin 0, loss ln 2; plus 0.2 times the mean of 1 and 2
    tokens = batch([0, 0, 1], [1.0] * 3, reference=LOGPROBS)
    totals = Totals(tokens=3, rows=2, pairs=1)
    assert run(dpo(), LOGPROBS, tokens, totals)[0] == pytest.approx(LN2)
    value, metrics, grad = run(dpo(beta=0.1, nll=0.2), LOGPROBS, tokens, totals)
    assert value == pytest.approx(LN2 + 0.2 * 1.5)
    assert metrics["nll_chosen"] == pytest.approx(1.5)
    assert grad == pytest.approx([-0.05 - 0.1, -0.05 - 0.1, 0.05])


# The same pair as in `test_dpo_by_hand`: D is 1 over two tokens and -2 over one.
PAIR, ONE_PAIR = batch([0, 0, 1], [1.0] * 3, reference=[-2.0, -2.0, -1.0]), Totals(tokens=3, rows=2, pairs=1)


def test_ipo_by_hand() -> None:
    # Means over tokens 1/2 and -2: (2.5 - 1 / (2 * 0.25))^2 = 0.25, and d loss / d logprob = 2 * 0.5 / length
    value, metrics, grad = run(ipo(tau=0.25), LOGPROBS, PAIR, ONE_PAIR)
    assert value == pytest.approx(0.25)
    assert grad == pytest.approx([0.5, 0.5, -1.0])
    assert metrics == pytest.approx({"accuracy": 1.0, "margin": 2.5, "reward_chosen": 0.5, "reward_rejected": -2.0})
    # Sums 1 and -2, as the paper writes it: (3 - 2)^2
    value, _, grad = run(ipo(tau=0.25, average=False), LOGPROBS, PAIR, ONE_PAIR)
    assert value == pytest.approx(1.0)
    assert grad == pytest.approx([2.0, 2.0, -2.0])


def test_simpo_by_hand() -> None:
    # Means of the log-probs -1.5 and -3, whatever a reference says: 2 (1.5) - 1 = 2; slope 2 sigmoid(-2) over the length
    value, metrics, grad = run(simpo(beta=2.0, gamma=1.0), LOGPROBS, PAIR, ONE_PAIR)
    assert value == pytest.approx(math.log1p(math.exp(-2)))
    slope = 2 / (1 + math.exp(2))
    assert grad == pytest.approx([-slope / 2, -slope / 2, slope])
    assert metrics == pytest.approx({"accuracy": 1.0, "margin": 3.0, "reward_chosen": -3.0, "reward_rejected": -6.0})


def test_kto_by_hand() -> None:
    # Row 0 is desirable and weighs 2: D = 1; row 1 is not: D = -2. The mismatched rows have D of 0.5 on average.
    # 2 (1 - s(0.5 (1 - 0.5))) + (1 - s(0.5 (0.5 + 2))), over two; slopes -+ lambda beta s (1 - s) / 2
    loss = kto(beta=0.5)
    tokens = batch([0, 0, 1], [2.0, 2.0, -1.0], reference=[-2.0, -2.0, -1.0])
    assert loss.baseline is not None
    assert float(loss.baseline(torch.tensor(LOGPROBS), tokens)) == pytest.approx(1 - 2)
    value, metrics, grad = run(loss, LOGPROBS, tokens, Totals(tokens=3, rows=4, pairs=2, baseline=0.5))
    s, t = (1 / (1 + math.exp(-x)) for x in (0.25, 1.25))
    assert value == pytest.approx((2 * (1 - s) + (1 - t)) / 2)
    assert grad == pytest.approx([-2 * 0.5 * s * (1 - s) / 2] * 2 + [0.5 * t * (1 - t) / 2])
    assert metrics == pytest.approx({"kl": 0.5, "accuracy": 1.0, "reward_desirable": 0.25, "reward_undesirable": -0.5})


def test_kto_takes_no_zero_below_zero_and_adds_the_likelihood_of_what_is_desirable() -> None:
    tokens, totals = batch([0, 0, 1], [1.0, 1.0, -1.0], reference=LOGPROBS), Totals(tokens=3, rows=4, pairs=2, baseline=-3.0)
    value, metrics, grad = run(kto(beta=0.1, nll=0.2), LOGPROBS, tokens, totals)
    assert value == pytest.approx(0.5 + 0.2 * 1.5 / 2)  # the mean of 1 and 2, over two rows
    assert metrics["kl"] == 0
    assert metrics["nll_desirable"] == pytest.approx(0.75)
    assert grad == pytest.approx([-0.1 / 4 / 2 - 0.05] * 2 + [0.1 / 4 / 2])


def test_policy_gradient_clips_by_hand() -> None:
    # Four rows of one token; ratios 1.5, 1.5, 0.5, 0.5 with advantages 2, -2, 2, -2 and clipping to [0.8, 1.3]:
    #   min(3, 2.6) = 2.6 (clipped), min(-3, -2.6) = -3, min(1, 1.6) = 1, min(-1, -1.6) = -1.6 (clipped)
    # loss = -(2.6 - 3 + 1 - 1.6) / 4 = 0.25; where clipped no gradient, else -A r / 4
    ratios = [1.5, 1.5, 0.5, 0.5]
    old = [-1.0] * 4
    tokens = batch([0, 1, 2, 3], [2.0, -2.0, 2.0, -2.0], old=old)
    value, metrics, grad = run(
        policy_gradient(clip_low=0.2, clip_high=0.3), [-1 + math.log(r) for r in ratios], tokens, Totals(tokens=4, rows=4)
    )
    assert value == pytest.approx(0.25)
    assert grad == pytest.approx([0.0, 0.75, -0.25, 0.0])
    assert metrics["ratio"] == pytest.approx(1.0)
    assert metrics["clip_fraction"] == pytest.approx(0.5)
    # mean of r - 1 - log r: (2 (0.5 - ln 1.5) + 2 (-0.5 - ln 0.5)) / 4
    assert metrics["approx_kl"] == pytest.approx((-math.log(1.5) - math.log(0.5)) / 2)
    assert metrics["entropy"] == pytest.approx((4 - 2 * math.log(1.5) - 2 * math.log(0.5)) / 4)


def test_policy_gradient_aggregations_by_hand() -> None:
    # On policy, so the loss of a token is -A: row 0 has two tokens of A = 1, row 1 one token of A = -4.
    tokens = batch(ROWS, [1.0, 1.0, -4.0], old=LOGPROBS)
    by_row = run(policy_gradient(), LOGPROBS, tokens, TOTALS)
    by_token = run(policy_gradient(aggregation="token-mean"), LOGPROBS, tokens, TOTALS)
    by_constant = run(policy_gradient(aggregation="constant", constant=10), LOGPROBS, tokens, TOTALS)
    assert by_row[0] == pytest.approx((-1 + 4) / 2)
    assert by_row[2] == pytest.approx([-1 / 4, -1 / 4, 4 / 2])
    assert by_token[0] == pytest.approx((-1 - 1 + 4) / 3)
    assert by_token[2] == pytest.approx([-1 / 3, -1 / 3, 4 / 3])
    assert by_constant[0] == pytest.approx((-1 - 1 + 4) / 20)
    assert by_constant[2] == pytest.approx([-1 / 20, -1 / 20, 4 / 20])


def test_policy_gradient_kl_by_hand() -> None:
    # A = 0. d = log 2 for a token twice as likely under the reference: e^d - d - 1 = 1 - ln 2, gradient 1 - e^d = -1
    tokens = batch([0], [0.0], old=[-1.0], reference=[-1.0 + LN2])
    value, metrics, grad = run(policy_gradient(kl=0.1), [-1.0], tokens, Totals(tokens=1, rows=1))
    assert value == pytest.approx(0.1 * (1 - LN2))
    assert metrics["kl"] == pytest.approx(1 - LN2)
    assert grad == pytest.approx([-0.1])


# MITO over a vocabulary of two tokens. Under attack the answer's token has p = 0.8, in the clean context q = 0.5; the policy at
# the start of the round had 0.6 and 0.5.
P, Q, P_REF = [0.8, 0.2], [0.5, 0.5], [0.6, 0.4]
KL = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
KL_REF = 0.6 * math.log(0.6 / 0.5) + 0.4 * math.log(0.4 / 0.5)


@pytest.mark.parametrize("kind", [Logits, lambda logits: Hidden(logits, torch.eye(2))], ids=["logits", "hidden"])
def test_divergences_of_two_tokens_by_hand(kind: Callable[[Tensor], Any]) -> None:
    logits = torch.tensor([P, Q, P_REF]).log().requires_grad_(True)
    one, other = torch.tensor([0, 2]), torch.tensor([1, 1])
    found = kind(logits).divergences(one, other)
    assert found.tolist() == pytest.approx([KL, KL_REF], abs=1e-6)
    found[0].backward()
    assert logits.grad is not None
    # p (log p - log q - KL) at the attacked logits, q - p at the clean ones, nothing elsewhere
    at_p = [p * (math.log(p / q) - KL) for p, q in zip(P, Q)]
    assert logits.grad[0].tolist() == pytest.approx(at_p, abs=1e-6)
    assert logits.grad[1].tolist() == pytest.approx([-0.3, 0.3], abs=1e-6)
    assert logits.grad[2].tolist() == [0.0, 0.0]


def test_both_heads_have_the_same_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    states, weight = torch.randn(7, 5, generator=generator), torch.randn(600, 5, generator=generator)
    one, other, pull = torch.tensor([0, 1, 2, 3]), torch.tensor([4, 5, 6, 4]), torch.tensor([1.0, -2.0, 0.5, 3.0])
    grads = []
    for head in (lambda h, w: Hidden(h, w), lambda h, w: Logits(h @ w.t())):
        h, w = states.clone().requires_grad_(True), weight.clone().requires_grad_(True)
        value = (head(h, w).divergences(one, other) * pull).sum()
        value.backward()
        grads.append((value.detach(), h.grad, w.grad))
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_mito_by_hand() -> None:
    # One pair of one token: -log 0.8 + 0.2 (KL - KL_ref); the clean row's likelihood does not enter.
    logprobs, totals = [math.log(0.8), math.log(0.5)], Totals(tokens=2, rows=2, pairs=1)
    tokens = batch([0, 1], [1.0, 1.0], reference=[KL_REF, 0.0], divergence=[KL, 0.0])
    value, metrics, grad = run(mito(), logprobs, tokens, totals)
    assert value == pytest.approx(-math.log(0.8) + 0.2 * (KL - KL_REF))
    assert grad == pytest.approx([-1.0, 0.0])
    assert metrics == pytest.approx({"nll_attacked": -math.log(0.8), "divergence": KL, "divergence_ref": KL_REF})
    assert run(mito(beta=0.0), logprobs, tokens, totals)[0] == pytest.approx(-math.log(0.8))


def test_mito_is_a_mean_over_tokens_then_over_pairs() -> None:
    # Pair 0: two tokens, CE 1 and 2, KL 0.5 and 0.1 against 0.2 and 0; pair 1: one token, CE 3, KL 0.4 against 0.4.
    # beta = 0.5: (1.5 + 0.5 (0.3 - 0.1) + 3 + 0) / 2
    rows, logprobs = [0, 0, 1, 1, 2, 3], [-1.0, -2.0, -7.0, -7.0, -3.0, -7.0]
    divergence, reference = [0.5, 0.1, 0.0, 0.0, 0.4, 0.0], [0.2, 0.0, 0.0, 0.0, 0.4, 0.0]
    tokens = batch(rows, [1.0] * 6, reference=reference, divergence=divergence)
    value, _, grad = run(mito(beta=0.5), logprobs, tokens, Totals(tokens=6, rows=4, pairs=2))
    assert value == pytest.approx((1.5 + 0.5 * 0.2 + 3.0) / 2)
    assert grad == pytest.approx([-1 / 4, -1 / 4, 0.0, 0.0, -1 / 2, 0.0])


@pytest.mark.parametrize(
    "loss",
    [
        mito(beta=0.3),
        nll(),
        nll(normalise="row"),
        policy_gradient(kl=0.05),
        policy_gradient(aggregation="token-mean"),
        policy_gradient(aggregation="constant", constant=7),
        dpo(beta=0.3, nll=0.1),
        ipo(tau=0.3),
        simpo(),
    ],
    ids=lambda loss: loss.name,
)
def test_micro_batches_add_up_to_the_batch(loss: Loss) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [3, 1, 4, 2, 5, 2]
    rows = [i for i, n in enumerate(lengths) for _ in range(n)]
    logprobs, old, reference, weights, divergence = (-torch.rand(5, len(rows), generator=generator) * 3).tolist()
    totals = Totals(tokens=len(rows), rows=6, pairs=3)
    whole = run(loss, logprobs, batch(rows, weights, old, reference, divergence), totals)
    value, metrics, grad = 0.0, dict.fromkeys(whole[1], 0.0), []
    for first, last in ((0, 2), (2, 6)):
        part = [t for t, row in enumerate(rows) if first <= row < last]
        pick = [[x[t] for t in part] for x in (logprobs, weights, old, reference, divergence)]
        piece = run(loss, pick[0], batch([rows[t] - first for t in part], *pick[1:]), totals)
        value += piece[0]
        metrics = {name: m + piece[1][name] for name, m in metrics.items()}
        grad += piece[2]
    assert value == pytest.approx(whole[0], abs=1e-12)
    assert grad == pytest.approx(whole[2], abs=1e-12)
    assert metrics == pytest.approx(whole[1], abs=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nll(normalise="rows"), "Did you mean 'row'"),  # type: ignore[arg-type]
        (lambda: dpo(beta=0.0), "beta is 0.0"),
        (lambda: ipo(tau=0.0), "tau is 0.0"),
        (lambda: simpo(gamma=-1.0), "gamma is -1.0"),
        (lambda: kto(nll=-1.0), "nll is -1.0"),
        (lambda: mito(beta=-1.0), "beta is -1.0"),
        (lambda: policy_gradient(clip_low=2.0), "clip_low=2.0"),
        (lambda: policy_gradient(aggregation="tokens"), "unknown aggregation 'tokens'"),  # type: ignore[arg-type]
        (lambda: policy_gradient(aggregation="constant"), "constant is None"),
        (lambda: policy_gradient(constant=3), "constant is 3"),
    ],
)
def test_options_that_cannot_work_are_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]
