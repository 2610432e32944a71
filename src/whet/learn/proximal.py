"""Proximal policy optimisation with a critic (PPO, arXiv 1707.06347): its losses, and an update of one batch of episodes.

    value_regression    what a value head minimises
    actor_critic        the clipped surrogate and the critic's loss together, for a value head on the policy's backbone
    ppo                 reference log-probs, values, rewards of tokens, advantages, and some epochs of either

What becomes of rewards, which needs no torch, is in `whet.learn.credit`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from whet.data.rows import batches
from whet.errors import ConfigError
from whet.learn.credit import PPO, credited
from whet.learn.learner import Learner
from whet.learn.losses import Loss, Metrics, Tokens, Totals, policy_gradient
from whet.learn.reference import with_reference
from whet.learn.training import optimise
from whet.policies.local import LocalPolicy
from whet.types import Example


def ppo(
    learner: Learner,
    rows: Sequence[Example],
    rewards: Sequence[Sequence[float]],
    reference: LocalPolicy,
    how: PPO,
    *,
    critic: Learner | None = None,
    joined: bool = False,
    seed: int = 0,
) -> dict[str, float]:
    """Updates a learner by one batch of sampled rows, and returns what there is to log.

    `rewards` has those of each row's assistant turns. `reference` is who the KL penalty in the reward is taken against. The value
    head is the learner's own, on the policy's backbone; `critic` is another learner that has one instead, with weights of its own.
    With `joined`, rows of one origin are one stretch of time (`credited`). Each of `how.epochs` goes over the rows anew. Without rows
    nothing happens. Raises ConfigError where nobody has a value head, where a row lacks the log-probs that it was sampled with, or
    where the rewards are not one for each turn.
    """
    if not rows:
        return {}
    valued = (critic or learner).with_values(rows)
    rows = credited(with_reference(valued, reference) if how.kl else valued, rewards, how, joined=joined)
    shuffled = list(batches(rows, how.batch_size, epochs=how.epochs, seed=seed))
    if critic is None:
        metrics = optimise(learner, shuffled, actor_critic(clip=how.clip, clip_value=how.clip_value, value=how.value))
    else:
        actor = policy_gradient(clip_low=how.clip, clip_high=how.clip, aggregation="token-mean")
        regressed = optimise(critic, shuffled, value_regression(clip=how.clip_value))
        metrics = {f"critic_{name}": regressed[name] for name in ("loss", "grad_norm")} | optimise(learner, shuffled, actor)
    return metrics | {"explained": explained(rows)} | ({"kl": divergence(rows)} if how.kl else {})


def divergence(rows: Sequence[Example]) -> float:
    """Mean over tokens of log pi - log pi_ref, of the policy that sampled."""
    return float(np.mean(np.concatenate([(row.logprobs - row.reference)[row.mask] for row in rows if row.logprobs is not None])))


def explained(rows: Sequence[Example]) -> float:
    """The share of the returns' variance that the critic foresaw, before it learned from these rows; 0 where they do not vary."""
    returns, values = (np.concatenate([getattr(row, name)[row.mask] for row in rows]).astype(np.float64) for name in ("returns", "values"))
    return float(1 - (returns - values).var() / returns.var()) if returns.var() > 0 else 0.0


def value_regression(*, clip: float = 0.2) -> Loss:
    """What a value head minimises (PPO as in arXiv 2005.12729, section 3, and in TRL):

        L = mean over tokens of  1/2 max((V - R)^2, (V_clipped - R)^2),   V_clipped = clip(V, V_old - clip, V_old + clip)

    V is what it expects before the token, V_old what it expected when the row was sampled, R the return.
    """
    if clip <= 0:
        raise ConfigError(f"clip is {clip}; expected more than 0")

    def compute(logprobs: Tensor, tokens: Tokens, totals: Totals) -> tuple[Tensor, Metrics]:
        assert tokens.value is not None
        assert tokens.old_value is not None
        assert tokens.returns is not None
        near = tokens.old_value + (tokens.value - tokens.old_value).clamp(-clip, clip)
        free, clipped = (tokens.value - tokens.returns).square(), (near - tokens.returns).square()
        loss = 0.5 * torch.max(free, clipped).sum() / totals.tokens
        with torch.no_grad():
            metrics = {
                "value_loss": loss.detach(),
                "value": tokens.value.sum() / totals.tokens,
                "value_clip_fraction": (clipped > free).to(free.dtype).sum() / totals.tokens,
            }
        return loss, metrics

    return Loss(name="value_regression", compute=compute, needs=("values", "returns"), value=True)


def actor_critic(*, clip: float = 0.2, clip_value: float = 0.2, value: float = 0.1) -> Loss:
    """PPO's loss where policy and value head share a backbone (arXiv 1707.06347, equation 9, with the sign turned):

        L = mean over tokens of  -min(r A, clip(r, 1 - clip, 1 + clip) A)  +  `value` times the loss of `value_regression`

    A row's weights are its advantages. A penalty for leaving a reference policy is part of the rewards (`learn.credited`).
    """
    if value < 0:
        raise ConfigError(f"value is {value}; expected 0 or more")
    actor = policy_gradient(clip_low=clip, clip_high=clip, aggregation="token-mean")
    regression = value_regression(clip=clip_value)

    def compute(logprobs: Tensor, tokens: Tokens, totals: Totals) -> tuple[Tensor, Metrics]:
        surrogate, metrics = actor.compute(logprobs, tokens, totals)
        error, more = regression.compute(logprobs, tokens, totals)
        return surrogate + value * error, metrics | more

    return Loss(name="actor_critic", compute=compute, needs=("logprobs", "values", "returns"), tempered=True, value=True)
