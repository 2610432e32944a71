"""Finds the decoder for a model's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from whet.policies.engine.architectures import architecture_of, lay_out
from whet.policies.engine.base import Decoder
from whet.policies.engine.fallback import ModuleDecoder
from whet.policies.engine.transformer import Transformer


def decoder_for(config: Any, weights: Mapping[str, torch.Tensor], module: Callable[[], Any]) -> Decoder:
    """The fast decoder where the architecture is known; otherwise one over the transformers module that `module` makes."""
    if arch := architecture_of(config):
        return Transformer(arch, lay_out(arch, weights), config, context=context_of(config))
    return ModuleDecoder(module(), context=context_of(config), vocab_size=config.get_text_config().vocab_size)


def context_of(config: Any) -> int:
    """Tokens that a conversation can hold, answer included."""
    text = config.get_text_config()
    return int(getattr(text, "max_position_embeddings", 0) or getattr(text, "n_positions", 0) or 1 << 20)
