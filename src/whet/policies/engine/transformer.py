"""The forward pass over many sessions at once, in as few operations as PyTorch allows.

The new tokens of all sessions form one flat batch [T, hidden]: first the last new token of each row of the cache, then
the tokens before those, of sessions that take in several. All layers but attention see the flat batch, so nothing is
padded there. Attention of the first part runs over a slice of the cache without copying it, that of the second over
groups of sessions with similar lengths. Only the first part leads to logits, so in the last layer the second ends
once its keys and values are written.

Rows whose session is idle take part in the first part with a meaningless token: that costs less than copying the
others together, and what it writes lies behind the session's length, where the next true token overwrites it. When
too many rows are idle for several steps, the active sessions move together instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from whet.policies.engine.architectures import Architecture, Layer, Stack, rotations
from whet.policies.engine.base import Session
from whet.policies.engine.cache import KVCache

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
_CPU_CACHE_BYTES = 2 << 30
_CROWDED = 0.7
"""Share of rows in use that must be active, or else the active sessions move together."""
_PATIENCE = 4
"""Steps in a row that too few must have been active: moving a session costs about as much as ignoring it a few times."""


@dataclass(frozen=True, eq=False)
class Group:
    """Prompt tokens of P sessions, padded to S each; they see the first L tokens of their rows."""

    gather: Tensor
    """int64 [P * S]: places in the flat batch; padding repeats place 0."""
    scatter: Tensor | None
    """int64 [n]: which of the P * S results are no padding, in the order of the flat batch; None for all."""
    rows: Tensor | slice
    sessions: int
    length: int
    masks: dict[int | None, Tensor]
    """By window: [P, 1, S * group, L], added to the scores."""


@dataclass(frozen=True, eq=False)
class Batch:
    """What all layers need to know about one step."""

    tokens: Tensor
    """int64 [T]"""
    rows: int
    """The first this many tokens are one for each of the cache's first rows."""
    places: Tensor
    """int64 [T * 2 * kv_heads]: where a token's keys and values go in a layer's cache, seen as vectors [..., head_dim]."""
    rotations: dict[str, Tensor]
    """By rope: complex64 [T, 1, head_dim / 2]."""
    length: int
    masks: dict[int | None, Tensor]
    """By window: [rows, 1, 1, length], added to the scores."""
    groups: tuple[Group, ...]


class Transformer:
    """A `Decoder` for the family in `architectures`. All tensors live on the device and in the dtype of the weights."""

    def __init__(self, arch: Architecture, stack: Stack, config: Any, *, context: int, max_bytes: int | None = None) -> None:
        self.arch, self.stack, self.context, self.vocab_size = arch, stack, context, arch.vocab
        self._config = config
        self._device, self._dtype = stack.embedding.device, stack.embedding.dtype
        if max_bytes is None:
            max_bytes = torch.cuda.mem_get_info(self._device)[0] // 2 if self._device.type == "cuda" else _CPU_CACHE_BYTES
        self.cache = KVCache(
            arch.layers,
            arch.kv_heads,
            arch.head_dim,
            dtype=self._dtype,
            device=self._device,
            max_length=context + 1,
            max_bytes=max_bytes,
        )
        self._rotations: dict[str, Tensor] = {}
        self._scattered = 0
        # For one query on a CPU, plain products are faster than the fused kernel (by a fifth to a third).
        self._plain = self._device.type == "cpu" and self._dtype == torch.float32
        self._activation: Callable[[Tensor], Tensor] = _ACTIVATIONS[arch.activation]

    def capacity(self, length: int) -> int:
        return self.cache.capacity(length + 1)

    @torch.inference_mode()
    def place(self, session: Session) -> None:
        self.cache.place(session)

    def drop(self, session: Session) -> None:
        self.cache.drop(session)

    def truncate(self, session: Session, length: int) -> None:
        self.cache.truncate(session, length)

    def match(self, tokens: Sequence[int]) -> tuple[Session | None, int, int]:
        return self.cache.match(tokens)

    @torch.inference_mode()
    def copy(self, source: Session, target: Session, length: int) -> None:
        self.cache.reserve(length + 1)
        self.cache.copy(source, target, length)

    def chunk(self, length: int) -> int:
        # The masks of a step's prompt tokens stay below 64 MiB.
        return max(32, min(2048, (1 << 24) // (self.arch.group * self.cache.bucket(length + 1))))

    def close(self, *, healthy: bool = True) -> None:
        self.cache.close(healthy=healthy)
        self._scattered = 0

    @torch.inference_mode()
    def forward(self, sessions: Sequence[Session], counts: Sequence[int]) -> Tensor:
        # One more than is needed: an idle row's meaningless token lies one behind its length.
        self.cache.reserve(max(s.length + n for s, n in zip(sessions, counts, strict=True)) + 1)
        self._scattered = self._scattered + 1 if len(sessions) < _CROWDED * (1 + max(_row(s) for s in sessions)) else 0
        if self._scattered > _PATIENCE:
            self.cache.gather(sessions)
            self._scattered = 0
        batch = self._batch(sessions, counts)
        x = F.embedding(batch.tokens, self.stack.embedding)
        if self.arch.embed_scale != 1.0:
            x = x * torch.tensor(self.arch.embed_scale, dtype=x.dtype)  # rounded to the dtype, as the Gemmas do
        for i, layer in enumerate(self.stack.layers):
            x = self._block(i, layer, x, batch)
        for session, count in zip(sessions, counts, strict=True):
            self.cache.advance(session, session.length + count)
        rows = [_row(s) for s in sessions]
        if rows != list(range(batch.rows)):
            x = x[torch.tensor(rows, device=self._device)]
        logits = torch.mm(self._norm(x, self.stack.norm), self.stack.head).float()
        if cap := self.arch.logit_softcap:
            logits = torch.tanh_(logits.div_(cap)).mul_(cap)
        return logits

    def _block(self, i: int, layer: Layer, x: Tensor, batch: Batch) -> Tensor:
        arch = self.arch
        split = arch.heads * arch.head_dim
        qkv = _linear(self._norm(x, layer.attention_norm), layer.qkv, layer.qkv_bias)
        self._rotate(qkv[:, : split + arch.kv_heads * arch.head_dim], layer.qk_norm, batch.rotations[arch.ropes[i]])
        self.cache.data[i].view(-1, arch.head_dim).index_copy_(0, batch.places, qkv[:, split:].reshape(-1, arch.head_dim))
        last = i == arch.layers - 1
        if last:
            x = x[: batch.rows]
        attended = self._attend(i, qkv[:, :split], batch, prompts=not last)
        y = _linear(attended, layer.out, layer.out_bias)
        x = x + (y if layer.attention_post_norm is None else self._norm(y, layer.attention_post_norm))
        gate, up = _linear(self._norm(x, layer.mlp_norm), layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
        y = _linear(self._activation(gate).mul_(up), layer.down, layer.down_bias)
        return x + (y if layer.mlp_post_norm is None else self._norm(y, layer.mlp_post_norm))

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return F.rms_norm(x, x.shape[-1:], weight, self.arch.eps)
        return F.rms_norm(x.float(), x.shape[-1:], weight, self.arch.eps).to(x.dtype)

    def _rotate(self, qk: Tensor, norm: Tensor | None, rotation: Tensor) -> None:
        """Norm and rotate queries and keys [T, (heads + kv_heads) * head_dim] in place."""
        heads = qk.view(len(qk), -1, self.arch.head_dim)
        new = heads.float()
        if norm is not None:
            new = F.rms_norm(new, new.shape[-1:], None, self.arch.eps).mul_(norm)
        torch.view_as_complex(new.view(*new.shape[:2], -1, 2)).mul_(rotation)
        if new.data_ptr() != heads.data_ptr():
            heads.copy_(new)

    def _attend(self, i: int, q: Tensor, batch: Batch, *, prompts: bool) -> Tensor:
        """Attention of the flat batch, or of its first part alone: [T or rows, heads * head_dim]."""
        arch, window = self.arch, self.arch.windows[i]
        heads = (arch.kv_heads, arch.group, arch.head_dim)
        k, v = self.cache.data[i]
        mine: tuple[Any, ...] = slice(None, batch.rows), slice(None), slice(None, batch.length)
        outs = [self._scores(q[: batch.rows].view(batch.rows, *heads), k[mine], v[mine], batch.masks[window]).flatten(1)]
        for group in batch.groups if prompts else ():
            mine = group.rows, slice(None), slice(None, group.length)
            queries = q[group.gather].view(group.sessions, -1, *heads).transpose(1, 2).flatten(2, 3)  # [P, kv_heads, S * group, head_dim]
            out = self._scores(queries, k[mine], v[mine], group.masks[window])
            out = out.view(group.sessions, arch.kv_heads, -1, arch.group, arch.head_dim).transpose(1, 2)
            out = out.reshape(len(group.gather), -1)
            outs.append(out if group.scatter is None else out[group.scatter])
        return torch.cat(outs) if len(outs) > 1 else outs[0]

    def _scores(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Attention of q [B, kv_heads, S, head_dim] over k and v [B, kv_heads, L, head_dim]. Scores are scaled already."""
        cap = self.arch.score_softcap
        if cap is None and not (self._plain and q.shape[2] == self.arch.group):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        scores = q @ k.transpose(-1, -2)
        if cap is not None:
            scores = torch.tanh_(scores.div_(cap)).mul_(cap)
        return torch.softmax(scores.add_(mask), dim=-1, dtype=torch.float32).to(v.dtype) @ v

    def _batch(self, sessions: Sequence[Session], counts: Sequence[int]) -> Batch:
        """Lay out the next `counts` tokens of each session."""
        rows = 1 + max(_row(s) for s in sessions)
        tokens = np.zeros(rows, dtype=np.int64)
        positions = self.cache.lengths[:rows].copy()
        prompts: dict[int, list[tuple[Session, int]]] = {}
        for session, count in zip(sessions, counts, strict=True):
            end = session.length + count - 1
            tokens[session.row] = session.tokens[end]
            positions[session.row] = end
            if count > 1:
                prompts.setdefault((count - 1).bit_length() // 2, []).append((session, count - 1))
        length = int(max(s.length + n for s, n in zip(sessions, counts, strict=True)))
        all_tokens, all_positions, all_rows = [tokens], [positions], [np.arange(rows)]
        groups, offset = [], rows
        for _, members in sorted(prompts.items()):
            groups.append(self._group(members, offset))
            for session, count in members:
                start = session.length
                all_tokens.append(np.array(session.tokens[start : start + count], dtype=np.int64))
                all_positions.append(np.arange(start, start + count))
                all_rows.append(np.full(count, session.row))
                offset += count
        where = self._tensor(np.concatenate(all_positions))
        # Idle rows may be longer than what is looked at; they see all of it, because a row that sees nothing becomes NaN.
        seen = self._tensor(np.minimum(positions, length - 1))
        return Batch(
            tokens=self._tensor(np.concatenate(all_tokens)),
            rows=rows,
            places=self._places(np.concatenate(all_rows), np.concatenate(all_positions)),
            rotations={name: self._rotation(name)[where].unsqueeze(1) for name in set(self.arch.ropes)},
            length=length,
            masks=self._masks(seen[:, None, None, None], length),
            groups=tuple(groups),
        )

    def _places(self, rows: np.ndarray[Any, Any], positions: np.ndarray[Any, Any]) -> Tensor:
        """Where vectors [2, kv_heads] of these tokens go in [2, rows, kv_heads, length]: flat indices, token by token."""
        cache, heads = self.cache, self.arch.kv_heads
        half = np.arange(2)[:, None] * (cache.rows * heads * cache.length) + np.arange(heads) * cache.length
        return self._tensor(((rows * heads * cache.length + positions)[:, None] + half.ravel()).ravel())

    def _group(self, members: list[tuple[Session, int]], offset: int) -> Group:
        """A group of sessions whose tokens lie one after another in the flat batch, from `offset` on."""
        counts = np.array([n for _, n in members])
        longest = int(counts.max())
        starts = np.array([s.length for s, _ in members])
        inside = np.arange(longest) < counts[:, None]
        places = offset + np.cumsum(counts)[:, None] - counts[:, None] + np.arange(longest)
        positions = np.where(inside, starts[:, None] + np.arange(longest), 0)
        length = int((starts + counts).max())
        rows = [_row(s) for s, _ in members]
        together = rows == list(range(rows[0], rows[0] + len(rows)))
        depth = self._tensor(np.repeat(positions, self.arch.group, axis=1))
        return Group(
            gather=self._tensor(np.where(inside, places, 0).ravel()),
            scatter=None if inside.all() else self._tensor(np.flatnonzero(inside)),
            rows=slice(rows[0], rows[0] + len(rows)) if together else self._tensor(np.array(rows)),
            sessions=len(rows),
            length=length,
            masks=self._masks(depth[:, None, :, None], length),
        )

    def _masks(self, positions: Tensor, length: int) -> dict[int | None, Tensor]:
        """For each window in use, what queries at these positions [..., 1] see of the first `length` tokens."""
        key = torch.arange(length, device=self._device)
        hidden = key > positions
        masks: dict[int | None, Tensor] = {}
        for window in set(self.arch.windows):
            if window is None or window >= length:
                masks[window] = masks.get(None, torch.empty(0))
                if masks[window].numel() == 0:
                    masks[window] = self._additive(hidden)
            else:
                masks[window] = self._additive(hidden | (key <= positions - window))
        return masks

    def _additive(self, hidden: Tensor) -> Tensor:
        return torch.zeros(hidden.shape, dtype=self._dtype, device=self._device).masked_fill_(hidden, float("-inf"))

    def _rotation(self, name: str) -> Tensor:
        have = self._rotations.get(name)
        if have is None or len(have) < self.cache.length:
            # With the root of the scale on queries and on keys, their products come out scaled.
            have = rotations(self._config, name, self.arch.head_dim, self.cache.length, self._device) * self.arch.scale**0.5
            self._rotations[name] = have
        return have

    def _tensor(self, array: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)


def _row(session: Session) -> int:
    assert session.row is not None, "a session that decodes has a row"
    return session.row
