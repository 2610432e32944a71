"""Packs hold every row's tokens, places and contexts, and models give the same log-probs and gradients for them."""

from __future__ import annotations

import dataclasses
import functools
import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import tiny_module
from whet.data.packing import Pack, pack_rows, paths_of
from whet.errors import ConfigError
from whet.learn import forward, heads
from whet.learn.forward import Plan, Scorer
from whet.types import Example

module = functools.cache(tiny_module)


def example(tokens: list[int], mask: list[bool], temperature: float = 1.0) -> Example:
    where = np.array([False, *mask[1:]])
    return Example(tokens=np.array(tokens), mask=where, weights=np.ones(len(tokens), np.float32), temperature=temperature)


@st.composite
def families(draw: st.DrawFn) -> list[Example]:
    """Rows that branch off each other at random depths, repeats and mere prefixes among them, with random masks."""
    tokens = st.lists(st.integers(0, 5), min_size=1, max_size=12)
    rows: list[list[int]] = []
    for _ in range(draw(st.integers(1, 9))):
        stem = draw(st.sampled_from(rows)) if rows and draw(st.booleans()) else []
        rows.append(stem[: draw(st.integers(0, len(stem)))] + draw(tokens))
    if draw(st.booleans()):
        rows.append(rows[0])
    return [
        example(row, draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row))), draw(st.sampled_from([1.0, 0.5]))) for row in rows
    ]


def group(n_groups: int = 3, n: int = 4, prompt: int = 20, seed: int = 0) -> list[Example]:
    """Groups of rows of 30 to 60 tokens that share prompts, half of the rest masked in."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n_groups):
        start = rng.integers(0, 320, prompt)
        for _ in range(n):
            rest = rng.integers(0, 320, rng.integers(10, 40))
            mask = np.concatenate([np.zeros(prompt, bool), rng.random(len(rest)) < 0.5])
            rows.append(example([*start, *rest], [bool(m) for m in mask], float(rng.choice([1.0, 0.7]))))
    return rows


@pytest.mark.slow
@given(families(), st.integers(1, 5), st.integers(1, 60), st.booleans())
@settings(max_examples=200, deadline=None)
def test_every_masked_in_token_keeps_its_target_position_and_context(rows: list[Example], min_shared: int, size: int, share: bool) -> None:
    packs = pack_rows(rows, max_tokens=size, min_shared=min_shared, share=share)
    found = []
    for pack in packs:
        visible = contexts(pack)
        for row, time, query in zip(pack.rows[pack.row], pack.time, pack.query, strict=True):
            found.append((row, time))
            place = pack.place[query]
            assert pack.target[query] == rows[row].tokens[time]
            assert pack.temperature[query] == np.float32(rows[row].temperature)
            assert pack.tokens[visible[place]].tolist() == rows[row].tokens[:time].tolist()
            assert pack.positions[visible[place]].tolist() == list(range(time))
    assert sorted(found) == [(i, t) for i, row in enumerate(rows) for t in np.flatnonzero(row.mask)]


def contexts(pack: Pack) -> dict[int, np.ndarray]:
    """For each token of the pack, the tokens that the attention plan lets it see; checked for a part of the queries, too."""
    seen: dict[int, np.ndarray] = {}
    for places in (np.arange(len(pack.tokens)), np.unique(pack.place)):
        plan = Plan(pack, torch.device("cpu"), places)
        slots: list[np.ndarray] = []
        for bucket in plan.buckets:
            keys = bucket.keys.view(len(bucket.depth), -1).numpy()
            mask = bucket.mask(torch.float32, None)
            if mask is None:
                mask = torch.zeros(1, 1, keys.shape[1], keys.shape[1]).masked_fill_(
                    torch.ones(keys.shape[1], keys.shape[1]).triu(1) > 0, -1
                )
                mask = mask.expand(len(keys), -1, -1, -1)
            slots += [keys[b][(mask[b, 0, s] == 0).numpy()] for b in range(len(keys)) for s in range(mask.shape[2])]
        for place, slot in zip(places, plan.order.numpy(), strict=True):
            assert seen.setdefault(int(place), slots[slot]).tolist() == slots[slot].tolist()
    return seen


def test_a_shared_prompt_stands_once() -> None:
    rows = group(n_groups=3, n=4, prompt=20)
    (pack,) = pack_rows(rows)
    needed = [int(np.flatnonzero(row.mask)[-1]) for row in rows]
    assert len(pack.tokens) == sum(needed) - 3 * 3 * 20, "three of four copies of each prompt are saved, and the tails behind the masks"
    assert [len(paths_of(pack.segments)[i]) for i, s in enumerate(pack.segments) if s.parent is None] == [20] * 3
    (apart,) = pack_rows(rows, share=False)
    assert len(apart.tokens) == sum(needed)
    assert all(s.parent is None for s in apart.segments)


def test_prefixes_too_short_to_be_worth_it_are_not_shared() -> None:
    rows = [example([1, 2, 3, i, 9], [True] * 5) for i in (4, 5)]
    (apart,) = pack_rows(rows, min_shared=4)
    assert [(s.depth, s.length, s.parent) for s in apart.segments] == [(0, 4, None), (0, 4, None)]
    (shared,) = pack_rows(rows, min_shared=3)
    assert [(s.depth, s.length, s.parent) for s in shared.segments] == [(0, 3, None), (3, 1, 0), (3, 1, 0)]


def test_packs_keep_to_their_budget_and_units_together() -> None:
    rows = group(n_groups=6, n=4)
    units = [(i, i + 1) for i in range(0, len(rows), 2)]
    packs = pack_rows(rows, units, max_tokens=150)
    assert len(packs) > 3
    assert all(len(pack.tokens) <= 150 for pack in packs)
    assert sorted(tuple(unit) for pack in packs for unit in pack.rows.reshape(-1, 2).tolist()) == units


def test_rows_that_cannot_be_computed_are_refused() -> None:
    row = Example(tokens=np.array([1, 2]), mask=np.array([True, True]), weights=np.ones(2, np.float32), origin="e7")
    with pytest.raises(ConfigError, match="'e7' masks in its first token"):
        pack_rows([row])
    with pytest.raises(ConfigError, match="2 tokens but 3 weights"):
        pack_rows([dataclasses.replace(row, weights=np.ones(3, np.float32))])
    assert pack_rows([dataclasses.replace(row, mask=np.zeros(2, bool))]) == []


def unpacked(model: Any, rows: list[Example], weights: np.ndarray) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """Log-probs [R, T] and gradients of sum(weights * log-probs), each row in a forward of its own."""
    model.zero_grad()
    out = np.zeros(weights.shape, dtype=np.float32)
    for i, row in enumerate(rows):
        ids = torch.from_numpy(row.tokens)
        logits = model(input_ids=ids[None]).logits[0] / row.temperature
        logprobs = torch.log_softmax(logits[:-1], -1).gather(1, ids[1:, None])[:, 0] * torch.from_numpy(row.mask[1:])
        (logprobs * torch.from_numpy(weights[i, 1 : len(ids)])).sum().backward()
        out[i, 1 : len(ids)] = logprobs.detach().numpy()
    return out, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def packed(scorer: Scorer, packs: list[Pack], weights: np.ndarray) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    scorer.module.zero_grad()
    out = np.zeros(weights.shape, dtype=np.float32)
    for pack in packs:
        logprobs = scorer(pack)
        at = pack.rows[pack.row], pack.time
        (logprobs * torch.from_numpy(weights[at])).sum().backward()
        out[at] = logprobs.detach().numpy()
    return out, {name: p.grad.clone() for name, p in scorer.module.named_parameters() if p.grad is not None}


def check(model: Any, rows: list[Example], route: forward.Route, **options: Any) -> None:
    scorer = Scorer(model)
    assert scorer.route == route
    weights = np.random.default_rng(1).normal(size=(len(rows), max(len(r.tokens) for r in rows))).astype(np.float32) / len(rows)
    expected, expected_grads = unpacked(model, rows, weights)
    found, grads = packed(scorer, pack_rows(rows, share=scorer.shares, **options), weights)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        scale = max(1.0, float(expected_grads[name].abs().max()))
        torch.testing.assert_close(grad / scale, expected_grads[name] / scale, atol=1e-5, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


MODELS: list[tuple[str, forward.Route, dict[str, Any]]] = [
    ("qwen3", "lean", {}),
    ("llama", "lean", {"tie_word_embeddings": True}),
    ("qwen2", "lean", {}),
    ("mistral", "lean", {"sliding_window": None}),
    ("mistral", "tree", {"sliding_window": 7}),
    ("gemma3_text", "tree", {"sliding_window": 9}),
    ("gpt2", "tree", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    ("gemma2", "padded", {}),
    ("bloom", "padded", {}),
]


@pytest.mark.parametrize(("arch", "route", "config"), MODELS, ids=lambda x: x if isinstance(x, str) else "")
def test_packed_equals_unpacked(arch: str, route: forward.Route, config: dict[str, Any]) -> None:
    check(tiny_module(arch, **config), group(), route, max_tokens=200)


@pytest.mark.parametrize("route", ["lean", "tree", "padded"])
def test_every_route_of_one_model_agrees(route: forward.Route) -> None:
    model, rows = module(), group(seed=3)
    weights = np.ones((len(rows), 60), np.float32)
    scorer = Scorer(model, route=route)
    found, _ = packed(scorer, pack_rows(rows, share=scorer.shares), weights)
    np.testing.assert_allclose(found, unpacked(model, rows, weights)[0], atol=2e-5)


@given(families())
@settings(max_examples=15, deadline=None)
def test_any_family_of_rows_packed_equals_unpacked(rows: list[Example]) -> None:
    if any(row.mask.any() for row in rows):
        check(module(), rows, "lean", min_shared=2)


def test_logits_made_again_give_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = group()
    weights = np.ones((len(rows), 60), np.float32)
    scorer = Scorer(module())
    kept, kept_grads = packed(scorer, pack_rows(rows), weights)
    monkeypatch.setattr(heads, "_KEEP", 0)
    monkeypatch.setattr(heads, "_SLICE", 17)
    again, grads = packed(scorer, pack_rows(rows), weights)
    np.testing.assert_allclose(again, kept, atol=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, kept_grads[name], atol=1e-4, rtol=1e-4)


def test_the_same_pack_gives_the_same_bits() -> None:
    rows = group()
    weights = np.ones((len(rows), 60), np.float32)
    (a, a_grads), (b, b_grads) = (packed(Scorer(module()), pack_rows(rows), weights) for _ in range(2))
    assert (a == b).all()
    assert all(torch.equal(a_grads[name], b_grads[name]) for name in a_grads)


def test_untempered_scores_ignore_the_rows_temperature() -> None:
    rows = group()
    scorer = Scorer(module())
    plain = scorer(pack_rows([dataclasses.replace(row, temperature=1.0) for row in rows])[0])
    (pack,) = pack_rows(rows)
    torch.testing.assert_close(scorer(pack, tempered=False), plain)
    assert not torch.allclose(scorer(pack), plain)


def test_bfloat16_products_stay_near() -> None:
    rows = group()
    (pack,) = pack_rows(rows)
    exact, near = Scorer(module())(pack), Scorer(module(), autocast="bfloat16")(pack)
    assert near.dtype == torch.float32
    assert 0 < float((near - exact).abs().mean()) < 0.1


def test_a_slower_route_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Scorer(tiny_module("gemma2"))
    assert "no tree forward" in caplog.text
    assert "softcap" in caplog.text
