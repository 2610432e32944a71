"""DMPO, IPR and StepAgent: each one's own mechanism against cases made by hand.

The model is tiny and random: what is tested is what it is given to learn from.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from helpers import spied, tiny_policy
from whet import learn, methods
from whet.agents import Agent
from whet.config import configure
from whet.envs import Action, Env, Step
from whet.envs.base import EnvFactory
from whet.errors import ConfigError
from whet.policies import load_policy
from whet.rollout import rollout
from whet.runs import Run
from whet.types import Data, Episode, Example, Pair, Task, Turn


class Path(Env):
    """Three turns; whoever says `yes` in the first of them is right."""

    max_turns = 3
    max_tokens = 4

    def reset(self, task: Task) -> str:
        self.said: list[str] = []
        return "Well?"

    def step(self, action: Action) -> Step:
        self.said.append(action.text)
        over, good = len(self.said) == self.max_turns, self.said[0] == "yes"
        return Step(observation="Go on.", reward=float(good and over), terminated=over, success=good and over)

    def expert(self, rng: Any) -> Action:
        return Action(text="yes")


PATH = EnvFactory(Path)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    return spied(monkeypatch)


def experts(env: EnvFactory = PATH, n: int = 3) -> tuple[Episode, ...]:
    return tuple(rollout(Agent(load_policy("expert")), env, env.tasks("train", n), tag="experts"))


def trained(name: str, env: EnvFactory = PATH, *, n: int = 3, **options: Any) -> tuple[Run, Agent[Any]]:
    run, method = Run.scratch(), methods.get(name)
    cfg: Any = configure(method.config, options)
    return run, method.function(Agent(tiny_policy(seed=1)), Data(experts=experts(env, n)), env=env, run=run, cfg=cfg)


def runs_of(row: Any) -> list[list[float]]:
    """The weights of each action's tokens."""
    at = np.flatnonzero(row.mask)
    return [row.weights[part].tolist() for part in np.split(at, np.flatnonzero(np.diff(at) > 1) + 1)]


# -- DMPO --------------------------------------------------------------------------------------------------------------------


def test_dmpo_weighs_turns_by_their_place_and_the_episodes_length(given: list[list[Pair]]) -> None:
    trained("dmpo", gamma=0.5, samples=2, lr=1e-3, epochs=1)
    pairs = [pair for batch in given for pair in batch]
    assert len(pairs) == 6
    for pair in pairs:
        assert pair.chosen.origin.startswith("experts/")
        for row in (pair.chosen, pair.rejected):
            turns = runs_of(row)
            assert [turn[0] for turn in turns] == pytest.approx([1.0, 3 / 7, 1 / 7])
            assert all(set(turn) == {turn[0]} for turn in turns), "all tokens of a turn weigh the same"


def test_dmpos_loss_is_that_of_the_paper() -> None:
    # A pair of two turns and of one: 0.4 (1 * d1 + (1/3) * d2) - 0.4 d3, gamma = 1/2 (phi_1 = 1/2 (1 - 1/2) / (1 - 1/4) = 1/3)
    from test_losses import batch, run

    weights = [*learn.turn_weights(2, gamma=0.5), *learn.turn_weights(1, gamma=0.5)]
    d1, d2, d3 = 0.5, -0.2, 0.7
    tokens = batch([0, 0, 1], weights, reference=[-1 - d1, -2 - d2, -3 - d3])
    value, _, grad = run(learn.dpo(beta=0.4), [-1.0, -2.0, -3.0], tokens, learn.losses.Totals(tokens=3, rows=2, pairs=1))
    margin = 0.4 * (d1 + d2 / 3 - d3)
    assert value == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-6)
    slope = 0.4 / (1 + math.exp(margin))
    assert grad == pytest.approx([-slope, -slope / 3, slope], abs=1e-6)


def test_dmpo_of_one_turn_is_eto(given: list[list[Pair]]) -> None:
    class One(Path):
        max_turns = 1

    env, shared = EnvFactory(One), {"samples": 2, "epochs": 1, "explore_temperature": 1.0}
    _, one = trained("dmpo", env, beta=0.3, lr=1e-3, iterations=1, **shared)
    ours = len(given)
    _, other = trained("eto", env, beta=(0.3,), lr=(1e-3,), iterations=1, max_extra_turns=None, **shared)
    assert ours == len(given) - ours > 0
    same = [np.array_equal(a.numpy(), other.policy.weights[name].numpy()) for name, a in one.policy.weights.items()]
    assert all(same), "same seeds, same pairs, same loss"


def test_dmpo_refuses_a_discount_above_one() -> None:
    with pytest.raises(ConfigError, match=r"gamma is 1\.5"):
        methods.get("dmpo").config(gamma=1.5)


# -- IPR ---------------------------------------------------------------------------------------------------------------------


class Late(Path):
    """It is the last turn that matters, and nothing before it."""

    def step(self, action: Action) -> Step:
        Path.step(self, action)
        over, good = len(self.said) == self.max_turns, action.text == "yes"
        return Step(observation="Go on.", reward=float(good and over), terminated=over, success=good and over)


def pairs_of(given: list[list[Pair]]) -> dict[str, list[Pair]]:
    found: dict[str, list[Pair]] = {"outcome": [], "step": []}
    for pair in (pair for batch in given for pair in batch):
        found[pair.kind].append(pair)
    return found


@pytest.mark.parametrize(("env", "where"), [(Path, []), (Late, [2])], ids=["early", "late"])
def test_ipr_pairs_the_steps_that_matter(given: list[list[Pair]], env: type[Env], where: list[int]) -> None:
    # Early: behind the expert's `yes` whatever follows is right, so that no later step is better than another. Late: a scorer that
    # babbles fails from every state, so that all steps but the last are worth nothing, whoever takes them; of the last, the
    # environment says what it is worth.
    run, _ = trained("ipr", EnvFactory(env), iterations=1, epochs=1, completions=3)
    found = pairs_of(given)
    assert len(found["outcome"]) == 3
    (event,) = run.events("expert_steps")
    assert event["worth"] == [1.0] * 9 if env is Path else [0.0, 0.0, 1.0] * 3
    begun = {e.id: e.tags["fork"] for e in run.load_episodes("iteration0")}
    assert sorted(fork["actions"] for fork in begun.values()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert all(fork["episode"].startswith("experts/") for fork in begun.values())
    assert sorted(begun[pair.rejected.origin]["actions"] for pair in found["step"]) == where * 3


@pytest.mark.parametrize("suffix", [True, False])
def test_iprs_step_pairs_share_what_came_before_token_for_token(given: list[list[Pair]], suffix: bool, monkeypatch: Any) -> None:
    # Made-up values that are for the expert's steps everywhere, so that there is a pair in every state.
    from whet.methods import ipr
    from whet.rollout.values import Value

    def values(scorer: Any, env: Any, beginnings: Any, **options: Any) -> list[Value]:
        return [Value(mean=float(e.id.startswith("experts/")), n=1) for e, _ in beginnings]

    monkeypatch.setattr(ipr, "prefix_values", values)
    trained("ipr", EnvFactory(Late), iterations=1, epochs=1, suffix=suffix)
    found = pairs_of(given)["step"]
    assert len(found) == 6
    for pair in found:
        begin = int(np.argmax(pair.chosen.mask))
        assert pair.chosen.tokens[:begin].tolist() == pair.rejected.tokens[:begin].tolist()
        assert not pair.rejected.mask[:begin].any()
        assert begin > int(np.argmax(pair.chosen.tokens[:begin] != 0)), "there is something that both begin with"
    actions = sorted(len(runs_of(pair.chosen)) for pair in found)
    assert actions == ([1, 1, 1, 2, 2, 2] if suffix else [1] * 6)


def test_ipr_needs_both_rewards_to_agree(given: list[list[Pair]], monkeypatch: Any) -> None:
    from whet.methods import ipr
    from whet.rollout.values import Value

    def against(scorer: Any, env: Any, beginnings: Any, **options: Any) -> list[Value]:
        return [Value(mean=float(not e.id.startswith("experts/")), n=1) for e, _ in beginnings]

    monkeypatch.setattr(ipr, "prefix_values", against)
    trained("ipr", EnvFactory(Late), iterations=1, epochs=1)
    assert pairs_of(given)["step"] == []


def test_iprs_reference_and_scorer_stay(given: list[list[Pair]], monkeypatch: Any) -> None:
    from whet.methods import ipr

    scorers, values = [], ipr.prefix_values

    def spy(scorer: Any, *args: Any, **options: Any) -> Any:
        scorers.append((scorer.policy.version, scorer.sampling.temperature))
        return values(scorer, *args, **options)

    monkeypatch.setattr(ipr, "prefix_values", spy)
    run, better = trained("ipr", EnvFactory(Late), iterations=2, epochs=1, lr=1e-2, completions=1)
    version = tiny_policy(seed=1).version
    assert scorers == [(version, 1.0)] * 3, "the expert's steps once, its own in each iteration"
    assert better.policy.version != version
    first, second = (e["metrics"] for e in run.events("log"))
    assert first["outcome_pairs"] == second["outcome_pairs"] == 3
    experts = {(p.origin, i // 3): float(p.chosen.reference.sum()) for i, p in enumerate(pairs_of(given)["outcome"])}  # type: ignore[union-attr]
    for origin in {origin for origin, _ in experts}:
        assert experts[origin, 0] == pytest.approx(experts[origin, 1]), "the same policy's log-probs in both iterations"


# -- StepAgent ---------------------------------------------------------------------------------------------------------------


def test_step_agent_holds_its_own_action_in_each_state_against_the_experts(given: list[list[Pair]]) -> None:
    run, _ = trained("step_agent", iterations=1, samples=2, lr=1e-3)
    pairs = [pair for batch in given for pair in batch]
    (log,) = (e["metrics"] for e in run.events("log"))
    assert len(pairs) == log["pairs"] == 3 * 3 * 2, "two different actions in each of three states of three tasks"
    assert log["moves"] == 18
    yes = tiny_policy(seed=1).chat.answer(Turn(role="assistant", content="yes"))
    for pair in pairs:
        assert len(runs_of(pair.chosen)) == len(runs_of(pair.rejected)) == 1
        begin = int(np.argmax(pair.chosen.mask))
        assert tuple(pair.chosen.tokens[pair.chosen.mask]) == yes
        assert pair.chosen.tokens[:begin].tolist() == pair.rejected.tokens[:begin].tolist()
        assert pair.rejected.tokens[begin:].tolist() != list(yes)
    assert run.cost.env_steps == 0, "the states are the expert's, as they were recorded"
    assert run.cost.sampled_tokens > 0


def test_step_agent_has_nothing_to_learn_where_it_does_as_the_expert(given: list[list[Pair]], monkeypatch: Any) -> None:
    from whet.methods import step_agent

    def agree(agent: Any, env: Any, met: Any, **options: Any) -> Any:
        return [[moment] for moment in met]

    monkeypatch.setattr(step_agent, "propose", agree)
    run, better = trained("step_agent", iterations=1)
    assert given == []
    assert [e["metrics"]["pairs"] for e in run.events("log")] == [0]
    weights = tiny_policy(seed=1).weights
    assert all(np.array_equal(t.numpy(), weights[name].numpy()) for name, t in better.policy.weights.items())


def test_step_agents_reference_is_the_policy_that_was_inspected(given: list[list[Pair]]) -> None:
    trained("step_agent", iterations=2, lr=1e-2)
    assert len(given) == 2
    for batch in given:  # of a first action, there are the log-probs that it was sampled with
        first = [pair.rejected for pair in batch if pair.rejected.logprobs is not None]
        assert len(first) == 3
        for row in first:
            np.testing.assert_allclose(row.reference[row.mask], row.logprobs[row.mask], atol=1e-4)  # type: ignore[index]


# -- StepAgent by inverse reinforcement learning -----------------------------------------------------------------------------


def row(tokens: list[int], actions: list[int]) -> Example:
    mask = np.isin(np.arange(len(tokens)), actions)
    return Example(tokens=np.array(tokens), mask=mask, weights=mask.astype(np.float32))


def test_discrimination_by_hand() -> None:
    # An expert's action of V = 1 that weighs 2, two of an agent's of V = 0.5 and -3: 2 log(1 + e^-1) + log(1 + e^0.5) + log(1 + e^-3)
    import torch

    from whet.learn.losses import Tokens, Totals

    value = torch.tensor([1.0, 0.5, -3.0], dtype=torch.float64, requires_grad=True)
    tokens = Tokens(row=torch.tensor([0, 1, 1]), weight=torch.tensor([2.0, -1.0, -1.0], dtype=torch.float64), value=value, n_rows=2)
    loss, metrics = learn.discrimination().compute(torch.zeros(3), tokens, Totals(tokens=3, rows=2))
    assert float(loss) == pytest.approx((2 * math.log1p(math.exp(-1)) + math.log1p(math.exp(0.5)) + math.log1p(math.exp(-3))) / 3)
    loss.backward()
    s = [1 / (1 + math.exp(-v)) for v in (1.0, 0.5, -3.0)]
    assert value.grad is not None
    assert value.grad.tolist() == pytest.approx([2 * (s[0] - 1) / 3, s[1] / 3, s[2] / 3])
    assert float(metrics["accuracy"]) == pytest.approx(2 / 3)


def test_both_kinds_of_actions_weigh_the_same_and_are_read_to_their_ends() -> None:
    expert, own = row([1, 2, 3, 4, 5], [1, 2, 4]), row([1, 6, 7], [1, 2])
    one, two, three = learn.told_apart([expert], [own, own])
    assert one.mask.tolist() == [False, False, False, True, False, True], "behind the actions 2 3 and 5"
    assert one.weights[one.mask].tolist() == [1.0, 1.0]
    assert [r.weights[r.mask].tolist() for r in (two, three)] == [[-1.0], [-1.0]]
    (one, *others) = learn.told_apart([expert], [own] * 4)
    assert one.weights.sum() == pytest.approx(-sum(float(other.weights.sum()) for other in others))


def test_a_discriminator_learns_who_acted_and_pays_for_what_looks_like_the_expert() -> None:
    policy = tiny_policy(seed=1)
    learner = learn.Learner(policy, lr=1e-2, value_head=True)
    expert, own = [row([1, 2, 9, 3, 9], [2, 4])] * 4, [row([1, 2, 8, 3, 8], [2, 4]), row([1, 2, 8, 3, 9], [2, 4])] * 2
    assert learn.step_rewards(learner, own[:1]) == [pytest.approx([math.log(2)] * 2)], "a fresh one cannot tell"
    for _ in range(30):
        learn.optimise(learner, [learn.told_apart(expert, own)], learn.discrimination())
    (bad, mixed), (good, *_) = learn.step_rewards(learner, own[:2]), learn.step_rewards(learner, expert)
    assert max(bad) < 0.2 < 1.0 < min(good)
    assert mixed[0] == pytest.approx(bad[0], abs=1e-4), "an action is judged without what follows it"


def test_inverse_step_agent_pays_its_own_actions_by_the_discriminator(given: list[list[Any]], monkeypatch: Any) -> None:
    paid, ppo = [], learn.ppo

    def spy(learner: Any, rows: Any, rewards: Any, *args: Any, **options: Any) -> Any:
        paid.append((rows, rewards))
        return ppo(learner, rows, rewards, *args, **options)

    monkeypatch.setattr(learn, "ppo", spy)
    options = {"samples": 2, "epochs": 6, "batch_size": 4, "discriminator_lr": 1e-2, "lr": 1e-3}
    run, better = trained("step_agent", reward="inverse", iterations=3, **options)
    logs = [e["metrics"] for e in run.events("log")]
    assert logs[-1]["told_apart"] > 0.9
    assert logs[-1]["paid"] < logs[0]["paid"], "the better it is told apart, the less it is paid"
    assert [len(rows) for rows, _ in paid] == [6, 6, 6]
    assert {len(rewards) for _, batch in paid for rewards in batch} == {3}
    assert run.cost.env_steps == 3 * 6 * 3
    assert better.policy.version != tiny_policy(seed=1).version
    with pytest.raises(ConfigError, match="Did you mean 'inverse'"):
        methods.get("step_agent").config(reward="invers")


def test_inverse_step_agent_goes_on_where_it_was_interrupted(tmp_path: Any) -> None:
    def go(place: Any, resume: bool = False, stop: bool = False) -> Any:
        class Cut(Run):
            def log(self, step: int, **metrics: Any) -> None:
                super().log(step, **metrics)
                if stop and step == 1:
                    raise KeyboardInterrupt

        cfg: Any = configure(methods.get("step_agent").config, {"reward": "inverse", "iterations": 3, "lr": 1e-2, "discriminator_lr": 1e-2})
        with Cut.create(place, {"seed": 0}, resume=resume, quiet=True) as run:
            return methods.get("step_agent").function(Agent(tiny_policy(seed=1)), Data(experts=experts()), env=PATH, run=run, cfg=cfg)

    whole = go(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", stop=True)
    again = go(tmp_path / "cut", resume=True)
    assert all(np.array_equal(t.numpy(), again.policy.weights[name].numpy()) for name, t in whole.policy.weights.items())
