"""Losses: pure functions of flat per-token tensors.

A batch of R rows is seen as the M tokens that its masks let in, one after another: `logprobs` [M] under the weights being
trained, and `Tokens` with everything else about them. A micro-batch holds whole rows (both rows of a pair), and every
denominator is that of the whole batch (`Totals`), so losses of micro-batches add up to exactly that of the batch. Metrics
add up in the same way.

    nll               imitation: masked negative log-likelihood with per-token weights
    dpo               preference: Direct Preference Optimization, with an optional likelihood term
    ipo               preference: a margin of the log-ratios that is aimed at rather than made as large as possible
    simpo             preference: without a reference, by likelihoods per token
    kto               preference without pairs: what is desirable above, and what is not below, what other answers have
    policy_gradient   reward: the clipped surrogate of PPO and GRPO with an optional KL penalty
    mito              robustness: likelihood in one context, and how far it moves the distributions from those in another

Those of actor-critic methods are in `whet.learn.proximal`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from whet.errors import ConfigError, did_you_mean

Metrics = dict[str, Tensor]
Aggregation = Literal["row-token-mean", "token-mean", "constant"]
Array = Literal["logprobs", "reference", "values", "returns"]


@dataclass(frozen=True, eq=False)
class Tokens:
    """The M masked-in tokens of a micro-batch of R rows."""

    row: Tensor
    """int64 [M], ascending, each of 0 .. R - 1. Of pairs, row 2i is the chosen and row 2i + 1 the rejected one."""
    weight: Tensor
    """float32 [M]: an advantage, for a policy gradient."""
    old: Tensor | None = None
    """float32 [M]: log-probs of the policy that sampled."""
    reference: Tensor | None = None
    """float32 [M]: log-probs of the reference policy; where the loss asks for divergences, the reference's of those."""
    divergence: Tensor | None = None
    """float32 [M]: of pairs that give one answer in two contexts, at each of its tokens in row 2i the divergence
    KL(pi(. | context of row 2i) || pi(. | context of row 2i + 1)); 0 in row 2i + 1. Only where the loss asks for it."""
    value: Tensor | None = None
    """float32 [M]: what the value head expects before each token. Only where the loss asks for it."""
    old_value: Tensor | None = None
    """float32 [M]: what it expected when the rows were sampled."""
    returns: Tensor | None = None
    """float32 [M]: what it is to expect."""
    n_rows: int = 0

    def sum_rows(self, x: Tensor) -> Tensor:
        """[M] -> [R]"""
        return torch.zeros(self.n_rows, dtype=x.dtype, device=x.device).index_add(0, self.row, x)

    def lengths(self) -> Tensor:
        """float32 [R], at least 1: masked-in tokens of each row."""
        return torch.bincount(self.row, minlength=self.n_rows).clamp(min=1).float()


@dataclass(frozen=True)
class Totals:
    """Of the whole batch, however it is cut into micro-batches. Rows without a masked-in token are not counted."""

    tokens: int
    rows: int
    pairs: int = 0
    seen: int = 0
    """Tokens in rows that are computed, which is what metrics are means over; 0 stands for all."""
    baseline: float = 0.0
    """Of a loss with a `baseline`: its mean over the pairs."""

    @property
    def computed(self) -> int:
        return self.seen or self.tokens


@dataclass(frozen=True)
class Loss:
    """What `Learner.forward_backward` minimises: `compute(logprobs, tokens, totals) -> (loss, metrics)`."""

    name: str
    compute: Callable[[Tensor, Tokens, Totals], tuple[Tensor, Metrics]]
    of: Literal["rows", "pairs"] = "rows"
    needs: tuple[Array, ...] = ()
    """Arrays that every row must have."""
    tempered: bool = False
    """Whether log-probs are those at each row's temperature, as they are where a ratio to sampled ones is taken."""
    divergence: bool = False
    """Whether it asks how the distributions of a pair's two rows diverge; both then hold the same masked-in tokens."""
    value: bool = False
    """Whether it asks what the learner's value head expects."""
    baseline: Callable[[Tensor, Tokens], Tensor] | None = None
    """`baseline(logprobs, tokens) -> []`, a sum over the second rows of pairs. Its mean over the whole batch is computed first, without
    a gradient; `compute` then sees the pairs' first rows alone, and the mean in `totals`."""
    skips_zero_weight: bool = False
    """Whether rows whose weights are all zero cannot contribute a gradient, so that a learner may leave them out."""


def nll(*, normalise: Literal["token", "row"] = "token") -> Loss:
    """Masked negative log-likelihood, L = -sum_t w_t log pi(t) / T.

    `normalise="token"` divides by the number T of masked-in tokens of the batch, `"row"` by that of the token's own row
    and by the number of rows. Weights do not enter the denominators, so that a row of weight 2 pulls like two rows.
    """
    if normalise not in ("token", "row"):
        raise ConfigError(f"unknown normalise {normalise!r}. {did_you_mean(normalise, ('token', 'row'))}")

    def compute(logprobs: Tensor, tokens: Tokens, totals: Totals) -> tuple[Tensor, Metrics]:
        per_token = -tokens.weight * logprobs
        if normalise == "row":
            loss = (tokens.sum_rows(per_token) / tokens.lengths()).sum() / totals.rows
        else:
            loss = per_token.sum() / totals.tokens
        return loss, {"nll": -logprobs.detach().sum() / totals.computed}

    return Loss(name="nll", compute=compute, skips_zero_weight=True)


def dpo(*, beta: float = 0.1, nll: float = 0.0) -> Loss:
    """Direct Preference Optimization (arXiv 2305.18290, equation 7), for pairs with reference log-probs.

        L = mean over pairs of  -log sigmoid(beta (D_chosen - D_rejected)),   D = sum_t w_t (log pi(t) - log pi_ref(t))

    All weights are 1 in the paper. `nll` adds that many times the chosen row's mean negative log-likelihood per token
    (the alpha of arXiv 2404.19733, equation 2, there with the length of the whole answer), which keeps the likelihood
    of what is preferred from sinking.
    """
    if beta <= 0 or nll < 0:
        raise ConfigError(f"beta is {beta} and nll is {nll}; expected beta > 0 and nll >= 0")
    nll_coefficient = nll

    def compute(logprobs: Tensor, tokens: Tokens, totals: Totals) -> tuple[Tensor, Metrics]:
        assert tokens.reference is not None
        implicit = beta * tokens.sum_rows(tokens.weight * (logprobs - tokens.reference))
        chosen, rejected = implicit[0::2], implicit[1::2]
        loss = -F.logsigmoid(chosen - rejected).sum() / totals.pairs
        metrics = _preferences(chosen, rejected, totals)
        if nll_coefficient:
            likelihood = -(tokens.sum_rows(logprobs) / tokens.lengths())[0::2].sum() / totals.pairs
            loss = loss + nll_coefficient * likelihood
            metrics["nll_chosen"] = likelihood.detach()
        return loss, metrics

    return Loss(name="dpo", compute=compute, of="pairs", needs=("reference",))


def ipo(*, tau: float = 0.1, average: bool = True) -> Loss:
    """Identity Preference Optimisation (arXiv 2310.12036, equation 17), for pairs with reference log-probs.

        L = mean over pairs of  (D_chosen - D_rejected - 1 / (2 tau))^2

    With D as in `dpo`, but divided by the row's number of tokens, which is how the authors made their results, by what TRL
    reports of them; `average=False` takes the sums that stand in the paper.
    """
    if tau <= 0:
        raise ConfigError(f"tau is {tau}; expected tau > 0")

    def compute(logprobs: Tensor, tokens: Tokens, totals: Totals) -> tuple[Tensor, Metrics]:
        assert tokens.reference is not None
        ratios = tokens.sum_rows(tokens.weight * (logprobs - tokens.reference))
        if average:
            ratios = ratios / tokens.lengths()
        chosen, rejected = ratios[0::2], ratios[1::2]
        loss = (chosen - rejected - 1 / (2 * tau)).square().sum() / totals.pairs
        return loss, _preferences(chosen, rejected, totals)

    return Loss(name="ipo", compute=compute, of="pairs", needs=("reference",))


def simpo(*, beta: float = 2.0, gamma: float = 1.0) -> Loss:
    """Simple Preference Optimization (arXiv 2405.14734, equation 6), for pairs; no reference.

    L = mean over pairs of  -log sigmoid(beta (m_chosen - m_rejected) - gamma),   m = mean_t w_t log pi(t)
    """
    if beta <= 0 or gamma < 0:
        raise ConfigError(f"beta is {beta} and gamma is {gamma}; expected beta > 0 and gamma >= 0")

    def compute(logprobs: Tensor, tokens: Tokens, totals: Totals) -> tuple[Tensor, Metrics]:
        implicit = beta * tokens.sum_rows(tokens.weight * logprobs) / tokens.lengths()
        chosen, rejected = implicit[0::2], implicit[1::2]
        loss = -F.logsigmoid(chosen - rejected - gamma).sum() / totals.pairs
        return loss, _preferences(chosen, rejected, totals)

    return Loss(name="simpo", compute=compute, of="pairs")


def kto(*, beta: float = 0.1, nll: float = 0.0) -> Loss:
    """Kahneman-Tversky Optimization (arXiv 2402.01306, equations 7 and 8), for rows that are good or bad by themselves.

        L = mean over rows of  lambda (1 - sigmoid(+-beta (D - z))),   D = sum_t (log pi(t) - log pi_ref(t)),
        z = max(0, mean over mismatched rows of D), held constant

    + for what is desirable, - for what is not. The pairs are those of `data.unpaired`: their first row's weights are lambda where
    it is desirable and -lambda where it is not; their second row is the mismatched one, the first's prompt with another's answer.
    `nll` adds that many times the mean over rows of the desirable ones' mean negative log-likelihood per token (KTO with MLE,
    as in AMOR, arXiv 2402.01469).
    """
    if beta <= 0 or nll < 0:
        raise ConfigError(f"beta is {beta} and nll is {nll}; expected beta > 0 and nll >= 0")
    nll_coefficient = nll

    def ratios(logprobs: Tensor, tokens: Tokens) -> Tensor:
        assert tokens.reference is not None
        return tokens.sum_rows(logprobs - tokens.reference)

    def compute(logprobs: Tensor, tokens: Tokens, totals: Totals) -> tuple[Tensor, Metrics]:
        implicit, z = beta * ratios(logprobs, tokens), beta * max(0.0, totals.baseline)
        scale = tokens.sum_rows(tokens.weight) / tokens.lengths()  # of the row: all its tokens weigh the same
        loss = (scale.abs() * torch.sigmoid(scale.sign() * (z - implicit))).sum() / totals.pairs
        good = (scale > 0).to(scale.dtype)
        metrics = {
            "kl": torch.full_like(loss, z / beta).detach() * tokens.n_rows / totals.pairs,
            "accuracy": ((implicit - z) * scale > 0).to(scale.dtype).sum() / totals.pairs,
            "reward_desirable": (good * implicit).detach().sum() / totals.pairs,
            "reward_undesirable": ((1 - good) * implicit).detach().sum() / totals.pairs,
        }
        if nll_coefficient:
            likelihood = -(good * tokens.sum_rows(logprobs) / tokens.lengths()).sum() / totals.pairs
            loss = loss + nll_coefficient * likelihood
            metrics["nll_desirable"] = likelihood.detach()
        return loss, metrics

    def baseline(logprobs: Tensor, tokens: Tokens) -> Tensor:
        return ratios(logprobs, tokens).sum()

    return Loss(name="kto", compute=compute, of="pairs", needs=("reference",), baseline=baseline)


def _preferences(chosen: Tensor, rejected: Tensor, totals: Totals) -> Metrics:
    """What is logged of implicit rewards [pairs]."""
    margin = (chosen - rejected).detach()
    return {
        "accuracy": (margin > 0).to(margin.dtype).sum() / totals.pairs,
        "margin": margin.sum() / totals.pairs,
        "reward_chosen": chosen.detach().sum() / totals.pairs,
        "reward_rejected": rejected.detach().sum() / totals.pairs,
    }


def policy_gradient(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl: float = 0.0,
    aggregation: Aggregation = "row-token-mean",
    constant: float | None = None,
) -> Loss:
    """The clipped surrogate (PPO, arXiv 1707.06347, equation 7) with tokens' weights as advantages A.

        l_t = -min(r_t A, clip(r_t, 1 - clip_low, 1 + clip_high) A) + kl (e^d - d - 1),
        r_t = pi(t) / pi_old(t),   d = log pi_ref(t) - log pi(t)

    The last term is the estimator of the KL divergence to a reference policy that GRPO uses (arXiv 2402.03300,
    equation 4). Aggregations: "row-token-mean", the mean over rows of the mean over each row's tokens (GRPO, equation 3);
    "token-mean", over all tokens (DAPO, arXiv 2503.14476, equation 8); "constant", the sum over tokens divided by the
    number of rows and by `constant`, such as the longest row allowed (Dr. GRPO, arXiv 2503.20783).
    """
    if not 0 <= clip_low <= 1 or clip_high < 0 or kl < 0:
        raise ConfigError(f"clip_low={clip_low}, clip_high={clip_high}, kl={kl}; expected clip_low in [0, 1], clip_high >= 0, kl >= 0")
    known = ("row-token-mean", "token-mean", "constant")
    if aggregation not in known:
        raise ConfigError(f"unknown aggregation {aggregation!r}. {did_you_mean(aggregation, known)}")
    if (aggregation == "constant") != (constant is not None) or (constant is not None and constant <= 0):
        raise ConfigError(f"constant is {constant} with aggregation={aggregation!r}; 'constant' needs one > 0, the others none")

    def aggregate(per_token: Tensor, tokens: Tokens, totals: Totals) -> Tensor:
        if aggregation == "row-token-mean":
            return (tokens.sum_rows(per_token) / tokens.lengths()).sum() / totals.rows
        return per_token.sum() / (totals.tokens if constant is None else totals.rows * constant)

    def compute(logprobs: Tensor, tokens: Tokens, totals: Totals) -> tuple[Tensor, Metrics]:
        assert tokens.old is not None
        log_ratio = logprobs - tokens.old
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
        per_token = -torch.min(ratio * tokens.weight, clipped * tokens.weight)
        with torch.no_grad():
            outside = ((ratio < 1 - clip_low) & (tokens.weight < 0)) | ((ratio > 1 + clip_high) & (tokens.weight > 0))
            metrics = {
                "ratio": ratio.sum() / totals.computed,
                "clip_fraction": outside.to(ratio.dtype).sum() / totals.computed,
                "approx_kl": (ratio - 1 - log_ratio).sum() / totals.computed,
                "entropy": -logprobs.sum() / totals.computed,
            }
        if kl:
            assert tokens.reference is not None
            d = tokens.reference - logprobs
            divergence = d.exp() - d - 1
            per_token = per_token + kl * divergence
            metrics["kl"] = divergence.detach().sum() / totals.computed
        return aggregate(per_token, tokens, totals), metrics

    needs: tuple[Array, ...] = ("logprobs", "reference") if kl else ("logprobs",)
    return Loss(name="policy_gradient", compute=compute, needs=needs, tempered=True, skips_zero_weight=not kl)


def mito(*, beta: float = 0.2) -> Loss:
    """Multi-agent iterative tuning optimisation, the generator's loss of ATM (arXiv 2405.18111), for pairs of contexts.

        L = mean over pairs of  mean_t [ -log pi(y_t | x~, y_<t) + beta (KL_t - KL_ref,t) ],
        KL_t = KL( pi(. | x~, y_<t) || pi(. | x, y_<t) )

    Of a pair, `chosen` is the answer y in the attacked context x~ and `rejected` the same answer in the clean context x. KL is
    taken over the whole vocabulary and its gradient goes through both contexts. KL_ref, that of the policy at the start of the
    round (`learn.with_divergences`), is constant: it sets the zero. The likelihood is that of the paper, under attack; the KL term
    is that of the authors' code, which averages it over the prompt's positions as well (where it is 0), so that their beta
    counts for less by the ratio of the lengths.
    """
    if beta < 0:
        raise ConfigError(f"beta is {beta}; expected 0 or more")

    def compute(logprobs: Tensor, tokens: Tokens, totals: Totals) -> tuple[Tensor, Metrics]:
        assert tokens.divergence is not None
        assert tokens.reference is not None

        def mean(per_token: Tensor) -> Tensor:
            return (tokens.sum_rows(per_token) / tokens.lengths())[0::2].sum() / totals.pairs

        loss = mean(tokens.weight * (beta * (tokens.divergence - tokens.reference) - logprobs))
        with torch.no_grad():
            metrics = {"nll_attacked": -mean(logprobs), "divergence": mean(tokens.divergence), "divergence_ref": mean(tokens.reference)}
        return loss, metrics

    return Loss(name="mito", compute=compute, of="pairs", needs=("reference",), divergence=True)
