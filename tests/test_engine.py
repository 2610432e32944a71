"""The decode engine: the same numbers as transformers, whatever shares the batch and the cache."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import tiny_module, tiny_policy

from whet.errors import ContextFull, PolicyError
from whet.policies.base import Sampling
from whet.policies.engine import Engine, Result, Session
from whet.policies.engine.architectures import architecture_of
from whet.policies.engine.fallback import ModuleDecoder
from whet.policies.engine.sampling import sample, uniform
from whet.policies.engine.transformer import Transformer
from whet.policies.gate import current_gate
from whet.policies.local import LocalPolicy

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILY: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", {}),
    "qwen3-untied-biased": ("qwen3", {"tie_word_embeddings": False, "attention_bias": True}),
    "qwen3-windows": ("qwen3", {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}),
    "qwen2": ("qwen2", {}),
    "llama": ("llama", {}),
    "llama-tied-biased": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    "llama3-rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "llama-yarn": ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}}),
    "mistral": ("mistral", {"sliding_window": 20}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"sliding_window": 16, "query_pre_attn_scalar": 24}),
    "gemma3": ("gemma3_text", {"sliding_window": 16, "query_pre_attn_scalar": 24, "num_hidden_layers": 3, "sliding_window_pattern": 2}),
}


def random_tokens(n: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 320, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def transformer(policy: LocalPolicy, **options: Any) -> Transformer:
    decoder = policy.engine.decoder
    assert isinstance(decoder, Transformer)
    return decoder


@torch.no_grad()
def reference_logprobs(module: Any, tokens: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
    """[T, vocab]: what a fresh forward pass over all tokens predicts after each."""
    return torch.log_softmax(module(torch.tensor([list(tokens)])).logits[0].float() / temperature, -1)


@pytest.mark.parametrize("shape", FAMILY)
def test_logits_agree_with_transformers(shape: str) -> None:
    arch, config = FAMILY[shape]
    policy = tiny_policy(arch, **config)
    module = policy.module()
    decoder = transformer(policy)
    # Ragged prompts, then more of the same sessions, some idle, one token and several at a time.
    sessions = [Session(key=i, tokens=random_tokens(50, seed=i)) for i in range(5)]
    for session in sessions:
        decoder.place(session)
    for step in ({0: 7, 1: 23, 2: 1, 3: 24, 4: 30}, {0: 1, 1: 1, 3: 1}, {4: 1}, {0: 9, 2: 40, 4: 1}, {2: 1, 1: 20}):
        taking = [sessions[i] for i in step]
        logits = decoder.forward(taking, list(step.values()))
        for session, row in zip(taking, logits, strict=True):
            expected = module(torch.tensor([session.tokens[: session.length]])).logits[0, -1].detach()
            torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)
