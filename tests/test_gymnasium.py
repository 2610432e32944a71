"""Stock gymnasium environments as environments of text."""

import random

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from whet.envs import Action, EnvFactory, load_env
from whet.envs.gymnasium import GymEnv, _plain
from whet.errors import ConfigError, EnvError
from whet.types import Task

TASK = Task(id="gymnasium/x/train/0", env="gymnasium", split="train", seed=7)


def act(env, text):
    return env.step(Action(text=text))


def test_frozen_lake_is_described_and_can_be_crossed():
    env = load_env("gymnasium:FrozenLake-v1,is_slippery=false")()
    assert env.instructions == "Play FrozenLake. Answer with one action: left, down, right, up."
    assert env.max_turns == 100
    assert env.reset(TASK) == "row 0 column 0 (A agent, S start, F ice, H hole, G goal)\nAFFF\nFHFH\nFFFH\nHFFG"
    moves = ("down", "I go: down", "RIGHT", "right.", "down", "right")
    steps = [act(env, move) for move in moves]
    assert steps[2].observation.startswith("row 2 column 1")
    assert [s.reward for s in steps] == [0, 0, 0, 0, 0, 1]
    assert (steps[-1].terminated, steps[-1].truncated, steps[-1].success) == (True, False, True)
    with pytest.raises(EnvError, match="over"):
        act(env, "left")


def test_falling_through_the_ice_is_no_success():
    env = load_env("gymnasium:FrozenLake-v1,is_slippery=false,map_name=8x8")()
    assert env.reset(TASK).count("\n") == 8
    small = load_env("gymnasium:FrozenLake-v1,is_slippery=false")()
    small.reset(TASK)
    act(small, "right")
    fallen = act(small, "down")
    assert (fallen.terminated, fallen.reward, fallen.success) == (True, 0.0, False)


def test_arguments_reach_the_environment_and_seeds_decide():
    def walk(seed):
        env = load_env("gymnasium:FrozenLake-v1,is_slippery=true")()
        env.reset(Task(id="x", env="gymnasium", split="train", seed=seed))
        seen = []
        for _ in range(8):
            step = act(env, "down")
            seen.append(step.observation)
            if step.terminated:
                break
        return seen

    assert walk(3) == walk(3)
    assert len({tuple(walk(seed)) for seed in range(12)}) > 3


def test_cart_pole_is_cut_off_by_its_own_limit_and_judged_by_its_threshold():
    env = load_env("gymnasium:CartPole-v1")()
    assert env.max_turns == 500
    first = env.reset(TASK)
    assert len([float(x) for x in first.split()]) == 4
    step = act(env, "left")
    total, pole = step.reward, step.observation
    while not (step.terminated or step.truncated):
        position, velocity, angle, turning = map(float, pole.split())
        step = act(env, "right" if angle + 0.3 * turning + 0.05 * velocity + 0.01 * position > 0 else "left")
        total, pole = total + step.reward, step.observation
    assert (total, step.truncated, step.terminated, step.success) == (500.0, True, False, True)

    env.reset(TASK)
    step = act(env, "left")
    while not step.terminated:
        step = act(env, "left")
    assert not step.success


def test_text_that_names_no_action_costs_a_turn_only():
    env = load_env("gymnasium:Taxi-v4")()
    before = env.reset(TASK)
    assert "taxi at row" in before
    assert "passenger" in before
    step = act(env, "fly away")
    assert step.observation == "invalid action 'fly away'; valid: south, north, east, west, pickup, dropoff"
    assert (step.reward, step.terminated, step.truncated) == (0.0, False, False)


@pytest.mark.parametrize(
    ("id", "text"), [("CliffWalking-v1", "row 3 column 0; goal row 3 column 11"), ("Blackjack-v1", "your sum"), ("Acrobot-v1", "1")]
)
def test_other_stock_descriptions(id, text):
    env = load_env(f"gymnasium:{id}")()
    assert text in env.reset(TASK)
    step = env.step(env.random_action(random.Random(0)))
    assert "invalid" not in step.observation


class Words(gymnasium.Env):
    """Answers with what it was told; the action space is whatever the test wants."""

    def __init__(self, space):
        self.action_space = space
        self.observation_space = spaces.Text(100)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return "go", {}

    def step(self, action):
        return repr(action), 1.0, False, True, {"is_success": False}


@pytest.mark.parametrize(
    ("space", "text", "read"),
    [
        (spaces.Discrete(3, start=5), "6", 6),
        (spaces.Box(-1, 1, (2,), np.float32), "0.5, -1", np.array([0.5, -1], np.float32)),
        (spaces.MultiDiscrete([3, 2]), "push: 2 1", np.array([2, 1])),
        (spaces.MultiBinary(3), "1 0 1", np.array([1, 0, 1], np.int8)),
        (spaces.Text(20), "hello", "hello"),
    ],
)
def test_actions_of_every_written_space(space, text, read):
    env = GymEnv(Words, space=space)
    env.reset(TASK)
    step = act(env, text)
    assert step.observation == repr(read)
    assert step.truncated
    assert not step.success, "info says that it failed, although the return is positive"
    env.reset(TASK)
    assert "invalid" not in env.step(env.random_action(random.Random(1))).observation


@pytest.mark.parametrize(
    ("space", "text", "message"),
    [
        (spaces.Box(-1, 1, (2,), np.float32), "0.5", "invalid action '0.5'; valid: 2 numbers in Box"),
        (spaces.Box(-1, 1, (2,), np.float32), "0.5 7", "action '0.5 7' is out of range"),
        (spaces.MultiDiscrete([3, 2]), "3 0", "is out of range"),
        (spaces.Discrete(3), "3", "invalid action '3'; valid: 0, 1, 2"),
        (spaces.Text(4), "too long", "valid: text of at most 4 characters"),
    ],
)
def test_actions_outside_a_space(space, text, message):
    env = GymEnv(Words, space=space)
    env.reset(TASK)
    step = act(env, text)
    assert message in step.observation
    assert not step.truncated


def test_spaces_that_cannot_be_written_need_names():
    space = spaces.Dict({"turn": spaces.Discrete(2)})
    with pytest.raises(ConfigError, match="give `actions`"):
        GymEnv(Words, space=space)
    env = GymEnv(Words, space=space, actions={"left": {"turn": 0}, "right": {"turn": 1}})
    env.reset(TASK)
    assert act(env, "right").observation == "{'turn': 1}"


def test_words_of_ones_own():
    class Lake(GymEnv):
        instructions = "Cross the ice."
        max_turns = 9

        def __init__(self):
            names = {"West": 0, "South": 1, "East": 2, "North": 3}
            super().__init__("FrozenLake-v1", describe=lambda obs: f"field {obs}", actions=names, is_slippery=False)

    factory = EnvFactory(Lake)
    env = factory()
    task = factory.tasks("dev", 1)[0]
    assert (task.id, task.env, env.instructions, env.max_turns) == ("lake/dev/0", "lake", "Cross the ice.", 9)
    assert env.reset(task) == "field 0"
    assert act(env, "South").observation == "field 4"
    assert act(env, "east").observation == "invalid action 'east'; valid: West, South, East, North"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.int64(3), "3"),
        (np.float32(0.123456), "0.123"),
        (np.array([[1, 2], [3, 4]]), "1 2\n3 4"),
        ({"a": 1, "b": np.array([0.5, 2.0])}, "a: 1; b: 0.5 2"),
        ((1, "x", np.array([True])), "1, x, 1"),
    ],
)
def test_any_observation_has_a_plain_description(value, text):
    assert _plain(value) == text


def test_what_gymnasium_cannot_make():
    with pytest.raises(ConfigError, match="Did you mean 'FrozenLake-v1'"):
        load_env("gymnasium:FrozenLak-v1")()
    with pytest.raises(ConfigError, match="cannot be made with is_slipery=False"):
        load_env("gymnasium:FrozenLake-v1,is_slipery=false")()
    with pytest.raises(ConfigError, match="needs an id, such as gymnasium:FrozenLake-v1"):
        load_env("gymnasium")


def test_tasks_of_different_environments_differ():
    lake, cart = load_env("gymnasium:FrozenLake-v1"), load_env("gymnasium:CartPole-v1")
    assert lake.tasks("train", 2)[1].id == "gymnasium/FrozenLake-v1/train/1"
    assert not {t.seed for t in lake.tasks("train", 50)} & {t.seed for t in cart.tasks("train", 50)}


def test_making_one_is_silent(recwarn):
    load_env("gymnasium:MountainCar-v0")().reset(TASK)
    assert not [w for w in recwarn if "gymnasium" in str(w.filename)]
