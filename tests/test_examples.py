"""The example environment is what the README shows: short, honest, and worth learning step by step."""

import random
from pathlib import Path

import pytest

from whet.envs import Action, check_env, load_env
from whet.types import ToolCall

SHOP = Path(__file__).parent.parent / "examples" / "shop.py"


@pytest.fixture
def shop():
    return load_env(f"{SHOP}:Shop")


def call(name, **arguments):
    return Action(tool_calls=(ToolCall(name=name, arguments=arguments),))


def play(factory, task, *actions):
    env = factory()
    env.reset(task)
    return env, [env.step(action) for action in actions]


def test_it_is_short():
    assert len(SHOP.read_text().splitlines()) <= 30


def test_it_keeps_the_contract(shop):
    report = check_env(shop, tasks=6)
    assert report.ok, report
    assert not report.warnings, report


def test_looking_up_and_answering_is_rewarded_in_grades(shop):
    for task in shop.tasks("train", 10):
        env, _ = play(shop, task)
        wanted, right = env.wanted, env.prices[env.wanted]
        other = next(item for item in env.prices if item != wanted)
        _, (seen, end) = play(shop, task, call("price", item=wanted), call("answer", price=right))
        assert seen.observation[0].content == f"The {wanted} costs {right}."
        assert (end.reward, end.terminated, end.success) == (1.0, True, True)
        _, (_, looked) = play(shop, task, call("price", item=wanted), call("answer", price=right + 1))
        _, (_, elsewhere) = play(shop, task, call("price", item=other), call("answer", price=right + 1))
        assert (looked.reward, elsewhere.reward) == (0.3, 0.0)
        assert not looked.success
        _, (unknown,) = play(shop, task, call("price", item="moon"))
        assert unknown.observation[0].content == "There is no moon here."


def test_guessing_is_not_worth_it(shop):
    rng = random.Random(0)
    rewards = [play(shop, task, call("answer", price=rng.randint(1, 9)))[1][0].reward for task in shop.tasks("train", 300)]
    assert sum(rewards) / len(rewards) < 0.2
