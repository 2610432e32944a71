"""TextWorld: games from seeds in both forms, the package's plan after detours, ends, the games kept on disk, and threads."""

import json
import multiprocessing
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("textworld", reason="needs the extra textworld")

from whet.envs import check_env
from whet.envs.base import Action
from whet.envs.textworld import TextWorld, describe, kept
from whet.errors import ConfigError, EnvError
from whet.types import Task

pytestmark = pytest.mark.slow

SMALL = {"nb_rooms": 2, "nb_objects": 3, "quest_length": 2}


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """One cold place for the games of this file, whose directory it gives."""
    before, place = os.environ.get("XDG_CACHE_HOME"), tmp_path_factory.mktemp("games")
    os.environ["XDG_CACHE_HOME"] = str(place)
    yield place / "whet" / "textworld"
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


def say(env, text):
    return env.step(Action(text=text))


def play(env, task, seed=0, detour=0):
    """Observations and the last step of an episode of the expert's, after some random commands."""
    rng, seen, step = random.Random(seed), [env.reset(task)], None
    try:
        while step is None or not (step.terminated or step.truncated):
            action = env.random_action(rng) if len(seen) <= detour else env.expert(rng)
            assert action is not None, seen[-1]
            step = env.step(action)
            seen.append(step.observation)
        return seen, step
    finally:
        env.close()


def test_the_contract_without_a_compiler():
    report = check_env("textworld:text=short,nb_rooms=2,nb_objects=3,quest_length=2", tasks=4, deadline=60)
    assert report.ok, report
    assert not report.warnings, report
    assert report.expert_success == 1.0


def test_the_contract_of_compiled_games():
    report = check_env("textworld", tasks=6, deadline=120)
    assert report.ok, report
    assert not report.warnings, report
    assert report.expert_success == 1.0


def test_both_forms_are_the_same_game():
    task = TextWorld(**SMALL).tasks("train", 1)[0]
    full, short = TextWorld(**SMALL), TextWorld(**SMALL, text="short")
    seen, brief = full.reset(task), short.reset(task)
    assert seen.splitlines()[0] == brief.splitlines()[0]
    assert seen.startswith("task: ")
    assert "-=" in seen.splitlines()[1]
    assert "$$" not in seen, "no banner"
    rng = random.Random(0)
    while True:
        assert seen.splitlines()[-1] == brief.splitlines()[-1], "the same commands are admissible"
        action = short.expert(rng)
        assert action == full.expert(rng)
        one, two = full.step(action), short.step(action)
        assert (one.reward, one.terminated, one.success) == (two.reward, two.terminated, two.success)
        seen, brief = one.observation, two.observation
        if one.terminated:
            break
    assert one.success
    assert "*** The End ***" in one.observation
    assert two.observation == "You won."
    for env in (full, short):
        env.close()
        with pytest.raises(EnvError, match="is over"):
            say(env, "look")


@pytest.mark.parametrize("seed", range(4))
def test_the_expert_finds_its_way_after_detours(seed):
    task = TextWorld(text="short").tasks("dev", 4)[seed]
    assert play(TextWorld(text="short"), task, seed, detour=10)[1].success


def test_mistakes_of_the_model():
    env = TextWorld(**SMALL)
    env.reset(env.tasks("train", 1)[0])
    for text in ("", "quit", "save", "look. restart", "tw-trace-actions", "look " * 40):
        step = say(env, text)
        assert not step.terminated
        assert step.observation.startswith(("Expected one command.", "That is no command of the game.")), step
    assert say(env, "dance").observation.splitlines()[0], "the game itself answers what it does not know"
    assert say(env, "I look.\nCommand: look").observation.startswith("-=")
    env.close()
    env.close()


def test_turns_end_an_episode_without_success():
    env = TextWorld(**SMALL, text="short", max_turns=2)
    env.reset(env.tasks("train", 1)[0])
    assert not say(env, "dance").truncated
    step = say(env, "look")
    assert (step.truncated, step.terminated, step.reward) == (True, False, 0.0)
    with pytest.raises(EnvError, match="is over"):
        say(env, "look")


def fact(name, *arguments):
    from textworld.logic import Proposition, Variable

    return Proposition(name, [Variable(argument) for argument in arguments])


def test_a_state_in_words_by_hand():
    facts = [
        fact("at", "P", "kitchen"),
        fact("at", "box", "kitchen"),
        fact("at", "table", "kitchen"),
        fact("at", "bed", "bedroom"),
        fact("closed", "box"),
        fact("in", "coin", "box"),
        fact("on", "cup", "table"),
        fact("on", "apple", "table"),
        fact("in", "key", "I"),
        fact("north_of", "bedroom", "kitchen"),
        fact("south_of", "kitchen", "bedroom"),
        fact("west_of/d", "bath", "hatch", "kitchen"),
        fact("link", "kitchen", "hatch", "bath"),
        fact("link", "bath", "hatch", "kitchen"),
        fact("locked", "hatch"),
    ]
    told = "room: kitchen\nthings: closed box, table with apple and cup\nexits: north, west through the locked hatch\ncarrying: key"
    assert describe(facts) == told
    assert "open box with coin" in describe([f for f in facts if f.name != "closed"] + [fact("open", "box")])
    assert describe([fact("at", "P", "attic")]) == "room: attic\nthings: none\nexits: none"


def test_games_on_disk_are_reused_and_bounded(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = tmp_path / "whet" / "textworld"
    made_by = {"nb_rooms": 1, "nb_objects": 2, "quest_length": 1, "goal": "steps"}

    def game(seed):
        with kept(made_by, seed, compiled=False, limit=3) as path:
            return path.read_text()

    first = game(1)
    stamps = {p: p.stat().st_mtime_ns for p in place.glob("*/game.json")}
    assert len(stamps) == 1
    assert game(1) == first
    assert {p: p.stat().st_mtime_ns for p in place.glob("*/game.json")} == stamps, "it was not made again"
    oldest = next(iter(stamps)).parent
    os.utime(oldest, (1, 1))
    for seed in (2, 3, 4):
        game(seed)
    assert len(list(place.iterdir())) == 3, "three games, and nothing half-made"
    assert not oldest.exists()
    assert json.loads(game(1)) == json.loads(first), "a seed makes the same game again"
    with pytest.raises(RuntimeError), kept(made_by, 5, compiled=False, limit=3):
        raise RuntimeError("in the middle")
    assert not list(place.glob("making-*"))
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(EnvError, match="XDG_CACHE_HOME"):
        game(1)


def _game_in_process(root):
    os.environ["XDG_CACHE_HOME"] = root
    made_by = {"nb_rooms": 1, "nb_objects": 2, "quest_length": 1, "goal": "steps"}
    with kept(made_by, 7, compiled=False, limit=1) as path:
        return path.read_text()


def test_several_processes_make_the_same_game_at_once(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        texts = pool.map(_game_in_process, [str(tmp_path)] * 4)
    assert len(set(texts)) == 1
    assert len(list((tmp_path / "whet" / "textworld").iterdir())) == 1


def test_episodes_on_threads_do_not_disturb_each_other():
    tasks = TextWorld(**SMALL).tasks("test", 6)
    alone = [play(TextWorld(**SMALL), task, i, detour=6)[0] for i, task in enumerate(tasks)]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda i: play(TextWorld(**SMALL), tasks[i % 6], i % 6, detour=6)[0], range(36)))
    assert together == alone * 6


def test_closed_interpreters_leave_memory():
    task = TextWorld(**SMALL).tasks("train", 1)[0]

    def libraries():
        return sum("libfrotz" in line for line in Path("/proc/self/maps").read_text().splitlines())

    before = libraries()
    for _ in range(10):
        env = TextWorld(**SMALL)
        env.reset(task)
        assert libraries() > before
        env.close()
    assert libraries() == before


def test_mistakes_of_the_user():
    for options, text in (({"nb_rooms": 0}, "nb_rooms is 0"), ({"quest_length": 0}, "quest_length is 0"), ({"cache": -1}, "cache is -1")):
        with pytest.raises(ConfigError, match=text):
            TextWorld(**options)
    with pytest.raises(ConfigError, match="text 'long'"):
        TextWorld(text="long")
    env = TextWorld(text="short")
    with pytest.raises(EnvError, match="but this environment plays"):
        env.reset(Task(id="x", env="textworld", split="train", seed=0, data={"nb_rooms": 9}))
