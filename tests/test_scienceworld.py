"""ScienceWorld: official variations, gold paths that succeed, scores as the package has them, worlds that do not disturb each other,
and runs that outlive a Java process."""

import collections
import hashlib
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest

if shutil.which("java") is None:
    pytest.skip("there is no Java runtime", allow_module_level=True)
pytest.importorskip("scienceworld")

from scienceworld.constants import ID2TASK

from whet import Agent, check_env, load_env
from whet.envs import Action
from whet.envs.check import CHECKS
from whet.envs.scienceworld import VARIATIONS, ScienceWorld, variations
from whet.errors import ConfigError, EnvError
from whet.evals import evaluate
from whet.policies.scripted import ExpertPolicy, RandomPolicy, ScriptedPolicy
from whet.rollout import Limits, rollout
from whet.types import SPLITS, Stop

pytestmark = pytest.mark.slow

EASY = "scienceworld:tasks=find-animal find-plant lifespan-longest-lived,simplifications=easy"
"""Tasks with short gold paths, which are quick to make."""
HIVE = ("teleport to greenhouse", "open bee hive", *["wait1", "look around"] * 12)
"""Watch the bees, which fly where the generator of random numbers sends them."""


def begin(spec, index=0, split="train"):
    factory = load_env(spec)
    env = factory()
    return env, env.reset(factory.tasks(split, 1, index)[0])


def do(env, *actions):
    """The last of several steps."""
    for action in actions:
        step = env.step(Action(text=action))
    return step


def watch(factory, task, actions=HIVE):
    """An episode of fixed actions, which yields what is seen, to its end if it has one before."""
    env = factory()
    yield env.reset(task)
    for action in actions:
        step = do(env, action)
        yield step.observation
        if step.terminated or step.truncated:
            break
    env.close()


# -- tasks ---------------------------------------------------------------------------------------------------------------


def test_thirty_tasks_with_their_official_numbers_of_variations():
    assert list(VARIATIONS) == list(ID2TASK.values())
    factory = load_env("scienceworld")
    tasks = {split: factory.tasks(split, 10_000) for split in SPLITS}
    assert {split: len(listed) for split, listed in tasks.items()} == {"train": 3592, "dev": 1796, "test": 1819}
    every = [task.data["task"] + str(task.data["variation"]) for listed in tasks.values() for task in listed]
    assert len(set(every)) == len(every) == sum(VARIATIONS.values()) == 7207
    for listed in tasks.values():
        assert [task.data["task"] for task in listed[:60]] == [*VARIATIONS, *VARIATIONS], "any number of tasks is spread over the thirty"
        assert len({task.id for task in listed}) == len(listed)


def test_variations_are_those_of_the_package():
    server = ScienceWorld.servers.take(100)
    for name, number in VARIATIONS.items():
        assert server.call("load", name, 0, "", False) == ""
        assert server.call("getTaskMaxVariations", name) == number
        for split, method in (("train", "getVariationsTrain"), ("dev", "getVariationsDev"), ("test", "getVariationsTest")):
            assert list(variations(name, split)) == server.call(method), (name, split)
    assert set(server.call("getTaskNames")) == set(VARIATIONS)
    ScienceWorld.servers.give(server)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [("boil", {"boil"}), ("1-1", {"boil"}), ("9-2 boil", {"boil", "inclined-plane-friction-named-surfaces"}), ("10-1+2-1", None)],
)
def test_tasks_by_name_and_by_number(text, chosen):
    found = {task.data["task"] for task in load_env(f"scienceworld:tasks={text}").tasks("train", 2)}
    assert found == (chosen or {"use-thermometer", "mendelian-genetics-known-plant"})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tasks=boyl", "scienceworld has no task 'boyl'. Did you mean 'boil'?"),
        ("tasks=11-1", "Or a number from 1-1 to 10-2."),
        ("simplifications=opendoors", "scienceworld has no simplification 'opendoors'. Did you mean 'openDoors'?"),
        ("tasks=3-1,simplifications=noElectricalAction", "the task 'power-component' needs the electrical actions"),
        ("limit=0", "limit is 0; expected 1 or more"),
        ("max_turns=0", "max_turns is 0; expected 1 or more"),
        ("reward=points", "option 'reward' is 'points'"),
    ],
)
def test_options_that_cannot_be(text, told):
    with pytest.raises(ConfigError) as raised:
        load_env(f"scienceworld:{text}")()
    assert told in str(raised.value)


def test_tasks_of_another_setting_are_refused():
    (task,) = load_env("scienceworld").tasks("train", 1)
    with pytest.raises(EnvError, match="has the simplifications '', but this environment 'easy'"):
        load_env("scienceworld:simplifications=easy")().reset(task)


# -- episodes ------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "spec", [pytest.param(EASY, marks=pytest.mark.exhaustive), "scienceworld:tasks=find-living-thing power-component,limit=40,max_turns=60"]
)
def test_the_contract(spec):
    report = check_env(spec, tasks=3, deadline=100)
    assert not report.problems, report
    assert set(report.passed) | {"speed"} == set(CHECKS), report
    assert set(report.skipped) == {"speed"}, "inline is False"
    assert report.expert_success == 1.0


def test_what_the_agent_sees():
    env, seen = begin("scienceworld:tasks=boil")
    lines = seen.splitlines()
    assert lines[0].startswith("task: Your task is to boil water.")
    assert lines[1].startswith("This room is called the ")
    assert "In it, you see:" in lines[1]
    assert not any(line != line.rstrip() or "\t" in line for line in lines)
    step = do(env, "I wonder what I have.\nAction: inventory")
    assert step.observation.startswith("In your inventory, you see:")
    assert do(env, "fly to the moon").observation.startswith("No known action matches that input.")
    env.close()


def test_success_pays_the_score_and_failure_takes_it_away():
    env, _ = begin(EASY, 2)
    total, rng = 0.0, random.Random(0)
    for _ in range(env.max_turns):
        step = env.step(env.expert(rng))
        total += step.reward
        if step.terminated:
            break
    assert (step.success, step.info["reason"], step.info["score"]) == (True, "success", 100)
    assert total == pytest.approx(1.0)
    with pytest.raises(EnvError, match="over"):
        do(env, "look around")
    env.close()
    for reward, paid in (("score", -1.0), ("success", 0.0)):
        env, _ = begin(f"{EASY},reward={reward}")
        steps = [do(env, "teleport to kitchen"), do(env, "focus on sink")]
        assert sum(step.reward for step in steps) == pytest.approx(paid)
        end = steps[-1]
        assert (end.terminated, end.truncated, end.success) == (True, False, False), "the focus was not on an animal"
        assert (end.info["reason"], end.info["score"]) == ("failure", -100)
        env.close()


def test_the_limit_counts_moves_of_the_simulation():
    env, _ = begin("scienceworld:tasks=boil,limit=21")
    moves = [do(env, action).info["moves"] for action in ("look around", "open door to kitchen", "wait1", "wait")]
    assert moves == [0, 1, 3, 14], "looking is free; waiting counts the turns of the simulation and one more"
    end = do(env, "wait")
    assert (end.terminated, end.truncated, end.success, end.info["reason"]) == (False, True, False, "limit")
    assert end.info["score"] >= 0
    env.close()


@pytest.mark.timeout(1800)
def test_gold_paths_succeed_within_the_default_limits():
    """One of each of ten of the thirty tasks, with paths of up to 180 actions; all of them are in what `whet envs` shows."""
    factory = load_env("scienceworld")
    tasks = factory.tasks("dev", 30)
    assert {task.data["task"] for task in tasks} == set(VARIATIONS)
    episodes = rollout(Agent(ExpertPolicy()), factory, tasks[::3], limits=Limits(in_flight=8), progress=False)
    assert all(e.stop is Stop.TERMINATED and e.reward == pytest.approx(1.0) for e in episodes)
    assert max(e.n_actions for e in episodes) > 100, "the package's own limit would have cut some off"


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_chance_gets_nowhere():
    factory = load_env("scienceworld:max_turns=25")
    episodes = rollout(Agent(RandomPolicy()), factory, factory.tasks("dev", 10), limits=Limits(in_flight=4), progress=False)
    assert all(e.ok and not e.success for e in episodes)
    assert sum(e.reward for e in episodes) < 0


def test_the_expert_goes_on_from_where_others_have_been():
    env, _ = begin(EASY, 1, "dev")
    rng = random.Random(0)
    do(env, "teleport to kitchen", "open fridge", "look around")
    for _ in range(40):
        step = env.step(env.expert(rng))
        if step.terminated:
            break
    assert step.success
    env.close()


# -- exact replay --------------------------------------------------------------------------------------------------------


def test_worlds_in_one_machine_do_not_disturb_each_other():
    """Bees of three worlds, watched in turns, while other worlds begin with other rules and valid actions are asked for."""
    factory = load_env(EASY)
    tasks = factory.tasks("dev", 3)
    alone = [list(watch(factory, task)) for task in tasks]
    assert len(set(alone[0])) > 6, "the bees fly"
    together, worlds = collections.defaultdict(list), {i: watch(factory, task) for i, task in enumerate(tasks)}
    rng, plain = random.Random(3), load_env("scienceworld:tasks=boil")
    other = plain()
    other.reset(plain.tasks("dev", 1)[0])
    for turn in itertools.count():
        if not worlds:
            break
        i = rng.choice(sorted(worlds))
        try:
            together[i].append(next(worlds[i]))
        except StopIteration:
            del worlds[i]
        if turn % 10 == 0:
            do(other, "wait1")
        if turn % 30 == 0:
            other.close()
            other = plain()
            other.reset(plain.tasks("dev", 1)[0])
    other.close()
    assert [together[i] for i in range(3)] == alone


def test_asking_for_valid_actions_changes_nothing():
    factory = load_env(EASY)
    (task,) = factory.tasks("dev", 1)
    expected = list(watch(factory, task))
    env, seen = factory(), []
    seen.append(env.reset(task))
    for i, action in enumerate(HIVE):
        if i % 6 == 0:
            once, again = (env.random_action(random.Random(i)) for _ in range(2))
            assert once == again
        seen.append(do(env, action).observation)
    env.close()
    assert seen == expected


def test_objects_that_grow_get_numbers_of_their_own():
    """A world that begins sets the program's counter back, and flowers must not get the numbers of what was there before."""
    factory = load_env(EASY)
    (task,) = factory.tasks("dev", 1)
    env, other = factory(), factory()
    env.reset(task)

    def numbers():
        return [int(n) for n in re.findall(r'"(\d+)":\{', env._running().call("getAllObjectIdsTypesReferentsLUTJSON"))]

    known = set(numbers())
    grown = len(known)
    do(env, *HIVE[:2])
    for _ in range(6):
        do(env, "wait")
        other.reset(task)
        now = numbers()
        assert len(now) == len(set(now))
        assert all(number > max(known) for number in set(now) - known)
        known |= set(now)
    assert len(known) > grown > 100
    env.close()
    other.close()


def test_another_process_sees_the_same():
    code = """
        import hashlib
        from test_scienceworld import EASY, watch
        from whet import load_env
        factory = load_env(EASY)
        seen = [text for task in factory.tasks("dev", 2) for text in watch(factory, task)]
        print(hashlib.sha256(repr(seen).encode()).hexdigest())
    """
    factory = load_env(EASY)
    here = [text for task in factory.tasks("dev", 2)[::-1] for text in reversed(list(watch(factory, task)))][::-1]
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == hashlib.sha256(repr(here).encode()).hexdigest()


@pytest.mark.timeout(900)
def test_growing_and_crossing_plants_can_be_repeated():
    """A long gold path with bees, pollen and seeds, alone, and in turns with another that is two actions ahead."""
    factory = load_env("scienceworld:tasks=grow-fruit")
    first, second = factory.tasks("train", 2)
    env = factory()
    env.reset(first)
    env.expert(random.Random(0))
    plan = list(env._plan)
    env.close()
    alone = list(watch(factory, first, plan))
    assert plan
    ahead = watch(factory, second, itertools.repeat("wait1", len(plan) + 3))
    for _ in range(3):
        next(ahead)
    again = []
    for seen in watch(factory, first, plan):
        again.append(seen)
        next(ahead)
    assert again == alone


# -- Java processes ------------------------------------------------------------------------------------------------------


def gone(pid):
    """Whether a process has ended and been waited for."""
    end = time.monotonic() + 20
    while os.path.exists(f"/proc/{pid}"):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("which", ["player", "planner"])
def test_a_java_process_that_is_killed_in_the_middle_of_a_rollout(which, caplog):
    """The episodes that were under way in it begin anew, are counted, and end as they would have."""
    factory = load_env(EASY)
    tasks = factory.tasks("train", 6)
    before = rollout(Agent(ExpertPolicy()), factory, tasks, progress=False)
    turns, killed = itertools.count(1), []

    def act(request, rng):
        if next(turns) == 9:
            machine = request.env._server.machine if which == "player" else ScienceWorld.planners._open[0]
            os.kill(machine.process.pid, signal.SIGKILL)
            machine.process.wait()
            request.env._plan = ()
            killed.append(machine.process.pid)
        return request.env.expert(rng)

    caplog.clear()
    episodes = rollout(Agent(ScriptedPolicy(act)), factory, tasks, progress=False)
    assert len(killed) == 1
    assert gone(killed[0])
    assert all(e.ok and e.success for e in episodes)
    assert [[t.content for t in e.turns] for e in episodes] == [[t.content for t in e.turns] for e in before]
    again = [e for e in episodes if e.tags.get("attempts", 1) > 1]
    if which == "player":
        assert again, "nobody noticed"
        assert all(e.tags["broken"] == {"EnvError": 1} for e in again)
    assert not [record for record in caplog.records if "py4j" in record.pathname], "py4j's tracebacks"


def test_what_cannot_be_mended_is_counted_and_never_a_zero():
    """A machine that dies in every attempt: the episode is dropped, and what remains is scored without it."""
    factory = load_env(EASY)
    tasks = factory.tasks("train", 3)

    def act(request, rng):
        if request.env._task == "find-plant":
            request.env._server.machine.process.kill()
            return "look around"
        return request.env.expert(rng)

    found = evaluate(Agent(ScriptedPolicy(act)), factory, tasks, limits=Limits(in_flight=1))
    assert found.errors == {"EnvError": 1}
    assert (found.success.mean, found.success.n) == (1.0, 2)


def test_machines_are_replaced_after_so_many_episodes(monkeypatch):
    monkeypatch.setattr(ScienceWorld.servers, "recycle", 3)
    monkeypatch.setattr(ScienceWorld.servers, "share", 2)
    factory = load_env(EASY)
    recycled, pids = ScienceWorld.servers.pool.counts().recycled, []
    for machine in list(ScienceWorld.servers._open):  # those of other tests
        machine.served = 3

    def act(request, rng):
        pids.append(request.env._server.machine.process.pid)
        return "look around"

    tasks = factory.tasks("train", 7)
    episodes = rollout(Agent(ScriptedPolicy(act)), load_env(f"{EASY},max_turns=1"), tasks, limits=Limits(in_flight=1), progress=False)
    assert all(e.ok for e in episodes)
    assert list(collections.Counter(pids).values()) == [3, 3, 1]
    assert ScienceWorld.servers.pool.counts().recycled >= recycled + 2
    assert all(gone(pid) for pid in dict.fromkeys(pids[:6]))
