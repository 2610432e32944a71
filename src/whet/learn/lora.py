"""Low-rank adapters, as options that need no torch; `learn.adapters` puts them into a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from whet.config import at_least
from whet.errors import ConfigError, did_you_mean

QUANTIZATIONS = ("nf4", "fp4")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters (arXiv 2106.09685) on the linear layers that `targets` names, trained in place of the weights."""

    rank: int = 16
    alpha: float = 32.0
    """Updates are scaled by alpha / rank."""
    targets: str | tuple[str, ...] = "all-linear"
    """Module names such as ("q_proj", "v_proj"); "all-linear" takes all but the output layer."""
    quantize: Literal["nf4", "fp4"] | None = None
    """Keep the linear layers under the adapters in 4 bits of this type, as QLoRA does (arXiv 2305.14314); needs bitsandbytes."""

    def __post_init__(self) -> None:
        at_least(self, 1, "rank")
        at_least(self, 0, "alpha")
        if self.quantize not in (None, *QUANTIZATIONS):
            raise ConfigError(f"unknown quantize {self.quantize!r}. {did_you_mean(str(self.quantize), QUANTIZATIONS)}")
