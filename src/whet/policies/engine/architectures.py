"""The family of decoder-only transformers that the engine computes itself, and their weights laid out for it.

Llama, Mistral, Qwen2, Qwen3 and the Gemmas differ in a dozen places: biases, norms of queries and keys, norms behind
the blocks, weights of norms stored as w - 1, scaled embeddings, soft caps, windows, rotary frequencies. An
`Architecture` names them all; `architecture_of` reads them off a Hugging Face config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

_FAMILY = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"})
_ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
"""Those whose frequencies do not depend on the length of the sequence."""
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
_SMALL = 1 << 22
"""Elements of a matrix of which a second copy costs nothing worth talking about."""


@dataclass(frozen=True)
class Architecture:
    """What the forward pass has to know besides the weights."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    eps: float
    activation: str
    """`silu`, `gelu` or `gelu_tanh`."""
    scale: float
    """Of the attention scores."""
    embed_scale: float = 1.0
    qk_norm: bool = False
    offset_norms: bool = False
    """Whether norms multiply by 1 + w."""
    post_norms: bool = False
    """Whether the outputs of attention and feed-forward are normed before they are added."""
    score_softcap: float | None = None
    logit_softcap: float | None = None
    windows: tuple[int | None, ...] = ()
    """Per layer: a token sees this many tokens, itself included; None for all."""
    ropes: tuple[str, ...] = ()
    """Per layer: the name of its rotary frequencies."""

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.kv_heads


def architecture_of(config: Any) -> Architecture | None:
    """The shape that a Hugging Face config describes; None where the engine does not compute it itself."""
    kind = config.model_type
    if kind not in _FAMILY or getattr(config, "use_bidirectional_attention", None):
        return None
    gemma = kind.startswith("gemma")
    activation = _ACTIVATIONS.get(getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None) or "")
    layer_types = getattr(config, "layer_types", None) or ()
    ropes = tuple(layer_types) if kind == "gemma3_text" else ("",) * config.num_hidden_layers
    if activation is None or not all(_supported(_rope_parameters(config, name)) for name in set(ropes)):
        return None
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    window = getattr(config, "sliding_window", None)
    if layer_types:
        windows = tuple(window if t == "sliding_attention" else None for t in layer_types)
    else:
        windows = (window if kind == "mistral" else None,) * config.num_hidden_layers
    return Architecture(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        hidden=config.hidden_size,
        vocab=config.vocab_size,
        eps=config.rms_norm_eps,
        activation=activation,
        scale=float(config.query_pre_attn_scalar if kind in ("gemma2", "gemma3_text") else head_dim) ** -0.5,
        embed_scale=config.hidden_size**0.5 if gemma else 1.0,
        qk_norm=kind in ("qwen3", "gemma3_text"),
        offset_norms=gemma,
        post_norms=kind in ("gemma2", "gemma3_text"),
        score_softcap=getattr(config, "attn_logit_softcapping", None) if kind == "gemma2" else None,
        logit_softcap=getattr(config, "final_logit_softcapping", None) if gemma else None,
        windows=windows,
        ropes=ropes,
    )


def _rope_parameters(config: Any, name: str) -> Mapping[str, Any]:
    parameters: Mapping[str, Any] = config.rope_parameters[name] if name else config.rope_parameters
    return parameters


def _supported(parameters: Mapping[str, Any]) -> bool:
    return parameters["rope_type"] in _ROPE_TYPES and parameters.get("partial_rotary_factor", 1.0) == 1.0


def rotations(config: Any, name: str, head_dim: int, length: int, device: torch.device) -> Tensor:
    """Rotary embedding (Su et al. 2021) as complex numbers: complex64 [length, head_dim / 2], scaling included."""
    parameters = _rope_parameters(config, name)
    scaling = 1.0
    if parameters["rope_type"] == "default":
        frequencies = 1.0 / parameters["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    else:
        frequencies, scaling = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"), layer_type=name or None)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies.float()
    return torch.polar(torch.full_like(angles, scaling), angles).to(device)


@dataclass(frozen=True, eq=False)
class Layer:
    """One block's weights, fused. Matrices are [in, out], so that `x @ w` is what a linear layer does."""

    attention_norm: Tensor
    qkv: Tensor
    """[hidden, (heads + 2 kv_heads) * head_dim]; within query and key heads, the two halves that rotate are interleaved."""
    qkv_bias: Tensor | None
    qk_norm: Tensor | None
    """[heads + kv_heads, head_dim], interleaved likewise."""
    out: Tensor
    out_bias: Tensor | None
    attention_post_norm: Tensor | None
    mlp_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    mlp_post_norm: Tensor | None


@dataclass(frozen=True, eq=False)
class Stack:
    """All weights of a model, laid out for decoding."""

    embedding: Tensor
    layers: tuple[Layer, ...]
    norm: Tensor
    head: Tensor


def lay_out(arch: Architecture, weights: Mapping[str, Tensor]) -> Stack:
    """Fuse a state dict's weights: three projections into one, two into one, rotary halves side by side."""
    embedding = weights["model.embed_tokens.weight"]
    return Stack(
        embedding=embedding,
        layers=tuple(_layer(arch, weights, f"model.layers.{i}.") for i in range(arch.layers)),
        norm=_norm(arch, weights["model.norm.weight"]),
        head=_turned(weights.get("lm_head.weight", embedding)),
    )


def _layer(arch: Architecture, weights: Mapping[str, Tensor], prefix: str) -> Layer:
    def norm(name: str) -> Tensor:
        return _norm(arch, weights[f"{prefix}{name}.weight"])

    def projections(kind: str, names: tuple[str, ...]) -> Tensor | None:
        parts = [weights.get(f"{prefix}{name}.{kind}") for name in names]
        whole = [_interleave(p, arch.head_dim) if n.endswith(("q_proj", "k_proj")) else p for n, p in zip(names, parts) if p is not None]
        return torch.cat(whole) if whole else None

    attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    mlp = ("mlp.gate_proj", "mlp.up_proj")
    qkv, gate_up = projections("weight", attention), projections("weight", mlp)
    assert qkv is not None
    assert gate_up is not None
    qk_norm = None
    if arch.qk_norm:
        q, k = (_interleave(norm(f"self_attn.{name}_norm"), arch.head_dim) for name in "qk")
        qk_norm = torch.cat([q.expand(arch.heads, -1), k.expand(arch.kv_heads, -1)])
    return Layer(
        attention_norm=norm("input_layernorm"),
        qkv=_turned(qkv),
        qkv_bias=projections("bias", attention),
        qk_norm=qk_norm,
        out=_turned(weights[f"{prefix}self_attn.o_proj.weight"]),
        out_bias=weights.get(f"{prefix}self_attn.o_proj.bias"),
        attention_post_norm=norm("post_attention_layernorm") if arch.post_norms else None,
        mlp_norm=norm("pre_feedforward_layernorm" if arch.post_norms else "post_attention_layernorm"),
        gate_up=_turned(gate_up),
        gate_up_bias=projections("bias", mlp),
        down=_turned(weights[f"{prefix}mlp.down_proj.weight"]),
        down_bias=weights.get(f"{prefix}mlp.down_proj.bias"),
        mlp_post_norm=norm("post_feedforward_layernorm") if arch.post_norms else None,
    )


def _turned(weight: Tensor) -> Tensor:
    """[out, in] as [in, out]. Small matrices on a CPU are laid out anew, which makes products with few rows up to 2x faster."""
    turned = weight.t()
    return turned.contiguous() if weight.device.type == "cpu" and weight.numel() <= _SMALL else turned


def _norm(arch: Architecture, weight: Tensor) -> Tensor:
    """In float32, as norms are computed in."""
    return weight.float() + 1.0 if arch.offset_norms else weight.float()


def _interleave(weight: Tensor, head_dim: int) -> Tensor:
    """Within each head, put row i beside row i + head_dim / 2: rotary pairs become complex numbers.

    Scores do not change, because queries and keys are permuted alike.
    """
    return weight.reshape(-1, 2, head_dim // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
