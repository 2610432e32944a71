"""BabyAI: what the text says is what the agent sees, the bot solves it from anywhere, and wrong words cost a turn."""

import itertools
import random

import numpy as np
import pytest
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX

from whet.envs import Action, EnvFactory, load_env
from whet.envs.babyai import ACTIONS, BabyAI, levels, look
from whet.errors import ConfigError, EnvError
from whet.seeding import derive_seed
from whet.types import Task, ToolCall

LEVELS = ("GoToLocal", "PickupLoc", "PutNextLocal", *(pytest.param(level, marks=pytest.mark.slow) for level in ("GoTo", "BossLevel")))


def factory(level="GoToLocal", **options):
    return EnvFactory(BabyAI, {"level": level, **options})


def play(env, task, act, limit=400):
    """Observations, actions and the last step of an episode."""
    seen, done, step = [env.reset(task)], [], None
    while len(done) < limit and not (step and (step.terminated or step.truncated)):
        done.append(act(env))
        step = env.step(done[-1])
        seen.append(step.observation)
    return seen, done, step


def expert(seed=0):
    rng = random.Random(seed)
    return lambda env: env.expert(rng)


def view(*cells):
    """An observation of minigrid in which all is seen and empty but for (i, j, type, colour, state)."""
    grid = np.zeros((7, 7, 3), np.uint8)
    grid[:, :, 0] = OBJECT_TO_IDX["empty"]
    for i, j, kind, colour, state in cells:
        grid[i, j] = OBJECT_TO_IDX[kind], COLOR_TO_IDX[colour], state
    return grid


def test_a_view_is_told_nearest_first_in_the_words_of_missions():
    grid = view((1, 3, "ball", "red", 0), (3, 5, "key", "grey", 0), (5, 6, "box", "blue", 0), (3, 2, "door", "green", 2))
    carried, walls, things = look(grid)
    assert (carried, walls) == ("", [])
    assert [str(t) for t in things] == ["grey key 1 ahead", "blue box 2 right", "green door 4 ahead locked", "red ball 2 left 3 ahead"]


def test_walls_and_what_is_carried():
    grid = view((3, 6, "key", "red", 0), (3, 3, "wall", "grey", 0), (1, 6, "wall", "grey", 0), (6, 6, "wall", "grey", 0))
    assert look(grid) == ("red key", ["3 ahead", "2 left", "3 right"], [])
    doors = view((2, 6, "door", "red", 0), (4, 6, "door", "red", 1))
    assert [str(t) for t in look(doors)[2]] == ["red door 1 left open", "red door 1 right closed"]


@pytest.mark.parametrize("level", LEVELS)
def test_the_text_agrees_with_the_world(level):
    made = factory(level)
    for i, task in enumerate(made.tasks("train", 4)):
        env = made()
        rng = random.Random(i)

        def check(env, text):
            world = env._world
            mission, *lines = text.splitlines()
            assert mission == f"mission: {world.mission}"
            assert text.count("carrying") == (world.carrying is not None)
            for line in lines:
                words = line.split()
                if words[0] in ("carrying", "wall"):
                    continue
                numbers = {unit: int(n) for n, unit in itertools.pairwise(words) if n.isdigit()}
                side = numbers.get("right", 0) - numbers.get("left", 0)
                x, y = world.agent_pos + numbers.get("ahead", 0) * world.dir_vec + side * world.right_vec
                thing = world.grid.get(x, y)
                assert f"{thing.color} {thing.type}" == " ".join(words[:2]), text
                if thing.type == "door":
                    assert words[-1] == ("open" if thing.is_open else "locked" if thing.is_locked else "closed")

        check(env, env.reset(task))
        for _ in range(25):
            step = env.step(env.expert(rng) if rng.random() < 0.7 else env.random_action(rng))
            if step.terminated or step.truncated:
                break
            check(env, step.observation)


@pytest.mark.parametrize("level", LEVELS)
def test_the_expert_solves_every_task_in_a_third_of_the_turns(level):
    made = factory(level)
    lengths = []
    for task in made.tasks("train", 12):
        env = made()
        _, done, step = play(env, task, expert())
        assert step.success, task.id
        assert (step.reward, step.terminated) == (1.0, True)
        lengths.append(len(done) / env.max_turns)
    assert sum(lengths) / len(lengths) <= 1 / 3
    assert max(lengths) <= 1 / 2


@pytest.mark.parametrize("level", LEVELS)
def test_thoughts_repeat_a_line_of_what_is_seen_or_say_explore(level):
    made = factory(level)
    told, explored = 0, 0
    for task in made.tasks("train", 6):
        seen, done, _ = play(made(), task, expert())
        for text, action in zip(seen, done):
            thought, _, name = action.text.rpartition(": ")
            assert name in ACTIONS
            assert thought == "explore" or thought in text.splitlines()[1:], (text, action)
            told, explored = told + (thought != "explore"), explored + (thought == "explore")
    assert told
    assert explored


def test_the_target_is_what_the_mission_asks_for():
    made = factory("GoToLocal")
    for task in made.tasks("train", 30):
        seen, done, _ = play(made(), task, expert())
        wanted = seen[0].splitlines()[0].split(" the ")[-1].split(" a ")[-1]
        for action in done:
            thought = action.text.rpartition(": ")[0]
            assert thought == "explore" or thought.startswith(f"{wanted} "), (seen[0], action)
        assert done[-1].text.startswith(wanted)


@pytest.mark.parametrize("level", ["PutNextLocal", "UnlockPickup", "BossLevel"])
def test_the_expert_takes_over_after_any_detour(level):
    made = factory(level, max_turns=10**6)
    solved = 0
    for i, task in enumerate(made.tasks("train", 6)):
        rng = random.Random(i)
        env = made()
        env.reset(task)
        for _ in range(12):
            step = env.step(env.random_action(rng))
        solved += step.terminated or play_on(env, rng)
    assert solved >= 5  # a random action may have opened a box and made the mission impossible


def play_on(env, rng):
    for _ in range(400):
        step = env.step(env.expert(rng))
        if step.terminated or step.truncated:
            return step.success
    return False


def test_advice_does_not_depend_on_when_it_was_asked_for():
    made = factory("BossLevel")
    for i, task in enumerate(made.tasks("train", 3)):
        rng = random.Random(i)
        often, once = made(), made()
        often.reset(task), once.reset(task)
        for _ in range(20):
            often.expert(rng)
            action = often.random_action(rng)
            for env in (often, once):
                step = env.step(action)
            if step.terminated:
                break
        else:
            assert often.expert(rng) == once.expert(rng)


def test_the_expert_gives_up_rather_than_plan_in_circles():
    made = factory("UnlockToUnlock")
    env = made()
    env.reset(made.tasks("train", 1)[0])
    for _ in range(5):
        action = env.expert(random.Random(0))
        assert action.text.rpartition(": ")[2] in ACTIONS
        env.step(action)


def test_levels_that_begin_with_full_hands_are_solved():
    made = factory("PutNextS5N2Carrying")
    task = made.tasks("train", 1)[0]
    seen, _, step = play(made(), task, expert())
    assert "carrying" in seen[0]
    assert step.success


def test_rewards():
    task = factory().tasks("train", 1)[0]
    _, done, plain = play(factory()(), task, expert())
    _, _, graded = play(factory(graded=True)(), task, expert())
    assert plain.reward == 1.0
    assert graded.reward == pytest.approx(1 - 0.9 * len(done) / 64)
    assert graded.success


@pytest.mark.parametrize(
    "text", ["turn left", "Turn Left.", "red ball 2 left 3 ahead: turn left", "I think so : turn left\n", '"turn left"']
)
def test_actions_are_read_behind_a_thought(text):
    task = factory().tasks("train", 1)[0]
    env, other = factory()(), factory()()
    assert env.reset(task) == other.reset(task)
    assert env.step(Action(text=text)) == other.step(Action(text="turn left"))
    assert env._world.step_count == 1


@pytest.mark.parametrize("text", ["", "jump", "turn", "turn left turn right", "turn left: no"])
def test_an_invalid_action_is_told_the_valid_ones_and_changes_nothing(text):
    env = factory()()
    first = env.reset(factory().tasks("train", 1)[0])
    step = env.step(Action(text=text))
    assert step.observation == f"invalid action. valid: {', '.join(ACTIONS)}\n{first}"
    assert (step.reward, step.terminated, step.truncated) == (0.0, False, False)
    assert env._world.step_count == 0


def test_actions_as_tool_calls_lead_to_the_same_episode():
    task = factory().tasks("train", 1)[0]
    plain, _, _ = play(factory()(), task, expert())
    env = factory(tools=True)()
    seen, done, last = play(env, task, expert())
    assert [t.name for t in env.tools] == ["act"]
    assert env.tools[0].parameters["properties"]["action"]["enum"] == list(ACTIONS)
    assert [seen[0], *(turns[0].content for turns in seen[1:])] == plain
    assert done[0].tool_calls[0].name == "act"
    assert (last.reward, last.terminated, last.success) == (1.0, True, True)
    assert factory()().tools == ()

    env = factory(tools=True)()
    env.reset(task)
    wrong = env.step(Action(tool_calls=(ToolCall(name="act", arguments={"action": "jump"}),)))
    assert "Input should be 'turn left', 'turn right'" in wrong.observation[0].content


@pytest.mark.parametrize("tools", [False, True])
def test_the_worlds_own_limit_truncates(tools):
    env = factory("GoToObjS4", tools=tools)()
    env.reset(factory("GoToObjS4").tasks("train", 1)[0])
    done = env._action("done", "")
    steps = [env.step(done) for _ in range(env._world.max_steps)]
    assert [s.truncated for s in steps] == [False] * (len(steps) - 1) + [True]
    assert not steps[-1].terminated
    with pytest.raises(EnvError, match="over"):
        env.step(done)


def test_every_level_can_be_made_and_described():
    known = levels()
    assert len(known) >= 90
    assert known["GoToObjS6"] == "BabyAI-GoToObjS6-v1"
    for level in sorted(known)[::6]:
        env = BabyAI(level)
        text = env.reset(Task(id="x", env="babyai", split="train", seed=derive_seed(level)))
        assert text.startswith("mission: ")


def test_options_and_tasks():
    with pytest.raises(ConfigError, match=r"babyai has no level 'GoToLocl'. Did you mean 'GoToLocal'"):
        load_env("babyai:level=GoToLocl")()
    with pytest.raises(ConfigError, match="max_turns is 0"):
        BabyAI(max_turns=0)
    for options, turns in (({}, 64), ({"max_turns": 20}, 20), ({"level": "BossLevel"}, 600), ({"level": "PutNextLocal"}, 128)):
        env = BabyAI(**options)
        env.reset(Task(id="x", env="babyai", split="train", seed=1))
        assert env.max_turns == turns
    task = factory("PickupLoc").tasks("dev", 1)[0]
    assert task.id == "babyai/PickupLoc/dev/0"
    with pytest.raises(EnvError, match="is of level 'PickupLoc', but this environment plays 'GoToLocal'"):
        factory()().reset(task)


def test_tasks_of_a_level_are_mostly_different_worlds():
    made = factory()
    texts = [made().reset(task) for split in ("train", "dev", "test") for task in made.tasks(split, 60)]
    assert len(set(texts)) >= 175


def test_observations_are_short():
    words = []
    for task in factory().tasks("train", 25):
        seen, _, _ = play(factory()(), task, expert())
        words += [len(text.split()) for text in seen]
    assert 20 < sum(words) / len(words) < 40


def test_nothing_is_printed(capfd):
    for level in ("PutNextLocal", "BossLevel"):
        for task in factory(level).tasks("train", 20):
            factory(level)().reset(task)
    assert capfd.readouterr() == ("", "")
