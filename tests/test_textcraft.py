"""TextCraft: recipes read right, answers as the original gives them, an expert that always gets there, and splits without a common goal."""

import json
import random

import pytest

pytest.importorskip("minecraft_data", reason="needs the extra textcraft")

from whet.envs import check_env, load_env
from whet.envs.base import Action
from whet.envs.textcraft import LONGEST, SHARES, Book, Recipe, TextCraft, goals_of, packaged, plan_of, read_recipes
from whet.errors import ConfigError, EnvError
from whet.types import Task

BUTTON = Task(id="button", env="textcraft", split="train", seed=1, data={"goal": "oak button"})


def say(env, text):
    return env.step(Action(text=text))


def play(env, task, act):
    env.reset(task)
    total, turns = 0.0, 0
    while turns < env.max_turns:
        step = env.step(act(env))
        total += step.reward
        turns += 1
        if step.terminated or step.truncated:
            break
    return step, total, turns


@pytest.mark.parametrize("spec", ["textcraft", "textcraft:depth=3-4,distractors=2,version=1.16.5"])
def test_the_contract(spec):
    report = check_env(spec, tasks=6)
    assert report.ok, report
    assert not report.warnings, report
    assert report.expert_success == 1.0


def test_an_episode_by_hand():
    env = TextCraft(distractors=0)
    shown = env.reset(BUTTON)
    assert shown.startswith("Crafting commands:\n")
    assert shown.endswith("\n\nGoal: craft oak button.")
    assert "craft 1 oak button using 1 oak planks" in shown.splitlines()
    assert say(env, "inventory").observation == "Inventory: You are not carrying anything."
    assert say(env, "craft 4 oak planks using 1 oak log").observation == "Could not find enough items to craft oak planks"
    assert say(env, "get 1 oak planks").observation == "Could not find oak planks", "what has a recipe cannot be got"
    assert say(env, "get 1 oak lag").observation == "Could not find oak lag"
    assert say(env, "I need a log.\nAction: get 2 oak log").observation == "Got 2 oak log"
    assert say(env, "craft 4 oak planks using 2 oak log").observation == "Could not find a valid recipe for 4 oak planks"
    assert say(env, "craft 4 oak planks using oak log").observation == "Wrong item format: oak log"
    assert say(env, "craft 4 oak planks using 1 oak log, 1 oak log").observation == "Wrong item format: 1 oak log"
    assert say(env, "dance").observation == "Could not execute dance"
    assert say(env, "craft 4 oak planks using 1 oak log").observation == "Crafted 4 oak planks"
    assert say(env, "inventory").observation == "Inventory: [oak log] (1) [oak planks] (4)"
    step = say(env, "craft 1 oak button using 1 oak planks")
    assert (step.observation, step.reward, step.terminated, step.success) == ("Crafted 1 oak button", 1.0, True, True)
    with pytest.raises(EnvError, match="is over"):
        say(env, "inventory")


def test_to_have_crafted_something_else_is_no_success_and_turns_end():
    env = TextCraft(max_turns=2)
    env.reset(BUTTON)
    assert not say(env, "get 1 oak log").truncated
    step = say(env, "craft 4 oak planks using 1 oak log")
    assert (step.reward, step.terminated, step.truncated, step.success) == (0.0, False, True, False)


@pytest.mark.parametrize("depth", ["1", "2", "3", "4"])
def test_the_expert_crafts_every_goal_by_the_listed_recipes_alone(depth):
    env = TextCraft(depth=depth)
    for split in SHARES:
        for task in env.tasks(split, min(30, len(goals_of(packaged("1.19"), (int(depth),) * 2, split)))):
            listed = set(env.reset(task).splitlines())
            used = []

            def act(env, used=used):
                used.append(env.expert(random.Random(0)))
                return used[-1]

            step, total, turns = play(env, task, act)
            assert step.success, task
            assert total == 1.0
            assert turns <= LONGEST
            assert {a.text for a in used if a.text.startswith("craft")} <= listed


def test_the_expert_finds_its_way_after_detours():
    env = TextCraft(depth="2-3", max_turns=80)
    for i, task in enumerate(env.tasks("dev", 25)):
        rng = random.Random(i)
        left = [10]

        def act(env, rng=rng, left=left):
            left[0] -= 1
            return env.random_action(rng) if left[0] > 0 else env.expert(rng)

        assert play(env, task, act)[0].success, task


def test_chance_and_silence_do_not_succeed():
    env = TextCraft(depth="2")
    tasks = env.tasks("dev", 40)
    assert not any(play(env, task, lambda env: Action(text="inventory"))[0].success for task in tasks)
    rng = random.Random(0)
    wins = sum(play(env, task, lambda env: env.random_action(rng))[0].success for task in tasks)
    assert wins < len(tasks) / 2


def test_splits_share_no_goal_and_depths_are_those_asked_for():
    goals = {split: set(goals_of(packaged("1.19"), (1, 4), split)) for split in SHARES}
    assert sum(map(len, goals.values())) == len(set.union(*goals.values()))
    assert all(goals.values())
    for depth in range(1, 5):
        for split in SHARES:
            tasks = TextCraft(depth=str(depth)).tasks(split, 10)
            assert all(packaged("1.19").depth(task.data["goal"]) == depth and task.data["goal"] in goals[split] for task in tasks)


def test_depths_by_hand():
    book = packaged("1.19")
    found = {name: book.depth(name) for name in ("oak log", "iron ingot", "oak planks", "white wool", "torch", "red wool", "red bed")}
    assert found == {"oak log": 0, "iron ingot": 0, "oak planks": 1, "white wool": 1, "torch": 2, "red wool": 2, "red bed": 3}


def test_recipes_have_no_circles():
    book = packaged("1.19")
    for goal in book.by_item:
        assert book.depth(goal) >= 1
        assert not any(book._rests_on(name, goal, set()) for recipe in book.by_item[goal] for name, _ in recipe.inputs), goal


def test_a_plan_uses_what_is_held_and_gets_everything_at_once():
    way = {"stick": Recipe("stick", 4, (("planks", 2),)), "planks": Recipe("planks", 4, (("log", 1),))}
    way["sign"] = Recipe("sign", 3, (("planks", 6), ("stick", 1)))
    plank, stick, sign = (str(way[name]) for name in ("planks", "stick", "sign"))
    assert plan_of(way, "sign", {}) == ["get 2 log", plank, plank, stick, sign]
    assert plan_of(way, "sign", {"stick": 1, "planks": 3}) == ["get 1 log", plank, sign]
    # Two planks are over after the sign's own are set aside, and make the stick.
    assert plan_of(way, "sign", {"planks": 8}) == [stick, sign]


def test_circles_keep_what_needs_fewest_things():
    book = Book(
        [
            Recipe("ingot", 1, (("nugget", 9),)),
            Recipe("nugget", 9, (("ingot", 1),)),
            Recipe("coal", 9, (("coal block", 1),)),
            Recipe("coal block", 1, (("coal", 9),)),
        ]
    )
    assert {item: list(map(str, recipes)) for item, recipes in book.by_item.items()} == {
        "nugget": ["craft 9 nugget using 1 ingot"],
        "coal block": ["craft 1 coal block using 9 coal"],
    }
    assert book.gettable("ingot")
    assert not book.gettable("nugget")


@pytest.fixture
def directory(tmp_path):
    """Recipe files in the formats that Minecraft has had for the same things."""
    planks = {"type": "minecraft:crafting_shapeless", "group": "planks"}
    files = {
        "oak_planks": {**planks, "ingredients": [{"tag": "minecraft:oak_logs"}], "result": {"item": "minecraft:oak_planks", "count": 4}},
        "fir_planks": {**planks, "ingredients": [{"item": "minecraft:fir_log"}], "result": {"id": "minecraft:fir_planks", "count": 4}},
        "stick": {
            "type": "minecraft:crafting_shaped",
            "pattern": ["#", "#"],
            "key": {"#": {"tag": "minecraft:planks"}},
            "result": {"item": "minecraft:stick", "count": 4},
        },
        "torch": {
            "type": "crafting_shaped",
            "pattern": ["X", "#"],
            "key": {"X": [{"item": "minecraft:coal"}, {"item": "minecraft:charcoal"}], "#": {"item": "minecraft:stick"}},
            "result": "minecraft:torch",
        },
        "glass": {"type": "minecraft:smelting", "ingredient": {"item": "minecraft:sand"}, "result": "minecraft:glass"},
    }
    for name, told in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(told))
    return tmp_path


def test_a_directory_of_recipe_files(directory):
    book = read_recipes(str(directory))
    assert sorted(map(str, book.recipes())) == [
        "craft 1 torch using 1 coal, 1 stick",
        "craft 4 fir planks using 1 fir log",
        "craft 4 oak planks using 1 oak logs",
        "craft 4 stick using 2 planks",
    ]
    assert {name: book.depth(name) for name in ("oak logs", "planks", "stick", "torch")} == {
        "oak logs": 0,
        "planks": 1,
        "stick": 2,
        "torch": 3,
    }
    env = load_env(f"textcraft:recipes={directory},depth=1-4")()
    task = Task(id="t", env="textcraft", split="train", seed=3, data={"goal": "torch"})
    assert play(env, task, lambda env: env.expert(random.Random(0)))[0].success
    env.reset(task)
    say(env, "get 1 fir log")
    say(env, "craft 4 fir planks using 1 fir log")
    assert say(env, "craft 4 stick using 2 planks").observation == "Could not find enough items to craft stick", "a group is no item"
    assert say(env, "craft 4 stick using 2 fir planks").observation == "Crafted 4 stick", "any item of the group will do"


def test_mistakes_of_the_user(tmp_path, directory):
    for options, text in (
        ({"depth": "0"}, "depth is '0'"),
        ({"depth": "3-2"}, "depth is '3-2'"),
        ({"depth": "5"}, "depth is '5'"),
        ({"distractors": -1}, "distractors is -1"),
        ({"max_turns": 0}, "max_turns is 0"),
        ({"version": "1.12"}, "'1.12'"),
        ({"version": "latest"}, "'latest'"),
        ({"recipes": str(tmp_path / "none")}, "no files"),
    ):
        with pytest.raises(ConfigError, match=text):
            TextCraft(**options)
    with pytest.raises(ConfigError, match="no goal of depth"):
        TextCraft(recipes=str(directory), depth="4").tasks("train", 1)
    (directory / "broken.json").write_text('{"type": "crafting_shaped"}')
    read_recipes.cache_clear()
    with pytest.raises(ConfigError, match=r"broken\.json is no recipe"):
        TextCraft(recipes=str(directory))
    with pytest.raises(EnvError, match="'mithril'"):
        TextCraft().reset(Task(id="x", env="textcraft", split="train", seed=0, data={"goal": "mithril"}))
