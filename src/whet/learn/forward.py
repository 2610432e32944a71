"""Token log-probs of packed rows under any Hugging Face causal language model.

Three routes to the same numbers:

    lean     Llama-shaped models (Llama, Mistral, Qwen2, Qwen3): the module's own submodules called in an own loop, in which
             the last layer works only where a log-prob is wanted, and vocabulary-wide arrays are never held whole
    tree     any model with transformers' pluggable attention: its own forward, with attention over the pack's segments
    padded   everything else: its own forward over right-padded rows, nothing shared

In `lean` and `tree` all layers but attention run over the pack's tokens without padding. For attention the keys of each
segment's path are gathered, so that its cost is that of the segments times their paths: a dense mask over the pack would
grow with the square of its length.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from whet.data.packing import Pack, pack_rows, paths_of
from whet.learn.heads import Head, Hidden, Logits
from whet.types import Example

Route = Literal["lean", "tree", "padded"]
log = logging.getLogger(__name__)

_LEAN_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
_PADDING = 1.3
"""Segments join a bucket while its padded area is at most this many times the area of what it holds."""


@dataclass(frozen=True, eq=False)
class Bucket:
    """B segments of similar shape: S queries each (padded) against L keys each (padded)."""

    queries: Tensor
    """int64 [B * S]: rows of the query array; padding repeats row 0."""
    keys: Tensor
    """int64 [B * L]: rows of the key array, a path each; padding repeats row 0."""
    depth: Tensor
    """int64 [B, S]: how deep each query stands; it sees the keys 0 to depth of its path."""
    causal: bool
    """Whether every query stands at its own index, so that no mask is needed."""

    def mask(self, dtype: torch.dtype, window: int | None) -> Tensor | None:
        """Added to the scores: [B, 1, S, L], or None for plain causal attention."""
        if self.causal and window is None:
            return None
        key = torch.arange(self.keys.numel() // len(self.depth), device=self.keys.device)
        seen = key <= self.depth[..., None]
        if window is not None:
            seen &= key > self.depth[..., None] - window
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))[:, None]


class Plan:
    """How the queries of a pack attend to its keys: buckets, and where each query's output comes to lie."""

    def __init__(self, pack: Pack, device: torch.device, places: np.ndarray | None = None) -> None:
        """`places`, ascending, are the tokens that ask; all of them if it is left out."""
        places = np.arange(len(pack.tokens)) if places is None else places
        self.buckets: list[Bucket] = []
        paths = paths_of(pack.segments)
        bounds = np.searchsorted(places, [*(s.start for s in pack.segments), len(pack.tokens)])
        asking = [i for i in range(len(pack.segments)) if bounds[i] < bounds[i + 1]]
        order = np.empty(len(places), dtype=np.int64)
        offset = 0
        for members in _similar(asking, [int(bounds[i + 1] - bounds[i]) for i in asking], [len(paths[i]) for i in asking]):
            s = max(int(bounds[i + 1] - bounds[i]) for i in members)
            length = max(len(paths[i]) for i in members)
            queries = np.zeros((len(members), s), dtype=np.int64)
            depth = np.zeros((len(members), s), dtype=np.int64)
            keys = np.zeros((len(members), length), dtype=np.int64)
            for b, i in enumerate(members):
                index = np.arange(bounds[i], bounds[i + 1])
                queries[b, : len(index)] = index
                depth[b, : len(index)] = pack.positions[places[index]]
                keys[b, : len(paths[i])] = paths[i]
                order[index] = offset + b * s + np.arange(len(index))
            offset += queries.size
            causal = s == length and all(len(paths[i]) == bounds[i + 1] - bounds[i] for i in members)
            at, of, deep = (torch.from_numpy(a).to(device) for a in (queries.reshape(-1), keys.reshape(-1), depth))
            self.buckets.append(Bucket(at, of, deep, causal))
        self.order = torch.from_numpy(order).to(device)
        self._masks: dict[tuple[torch.dtype, int | None], list[Tensor | None]] = {}

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, window: int | None = None) -> Tensor:
        """q [U, H, D], k and v [N, H', D] with H a multiple of H'; returns [U, H, D]."""
        if q.device.type == "cpu":  # its kernel for bfloat16 takes four times as long backward as the one for float32
            with torch.autocast("cpu", enabled=False):
                return self._attend(q.float(), k.float(), v.float(), scale, window).to(v.dtype)
        return self._attend(q.to(v.dtype), k.to(v.dtype), v, scale, window)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None, window: int | None) -> Tensor:
        masks = self._masks.get((q.dtype, window))
        if masks is None:
            masks = self._masks[q.dtype, window] = [bucket.mask(q.dtype, window) for bucket in self.buckets]
        outputs = []
        for bucket, mask in zip(self.buckets, masks, strict=True):
            b = len(bucket.depth)
            qb, kb, vb = (
                x.index_select(0, index).view(b, -1, *x.shape[1:]).transpose(1, 2)
                for x, index in ((q, bucket.queries), (k, bucket.keys), (v, bucket.keys))
            )
            if (groups := q.shape[1] // k.shape[1]) > 1:
                kb, vb = kb.repeat_interleave(groups, 1), vb.repeat_interleave(groups, 1)
            out = F.scaled_dot_product_attention(qb, kb, vb, attn_mask=mask, is_causal=mask is None, scale=scale)
            outputs.append(out.transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs).index_select(0, self.order)


def _similar(members: Sequence[int], asked: Sequence[int], seen: Sequence[int]) -> list[list[int]]:
    """The members in lots of similar numbers of queries and keys, so that little of a lot is padding."""
    lots: list[list[int]] = []
    area = s = length = 0
    for j in sorted(range(len(members)), key=lambda j: (seen[j], asked[j], j)):
        wide, long = max(s, asked[j]), max(length, seen[j])
        if not lots or (len(lots[-1]) + 1) * wide * long > _PADDING * (area + asked[j] * seen[j]):
            lots.append([])
            area, wide, long = 0, asked[j], seen[j]
        lots[-1].append(members[j])
        area, s, length = area + asked[j] * seen[j], wide, long
    return lots


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [N, H, D] by cos and sin [N, 1, D / 2]."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Scorer:
    """Log-probs of packs under a module: `scorer(pack)` is float32 [M], differentiable where its weights are.

    `module` is a transformers causal language model (layers of a LoRA may be injected into it). It is run in eval mode,
    so that the same rows always give the same numbers. The fastest route that it supports is taken and tried against the
    padded one on a few made-up rows first; the reason for a slower one is logged. `autocast` names the type that matrix
    products are computed in, such as "bfloat16"; attention, norms and the vocabulary's softmax stay in float32.
    """

    def __init__(self, module: Any, *, autocast: str | None = None, route: Route | None = None) -> None:
        self.module = module.eval()
        self.device: torch.device = next(module.parameters()).device
        self.autocast: torch.dtype | None = None
        self.route: Route = route or self._fastest()
        if autocast:
            self.autocast = getattr(torch, autocast)

    @property
    def shares(self) -> bool:
        """Whether packs may share prefixes on this route."""
        return self.route != "padded"

    def __call__(self, pack: Pack, *, tempered: bool = True) -> Tensor:
        """`tempered=False` gives log-probs at temperature 1 whatever the rows' own."""
        return self._logprobs(self._head(pack), pack, tempered)

    def with_divergences(self, pack: Pack, one: np.ndarray, other: np.ndarray) -> tuple[Tensor, Tensor]:
        """Log-probs at temperature 1, float32 [M], and, of one forward pass, KL(one || other), float32 [K].

        `one` and `other`, int64 [K], are masked-in tokens of the pack: the distributions compared are those that they are drawn from.
        """
        head = self._head(pack)
        one_, other_ = (torch.from_numpy(pack.query[index]).to(self.device) for index in (one, other))
        return self._logprobs(head, pack, False), head.divergences(one_, other_)

    def with_values(self, pack: Pack, value_head: nn.Module, *, tempered: bool = True) -> tuple[Tensor, Tensor]:
        """Log-probs as `scorer(pack)` gives them and, of the same forward pass, float32 [M], what the value head expects before each."""
        head = self._head(pack, states=True)
        assert head.states is not None
        values: Tensor = value_head(head.states.float())[:, 0]
        return self._logprobs(head, pack, tempered), values.index_select(0, torch.from_numpy(pack.query).to(self.device))

    def _head(self, pack: Pack, *, states: bool = False) -> Head:
        """`states` asks a module that gives logits for its last hidden states, too."""
        return self._lean(pack) if self.route == "lean" else (self._tree if self.route == "tree" else self._padded)(pack, states)

    def _logprobs(self, head: Head, pack: Pack, tempered: bool) -> Tensor:
        target = torch.from_numpy(pack.target).to(self.device)
        temperature = torch.from_numpy(pack.temperature).to(self.device) if tempered else torch.ones(len(target), device=self.device)
        return head.logprobs(target, temperature).index_select(0, torch.from_numpy(pack.query).to(self.device))

    def _matmuls(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.autocast) if self.autocast else contextlib.nullcontext()

    def _lean(self, pack: Pack) -> Head:
        places, asked = np.unique(pack.place, return_inverse=True)
        core, index = self.module.model, torch.from_numpy(places).to(self.device)
        plan, last = Plan(pack, self.device), Plan(pack, self.device, places)
        with self._matmuls():
            x = core.embed_tokens(torch.from_numpy(pack.tokens).to(self.device))
            cos, sin = (
                t[0, :, None, : t.shape[-1] // 2] for t in core.rotary_emb(x, torch.from_numpy(pack.positions).to(self.device)[None])
            )
            for i, layer in enumerate(core.layers):
                attention = layer.self_attn
                h = layer.input_layernorm(x)
                k = _rotate(_heads(attention.k_proj(h), attention, "k_norm"), cos, sin)
                v = _heads(attention.v_proj(h), attention)
                if i == len(core.layers) - 1:  # from here on only tokens that something is asked of matter
                    x, h, cos, sin, plan = x[index], h[index], cos[index], sin[index], last
                q = _rotate(_heads(attention.q_proj(h), attention, "q_norm"), cos, sin)
                x = x + attention.o_proj(plan.attend(q, k, v, scale=attention.scaling).flatten(1))
                x = x + layer.mlp(layer.post_attention_layernorm(x))
            x = core.norm(x)
        weight = self.module.lm_head.weight
        hidden = x.to(weight.dtype).index_select(0, torch.from_numpy(asked).to(self.device))
        return Hidden(hidden, weight)

    def _tree(self, pack: Pack, states: bool) -> Head:
        with self._matmuls(), _attending(self.module, Plan(pack, self.device)):
            out = self.module(
                input_ids=torch.from_numpy(pack.tokens).to(self.device)[None],
                position_ids=torch.from_numpy(pack.positions).to(self.device)[None],
                logits_to_keep=torch.from_numpy(pack.place).to(self.device),
                use_cache=False,
                output_hidden_states=states,
            )
        return Logits(out.logits[0], out.hidden_states[-1][0, pack.place] if states else None)

    def _padded(self, pack: Pack, states: bool) -> Head:
        if any(s.parent is not None for s in pack.segments):
            raise ValueError("the padded route got a pack with shared prefixes; pack its rows with share=False")
        lengths = np.array([s.length for s in pack.segments])
        ids = np.zeros((len(lengths), lengths.max()), dtype=np.int64)
        valid = np.arange(lengths.max()) < lengths[:, None]
        ids[valid] = pack.tokens
        segment = np.repeat(np.arange(len(lengths)), lengths)[pack.place]
        with self._matmuls():
            out = self.module(
                input_ids=torch.from_numpy(ids).to(self.device),
                attention_mask=torch.from_numpy(valid.astype(np.int64)).to(self.device),
                use_cache=False,
                output_hidden_states=states,
            )
        at = torch.from_numpy(segment).to(self.device), torch.from_numpy(pack.positions[pack.place]).to(self.device)
        return Logits(out.logits[at], out.hidden_states[-1][at] if states else None)

    def _fastest(self) -> Route:
        probe = _probe(int(self.module.config.get_text_config().vocab_size))
        self.route = "padded"
        with torch.no_grad():
            expected = self._scores(probe)
            tolerance = 1e-4 if self.module.dtype == torch.float32 else 0.1
            for route in ("lean", "tree"):
                why = _not_llama(self.module) if route == "lean" else None
                if why is None:
                    why = self._try(route, probe, expected, tolerance)
                if why is None:
                    return route
                (log.info if route == "lean" else log.warning)("%s: no %s forward: %s", type(self.module).__name__, route, why)
        return "padded"

    def _scores(self, probe: Sequence[Example]) -> np.ndarray:
        (pack,) = pack_rows(probe, min_shared=1, share=self.shares)
        scores = np.zeros((len(probe), max(len(row.tokens) for row in probe)), dtype=np.float32)
        scores[pack.rows[pack.row], pack.time] = self(pack).cpu().numpy()
        return scores

    def _try(self, route: Route, probe: Sequence[Example], expected: np.ndarray, tolerance: float) -> str | None:
        """Why the route does not work for this module, or None."""
        self.route = route
        try:
            off = float(np.abs(self._scores(probe) - expected).max())
        except Exception as error:  # whatever a model's own code does with an attention that it does not know
            return f"{type(error).__name__}: {error}"
        return None if off <= tolerance else f"its log-probs differ by {off:.2g} from the padded ones"


def _heads(x: Tensor, attention: Any, norm: str = "") -> Tensor:
    """[N, H * D] as [N, H, D], normalised per head where the model does that."""
    x = x.view(len(x), -1, attention.head_dim)
    return getattr(attention, norm)(x) if norm and hasattr(attention, norm) else x  # type: ignore[no-any-return]


def _not_llama(module: Any) -> str | None:
    """Why the lean loop would not compute what this module computes, or None."""
    config = module.config
    if config.model_type not in _LEAN_TYPES:
        return f"model type {config.model_type!r} is none of {sorted(_LEAN_TYPES)}"
    if getattr(config, "sliding_window", None):
        return f"it has a sliding window of {config.sliding_window}"
    if type(module.lm_head) is not nn.Linear or module.lm_head.bias is not None:
        return f"its output layer is {module.lm_head}, not a plain matrix"
    return None


def _probe(vocab: int) -> list[Example]:
    """Made-up rows: two that part at token 6, one that ends early, one alone, at two temperatures."""
    draw = np.random.default_rng(0).integers(0, vocab, (4, 14))
    draw[1, :6] = draw[2, :6] = draw[0, :6]
    mask = np.arange(14) % 7 >= 4
    return [
        Example(tokens=tokens[:n], mask=mask[:n], weights=np.ones(n, np.float32), temperature=t)
        for tokens, n, t in zip(draw, (14, 14, 9, 12), (1.0, 1.0, 1.0, 0.5), strict=True)
    ]


_PLAN: contextvars.ContextVar[Plan] = contextvars.ContextVar("whet_tree_plan")


def _tree_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """What transformers calls for each attention layer: query [1, H, N, D], key and value [1, H', N, D] -> [1, N, H, D]."""
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise NotImplementedError(f"its attention uses {name}")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return _PLAN.get().attend(q, k, v, scale=options.get("scaling"), window=options.get("sliding_window"))[None], None


AttentionInterface.register("whet_tree", _tree_attention)


@contextlib.contextmanager
def _attending(module: Any, plan: Plan) -> Iterator[None]:
    """Within: the module's attention layers follow the plan."""
    before = module.config._attn_implementation
    module.set_attn_implementation("whet_tree")
    if module.config._attn_implementation != "whet_tree":
        raise NotImplementedError("its attention cannot be exchanged")
    token = _PLAN.set(plan)
    try:
        yield
    finally:
        _PLAN.reset(token)
        module.set_attn_implementation(before)
