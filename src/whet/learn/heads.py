"""From hidden states to what losses ask of the vocabulary: log-probs of tokens, and divergences between two distributions.

Vocabulary-wide arrays exist a slice at a time where the hidden states are known (`Hidden`); where a model gave whole logits
(`Logits`), they are used as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

_KEEP = 1 << 28
"""Bytes of logits that a pack may hold on to for its backward pass; beyond it they are computed twice."""
_SLICE = 512
"""Queries whose logits are computed at once."""


class Head(Protocol):
    """The distributions over V tokens that Q queries ask for."""

    @property
    def states(self) -> Tensor | None:
        """[Q, D]: the last hidden states, normalised as the vocabulary's layer sees them; None where they were not asked for."""
        ...

    def logprobs(self, target: Tensor, temperature: Tensor) -> Tensor:
        """float32 [Q] of `target` [Q] at `temperature` [Q]."""
        ...

    def divergences(self, one: Tensor, other: Tensor) -> Tensor:
        """float32 [K]: KL(one || other) at temperature 1, of the distributions of the queries `one` [K] and `other` [K]."""
        ...


@dataclass(frozen=True, eq=False)
class Hidden:
    """By the last hidden states."""

    states: Tensor
    """[Q, D]"""
    weight: Tensor
    """[V, D]"""

    def logprobs(self, target: Tensor, temperature: Tensor) -> Tensor:
        return _HeadLogprobs.apply(self.states, self.weight, target, temperature)  # type: ignore[no-any-return, no-untyped-call]

    def divergences(self, one: Tensor, other: Tensor) -> Tensor:
        return _HeadDivergences.apply(self.states[one], self.states[other], self.weight)  # type: ignore[no-any-return, no-untyped-call]


@dataclass(frozen=True, eq=False)
class Logits:
    """By whole logits."""

    logits: Tensor
    """[Q, V]"""
    states: Tensor | None = None
    """[Q, D]"""

    def logprobs(self, target: Tensor, temperature: Tensor) -> Tensor:
        logits = self.logits.float() / temperature[:, None]
        return logits.gather(1, target[:, None])[:, 0] - logits.logsumexp(-1)

    def divergences(self, one: Tensor, other: Tensor) -> Tensor:
        log_p, log_q = (self.logits[index].float().log_softmax(-1) for index in (one, other))
        return (log_p.exp() * (log_p - log_q)).sum(-1)


class _HeadLogprobs(torch.autograd.Function):
    """log softmax(h W^T / temperature) at the targets: h [Q, D], W [V, D], target and temperature [Q] -> float32 [Q].

    Logits exist a slice of queries at a time, and the gradient is made in their place, (softmax - onehot) * -g.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, temperature: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight, target, temperature)
        ctx.kept = [] if any(ctx.needs_input_grad) and len(hidden) * len(weight) * 4 <= _KEEP else None
        out = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        for part in _slices(len(hidden)):
            logprobs = _logprobs(hidden[part], weight, temperature[part])
            out[part] = logprobs.gather(1, target[part, None])[:, 0]
            if ctx.kept is not None:
                ctx.kept.append(logprobs)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, target, temperature = ctx.saved_tensors
        grad = grads[0]
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for i, part in enumerate(_slices(len(hidden))):
            if ctx.kept is not None:
                logprobs = ctx.kept[i]
                ctx.kept[i] = None
            else:
                logprobs = _logprobs(hidden[part], weight, temperature[part])
            scaled = (grad[part] / temperature[part])[:, None]
            to_logits = logprobs.exp_().mul_(-scaled).scatter_add_(1, target[part, None], scaled).to(weight.dtype)
            if to_hidden is not None:
                torch.mm(to_logits, weight, out=to_hidden[part])
            if to_weight is not None:
                to_weight.addmm_(to_logits.t(), hidden[part])
        ctx.kept = None
        return to_hidden, to_weight, None, None


class _HeadDivergences(torch.autograd.Function):
    """KL(softmax(a W^T) || softmax(b W^T)) of each row: a and b [K, D], W [V, D] -> float32 [K].

    With p and q the two distributions, the gradient is p (log p - log q - KL) at the logits of a, and q - p at those of b.
    Logits exist a slice of rows at a time, and are computed again for it.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        out = torch.empty(len(a), dtype=torch.float32, device=a.device)
        for part in _slices(len(a)):
            log_p, log_q = (_logprobs(x[part], weight) for x in (a, b))
            out[part] = (log_p.exp() * (log_p - log_q)).sum(-1)
        ctx.save_for_backward(a, b, weight, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, b, weight, divergence = ctx.saved_tensors
        to_a, to_b = torch.empty_like(a), torch.empty_like(b)
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[2] else None
        for part in _slices(len(a)):
            log_p, log_q = (_logprobs(x[part], weight) for x in (a, b))
            p, grad = log_p.exp(), grads[0][part, None]
            at_a = (grad * p * (log_p - log_q - divergence[part, None])).to(weight.dtype)
            at_b = (grad * (log_q.exp() - p)).to(weight.dtype)
            torch.mm(at_a, weight, out=to_a[part])
            torch.mm(at_b, weight, out=to_b[part])
            if to_weight is not None:
                to_weight.addmm_(at_a.t(), a[part]).addmm_(at_b.t(), b[part])
        return to_a, to_b, to_weight


def _slices(n: int) -> Iterator[slice]:
    return (slice(start, min(start + _SLICE, n)) for start in range(0, n, _SLICE))


def _logprobs(hidden: Tensor, weight: Tensor, temperature: Tensor | None = None) -> Tensor:
    logits = (hidden @ weight.t()).float()
    return (logits if temperature is None else logits.div_(temperature[:, None])).log_softmax(-1)
