"""The learner: it alone holds weights that change. Four verbs: `forward_backward`, `optim_step`, `sample`, `save_state`.

learner = Learner(policy, lr=1e-3)
for batch in batches(rows, 32, epochs=3, seed=0):  # or, in one call: optimise(learner, batches(...), nll())
    metrics = learner.forward_backward(batch, nll()) | learner.optim_step()
better = learner.sample()
"""

from __future__ import annotations

import dataclasses
import logging
import math
import pickle
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from whet.data.packing import Pack, Unit, pack_rows
from whet.errors import CheckpointError, ConfigError, did_you_mean
from whet.learn.adapters import adapt, merged
from whet.learn.forward import Scorer
from whet.learn.lora import Lora
from whet.learn.losses import Array, Loss, Tokens, Totals
from whet.learn.reference import flatten, scores, with_values
from whet.policies.local import LocalPolicy, own_tensors
from whet.runs.files import write_directory
from whet.types import Example, Pair

Schedule = Literal["constant", "linear", "cosine"]
_STATE_FILE = "learner.pt"
_STATE_VERSION = 1
log = logging.getLogger(__name__)


class Learner:
    """Trains a copy of a policy's weights with AdamW; the policy itself stays as it is.

    Weights being trained are float32 whatever the policy's type (with `lora`, the adapters are). Dropout is off, so that
    log-probs are those of the policy that samples. `autocast="bfloat16"` computes matrix products in that type: it pays
    from some ten million parameters on, and gradients are then off by about one part in a hundred. Weight decay spares
    norms and biases. Rows are computed in packs of about `max_pack_tokens` tokens, which bounds memory and changes no
    result. On one thread the same calls give the same bits.
    """

    def __init__(
        self,
        policy: LocalPolicy,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        clip_norm: float | None = 1.0,
        warmup_steps: int = 0,
        total_steps: int | None = None,
        schedule: Schedule = "constant",
        lora: Lora | None = None,
        autocast: str | None = None,
        max_pack_tokens: int = 4096,
        value_head: bool = False,
    ) -> None:
        """`schedule` rises over `warmup_steps`, then stays or falls to zero at `total_steps`. Raises ConfigError.

        `value_head` puts one on the last hidden states, for losses that ask for values; it begins with zeros, and so expects
        nothing. It belongs to the learner alone: samples are policies without it.
        """
        if not isinstance(policy, LocalPolicy):
            raise ConfigError(
                f"policy {getattr(policy, 'version', policy)!r} has no weights here that could be trained; "
                "use local weights (a model's directory or hub id), or a method that changes no weights, such as reflexion"
            )
        self.policy = policy
        self.lr = lr
        self.clip_norm = clip_norm
        self.warmup_steps, self.total_steps, self.schedule = warmup_steps, total_steps, schedule
        self.max_pack_tokens = max_pack_tokens
        self.n_steps = 0
        """Optimiser steps taken since the beginning or the last restart."""
        self.n_skipped = 0
        """Steps refused because a gradient was not finite."""
        self._restarts = 0
        self._check(autocast)
        self._origin = policy.version + (f"/{lora.quantize}" if lora and lora.quantize else "")
        self._base = self._origin
        self._has_gradient = False
        module = policy.module()
        if lora is None:
            module = module.float().requires_grad_(True)
        self._peft = adapt(module, lora, policy.version) if lora else None
        self._module = module
        self._scorer = Scorer(module, autocast=autocast)
        self._trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._fresh_adapters = {name: p.detach().clone() for name, p in self._trained.items()} if lora else {}
        self._value_head = _zeroed(module).to(self._scorer.device) if value_head else None
        matrices = [p for p in self._parameters() if p.dim() >= 2]
        vectors = [p for p in self._parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=True)

    def _check(self, autocast: str | None) -> None:
        known = ("constant", "linear", "cosine")
        if self.schedule not in known:
            raise ConfigError(f"unknown schedule {self.schedule!r}. {did_you_mean(self.schedule, known)}")
        if self.schedule != "constant" and (self.total_steps or 0) <= self.warmup_steps:
            raise ConfigError(
                f"schedule {self.schedule!r} needs total_steps > warmup_steps; got {self.total_steps} and {self.warmup_steps}"
            )
        if autocast not in (None, "bfloat16"):
            raise ConfigError(f"unknown autocast {autocast!r}; expected None or 'bfloat16'")
        if self.lr < 0 or (self.clip_norm is not None and self.clip_norm <= 0) or self.max_pack_tokens < 1:
            raise ConfigError(
                f"lr={self.lr}, clip_norm={self.clip_norm}, max_pack_tokens={self.max_pack_tokens}; "
                "expected lr >= 0, clip_norm > 0 (or None) and max_pack_tokens >= 1"
            )

    def forward_backward(self, rows: Sequence[Example] | Sequence[Pair], loss: Loss) -> dict[str, float]:
        """Adds the gradient of the batch's loss to what is accumulated, and returns the loss and its metrics.

        Raises ConfigError for rows of the wrong kind, without log-probs that the loss needs, or with nothing to learn.
        """
        examples, units = _unfold(rows, loss)
        if loss.value and self._value_head is None:
            raise ConfigError(f"{loss.name} needs a value head, and this learner has none; make it with Learner(..., value_head=True)")
        totals, units = _totals(examples, units, loss)
        if loss.baseline is not None:
            totals = dataclasses.replace(totals, baseline=self._baseline(examples, units, loss))
            units = [unit[:1] for unit in units]
        sums: dict[str, Tensor | float] = defaultdict(float)
        packs = pack_rows(examples, units, max_tokens=self.max_pack_tokens, share=self._scorer.shares)
        for pack in packs:
            logprobs, found = scores(self._scorer, examples, pack, loss, self._value_head)
            value, metrics = loss.compute(logprobs, _tokens(examples, pack, logprobs.device, found), totals)
            value.backward()  # type: ignore[no-untyped-call]
            for name, part in (("loss", value.detach()), *metrics.items()):
                sums[name] = sums[name] + part
        self._has_gradient = True
        counts = {"rows": float(totals.rows), "tokens": float(totals.tokens), "computed": float(sum(len(p.tokens) for p in packs))}
        return {"loss": 0.0} | {name: float(value) for name, value in sums.items()} | counts

    @torch.no_grad()
    def _baseline(self, examples: Sequence[Example], units: Sequence[Unit], loss: Loss) -> float:
        """The mean of the loss's baseline over the second rows of these pairs, under the present weights."""
        assert loss.baseline is not None
        second = [unit[1:] for unit in units]
        packs = pack_rows(examples, second, max_tokens=self.max_pack_tokens, share=self._scorer.shares)
        sums = (
            loss.baseline(logprobs, _tokens(examples, pack, logprobs.device, {}))
            for pack in packs
            for logprobs in [scores(self._scorer, examples, pack, loss)[0]]
        )
        return float(sum(sums)) / len(units)

    def optim_step(self) -> dict[str, float]:
        """One step of AdamW on the accumulated gradient, clipped to `clip_norm`; then the gradient is zero again.

        Where it is not finite the step is refused: weights stay, and `skipped` is 1. Raises ConfigError where no
        gradient has been accumulated.
        """
        if not self._has_gradient:
            raise ConfigError("optim_step without a gradient; call forward_backward first")
        self._has_gradient = False
        parameters = self._parameters()
        for p in parameters:
            if p.grad is None:  # every row was left out: a gradient of zero, under which momentum still moves
                p.grad = torch.zeros_like(p)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm or math.inf))
        lr = self.lr * schedule_factor(self.n_steps, self.schedule, self.warmup_steps, self.total_steps)
        finite = math.isfinite(norm)
        if finite:
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            self._optimizer.step()
            self.n_steps += 1
        else:
            self.n_skipped += 1
            log.warning("step %d refused: the gradient's norm is %s", self.n_steps, norm)
        self._optimizer.zero_grad(set_to_none=True)
        return {"grad_norm": norm, "lr": lr, "skipped": float(not finite)}

    def with_values(self, rows: Sequence[Example]) -> list[Example]:
        """The rows with their `values` filled in: what the value head now expects before each masked-in token.

        Raises ConfigError for a learner without one.
        """
        if self._value_head is None:
            raise ConfigError("this learner has no value head; make it with Learner(..., value_head=True)")
        return with_values(rows, self._scorer, self._value_head, max_pack_tokens=self.max_pack_tokens)

    def _parameters(self) -> list[nn.Parameter]:
        return [*self._trained.values(), *(self._value_head.parameters() if self._value_head else ())]

    @property
    def version(self) -> str:
        """Of the present weights: the starting policy's, with the number of steps taken since."""
        return f"{self._base}+{self.n_steps}" if self.n_steps else self._base

    @property
    def weights(self) -> Mapping[str, torch.nn.Parameter]:
        """What is trained, by name: the parameters themselves, no copies."""
        return self._trained

    def sample(self) -> LocalPolicy:
        """A policy with a copy of the present weights (adapters merged), of the starting policy's type."""
        return self.policy.with_weights(self._weights(), self.version)

    def _weights(self) -> dict[str, Tensor]:
        if self._peft is None:
            return own_tensors(self._module)
        return merged(self._module)

    def restart(self, policy: LocalPolicy, *, lr: float | None = None) -> None:
        """Go on from the weights of `policy` with a fresh optimiser and schedule, as methods do that train anew in each round.

        Of a learner with adapters, `policy` must be the one it was made with (adapters then begin anew) or the newest
        sample (they stay). A value head stays with the present weights, and expects nothing again of other ones. Raises ConfigError
        for other policies and for weights of other shapes.
        """
        weights: Mapping[str, Tensor] = policy.weights
        if self._peft is not None:
            if policy.version not in (self.policy.version, self.version):
                raise ConfigError(
                    f"a learner with adapters restarts from its own policy {self.policy.version!r} or from its present weights "
                    f"{self.version!r}, not from {policy.version!r}"
                )
            weights = self._trained if policy.version == self.version else self._fresh_adapters
        try:
            self._take(weights)
        except ValueError as error:
            raise ConfigError(f"cannot restart from {policy.version!r}: {error}") from error
        if self._value_head is not None and policy.version != self.version:
            self._value_head.load_state_dict(_zeroed(self._module).state_dict())
        self._optimizer.state.clear()
        self._drop_gradient()
        self.lr = self.lr if lr is None else lr
        self._restarts += 1
        self._base, self.n_steps = f"{policy.version}/{self._restarts}", 0

    def _take(self, weights: Mapping[str, Tensor]) -> None:
        """Writes these values into what is trained. Raises ValueError, and then has written nothing."""
        fitting = [(parameter, _fitting(weights, name, parameter)) for name, parameter in self._trained.items()]
        with torch.no_grad():
            for parameter, values in fitting:
                parameter.copy_(values)

    def _drop_gradient(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self._has_gradient = False

    def save_state(self, directory: str | Path) -> None:
        """Writes everything that training goes on from, whole or not at all.

        Beside `learner.pt` stands an ordinary Hugging Face checkpoint of the weights, or an ordinary `peft` adapter.
        Raises StorageError where it cannot be written, ConfigError between `forward_backward` and `optim_step`.
        """
        if self._has_gradient:
            raise ConfigError("save_state with an accumulated gradient, which would be lost; call optim_step first")
        write_directory(Path(directory), self._write_state)

    def _write_state(self, directory: Path) -> None:
        if self._peft is not None:
            self._peft.save_pretrained(directory)
        else:
            dataclasses.replace(self.policy, weights=self._weights(), version=self.version).save(directory)
        state = {
            "state_version": _STATE_VERSION,
            "policy": self._origin,
            "base": self._base,
            "n_steps": self.n_steps,
            "n_skipped": self.n_skipped,
            "restarts": self._restarts,
            "lr": self.lr,
            "adapter": {n: p.detach() for n, p in self._trained.items()} if self._peft else None,
            "value_head": self._value_head.state_dict() if self._value_head else None,
            "optimizer": self._optimizer.state_dict(),
        }
        torch.save(state, directory / _STATE_FILE)

    def load_state(self, directory: str | Path) -> None:
        """Takes up what `save_state` wrote: from here on every result is what it would have been, bit for bit.

        Raises CheckpointError where the directory is incomplete, damaged or of another kind of learner.
        """
        path = Path(directory)
        try:
            state = torch.load(path / _STATE_FILE, map_location=self._scorer.device, weights_only=True)
            if state["state_version"] != _STATE_VERSION:
                raise ValueError(f"it is of version {state['state_version']}; this is {_STATE_VERSION}")
            if (state["adapter"] is None) != (self._peft is None):
                raise ValueError(f"it was saved {'without' if self._peft else 'with'} lora")
            if (state.get("value_head") is None) != (self._value_head is None):
                raise ValueError(f"it was saved {'without' if self._value_head else 'with'} a value head")
            if self._peft is not None and state["policy"] != self._origin:
                raise ValueError(f"its adapter belongs to the weights {state['policy']!r}, not {self._origin!r}")
            saved = state["adapter"] or dict(LocalPolicy.load(path, device=self._scorer.device).weights)
            self._take(saved)
            if self._value_head is not None:
                self._value_head.load_state_dict(state["value_head"])
            self._optimizer.load_state_dict(state["optimizer"])
        except (OSError, ValueError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{path} cannot be resumed from: {error}") from error
        self._base, self.n_steps, self.n_skipped = state["base"], state["n_steps"], state["n_skipped"]
        self._restarts, self.lr = state["restarts"], state["lr"]
        self._drop_gradient()


def _zeroed(module: nn.Module) -> nn.Linear:
    """A value head for the module's last hidden states."""
    head = nn.Linear(int(cast(Any, module).config.get_text_config().hidden_size), 1)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    return head


def _fitting(saved: Mapping[str, Tensor], name: str, parameter: Tensor) -> Tensor:
    found = saved.get(name)
    if found is None or found.shape != parameter.shape:
        what = "is missing" if found is None else f"has shape {tuple(found.shape)}"
        raise ValueError(f"weight {name!r} {what}; expected shape {tuple(parameter.shape)}")
    return found


def schedule_factor(step: int, schedule: Schedule, warmup_steps: int, total_steps: int | None) -> float:
    """What the learning rate is multiplied by in the `step`-th step, from 0: (step + 1) / warmup_steps while it rises."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / (cast(int, total_steps) - warmup_steps))
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def _unfold(rows: Sequence[Example] | Sequence[Pair], loss: Loss) -> tuple[list[Example], list[Unit]]:
    """The single rows of a batch that suits the loss, and which of them belong together."""
    if not rows:
        raise ConfigError("forward_backward got no rows; filter out empty batches before")
    expected = Pair if loss.of == "pairs" else Example
    for row in rows:
        if not isinstance(row, expected):
            raise ConfigError(f"{loss.name} takes {expected.__name__} rows, and got a {type(row).__name__}")
    examples, units = flatten(rows)
    for row in examples:
        for name in loss.needs:
            if getattr(row, name) is None:
                raise ConfigError(f"{loss.name} needs {_ARRAYS[name]}, and row {row.origin!r} has none; {_filling(name, loss)}")
        if loss.divergence and row.reference is not None and row.reference[row.mask].min(initial=0.0) < -1e-3:
            raise ConfigError(f"{loss.name} needs a reference's divergences, and row {row.origin!r} has log-probs; use with_divergences")
    return examples, units


_ARRAYS = {"logprobs": "logprobs log-probs", "reference": "reference log-probs", "values": "values", "returns": "returns"}


def _filling(name: Array, loss: Loss) -> str:
    """Where a row's array comes from."""
    if name == "logprobs":
        return "they come with sampled episodes only"
    fill = {"values": "learner.with_values(rows)", "returns": "credited(rows, rewards)"}
    return fill.get(name, f"{'with_divergences' if loss.divergence else 'with_reference'}(rows, policy)") + " fills them in"


def _totals(examples: Sequence[Example], units: list[Unit], loss: Loss) -> tuple[Totals, list[Unit]]:
    """The batch's denominators, and the units that can contribute a gradient."""
    lengths = [int(row.mask.sum()) for row in examples]
    if not any(lengths):
        raise ConfigError(f"none of the {len(examples)} rows has a masked-in token; expected rows with assistant turns")
    live = [u for u in units if not loss.skips_zero_weight or any(np.any(examples[i].weights[examples[i].mask]) for i in u)]
    return Totals(
        tokens=sum(lengths),
        rows=sum(n > 0 for n in lengths),
        pairs=len(units),
        seen=sum(lengths[i] for unit in live for i in unit),
    ), live


def _tokens(examples: Sequence[Example], pack: Pack, device: torch.device, found: Mapping[str, Tensor]) -> Tokens:
    """The pack's masked-in tokens as a loss sees them, with what else was found out about them (`scores`)."""

    def gather(name: str) -> Tensor | None:
        arrays = [getattr(examples[i], name) for i in pack.rows]
        if any(array is None for array in arrays):
            return None
        flat = np.concatenate([np.asarray(array, dtype=np.float32)[examples[i].mask] for array, i in zip(arrays, pack.rows, strict=True)])
        return torch.from_numpy(flat).to(device)

    return Tokens(
        row=torch.from_numpy(pack.row).to(device),
        weight=cast(Tensor, gather("weights")),
        old=gather("logprobs"),
        reference=gather("reference"),
        old_value=gather("values"),
        returns=gather("returns"),
        **found,
        n_rows=len(pack.rows),
    )
