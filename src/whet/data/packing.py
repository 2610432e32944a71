"""Rows into packs: padding-free sequences in which each prefix that rows share stands once.

The rows of a pack become a forest. Its nodes are segments, runs of tokens that the same rows go through; a root-to-leaf
path spells a row. Segments are laid out one after another, each token with its depth as its position, and each may see
only its own path, so what a model computes for a token is what it would compute in the row alone. A group's prompt, the
common beginning of a pair and the trunk of a forked episode are therefore computed once.

Everything here is numpy; `learn.forward` hands it to a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from whet.errors import ConfigError
from whet.types import Example

Unit = tuple[int, ...]
"""Indexes of rows that must stand in one pack: a row alone, or the two of a pair."""


@dataclass(frozen=True, eq=False)
class Segment:
    """Tokens `start` to `start + length` of a pack; the first of them at position `depth` of its rows."""

    start: int
    length: int
    depth: int
    parent: int | None


@dataclass(frozen=True, eq=False)
class Pack:
    """N tokens in S segments, and the M log-probs that are wanted of them.

    A log-prob is asked of a *query*: a token's place (whose hidden state predicts), the token that follows, and a
    temperature. Rows that go through the same masked-in token share its query.
    """

    tokens: np.ndarray
    """int64 [N]"""
    positions: np.ndarray
    """int64 [N]: depth in the row, from 0."""
    segments: tuple[Segment, ...]
    """In the order of their tokens; a parent stands before its children."""
    place: np.ndarray
    """int64 [Q], ascending: index into `tokens` of the last token that the query sees."""
    target: np.ndarray
    """int64 [Q]"""
    temperature: np.ndarray
    """float32 [Q]"""
    rows: np.ndarray
    """int64 [R]: which rows of the batch these are, the rows of a unit one after another."""
    row: np.ndarray
    """int64 [M], ascending: for each masked-in token its row, as an index into `rows`."""
    time: np.ndarray
    """int64 [M]: and its index in that row."""
    query: np.ndarray
    """int64 [M]: and its query."""


def paths_of(segments: Sequence[Segment]) -> list[np.ndarray]:
    """For each segment, the int64 indexes of all the tokens that its last one sees, itself included."""
    paths: list[np.ndarray] = []
    for segment in segments:
        own = np.arange(segment.start, segment.start + segment.length)
        paths.append(own if segment.parent is None else np.concatenate([paths[segment.parent], own]))
    return paths


def pack_rows(
    rows: Sequence[Example], units: Sequence[Unit] | None = None, *, max_tokens: int = 4096, min_shared: int = 8, share: bool = True
) -> list[Pack]:
    """Packs of about `max_tokens` tokens at most (more where a single unit is longer) that hold every masked-in token.

    Prefixes are shared from `min_shared` tokens on; shorter ones cost more in bookkeeping than they save. With
    `share=False` every row is a segment of its own, and rows of similar length stand together. Nothing that only the
    tokens behind a row's last masked-in token would see is computed, and rows without one appear in no pack. Raises
    ConfigError for a row whose first token is masked in (nothing comes before it) or whose arrays differ in length.
    """
    lengths = [_needed(row) for row in rows]
    live = [kept for unit in (units if units is not None else [(i,) for i in range(len(rows))]) if (kept := _kept(unit, lengths))]
    keys = [row.tokens[:n].astype(">i8").tobytes() for row, n in zip(rows, lengths, strict=True)]  # sorts as the tokens do
    order = sorted(live, key=(lambda unit: keys[unit[0]]) if share else (lambda unit: max(lengths[i] for i in unit)))
    packs: list[list[Unit]] = []
    size, before = max_tokens, -1
    for unit in order:
        cost = 0
        for i in unit:
            common = _common(rows[before].tokens[: lengths[before]], rows[i].tokens[: lengths[i]]) if share and before >= 0 else 0
            cost += lengths[i] - (common if common >= min_shared else 0)
            before = i
        if not packs or size + cost > max_tokens:
            packs.append([])
            size, cost = 0, sum(lengths[i] for i in unit)
        packs[-1].append(unit)
        size += cost
    return [_build(rows, lengths, [i for unit in units for i in unit], min_shared if share else None, keys) for units in packs]


def _needed(row: Example) -> int:
    """How many tokens of the row a model must read for all of its wanted log-probs."""
    n = len(row.tokens)
    for name in ("mask", "weights", "logprobs", "reference", "values", "returns"):
        value = getattr(row, name)
        if value is not None and len(value) != n:
            raise ConfigError(f"row {row.origin!r} has {n} tokens but {len(value)} {name}; expected one for each")
    where = np.flatnonzero(row.mask)
    if len(where) and where[0] == 0:
        raise ConfigError(f"row {row.origin!r} masks in its first token, which no context predicts; begin it with a prompt")
    return int(where[-1]) if len(where) else 0


def _kept(unit: Unit, lengths: Sequence[int]) -> Unit:
    """The unit without rows that have nothing to compute; rows of a pair stay, for their order means something."""
    return unit if any(lengths[i] for i in unit) else ()


def _common(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


@dataclass(eq=False)
class _Node:
    """A run of tokens while the forest grows: `row[begin:end]`."""

    row: int
    begin: int
    end: int
    children: list[_Node] = field(default_factory=list)
    ends_here: list[int] = field(default_factory=list)
    """Rows whose last needed token is this node's last."""


def _grow(rows: Sequence[Example], lengths: Sequence[int], members: Sequence[int], min_shared: int | None) -> list[_Node]:
    """The forest's roots. `members` are sorted by their tokens, so each row shares most with the one before it."""
    roots: list[_Node] = []
    path: list[_Node] = []
    before: np.ndarray = np.zeros(0, dtype=np.int64)
    for i in members:
        tokens = rows[i].tokens[: lengths[i]]
        common = _common(before, tokens) if min_shared is not None else 0
        kept = [node for node in path if node.end <= common]
        if min_shared is not None and len(kept) < len(path) and common - path[len(kept)].begin >= max(1, min_shared):
            kept.append(_split(path[len(kept)], common))
        shared = kept[-1].end if kept else 0
        if shared < len(tokens):
            node = _Node(i, shared, len(tokens))
            (kept[-1].children if kept else roots).append(node)
            kept.append(node)
        kept[-1].ends_here.append(i)
        path, before = kept, tokens
    return roots


def _split(node: _Node, at: int) -> _Node:
    """Cuts a node in two at depth `at` and returns the upper part, which is the same object."""
    if at < node.end:
        lower = _Node(node.row, at, node.end, node.children, node.ends_here)
        node.end, node.children, node.ends_here = at, [lower], []
    return node


def _build(rows: Sequence[Example], lengths: Sequence[int], members: list[int], min_shared: int | None, keys: Sequence[bytes]) -> Pack:
    order = [i for i in (sorted(members, key=lambda i: keys[i]) if min_shared is not None else members) if lengths[i]]
    segments: list[Segment] = []
    pieces: list[np.ndarray] = []
    leaf: dict[int, int] = {}
    start = 0
    stack: list[tuple[_Node, int | None]] = [(root, None) for root in reversed(_grow(rows, lengths, order, min_shared))]
    while stack:
        node, parent = stack.pop()
        leaf.update(dict.fromkeys(node.ends_here, len(segments)))
        stack += [(child, len(segments)) for child in reversed(node.children)]
        segments.append(Segment(start, node.end - node.begin, node.begin, parent))
        pieces.append(rows[node.row].tokens[node.begin : node.end])
        start += node.end - node.begin
    paths = paths_of(segments)
    times = [np.flatnonzero(rows[i].mask) for i in members]
    empty = np.zeros(0, dtype=np.int64)
    wanted = np.stack(
        [
            np.concatenate([paths[leaf[i]][t - 1] if len(t) else empty for i, t in zip(members, times, strict=True)]),
            np.concatenate([rows[i].tokens[t] for i, t in zip(members, times, strict=True)]),
            np.concatenate([np.full(len(t), np.float32(rows[i].temperature).view(np.int32)) for i, t in zip(members, times, strict=True)]),
        ]
    )
    queries, query = np.unique(wanted, axis=1, return_inverse=True)
    return Pack(
        tokens=np.concatenate(pieces),
        positions=np.concatenate([np.arange(s.depth, s.depth + s.length) for s in segments]),
        segments=tuple(segments),
        place=queries[0],
        target=queries[1],
        temperature=queries[2].astype(np.int32).view(np.float32),
        rows=np.array(members, dtype=np.int64),
        row=np.repeat(np.arange(len(members)), [len(t) for t in times]),
        time=np.concatenate(times),
        query=query.reshape(-1),
    )
