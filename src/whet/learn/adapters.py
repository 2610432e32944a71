"""Adapters in a module: how they are put in, over 4-bit layers if asked for, and how their weights are merged again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from whet.errors import ConfigError, missing_extra
from whet.learn.lora import Lora
from whet.policies.local import own_tensors
from whet.seeding import derive_seed


def adapt(module: Any, lora: Lora, version: str) -> Any:
    """Injects adapters into the module and returns peft's wrapper around it; their first values follow from `version`.

    Raises ConfigError where they do not fit the module, or where its device cannot compute with 4-bit weights.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise missing_extra("peft", "train", "Lora") from error
    if lora.quantize:
        quantize(module, lora.quantize)
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("lora", version))
        try:
            return get_peft_model(module, LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0))
        except ValueError as error:
            raise ConfigError(f"{lora} does not fit {type(module).__name__}: {error}") from error


def quantize(module: Any, kind: str) -> None:
    """Puts 4-bit layers in the place of the module's linear ones, the output layer's excepted (arXiv 2305.14314, section 3).

    Constants are quantised themselves ("double quantisation"), products are computed in the module's own type. Raises
    MissingExtra without bitsandbytes, ConfigError where that computes nothing, or something else, on the module's device.
    """
    output = module.get_output_embeddings()
    layers = {n: layer for n, layer in module.named_modules() if type(layer) is nn.Linear and layer is not output}
    for width in sorted({layer.in_features for layer in layers.values()}):
        _try(width, kind, next(module.parameters()).device, module.dtype)
    for name, layer in layers.items():
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, _four_bit(layer, kind))
    module.is_loaded_in_4bit = True  # by which peft chooses its layers


def _four_bit(layer: nn.Linear, kind: str) -> nn.Module:
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError as error:
        raise missing_extra("bitsandbytes", "qlora", f"quantize={kind!r} (QLoRA)") from error
    weight, biased = layer.weight, layer.bias is not None
    made = Linear4bit(layer.in_features, layer.out_features, bias=biased, compute_dtype=weight.dtype, quant_type=kind, device="meta")
    made.weight = Params4bit(weight.detach().clone(), requires_grad=False, quant_type=kind, compress_statistics=True)
    made.bias = layer.bias
    return made.to(weight.device)  # type: ignore[no-any-return]


_MOST = 0.15
"""Mean error, relative to the mean size, of normally distributed weights; rounding to 4 bits makes 0.09 (nf4) or 0.12 (fp4)."""


def _try(width: int, kind: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raises ConfigError unless a layer with `width` inputs works there: some kernels fail, and some compute something else."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(width, 64, bias=False)
    layer.weight.data = torch.randn(64, width, generator=generator)
    layer.to(device, dtype)
    try:
        made, x = _four_bit(layer, kind), torch.eye(width, device=device, dtype=dtype, requires_grad=True)
        y = made(x)
        y.sum().backward()
    except (RuntimeError, NotImplementedError, ValueError, AssertionError, OSError) as error:
        raise ConfigError(f"4-bit weights do not work on {device} here: {error}; {_INSTEAD}") from error
    off = float((y.t() - layer.weight).abs().mean() / layer.weight.abs().mean())
    if off > _MOST:
        raise ConfigError(f"4-bit weights with {width} inputs come back changed by {off:.0%} on {device} here; {_INSTEAD}")


_INSTEAD = "leave out quantize, or use a device for which bitsandbytes computes them rightly"


def merged(module: Any) -> dict[str, Tensor]:
    """The weights with the adapters added to them, under the names that they had without; 4-bit ones are those that were computed with."""
    weights = {_plain(name): tensor for name, tensor in own_tensors(module).items() if ".lora_" not in name}
    for name, layer in module.named_modules():
        if hasattr(getattr(layer, "weight", None), "quant_state"):
            from bitsandbytes.functional import dequantize_4bit

            weights[f"{_plain(f'{name}.')}weight"] = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    for name, layer in module.named_modules():
        if hasattr(layer, "get_delta_weight"):
            weights[f"{name}.weight"] = weights[f"{name}.weight"] + layer.get_delta_weight("default").detach()
    return weights


def _plain(name: str) -> str:
    return name.replace(".base_layer.", ".")
