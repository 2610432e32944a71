"""Drawing tokens for many requests at once, each with its own parameters and its own stream of random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from whet.policies.base import Sampling

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): 64 bits in, 64 well-mixed bits out."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def uniform(stream: int, index: int) -> float:
    """Number `index` of a stream, in [0, 1). A pure function, so a draw does not depend on who else is in the batch.

    It is a multiple of 2**-23: times a float32 total it always stays below that total.
    """
    return (mix((stream + (index + 1) * _GOLDEN) & _MASK) >> 41) * 2.0**-23


def sample(logits: torch.Tensor, samplings: Sequence[Sampling], uniforms: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """One token for each row, and its log-prob.

    Args:
        logits: float32 [N, vocab]; overwritten.
        samplings: N sets of parameters; `temperature=0` takes the most probable token (the lowest id of equals).
        uniforms: N numbers in [0, 1): the token is where the cumulative distribution passes this number.

    Returns:
        tokens int64 [N], and log-probs float32 [N] under softmax(logits / temperature) (at temperature 1 for greedy
        rows), before top-k and top-p take anything away.
    """
    device = logits.device
    if any(s.temperature not in (0.0, 1.0) for s in samplings):
        logits.div_(torch.tensor([[s.temperature or 1.0] for s in samplings], device=device))
    top = logits.amax(-1, keepdim=True)
    logits.sub_(top)
    weights = logits.exp()
    total = weights.sum(-1, keepdim=True)
    greedy = [i for i, s in enumerate(samplings) if s.temperature == 0.0]
    filtered = [i for i, s in enumerate(samplings) if s.temperature != 0.0 and (s.top_k or s.top_p < 1.0)]
    if filtered:
        _filter(weights, filtered, samplings)
    targets = torch.tensor(uniforms, dtype=torch.float32, device=device)
    if greedy:
        rows = torch.tensor(greedy, device=device)
        weights.index_copy_(0, rows, (logits[rows] == 0.0).to(weights.dtype))
        targets[rows] = 0.0
    cumulative = weights.cumsum(-1)
    tokens = torch.searchsorted(cumulative, targets.unsqueeze(-1) * cumulative[:, -1:], right=True).clamp_(max=logits.shape[-1] - 1)
    logprobs = logits.gather(-1, tokens).sub_(total.log_())
    return tokens.squeeze(-1), logprobs.squeeze(-1)


def _filter(weights: torch.Tensor, rows: list[int], samplings: Sequence[Sampling]) -> None:
    """Set to zero, in these rows, what top-k and then top-p (over what top-k left) exclude.

    Top-p keeps the smallest set of most probable tokens that reaches p (Holtzman et al. 2020); the first always stays.
    Of equally probable tokens at the edge, those with lower ids stay.
    """
    device, vocab = weights.device, weights.shape[-1]
    at = torch.tensor(rows, device=device)
    top_k = [min(samplings[i].top_k or vocab, vocab) for i in rows]
    ordered, order = weights[at].sort(stable=True, dim=-1, descending=True)
    ranks = torch.arange(vocab, device=device)
    ordered.masked_fill_(ranks >= torch.tensor(top_k, device=device).unsqueeze(-1), 0.0)
    mass = ordered.cumsum(-1)
    limit = torch.tensor([[samplings[i].top_p] for i in rows], device=device) * mass[:, -1:]
    limit[[samplings[i].top_p >= 1.0 for i in rows]] = torch.inf
    ordered.masked_fill_((mass - ordered >= limit) & (ranks > 0), 0.0)
    weights.index_copy_(0, at, torch.zeros_like(ordered).scatter_(-1, order, ordered))
