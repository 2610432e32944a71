"""Keys and values of many sessions: one row each, all layers in one tensor, kept and moved as a whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from whet.policies.engine.base import Session

_POOL: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}
"""Memory of caches that are done: a training loop makes an engine per step, and each needs as much as the one before."""
_SMALLEST = 128


class KVCache:
    """A tensor [layers, 2, rows, heads, length, head_dim] (keys, then values) that grows, and who sits in which row.

    What lies behind a session's length is garbage, but finite: it is multiplied by zero when it is masked. Shape and rows
    follow from what this cache was asked for, never from the memory that it was handed by an earlier one: products of
    other shapes round otherwise, and a resumed run, which has no earlier one, must get the same bits.
    """

    def __init__(
        self, layers: int, heads: int, head_dim: int, *, dtype: torch.dtype, device: torch.device, max_length: int, max_bytes: int
    ) -> None:
        self._shape = (layers, heads, head_dim)
        self._dtype, self._device = dtype, device
        self._max_length, self._max_bytes = max_length, max_bytes
        self._bytes_per_token = 2 * layers * heads * head_dim * dtype.itemsize
        self._memory = torch.zeros(0, dtype=dtype, device=device)
        """Where `data` lies, and room behind it."""
        self.data = self._shaped(0, 0)
        self.lengths = np.zeros(0, dtype=np.int64)
        """Tokens cached in each row."""
        self._occupants: list[Session | None] = []
        self._known = np.zeros((0, 0), dtype=np.int32)
        """Tokens that rows hold or are about to compute, as far as other sessions may look for a common prefix in them."""
        self._known_lengths = np.zeros(0, dtype=np.int64)
        self._unread: list[Session] = []

    @property
    def rows(self) -> int:
        return self.data.shape[2]

    @property
    def length(self) -> int:
        return self.data.shape[4]

    def bucket(self, length: int) -> int:
        """The length to allocate for sequences of `length`, so that growing is rare."""
        size = max(_SMALLEST, self.length)
        while size < length:
            size *= 2
        return min(size, max(self._max_length, length))

    def capacity(self, length: int) -> int:
        """Rows that fit into the memory when the longest sequence has this length; at least 1."""
        return max(1, self._max_bytes // (self._bytes_per_token * self.bucket(length)))

    def place(self, session: Session) -> None:
        if not self.rows and (pooled := _POOL.pop((self._dtype, self._device), None)) is not None:
            self._memory = pooled
        row = next((i for i, occupant in enumerate(self._occupants) if occupant is None), self.rows)
        if row == self.rows:
            length = self.length or self.bucket(len(session.tokens) + 1)
            self._resize(max(row + 1, min(max(8, 2 * self.rows), self.capacity(length))), length)
        self._occupants[row], session.row, session.length = session, row, 0
        self.lengths[row] = self._known_lengths[row] = 0
        self._unread.append(session)

    def drop(self, session: Session) -> None:
        row = session.row
        assert row is not None, "only a placed session is dropped"
        self._occupants[row] = session.row = None
        self.lengths[row] = self._known_lengths[row] = session.length = 0

    def truncate(self, session: Session, length: int) -> None:
        self.advance(session, length)
        self._known_lengths[session.row] = min(int(self._known_lengths[session.row]), length)

    def advance(self, session: Session, length: int) -> None:
        """Note that the row now holds this many of the session's tokens."""
        self.lengths[session.row] = length
        session.length = length

    def reserve(self, length: int) -> None:
        """Make sure that every row can hold this many tokens."""
        if length > self.length:
            length = self.bucket(length)
            occupied = sum(o is not None for o in self._occupants)
            self._resize(max(occupied, min(self.rows, self.capacity(length))), length)

    def match(self, tokens: Sequence[int]) -> tuple[Session | None, int, int]:
        """As `Decoder.match`."""
        self._read()
        width = min(len(tokens), self._known.shape[1])
        if not width or not self.rows:
            return None, 0, 0
        equal = self._known[:, :width] == np.asarray(tokens[:width], dtype=np.int32)
        common = np.where(equal.all(axis=1), width, equal.argmin(axis=1))
        coming = np.minimum(common, self._known_lengths)
        ready = np.minimum(coming, self.lengths)
        best = int(ready.argmax())
        return self._occupants[best], int(ready[best]), int(coming.max())

    def _read(self) -> None:
        """Note the tokens of sessions that were placed since the last time."""
        for session in self._unread:
            if session.row is None:
                continue
            n = len(session.tokens)
            if n > self._known.shape[1]:
                wider = np.zeros((self.rows, self.bucket(n)), dtype=np.int32)
                wider[:, : self._known.shape[1]] = self._known
                self._known = wider
            self._known[session.row, :n] = session.tokens
            self._known_lengths[session.row] = n
        self._unread.clear()

    def copy(self, source: Session, target: Session, length: int) -> None:
        self.data[:, :, target.row, :, :length] = self.data[:, :, source.row, :, :length]
        self.advance(target, length)

    def gather(self, active: Sequence[Session]) -> None:
        """Move these sessions to the first rows, so that a slice over the rows holds no others.

        Sessions that are in the way change places with them.
        """
        n = len(active)
        rows = {s.row for s in active}
        to = [i for i in range(n) if i not in rows]
        at = sorted(r for r in rows if r is not None and r >= n)
        if not to:
            return
        target, source = to + at, at + to
        used = int(self.lengths[source].max())
        self.data[:, :, target, :, :used] = self.data[:, :, source, :, :used]
        self.lengths[target] = self.lengths[source]
        self._known[target] = self._known[source]
        self._known_lengths[target] = self._known_lengths[source]
        moved = [self._occupants[i] for i in source]
        for row, session in zip(target, moved, strict=True):
            self._occupants[row] = session
            if session is not None:
                session.row = row

    def close(self, *, healthy: bool) -> None:
        if healthy and self.rows:
            _POOL[self._dtype, self._device] = self._memory
        self._memory = self._memory.new_zeros(0)
        self._adopt(self._shaped(0, 0), [])

    def _resize(self, rows: int, length: int) -> None:
        """Another size of the tensor; sessions move to its first rows."""
        kept = [i for i, occupant in enumerate(self._occupants) if occupant is not None]
        used = int(self.lengths[kept].max()) if kept else 0
        held = self.data[:, :, kept, :, :used]  # a copy, as always where a list is the index
        fresh = self._shaped(rows, length)
        fresh[:, :, : len(kept), :, :used] = held
        self._adopt(fresh, kept)

    def _shaped(self, rows: int, length: int) -> torch.Tensor:
        """The beginning of the memory, seen in this size; more of it where it is too small."""
        layers, heads, head_dim = self._shape
        size = layers * 2 * rows * heads * length * head_dim
        if size > len(self._memory):
            self._memory = torch.zeros(size, dtype=self._dtype, device=self._device)
        return self._memory[:size].view(layers, 2, rows, heads, length, head_dim)

    def _adopt(self, data: torch.Tensor, kept: list[int]) -> None:
        """Go on with this tensor, whose first rows hold what the `kept` rows held."""
        rows = data.shape[2]
        lengths, known_lengths, occupants = self.lengths[kept], self._known_lengths[kept], [self._occupants[i] for i in kept]
        known = np.zeros((rows, self._known.shape[1]), dtype=np.int32)
        known[: len(kept)] = self._known[kept]
        self.data, self._known = data, known
        self.lengths, self._known_lengths = np.zeros(rows, dtype=np.int64), np.zeros(rows, dtype=np.int64)
        self.lengths[: len(kept)], self._known_lengths[: len(kept)] = lengths, known_lengths
        self._occupants = [*occupants, *[None] * (rows - len(kept))]
        for row, session in enumerate(occupants):
            if session is not None:
                session.row = row
