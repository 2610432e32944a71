"""The learner's four verbs: exact accumulation, exact resumption, and what it refuses."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import tiny_policy
from whet.errors import CheckpointError, ConfigError, MissingExtra
from whet.learn import Learner, Lora, Loss, dpo, mean_nll, mito, nll, optimise, policy_gradient, with_divergences, with_reference
from whet.learn.learner import schedule_factor
from whet.policies.local import LocalPolicy
from whet.types import Example, Pair

policy = functools.cache(tiny_policy)


def rows(n_groups: int = 3, n: int = 4, seed: int = 0, temperature: float = 1.0) -> list[Example]:
    """Groups with a shared prompt, alternating turns, advantages per row, and log-probs of a policy that is a bit off."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n_groups):
        prompt = rng.integers(3, 320, 12)
        for _ in range(n):
            tokens, mask = [*prompt], [False] * len(prompt)
            for _ in range(rng.integers(1, 4)):
                said, seen = rng.integers(2, 6), rng.integers(1, 5)
                tokens += rng.integers(3, 320, said + seen).tolist()
                mask += [True] * said + [False] * seen
            weights = np.where(mask, rng.normal(), 0.0).astype(np.float32)
            made.append(Example(tokens=np.array(tokens), mask=np.array(mask), weights=weights, temperature=temperature))
    noise = rng.normal(scale=0.2, size=(len(made), 60)).astype(np.float32)
    return [
        dataclasses.replace(row, logprobs=np.where(row.mask, row.reference + noise[i, : len(row.mask)], 0).astype(np.float32))
        for i, row in enumerate(with_reference(made, policy()))
    ]


def pairs(seed: int = 0) -> list[Pair]:
    plain = [dataclasses.replace(row, weights=row.mask.astype(np.float32)) for row in rows(seed=seed)]
    return with_reference([Pair(chosen=plain[i], rejected=plain[i + 1]) for i in range(0, len(plain), 2)], tiny_policy(seed=1))


def twins(seed: int = 0) -> list[Pair]:
    """Answers in two contexts each, with the divergences of a policy that is another one."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(5):
        said = rng.integers(3, 320, rng.integers(1, 5))
        sides = []
        for n in rng.integers(6, 14, 2):
            tokens = np.concatenate([rng.integers(3, 320, n), said])
            mask = np.arange(len(tokens)) >= n
            sides.append(Example(tokens=tokens, mask=mask, weights=mask.astype(np.float32)))
        made.append(Pair(chosen=sides[0], rejected=sides[1]))
    return with_divergences(made, tiny_policy(seed=1))


def gradient(batch: Any, loss: Loss, **options: Any) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    learner = Learner(policy(), lr=0.0, **options)
    metrics = learner.forward_backward(batch, loss)
    return metrics, {name: p.grad for name, p in learner._trained.items() if p.grad is not None}


def assert_same(a: tuple[dict[str, float], dict[str, torch.Tensor]], b: tuple[dict[str, float], dict[str, torch.Tensor]]) -> None:
    a[0].pop("computed"), b[0].pop("computed")
    assert a[0] == pytest.approx(b[0], abs=1e-6, rel=1e-5)
    assert a[1].keys() == b[1].keys()
    for name in a[1]:
        torch.testing.assert_close(a[1][name], b[1][name], atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


LOSSES: list[tuple[Loss, Any]] = [
    (nll(), rows),
    (nll(normalise="row"), rows),
    (policy_gradient(kl=0.1), rows),
    (policy_gradient(clip_low=0.1, clip_high=0.3, aggregation="token-mean"), rows),
    (dpo(nll=0.1), pairs),
    (mito(beta=0.5), twins),
]


@pytest.mark.parametrize(("loss", "make"), LOSSES, ids=["nll", "nll-row", "pg-kl", "pg-token", "dpo", "mito"])
def test_neither_packing_nor_order_changes_anything(loss: Loss, make: Any) -> None:
    batch = make()
    whole = gradient(batch, loss)
    assert any(float(g.abs().max()) > 1e-4 for g in whole[1].values())
    assert_same(gradient(batch, loss, max_pack_tokens=40), gradient(batch, loss))
    assert_same(gradient(batch[::-1], loss), whole)


def test_the_loss_over_packs_is_that_of_the_plain_formula() -> None:
    batch = rows(temperature=0.7)
    module = policy().module()
    total = torch.zeros(())
    for row in batch:
        logits = module(input_ids=torch.from_numpy(row.tokens)[None]).logits[0, :-1] / 0.7
        logprobs = logits.log_softmax(-1).gather(1, torch.from_numpy(row.tokens[1:, None]))[:, 0][torch.from_numpy(row.mask[1:])]
        assert row.logprobs is not None
        old, advantage = torch.from_numpy(row.logprobs[row.mask]), torch.from_numpy(row.weights[row.mask])
        ratio = (logprobs - old).exp()
        total = total - torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean() / len(batch)
    total.backward()
    metrics, grads = gradient(batch, policy_gradient(), max_pack_tokens=60)
    assert metrics["loss"] == pytest.approx(float(total.detach()), abs=1e-6)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, atol=1e-5, rtol=1e-5)


def plain_mito(pair: Pair, module: Any, beta: float) -> torch.Tensor:
    """MITO of one pair by the formula, whatever the reference."""
    ours, theirs = (module(input_ids=torch.from_numpy(row.tokens)[None]).logits[0, :-1] for row in (pair.chosen, pair.rejected))
    log_p, log_q = ours[pair.chosen.mask[1:]].log_softmax(-1), theirs[pair.rejected.mask[1:]].log_softmax(-1)
    target = torch.from_numpy(pair.chosen.tokens[pair.chosen.mask])
    likelihood = log_p.gather(1, target[:, None]).mean()
    return beta * (log_p.exp() * (log_p - log_q)).sum(-1).mean() - likelihood


@pytest.mark.parametrize("arch", ["qwen3", "gemma3_text", "gpt2"])
def test_mito_over_packs_is_that_of_the_plain_formula(arch: str) -> None:
    batch, other = twins(), tiny_policy(arch, seed=3)
    reference = sum(float(pair.chosen.reference[pair.chosen.mask].mean()) for pair in batch if pair.chosen.reference is not None)
    learner, module = Learner(other, lr=0.0), other.module()
    metrics = learner.forward_backward(batch, mito(beta=0.5))
    total = torch.stack([plain_mito(pair, module, 0.5) for pair in batch]).mean()
    total.backward()
    assert metrics["loss"] == pytest.approx(float(total.detach()) - 0.5 * reference / len(batch), abs=1e-4)
    grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    for name, parameter in learner._trained.items():
        torch.testing.assert_close(parameter.grad, grads[name], atol=1e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_divergences_of_a_policy_from_itself_start_at_zero_and_need_one_answer() -> None:
    batch = with_divergences(twins(), policy())
    metrics = Learner(policy(), lr=0.0).forward_backward(batch, mito(beta=0.5))
    assert metrics["divergence"] == pytest.approx(metrics["divergence_ref"], abs=1e-6)
    assert metrics["divergence"] > 0.01
    assert metrics["loss"] == pytest.approx(metrics["nll_attacked"], abs=1e-6)
    same = [Pair(chosen=pair.chosen, rejected=pair.chosen) for pair in batch]
    assert all(np.abs(pair.chosen.reference).max() < 1e-6 for pair in with_divergences(same, policy()) if pair.chosen.reference is not None)
    with pytest.raises(ConfigError, match="hold other answers"):
        with_divergences([Pair(chosen=batch[0].chosen, rejected=batch[1].rejected)], policy())
    with pytest.raises(ConfigError, match="row '' has log-probs; use with_divergences"):
        Learner(policy(), lr=0.0).forward_backward(with_reference(batch, policy()), mito())


@pytest.mark.parametrize(("loss", "make"), LOSSES, ids=["nll", "nll-row", "pg-kl", "pg-token", "dpo", "mito"])
def test_what_stands_at_observation_tokens_changes_no_gradient(loss: Loss, make: Any) -> None:
    def disturb(row: Example) -> Example:
        rng = np.random.default_rng(5)
        arrays = {n: getattr(row, n) for n in ("weights", "logprobs", "reference") if getattr(row, n) is not None}
        return dataclasses.replace(row, **{n: np.where(row.mask, a, rng.normal(size=len(a))).astype(np.float32) for n, a in arrays.items()})

    batch = make()
    disturbed = [
        dataclasses.replace(row, chosen=disturb(row.chosen), rejected=disturb(row.rejected)) if isinstance(row, Pair) else disturb(row)
        for row in batch
    ]
    a, b = gradient(batch, loss), gradient(disturbed, loss)
    assert a[0] == b[0]
    assert all(torch.equal(a[1][name], b[1][name]) for name in a[1])


def test_the_last_observation_is_not_even_read() -> None:
    batch = [row for row in rows() if not row.mask[-1]]
    changed = []
    for row in batch:
        tokens = row.tokens.copy()
        tokens[np.flatnonzero(row.mask)[-1] + 1 :] = 3
        changed.append(dataclasses.replace(row, tokens=tokens))
    a, b = gradient(batch, nll()), gradient(changed, nll())
    assert batch
    assert a[0] == b[0]
    assert all(torch.equal(a[1][name], b[1][name]) for name in a[1])


def test_rows_without_advantage_are_left_out_but_counted() -> None:
    batch = rows()
    silent = [dataclasses.replace(row, weights=np.zeros_like(row.weights)) for row in batch[:4]]
    mixed = [*silent, *batch[4:]]
    quick, slow = gradient(mixed, policy_gradient()), gradient(mixed, dataclasses.replace(policy_gradient(), skips_zero_weight=False))
    assert quick[0]["computed"] < slow[0]["computed"]
    assert (quick[0]["rows"], quick[0]["tokens"]) == (slow[0]["rows"], slow[0]["tokens"])
    assert quick[0]["loss"] == pytest.approx(slow[0]["loss"], abs=1e-6)
    for name, grad in quick[1].items():
        torch.testing.assert_close(grad, slow[1][name], atol=1e-6, rtol=1e-5)
    learner = Learner(policy(), lr=0.1)
    assert learner.forward_backward(silent, policy_gradient())["loss"] == 0.0
    assert learner.optim_step()["grad_norm"] == 0.0


def test_gradients_of_several_calls_add_up() -> None:
    batch = rows()
    learner = Learner(policy(), lr=0.0)
    learner.forward_backward(batch[:5], nll())
    learner.forward_backward(batch[5:], nll())
    (_, first), (_, second) = gradient(batch[:5], nll()), gradient(batch[5:], nll())
    for name, parameter in learner._trained.items():
        torch.testing.assert_close(parameter.grad, first[name] + second[name], atol=1e-6, rtol=1e-5)


def test_training_lowers_the_loss_and_leaves_the_policy_alone() -> None:
    start = {name: w.clone() for name, w in policy().weights.items()}
    plain = [dataclasses.replace(row, weights=row.mask.astype(np.float32)) for row in rows()]
    learner = Learner(policy(), lr=3e-3)
    losses = []
    for _ in range(15):
        losses.append(learner.forward_backward(plain, nll())["loss"])
        learner.optim_step()
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(w, start[name]) for name, w in policy().weights.items())


def test_samples_are_copies_with_versions() -> None:
    learner = Learner(policy(), lr=1e-2)
    assert learner.sample().version == policy().version
    step(learner)
    first = learner.sample()
    kept = {name: w.clone() for name, w in first.weights.items()}
    step(learner)
    second = learner.sample()
    assert (first.version, second.version) == (f"{policy().version}+1", f"{policy().version}+2")
    assert all(torch.equal(w, kept[name]) for name, w in first.weights.items())
    assert any(not torch.equal(w, kept[name]) for name, w in second.weights.items())


def step(learner: Learner, seed: int = 0, loss: Loss | None = None) -> dict[str, float]:
    return learner.forward_backward(rows(seed=seed), loss or policy_gradient(kl=0.1)) | learner.optim_step()


def test_adamw_spares_vectors_from_decay() -> None:
    # A zero gradient leaves only the decay: matrices shrink by lr * decay, norms stay.
    learner = Learner(policy(), lr=0.1, weight_decay=0.5)
    zero = [dataclasses.replace(row, weights=np.zeros_like(row.weights)) for row in rows()]
    learner.forward_backward(zero, nll())
    learner.optim_step()
    for name, weight in learner.sample().weights.items():
        torch.testing.assert_close(weight, policy().weights[name] * (0.95 if weight.dim() > 1 else 1.0))


def test_clipping_scales_the_gradient_and_reports_its_norm() -> None:
    learner = Learner(policy(), lr=0.0, clip_norm=0.01)
    learner.forward_backward(rows(), nll())
    grads = [p.grad.clone() for p in learner._trained.values() if p.grad is not None]
    norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
    assert learner.optim_step()["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert norm > 0.01


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    learner = Learner(policy(), lr=0.1)
    batch = rows()
    batch[0].weights[batch[0].mask] = np.inf
    learner.forward_backward(batch, nll())
    metrics = learner.optim_step()
    assert metrics["skipped"] == 1.0
    assert (learner.n_steps, learner.n_skipped) == (0, 1)
    assert all(torch.equal(w, policy().weights[name]) for name, w in learner.sample().weights.items())
    assert step(learner)["skipped"] == 0.0, "the next one is taken"
    assert learner.n_steps == 1


def test_schedules_by_hand() -> None:
    # Two steps of warm-up, then ten steps in all: eight to fall over.
    assert [schedule_factor(i, "constant", 2, None) for i in range(4)] == [0.5, 1.0, 1.0, 1.0]
    assert [schedule_factor(i, "linear", 2, 10) for i in (0, 1, 2, 6, 10, 11)] == [0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    assert [schedule_factor(i, "cosine", 2, 10) for i in (2, 4, 6, 10)] == pytest.approx([1.0, 0.5 + math.sqrt(2) / 4, 0.5, 0.0])
    learner = Learner(policy(), lr=0.5, schedule="linear", total_steps=2)
    assert [step(learner)["lr"] for _ in range(3)] == [0.5, 0.25, 0.0]


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4.0)], ids=["full", "lora"])
def test_a_resumed_learner_repeats_the_undisturbed_one_bit_for_bit(tmp_path: Path, lora: Lora | None) -> None:
    options: dict[str, Any] = {"lr": 1e-2, "schedule": "cosine", "total_steps": 8, "warmup_steps": 2, "weight_decay": 0.1, "lora": lora}
    whole = Learner(policy(), **options)
    expected = [step(whole, seed) for seed in range(4)]
    first = Learner(policy(), **options)
    assert [step(first, seed) for seed in range(2)] == expected[:2]
    first.save_state(tmp_path / "state")
    resumed = Learner(policy(), **options)
    resumed.load_state(tmp_path / "state")
    assert [step(resumed, seed) for seed in range(2, 4)] == expected[2:]
    a, b = resumed.sample(), whole.sample()
    assert a.version == b.version
    assert all(torch.equal(a.weights[name], w) for name, w in b.weights.items())


@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["full", "lora"])
def test_a_restart_is_a_new_learner_and_is_resumed_as_one(tmp_path: Path, lora: Lora | None) -> None:
    learner = Learner(policy(), lr=1e-2, lora=lora)
    step(learner)
    learner.restart(policy(), lr=3e-3)
    fresh = Learner(policy(), lr=3e-3, lora=lora)
    assert [step(learner, 1), step(learner, 2)] == [step(fresh, 1), step(fresh, 2)]
    assert learner.version == f"{policy().version}/1+2", "not to be taken for the steps before the restart"
    learner.save_state(tmp_path / "state")
    resumed = Learner(policy(), lr=1e-2, lora=lora)
    resumed.load_state(tmp_path / "state")
    assert step(resumed, 3) == step(learner, 3)
    assert resumed.version == learner.version


def test_a_restart_from_the_present_weights_keeps_them() -> None:
    learner = Learner(policy(), lr=1e-2, lora=Lora(rank=2))
    step(learner)
    sample = learner.sample()
    learner.restart(sample)
    assert all(torch.equal(w, sample.weights[name]) for name, w in learner.sample().weights.items())
    with pytest.raises(ConfigError, match="restarts from its own policy"):
        learner.restart(tiny_policy(seed=1))
    with pytest.raises(ConfigError, match=r"cannot restart .* expected shape"):
        Learner(policy(), lr=1e-2).restart(tiny_policy(intermediate_size=16))


def test_the_state_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    learner = Learner(policy(), lr=1e-2)
    step(learner)
    learner.save_state(tmp_path / "state")
    learner.save_state(tmp_path / "state")  # over itself
    loaded = LocalPolicy.load(tmp_path / "state")
    assert all(torch.equal(loaded.weights[name], w) for name, w in learner.sample().weights.items())
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_lora_trains_the_adapters_only_and_merges_them(tmp_path: Path) -> None:
    from peft import PeftModel

    learner = Learner(policy(), lr=1e-2, lora=Lora(rank=2, alpha=8.0, targets=("q_proj", "down_proj")))
    assert all(".lora_" in name for name in learner._trained)
    for _ in range(3):
        step(learner)
    merged = learner.sample()
    changed = {name for name, w in merged.weights.items() if not torch.equal(w, policy().weights[name])}
    assert changed == {name for name in merged.weights if "q_proj" in name or "down_proj" in name}
    ids = torch.from_numpy(rows()[0].tokens)[None]
    with torch.no_grad():
        logits = merged.module()(input_ids=ids).logits
        torch.testing.assert_close(logits, learner._module(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
        learner.save_state(tmp_path / "adapter")
        restored = PeftModel.from_pretrained(policy().module(), tmp_path / "adapter")
        torch.testing.assert_close(restored(input_ids=ids).logits, logits, atol=1e-4, rtol=1e-4)


WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
"""Whole blocks of 64 weights in each row; bitsandbytes' kernels for the CPU compute something else where there are none."""


def qlora() -> tuple[LocalPolicy, Lora]:
    pytest.importorskip("bitsandbytes")
    return tiny_policy(**WIDE), Lora(rank=2, alpha=8.0, quantize="nf4")


def test_qlora_trains_adapters_over_four_bits_and_samples_what_it_computed_with() -> None:
    given, lora = qlora()
    learner = Learner(given, lr=1e-2, lora=lora)
    packed = {name: p for name, p in learner._module.named_parameters() if p.dtype == torch.uint8}
    assert {name.split(".")[-3] for name in packed} == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert all(".lora_" in name for name in learner._trained)
    untouched = learner.sample()
    assert untouched.version == f"{given.version}/nf4", "rounded weights are not those of the policy it began with"
    off = {n: float((w - given.weights[n]).abs().mean() / given.weights[n].abs().mean()) for n, w in untouched.weights.items()}
    assert all(0.05 < e < 0.13 if "proj" in n else e == 0 for n, e in off.items()), off
    losses = [step(learner)["loss"] for _ in range(3)]
    assert losses[2] < losses[0]
    ids = torch.from_numpy(rows()[0].tokens)[None]
    with torch.no_grad():
        sampled, computed = learner.sample().module()(input_ids=ids).logits, learner._module(input_ids=ids).logits
    torch.testing.assert_close(sampled, computed, atol=1e-4, rtol=1e-4)


def test_qlora_resumes_bit_for_bit_and_only_over_the_same_weights(tmp_path: Path) -> None:
    given, lora = qlora()
    first, whole, resumed = (Learner(given, lr=1e-2, lora=lora) for _ in range(3))
    step(first)
    first.save_state(tmp_path / "state")
    resumed.load_state(tmp_path / "state")
    step(whole)
    assert step(resumed, 1) == step(whole, 1)
    with pytest.raises(CheckpointError, match="belongs to the weights"):
        Learner(given, lr=1e-2, lora=Lora(rank=2, alpha=8.0)).load_state(tmp_path / "state")


def test_qlora_is_refused_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"unknown quantize 'nf5'. Did you mean 'nf4'"):
        Lora(quantize="nf5")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    with pytest.raises(MissingExtra, match=r"QLoRA.*pip install 'whet\[qlora\]'"):
        Learner(policy(), lr=1e-2, lora=Lora(quantize="nf4"))


def test_qlora_is_refused_where_four_bits_do_not_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    given, lora = qlora()
    import bitsandbytes.nn

    with monkeypatch.context() as broken:
        broken.setattr(bitsandbytes.nn.Linear4bit, "forward", lambda self, x: x @ torch.randn(x.shape[-1], 64))
        with pytest.raises(ConfigError, match=r"4-bit weights with 64 inputs come back changed by \d+% on cpu here"):
            Learner(given, lr=1e-2, lora=lora)

    def unsupported(self: Any, x: Any) -> None:
        raise RuntimeError("no kernel for this device")

    monkeypatch.setattr(bitsandbytes.nn.Linear4bit, "forward", unsupported)
    with pytest.raises(ConfigError, match="4-bit weights do not work on cpu here: no kernel for this device"):
        Learner(given, lr=1e-2, lora=lora)


@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["full", "lora"])
def test_bfloat16_policies_are_trained_in_float32(tmp_path: Path, lora: Lora | None) -> None:
    policy().save(tmp_path / "model")
    half = LocalPolicy.load(tmp_path / "model", dtype="bfloat16")
    learner = Learner(half, lr=1e-4, lora=lora)
    assert {p.dtype for p in learner._trained.values()} == {torch.float32}
    step(learner)
    learner.save_state(tmp_path / "state")
    resumed = Learner(half, lr=1e-4, lora=lora)
    resumed.load_state(tmp_path / "state")
    assert all(torch.equal(a, b) for a, b in zip(learner._trained.values(), resumed._trained.values(), strict=True))
    assert {w.dtype for w in resumed.sample().weights.values()} == {torch.bfloat16}
    assert step(learner, 1) == step(resumed, 1)


def test_states_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    learner = Learner(policy(), lr=1e-2)
    step(learner)
    learner.save_state(tmp_path / "full")
    adapted = Learner(policy(), lr=1e-2, lora=Lora(rank=2))
    adapted.save_state(tmp_path / "lora")
    with pytest.raises(CheckpointError, match="saved without lora"):
        adapted.load_state(tmp_path / "full")
    with pytest.raises(CheckpointError, match="saved with lora"):
        learner.load_state(tmp_path / "lora")
    with pytest.raises(CheckpointError, match="belongs to the weights"):
        Learner(tiny_policy(seed=1), lr=1e-2, lora=Lora(rank=2)).load_state(tmp_path / "lora")
    with pytest.raises(CheckpointError):
        learner.load_state(tmp_path / "nowhere")
    path = tmp_path / "full" / "learner.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError):
        learner.load_state(tmp_path / "full")


def test_reference_scores_are_the_plain_ones() -> None:
    module = tiny_policy(seed=1).module()
    for temperature in (1.0, 0.5):
        scored = with_reference(rows(temperature=temperature), tiny_policy(seed=1))
        for row in scored[:3]:
            with torch.no_grad():
                logits = module(input_ids=torch.from_numpy(row.tokens)[None]).logits[0, :-1] / temperature
            expected = logits.log_softmax(-1).gather(1, torch.from_numpy(row.tokens[1:, None]))[:, 0].numpy()
            assert row.reference is not None
            np.testing.assert_allclose(row.reference[1:], np.where(row.mask[1:], expected, 0.0), atol=2e-5)
    pair = Pair(chosen=scored[0], rejected=scored[1], margin=0.5)
    (done,) = with_reference([pair], tiny_policy(seed=1))
    assert done.margin == 0.5
    assert done.chosen.reference is not None
    assert not np.allclose(done.chosen.reference, scored[0].reference), "pairs are scored at temperature 1"
    assert with_reference([], policy()) == []


def test_calls_that_cannot_work_are_refused() -> None:
    learner = Learner(policy(), lr=1e-2)
    row = dataclasses.replace(rows()[0], logprobs=None, reference=None, origin="e3")
    for batch, loss, message in (
        ([], nll(), "no rows"),
        ([row], dpo(), "dpo takes Pair rows"),
        (pairs(), nll(), "nll takes Example rows"),
        ([row], policy_gradient(), "needs logprobs log-probs, and row 'e3' has none"),
        ([Pair(chosen=row, rejected=row)], dpo(), "with_reference"),
        ([dataclasses.replace(row, mask=np.zeros_like(row.mask))], nll(), "no.* masked-in token|none of the 1 rows"),
    ):
        with pytest.raises(ConfigError, match=message):
            learner.forward_backward(batch, loss)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="forward_backward first"):
        learner.optim_step()
    learner.forward_backward(rows(), nll())
    with pytest.raises(ConfigError, match="accumulated gradient"):
        learner.save_state("unwritten")
    for options, message in (
        ({"schedule": "linaer", "total_steps": 4}, "Did you mean 'linear'"),
        ({"schedule": "linear"}, "total_steps"),
        ({"autocast": "int8"}, "autocast"),
        ({"clip_norm": 0.0}, "clip_norm=0.0"),
        ({"lora": Lora(targets=("nothing",))}, "does not fit"),
    ):
        with pytest.raises(ConfigError, match=message):
            Learner(policy(), lr=1e-2, **options)  # type: ignore[arg-type]


def test_optimise_takes_a_step_per_batch_and_logs_all_of_them() -> None:
    batches = [rows(n_groups=1, seed=seed) for seed in range(3)]
    one, other = (Learner(policy(), lr=1e-3, warmup_steps=2) for _ in range(2))
    each = [one.forward_backward(batch, nll()) | one.optim_step() for batch in batches]
    logged = optimise(other, iter(batches), nll())
    assert all(torch.equal(a, b) for a, b in zip(one.sample().weights.values(), other.sample().weights.values(), strict=True))
    assert other.n_steps == 3
    assert logged["loss"] == pytest.approx(sum(m["loss"] for m in each) / 3)
    assert logged["grad_norm"] == pytest.approx(sum(m["grad_norm"] for m in each) / 3)
    assert logged["tokens"] == sum(int(row.mask.sum()) for batch in batches for row in batch)
    assert logged["lr"] == each[-1]["lr"] != each[0]["lr"]
    assert optimise(other, [], nll()) == {}


def test_the_mean_likelihood_of_a_row_is_that_of_its_own_masked_tokens() -> None:
    found = mean_nll(rows(), policy())
    scored = with_reference(rows(), policy())
    assert found.shape == (12,)
    for value, row in zip(found, scored, strict=True):
        assert row.reference is not None
        assert value == pytest.approx(-sum(x for x, m in zip(row.reference, row.mask, strict=True) if m) / row.mask.sum(), rel=1e-5)
    batch_of_one = Learner(policy(), lr=0.0).forward_backward([rows()[3]], nll())
    assert found[3] == pytest.approx(batch_of_one["nll"], rel=1e-5)
