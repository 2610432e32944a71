"""Finds the decoder for a policy's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whet.policies.engine.architectures import architecture_of, lay_out
from whet.policies.engine.base import Decoder
from whet.policies.engine.fallback import ModuleDecoder
from whet.policies.engine.transformer import Transformer

if TYPE_CHECKING:
    from whet.policies.local import LocalPolicy


def decoder_for(policy: LocalPolicy) -> Decoder:
    """The fast decoder where the architecture is known, the transformers module itself otherwise."""
    if arch := architecture_of(policy.config):
        return Transformer(arch, lay_out(arch, policy.weights), policy.config, context=policy.context)
    return ModuleDecoder(policy.module(share=True), context=policy.context, vocab_size=policy.config.get_text_config().vocab_size)
