"""The same model, batch and settings give TRL's losses and gradients, computed by TRL's own trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import tiny_policy
from whet.data import unpaired
from whet.learn import Learner, Loss, dpo, group_advantages, ipo, kto, nll, policy_gradient, simpo, with_reference
from whet.types import Example, Pair

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

COMMON: dict[str, Any] = {"report_to": [], "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "save_strategy": "no"}


def assert_equal(loss: Loss, rows: Any, theirs: torch.Tensor, model: Any, policy: Any) -> dict[str, float]:
    """Ours on `rows` against TRL's `theirs`, of which `model` holds the gradient: both to 1e-5."""
    learner = Learner(policy, lr=0.0, max_pack_tokens=64)
    metrics = learner.forward_backward(rows, loss)
    assert metrics["loss"] == pytest.approx(float(theirs), abs=1e-5)
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert max(float(g.abs().max()) for g in grads.values()) > 1e-3
    for name, parameter in learner._trained.items():
        torch.testing.assert_close(parameter.grad, grads[name], atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    return metrics


def dpo_batch(rng: np.random.Generator) -> list[dict[str, list[int]]]:
    """Preferences over completions of various lengths."""

    def draw(low: int, high: int) -> list[int]:
        return [int(t) for t in rng.integers(3, 320, rng.integers(low, high))]

    return [{"prompt_ids": draw(4, 12), "chosen_ids": draw(3, 15), "rejected_ids": draw(3, 15)} for _ in range(5)]


def row(prompt: list[int], completion: list[int]) -> Example:
    mask = np.array([False] * len(prompt) + [True] * len(completion))
    return Example(tokens=np.array(prompt + completion), mask=mask, weights=mask.astype(np.float32))


@pytest.mark.parametrize(("loss_type", "beta", "ours"), [("sigmoid", 0.05, dpo(beta=0.05)), ("ipo", 0.5, ipo(tau=0.5))], ids=["dpo", "ipo"])
def test_dpo_and_ipo_are_trls(tmp_path: Path, loss_type: str, beta: float, ours: Loss) -> None:
    policy, reference = tiny_policy(seed=0), tiny_policy(seed=1)
    data = dpo_batch(np.random.default_rng(0))
    columns = {"prompt": ["a"] * 4, "chosen": ["b"] * 4, "rejected": ["c"] * 4}
    trainer = trl.DPOTrainer(
        model=policy.module(),
        ref_model=reference.module(),
        args=trl.DPOConfig(output_dir=str(tmp_path), beta=beta, loss_type=loss_type, max_length=None, **COMMON),
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=policy.tokenizer,
    )
    model = trainer.model.eval()
    theirs = trainer.compute_loss(model, trainer.data_collator(data))
    theirs.backward()
    metrics = assert_equal(ours, with_reference(pairs_of(data), reference), theirs, model, policy)
    logged = trainer._metrics["eval"]
    assert metrics["accuracy"] == pytest.approx(logged["rewards/accuracies"][0])
    if loss_type == "ipo":  # what TRL logs of it is not divided by the length, as the loss is
        return
    assert metrics["reward_chosen"] == pytest.approx(logged["rewards/chosen"][0], abs=1e-4)
    assert metrics["reward_rejected"] == pytest.approx(logged["rewards/rejected"][0], abs=1e-4)


def pairs_of(data: list[dict[str, list[int]]]) -> list[Pair]:
    return [Pair(chosen=row(d["prompt_ids"], d["chosen_ids"]), rejected=row(d["prompt_ids"], d["rejected_ids"])) for d in data]


def test_simpo_is_trls(tmp_path: Path) -> None:
    cpo, policy = pytest.importorskip("trl.experimental.cpo"), tiny_policy(seed=0)
    columns = {"prompt": ["a"] * 4, "chosen": ["b"] * 4, "rejected": ["c"] * 4}
    options = COMMON | {"max_length": 64, "loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.6, "cpo_alpha": 0.0}
    trainer = cpo.CPOTrainer(
        model=policy.module(),
        args=cpo.CPOConfig(output_dir=str(tmp_path), disable_dropout=True, **options),
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=policy.tokenizer,
    )
    model, data = trainer.model.eval(), dpo_batch(np.random.default_rng(0))
    theirs, logged = trainer.get_batch_loss_metrics(model, padded(data), "eval")
    theirs.backward()
    metrics = assert_equal(simpo(beta=2.0, gamma=0.6), pairs_of(data), theirs.detach(), model, policy)
    for ours, name in (("reward_chosen", "chosen"), ("reward_rejected", "rejected"), ("accuracy", "accuracies")):
        assert metrics[ours] == pytest.approx(logged[f"eval_rewards/{name}"], abs=1e-4)


def padded(data: list[dict[str, list[int]]]) -> dict[str, Any]:
    """The batch as TRL's CPO trainer takes it."""
    batch: dict[str, Any] = {}
    for side in ("chosen", "rejected"):
        ids = [d["prompt_ids"] + d[f"{side}_ids"] for d in data]
        width = max(map(len, ids))
        batch[f"{side}_input_ids"] = torch.tensor([i + [0] * (width - len(i)) for i in ids])
        batch[f"{side}_attention_mask"] = torch.tensor([[1] * len(i) + [0] * (width - len(i)) for i in ids])
        labels = [[-100] * len(d["prompt_ids"]) + d[f"{side}_ids"] for d in data]
        batch[f"{side}_labels"] = torch.tensor([i + [-100] * (width - len(i)) for i in labels])
    return batch


def test_kto_is_trls(tmp_path: Path) -> None:
    policy, reference = tiny_policy(seed=0), tiny_policy(seed=1)
    data, good = dpo_batch(np.random.default_rng(0)), [True, False, True, True, False]
    answers = [d["chosen_ids"] for d in data]
    rows = [
        {"prompt_ids": d["prompt_ids"], "completion_ids": answer, "KL_completion_ids": other, "label": label}
        for d, answer, other, label in zip(data, answers, [answers[-1], *answers[:-1]], good, strict=True)
    ]
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.7}
    trainer = trl.KTOTrainer(
        model=policy.module(),
        ref_model=reference.module(),
        args=trl.KTOConfig(output_dir=str(tmp_path), beta=0.3, per_device_train_batch_size=5, **weights, **COMMON),
        train_dataset=datasets.Dataset.from_dict({"prompt": ["a"] * 5, "completion": ["b"] * 5, "label": good}),
        processing_class=policy.tokenizer,
    )
    model = trainer.model.eval()
    theirs = trainer.compute_loss(model, trainer.data_collator(rows))
    theirs.backward()
    pairs = unpaired([row(d["prompt_ids"], d["chosen_ids"]) for d in data], good, desirable=1.5, undesirable=0.7)
    metrics = assert_equal(kto(beta=0.3), with_reference(pairs, reference), theirs.detach(), model, policy)
    logged = trainer._metrics["eval"]
    assert metrics["kl"] == pytest.approx(logged["kl"][0], rel=1e-4)
    assert metrics["kl"] > 0.1, "the zero is not the one that a clamp gives"
    assert metrics["reward_desirable"] * 5 / 3 == pytest.approx(logged["rewards/chosen"][0], abs=1e-4)
    assert metrics["reward_undesirable"] * 5 / 2 == pytest.approx(logged["rewards/rejected"][0], abs=1e-4)


def test_masked_nll_is_transformers_loss() -> None:
    policy = tiny_policy()
    data = dpo_batch(np.random.default_rng(1))
    rows = [row(d["prompt_ids"], d["chosen_ids"]) for d in data]
    ids, labels = (torch.full((len(rows), max(len(r.tokens) for r in rows)), fill) for fill in (0, -100))
    for i, r in enumerate(rows):
        ids[i, : len(r.tokens)] = torch.from_numpy(r.tokens)
        labels[i, : len(r.tokens)] = torch.from_numpy(np.where(r.mask, r.tokens, -100))
    model = policy.module()
    theirs = model(input_ids=ids, labels=labels).loss
    theirs.backward()
    assert_equal(nll(), rows, theirs.detach(), model, policy)


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Something that tells the completions of a group apart."""
    return [float(sum(ids) % 7) / 7 for ids in completion_ids]


def grpo_trainer(directory: Path, loss_type: str, **options: Any) -> Any:
    args = trl.GRPOConfig(
        output_dir=str(directory / "out"),
        loss_type=loss_type,
        epsilon=0.1,
        epsilon_high=0.3,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=12,
        temperature=0.9,
        use_bias_correction_kl=False,  # the paper's divergence, not the one weighted by the ratio
        model_init_kwargs={"dtype": "float32"},
        **COMMON,
        **options,
    )
    prompts = ["Who is the boss of Rosa?", "friend"] * 4
    trainer = trl.GRPOTrainer(
        model=str(directory / "model"), reward_funcs=reward, args=args, train_dataset=datasets.Dataset.from_dict({"prompt": prompts})
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@pytest.mark.parametrize(
    ("loss_type", "ours"),
    [
        ("grpo", policy_gradient(clip_low=0.1, clip_high=0.3, kl=0.04)),
        ("dapo", policy_gradient(clip_low=0.1, clip_high=0.3, kl=0.04, aggregation="token-mean")),
        ("dr_grpo", policy_gradient(clip_low=0.1, clip_high=0.3, kl=0.04, aggregation="constant", constant=12)),
    ],
    ids=["grpo", "dapo", "dr_grpo"],
)
def test_grpo_is_trls(tmp_path: Path, loss_type: str, ours: Loss) -> None:
    policy, reference = tiny_policy(seed=0), tiny_policy(seed=1)
    policy.save(tmp_path / "model")
    trainer = grpo_trainer(tmp_path, loss_type, beta=0.04)
    trainer.ref_model.load_state_dict(reference.module().state_dict())
    torch.manual_seed(0)
    prompts = [{"prompt": p} for p in ("Who is the boss of Rosa?", "friend") for _ in range(4)]
    inputs = trainer._generate_and_score_completions(prompts)
    mask, rng = inputs["completion_mask"].bool(), np.random.default_rng(0)

    rewards = reward([ids[m].tolist() for ids, m in zip(inputs["completion_ids"], mask, strict=True)])
    advantages = group_advantages(rewards[:4]) + group_advantages(rewards[4:])
    assert np.std(advantages) > 0.1
    np.testing.assert_allclose(advantages, inputs["advantages"].numpy(), atol=1e-5)

    # A few tokens in the middle stand for what a tool answered; the old policy is a bit off, so that some ratios are clipped.
    inputs["tool_mask"] = mask & torch.from_numpy(rng.random(mask.shape) < 0.7)
    inputs["tool_mask"][:, 0] = True
    inputs["num_items_in_batch"] = inputs["tool_mask"].sum()
    inputs["old_per_token_logps"] = old_logprobs(policy, inputs, rng)
    model = trainer.model.eval()
    theirs = trainer._compute_loss(model, inputs)
    theirs.backward()

    rows = with_reference(rows_of(inputs, advantages), reference)
    metrics = assert_equal(ours, rows, theirs.detach(), model, policy)
    logged = trainer._metrics["eval"]
    assert metrics["clip_fraction"] == pytest.approx(logged["clip_ratio/region_mean"][-1], abs=1e-6)
    assert 0.05 < metrics["clip_fraction"] < 0.95
    assert metrics["kl"] == pytest.approx(logged["kl"][-1], rel=1e-4)


def old_logprobs(policy: Any, inputs: dict[str, torch.Tensor], rng: np.random.Generator) -> torch.Tensor:
    plain = [r.reference for r in with_reference(rows_of(inputs | {"old_per_token_logps": None}, [0.0] * 8), policy)]
    old = torch.zeros(inputs["completion_ids"].shape)
    for i, logprobs in enumerate(plain):
        n = int(inputs["prompt_mask"][i].sum())
        old[i, : len(logprobs) - n] = torch.from_numpy(logprobs[n:])
    return old + torch.from_numpy(rng.normal(scale=0.3, size=old.shape)).float()


def rows_of(inputs: dict[str, Any], advantages: list[float]) -> list[Example]:
    """TRL's padded batch as rows; tokens that TRL's tool mask leaves out are observations."""
    rows = []
    for i, advantage in enumerate(advantages):
        prompt = inputs["prompt_ids"][i][inputs["prompt_mask"][i].bool()].numpy()
        kept = inputs["completion_mask"][i].bool()
        mask = np.concatenate([np.zeros(len(prompt), bool), inputs["tool_mask"][i][kept].numpy().astype(bool)])
        old = inputs["old_per_token_logps"]
        rows.append(
            Example(
                tokens=np.concatenate([prompt, inputs["completion_ids"][i][kept].numpy()]),
                mask=mask,
                weights=np.where(mask, advantage, 0.0).astype(np.float32),
                logprobs=None if old is None else np.concatenate([np.zeros(len(prompt), np.float32), old[i][kept].numpy()]),
                temperature=0.9,
            )
        )
    return rows
