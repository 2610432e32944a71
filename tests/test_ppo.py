"""Actor and critic: advantages and losses against values worked out by hand, and a value head that packs do not disturb."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import tiny_policy
from test_learner import assert_same, rows
from test_losses import batch
from whet.data import turn_ends
from whet.errors import CheckpointError, ConfigError
from whet.learn import PPO, Learner, Loss, actor_critic, credited, gae, nll, ppo, value_regression, whitened, with_reference
from whet.learn.losses import Totals
from whet.types import Example

policy = functools.cache(tiny_policy)

# -- credit --------------------------------------------------------------------------------------------------------------------

REWARDS, VALUES = np.array([0.0, 0.0, 1.0]), np.array([0.5, 0.4, 0.2])


@pytest.mark.parametrize(
    ("gamma", "lam", "expected"),
    [
        # delta: 0.9 * 0.4 - 0.5 = -0.14, 0.9 * 0.2 - 0.4 = -0.22, 1 - 0.2 = 0.8;  then each plus 0.45 times the next
        (0.9, 0.5, [-0.14 + 0.45 * (-0.22 + 0.45 * 0.8), -0.22 + 0.45 * 0.8, 0.8]),
        (1.0, 1.0, [0.5, 0.6, 0.8]),  # what is still to come, less the value
        (0.9, 0.0, [-0.14, -0.22, 0.8]),  # one step ahead alone
    ],
)
def test_generalised_advantages_by_hand(gamma: float, lam: float, expected: list[float]) -> None:
    assert gae(REWARDS, VALUES, gamma=gamma, lam=lam).tolist() == pytest.approx(expected)


def test_whitening_by_hand() -> None:
    # mean 2, sample variance (1 + 1 + 4 + 4) / 3
    assert whitened(np.array([1.0, 3.0, 0.0, 4.0])).tolist() == pytest.approx([x / math.sqrt(10 / 3) for x in (-1, 1, -2, 2)])
    assert whitened(np.array([3.0])).tolist() == [0.0]
    assert whitened(np.array([2.0, 2.0])).tolist() == [0.0, 0.0]


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def two_turns(**arrays: np.ndarray) -> Example:
    """A prompt, an action of two tokens, an observation, an action of one, and an observation that nothing follows."""
    mask = np.array([False, True, True, False, True, False])
    return Example(tokens=np.arange(6), mask=mask, weights=mask.astype(np.float32), **arrays)


def test_rewards_are_paid_at_the_ends_of_turns_and_observations_are_no_actions() -> None:
    row = two_turns(values=array(9, 0.5, 0.4, 9, 0.2, 9))
    assert turn_ends(row).tolist() == [2, 4]
    (found,) = credited([row], [[0.3, 1.0]], PPO(kl=0.0, gamma=1.0, lam=1.0, whiten=False))
    # from the first turn on 1.3 is to come, from the second on 1
    assert found.weights.tolist() == pytest.approx([0, 0.8, 0.9, 0, 0.8, 0])
    assert found.returns is not None
    assert found.returns.tolist() == pytest.approx([0, 1.3, 1.3, 0, 1.0, 0])


def test_every_token_pays_for_leaving_the_reference() -> None:
    row = two_turns(values=array(0, 0, 0, 0, 0, 0), logprobs=array(0, -1, -2, 0, -1, 0), reference=array(7, -2, -1, 7, -1.5, 7))
    (found,) = credited([row], [[0.0, 1.0]], PPO(kl=0.1, gamma=1.0, lam=1.0, whiten=False))
    # costs 0.1, -0.1 and 0.05; each token bears its own and those behind it
    assert found.weights.tolist() == pytest.approx([0, 0.95, 1.05, 0, 0.95, 0])


def test_whitening_is_over_all_rows_and_leaves_the_returns() -> None:
    pair = [two_turns(values=array(0, 0, 0, 0, 0, 0))] * 2
    better, worse = credited(pair, [[0.0, 1.0], [0.0, 0.0]], PPO(kl=0.0, gamma=1.0, lam=1.0))
    # three tokens of 1 and three of 0: mean 1/2, variance 6 * 1/4 / 5
    assert better.weights[better.mask].tolist() == pytest.approx([0.5 / math.sqrt(0.3)] * 3)
    assert worse.weights[worse.mask].tolist() == pytest.approx([-0.5 / math.sqrt(0.3)] * 3)
    assert better.returns is not None
    assert better.returns[better.mask].tolist() == [1, 1, 1]


def test_credit_that_cannot_be_given_is_refused() -> None:
    row = two_turns(values=array(0, 0, 0, 0, 0, 0))
    with pytest.raises(ConfigError, match="has 2 assistant turns and got 1 rewards"):
        credited([row], [[1.0]], PPO())
    with pytest.raises(ConfigError, match="has no sampled log-probs, which the penalty of"):
        credited([row], [[1.0, 1.0]], PPO())
    with pytest.raises(ConfigError, match=r"has no values; learner.with_values\(rows\)"):
        credited([two_turns()], [[1.0, 1.0]], PPO())
    with pytest.raises(ConfigError, match=r"gamma=2\.0"):
        PPO(gamma=2.0)


# -- losses --------------------------------------------------------------------------------------------------------------------


def values(loss: Loss, logprobs: list[float], value: list[float], weights: list[float], **arrays: list[float]) -> Any:
    """The loss of rows of one token each, and its gradient by the values."""
    x = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    tokens = batch(list(range(len(value))), weights, old=arrays.pop("old", [0.0] * len(value)))
    more: Any = {name: torch.tensor(array, dtype=torch.float64) for name, array in arrays.items()}
    tokens = dataclasses.replace(tokens, value=x, **more)
    totals = Totals(tokens=len(value), rows=len(value))
    logprobs_ = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    total, metrics = loss.compute(logprobs_, tokens, totals)
    total.backward()
    return float(total.detach()), {name: float(m) for name, m in metrics.items()}, logprobs_.grad, x.grad


def test_the_critics_loss_by_hand() -> None:
    # R = 1 throughout. Moved 0.1 towards it: free, (0.6 - 1)^2. Moved 0.4 towards it: clipped to 0.7, and 0.09 > 0.01.
    # Moved 0.4 away: clipped to 0.3, but the free one is the worse, 0.81 > 0.49.
    loss, metrics, _, grad = values(
        value_regression(clip=0.2), [0.0] * 3, [0.6, 0.9, 0.1], [1.0] * 3, old_value=[0.5] * 3, returns=[1.0] * 3
    )
    assert loss == metrics["value_loss"] == pytest.approx((0.16 + 0.09 + 0.81) / 6)
    assert grad.tolist() == pytest.approx([-0.4 / 3, 0.0, -0.9 / 3])
    assert metrics["value_clip_fraction"] == pytest.approx(1 / 3)
    assert metrics["value"] == pytest.approx(1.6 / 3)


def test_actor_and_critic_add_up() -> None:
    # ratio 1.5 with advantage 2, clipped to 1.2: -2.4; value 0.5 off by 0.5: 1/2 0.25
    found = values(actor_critic(value=4.0), [math.log(1.5) - 1], [0.5], [2.0], old=[-1.0], old_value=[0.5], returns=[1.0])
    assert found[0] == pytest.approx(-2.4 + 4 * 0.125)
    assert found[2].tolist() == [0.0]
    assert found[3].tolist() == [-2.0]
    assert found[1]["clip_fraction"] == 1.0


def test_credit_and_loss_are_trls() -> None:
    """The same rewards, values and log-probs give what TRL's PPOTrainer computes: its release 0.15.2, for later ones have none."""
    rewards, old_values = np.array([[0.1, -0.2, 1.0], [0.0, 0.3, -0.4]]), np.array([[0.5, 0.4, 0.7], [-0.1, 0.2, 0.0]])
    mask = np.array([False, True, True, True])
    rows = [
        Example(
            tokens=np.arange(4), mask=mask, weights=array(*mask), values=array(9, *v), logprobs=array(9, *-r), reference=array(9, 0, 0, 0)
        )
        for r, v in zip(rewards, old_values, strict=True)
    ]
    found = credited(rows, [[0.0], [0.0]], PPO(kl=1.0, gamma=0.97, lam=0.9))  # with a penalty of 1, log-probs are tokens' rewards
    advantages = [0.7204239611, 0.8961835974, 0.7661779888, 0.0555921253, -0.9795207950, -1.4588568776]
    returns = [0.7856057, 0.7409, 1.0, -0.0235516, -0.0492, -0.4]
    assert np.concatenate([row.weights[mask] for row in found]).tolist() == pytest.approx(advantages, abs=1e-6)
    assert np.concatenate([row.returns[mask] for row in found if row.returns is not None]).tolist() == pytest.approx(returns, abs=1e-6)
    loss, _, to_logprobs, to_values = values(
        actor_critic(value=0.3),
        [-1.0, -2.0, -0.5, -0.3, -1.5, -0.7],
        [0.9, 0.1, 0.8, 0.3, 0.25, -0.5],
        advantages,
        old=[-1.3, -1.8, -0.6, -0.2, -1.9, -0.7],
        old_value=old_values.flatten().tolist(),
        returns=returns,
    )
    assert loss == pytest.approx(0.0882559453)
    assert to_logprobs.tolist() == pytest.approx([0.0, -0.1222888453, -0.1411262719, -0.0083836392, 0.2435455523, 0.2431428129])
    assert to_values.tolist() == pytest.approx([0.005719715, -0.032045, -0.01, 0.01617758, 0.01496, 0.0])


# -- the value head --------------------------------------------------------------------------------------------------------------


def learner(arch: str = "qwen3", **options: Any) -> Learner:
    """A learner whose value head says something."""
    made = Learner(tiny_policy(arch), value_head=True, **{"lr": 0.0, **options})
    assert made._value_head is not None
    with torch.no_grad():
        made._value_head.weight.copy_(torch.linspace(-0.1, 0.2, 32)[None])
        made._value_head.bias.fill_(0.3)
    return made


def sampled(arch: str = "qwen3") -> list[Example]:
    """Rows with log-probs, values and returns that are a bit off."""
    rng, made = np.random.default_rng(0), learner(arch).with_values(with_reference(rows(), tiny_policy(arch)))

    def off(row: Example, scale: float) -> np.ndarray:
        assert row.values is not None
        return np.where(row.mask, row.values + rng.normal(scale=scale, size=len(row.mask)), 0).astype(np.float32)

    noise = [rng.normal(scale=0.2, size=len(row.mask)).astype(np.float32) for row in made]
    old = [row.reference + more for row, more in zip(made, noise, strict=True) if row.reference is not None]
    return [dataclasses.replace(r, logprobs=o, values=off(r, 0.1), returns=off(r, 1.0)) for r, o in zip(made, old, strict=True)]


def gradient(rows: Any, loss: Loss, **options: Any) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    made = learner(**options)
    metrics = made.forward_backward(rows, loss)
    assert made._value_head is not None
    named = [*made._trained.items(), *made._value_head.named_parameters("value_head")]
    return metrics, {name: p.grad for name, p in named if p.grad is not None}


@pytest.mark.parametrize("loss", [actor_critic(value=0.5), value_regression()], ids=["actor_critic", "value_regression"])
def test_neither_packing_nor_order_changes_anything(loss: Loss) -> None:
    batch = sampled()
    whole = gradient(batch, loss)
    assert float(whole[1]["value_head.weight"].abs().max()) > 1e-3
    assert_same(gradient(batch, loss, max_pack_tokens=40), gradient(batch, loss))
    assert_same(gradient(batch[::-1], loss), whole)


@pytest.mark.parametrize("arch", ["qwen3", "gemma3_text", "gpt2"])
def test_the_loss_over_packs_is_that_of_the_plain_formula(arch: str) -> None:
    rows, made, module = sampled(arch), learner(arch), tiny_policy(arch).module()
    metrics = made.forward_backward(rows, actor_critic(value=0.5))
    assert made._value_head is not None
    weight, bias = made._value_head.weight.detach().clone().requires_grad_(True), made._value_head.bias.detach()
    surrogate, errors = [], []
    for row in rows:
        assert row.logprobs is not None
        assert row.values is not None
        assert row.returns is not None
        out, mask = module(input_ids=torch.from_numpy(row.tokens)[None], output_hidden_states=True), torch.from_numpy(row.mask[1:])
        target = torch.from_numpy(row.tokens[1:, None])
        logprobs = out.logits[0, :-1].log_softmax(-1).gather(1, target)[:, 0][mask]
        value = (out.hidden_states[-1][0, :-1] @ weight[0] + bias)[mask]
        old, returns = (torch.from_numpy(array[row.mask]) for array in (row.values, row.returns))
        ratio, advantage = (logprobs - torch.from_numpy(row.logprobs[row.mask])).exp(), torch.from_numpy(row.weights[row.mask])
        surrogate.append(torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage))
        near = torch.min(torch.max(value, old - 0.2), old + 0.2)
        errors.append(torch.max((value - returns) ** 2, (near - returns) ** 2))
    total = -torch.cat(surrogate).mean() + 0.25 * torch.cat(errors).mean()
    total.backward()
    assert metrics["loss"] == pytest.approx(float(total.detach()), abs=1e-4)
    torch.testing.assert_close(made._value_head.weight.grad, weight.grad, atol=1e-4, rtol=1e-3)
    grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    for name, parameter in made._trained.items():
        torch.testing.assert_close(parameter.grad, grads[name], atol=1e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_values_are_what_the_head_says_before_each_token() -> None:
    made, module = learner(), policy().module()
    assert made._value_head is not None
    for row in made.with_values(rows()):
        with torch.no_grad():
            hidden = module(input_ids=torch.from_numpy(row.tokens)[None], output_hidden_states=True).hidden_states[-1][0]
            expected = made._value_head(hidden)[:-1, 0].numpy()[row.mask[1:]]
        assert row.values is not None
        np.testing.assert_allclose(row.values[row.mask], expected, atol=1e-5)
        assert not row.values[~row.mask].any()


def test_a_value_head_begins_with_nothing_and_learns_to_expect_returns() -> None:
    made = Learner(policy(), lr=1e-2, value_head=True)
    rows_ = [dataclasses.replace(row, returns=np.where(row.mask, 0.7, 0).astype(np.float32)) for row in made.with_values(rows())]
    assert not any(row.values.any() for row in rows_ if row.values is not None)
    for _ in range(60):
        made.forward_backward(rows_, value_regression(clip=1.0))
        made.optim_step()
    learned = np.concatenate([row.values[row.mask] for row in made.with_values(rows()) if row.values is not None])
    assert learned.mean() == pytest.approx(0.7, abs=0.05)
    assert np.abs(learned - 0.7).mean() < 0.15


def test_it_is_resumed_bit_for_bit_and_begins_anew_with_other_weights(tmp_path: Path) -> None:
    batch = sampled()

    def step(made: Learner) -> dict[str, float]:
        return made.forward_backward(batch, actor_critic()) | made.optim_step()

    made = learner(lr=1e-2)
    step(made)
    made.save_state(tmp_path / "state")
    resumed = Learner(tiny_policy(), lr=1e-2, value_head=True)
    resumed.load_state(tmp_path / "state")
    assert step(resumed) == step(made)
    kept = made.with_values(batch)[0].values
    made.restart(made.sample())
    assert np.array_equal(made.with_values(batch)[0].values, kept), "the present weights' head stays"
    made.restart(tiny_policy())
    assert not any(row.values.any() for row in made.with_values(batch) if row.values is not None)
    with pytest.raises(CheckpointError, match="it was saved with a value head"):
        Learner(tiny_policy(), lr=1e-2).load_state(tmp_path / "state")


def test_losses_that_lack_something_are_refused() -> None:
    plain = Learner(policy(), lr=0.0)
    with pytest.raises(ConfigError, match=r"actor_critic needs a value head.*value_head=True"):
        plain.forward_backward(sampled(), actor_critic())
    with pytest.raises(ConfigError, match="this learner has no value head"):
        plain.with_values(rows())
    with pytest.raises(ConfigError, match=r"value_regression needs values, and row '' has none; learner.with_values\(rows\) fills"):
        learner().forward_backward(rows(), value_regression())
    with pytest.raises(ConfigError, match=r"needs returns, and row '' has none; credited\(rows, rewards\)"):
        learner().forward_backward(learner().with_values(rows()), actor_critic())


# -- the update ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("beside", [False, True], ids=["shared backbone", "critic beside"])
def test_an_update_makes_rewarded_rows_likelier_and_its_critic_foresees_them(beside: bool) -> None:
    start = with_reference(rows(), policy())
    drawn = [dataclasses.replace(row, logprobs=row.reference) for row in start]
    rewards = [[0.0] * (len(turn_ends(row)) - 1) + [float(i % 2)] for i, row in enumerate(drawn)]
    actor = Learner(policy(), lr=3e-3, value_head=not beside)
    other = Learner(policy(), lr=3e-3, value_head=True) if beside else None
    how = PPO(kl=0.0, value=0.5, epochs=6, batch_size=100)
    logged = [ppo(actor, drawn, rewards, policy(), how, critic=other, seed=i) for i in range(8)]

    def likelihood(rewarded: int) -> float:
        after = [row.reference[row.mask].sum() for row in with_reference(drawn, actor.sample()) if row.reference is not None]
        before = [row.reference[row.mask].sum() for row in start if row.reference is not None]
        return float(np.mean([(a - b) for a, b in zip(after[rewarded::2], before[rewarded::2], strict=True)]))

    assert likelihood(1) > likelihood(0) + 1
    assert logged[0]["explained"] == pytest.approx(0.0, abs=1e-6)
    assert logged[-1]["explained"] > 0.3
    assert {"loss", "grad_norm", "skipped"} <= set(logged[0])


def test_the_penalty_is_against_the_reference_that_is_named() -> None:
    drawn = [dataclasses.replace(row, logprobs=row.reference) for row in with_reference(rows(), policy())]
    rewards = [[0.0] * len(turn_ends(row)) for row in drawn]
    own = ppo(learner(), drawn, rewards, policy(), PPO(kl=0.5, epochs=1))
    other = ppo(learner(), drawn, rewards, tiny_policy(seed=1), PPO(kl=0.5, epochs=1))
    assert own["kl"] == pytest.approx(0.0, abs=1e-5)
    assert other["kl"] > 0.5
    with pytest.raises(ConfigError, match="no value head"):
        ppo(Learner(policy(), lr=0.0), drawn, rewards, policy(), PPO())


def test_other_losses_do_not_touch_the_value_head() -> None:
    made = learner(lr=1e-2)
    before = made.with_values(rows())
    assert made._value_head is not None
    kept = made._value_head.weight.detach().clone()
    made.forward_backward(rows(), nll())
    made.optim_step()
    assert torch.equal(made._value_head.weight.detach(), kept)
    assert before[0].values is not None
