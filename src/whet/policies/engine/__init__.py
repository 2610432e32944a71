"""The decode engine for local weights: plain PyTorch over Hugging Face weights, with continuous batching.

scheduler       which sessions decode together, prefix sharing, eviction, the task that drives it all
architectures   what a Hugging Face config says about a model's shape, and its weights laid out for decoding
transformer     the forward pass and the key-value cache for those shapes
fallback        any other causal language model, through its transformers module
sampling        drawing tokens for many requests at once
"""

from whet.policies.engine.base import Decoder, Session
from whet.policies.engine.scheduler import Engine, Result, Stats

__all__ = ["Decoder", "Engine", "Result", "Session", "Stats"]
