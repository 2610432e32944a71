"""What a conversation between agents is worth: the task's reward, its length, and how well it reads (OPTIMA, arXiv:2410.08115)."""

from __future__ import annotations

from collections.abc import Sequence

from whet.errors import ConfigError

CLEAR = 0.1
"""Negative log-likelihood per token below which nothing reads any better: a small model can be sure of every token."""


def talk_rewards(
    rewards: Sequence[float], tokens: Sequence[int], nlls: Sequence[float], *, tokens_weight: float = 0.5, reading_weight: float = 0.6
) -> list[float]:
    """R = R_task - tokens_weight * tokens / (most tokens in the group) + reading_weight / (the worst turn's NLL), for each of a group.

    `rewards`, `tokens` and `nlls` are of episodes of one task; an NLL is the mean over a turn's tokens under the base model,
    of the turn that it likes least. Raises ConfigError for lists of different lengths.
    """
    if not len(rewards) == len(tokens) == len(nlls):
        raise ConfigError(f"there are {len(rewards)} rewards, {len(tokens)} token counts and {len(nlls)} NLLs; expected as many of each")
    most = max((*tokens, 1))
    return [
        reward - tokens_weight * n / most + reading_weight / max(nll, CLEAR) for reward, n, nll in zip(rewards, tokens, nlls, strict=True)
    ]
