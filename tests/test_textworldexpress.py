"""TextWorldExpress: official folds, scores and ends as the package has them, and a run that outlives its Java process."""

import itertools
import os
import random
import shutil
import signal

import pytest

if shutil.which("java") is None:
    pytest.skip("there is no Java runtime", allow_module_level=True)
pytest.importorskip("textworld_express")

from whet import Agent, check_env, load_env
from whet.envs import Action
from whet.envs.check import CHECKS
from whet.envs.jvm import JavaRaised
from whet.envs.textworldexpress import FIRST_SEED, PARAMETERS, SEEDS, TextWorldExpress, shorten
from whet.errors import ConfigError, EnvError
from whet.evals import evaluate
from whet.policies.scripted import ExpertPolicy, ScriptedPolicy
from whet.rollout import Limits, rollout
from whet.types import SPLITS, Stop

pytestmark = pytest.mark.slow

SMALL = {
    "cookingworld": "numLocations=3,numIngredients=2",
    "twc": "numLocations=1,numItemsToPutAway=2",
    "coin": "numLocations=5",
    "mapreader": "numLocations=6,maxDistanceApart=3",
    "simonsays": "gameLength=4",
}
"""Settings with short episodes; the other games have no parameters."""


def spec(game, more=""):
    return ",".join(part for part in (f"textworldexpress:game={game}", SMALL.get(game, ""), more) if part)


def begin(game, index=0, split="train", more=""):
    factory = load_env(spec(game, more))
    env = factory()
    return env, env.reset(factory.tasks(split, 1, index)[0])


def do(env, *actions):
    """The last of several steps."""
    for action in actions:
        step = env.step(Action(text=action))
    return step


@pytest.fixture(scope="module")
def java():
    server = TextWorldExpress.servers.take(100)
    yield server
    TextWorldExpress.servers.give(server)


@pytest.mark.parametrize("game", ["twc", "sorting", pytest.param("cookingworld", marks=pytest.mark.slow)])
def test_the_contract(game):
    keeps(spec(game))


@pytest.mark.parametrize(
    "game",
    ["coin", "mapreader", "arithmetic", "simonsays", "peckingorder", "simonsays,memorization=1,verbose=1", "twc,actions=false,text=short"],
)
def test_the_contract_of_the_other_games(game):
    keeps(f"textworldexpress:game={game}")


def keeps(what):
    report = check_env(what, tasks=6)
    assert not [problem for problem in report.problems if not problem.warning], report  # a busy machine is warned of its speed
    assert set(report.passed) == set(CHECKS), report
    assert report.expert_success == 1.0


def test_folds_are_those_of_the_package(java):
    for split, method in (("train", "getSeedsTrain"), ("dev", "getSeedsDev"), ("test", "getSeedsTest")):
        tasks = load_env("textworldexpress:game=coin").tasks(split, 5000)
        assert [task.seed for task in tasks] == java.call(method)
        assert len(tasks) == SEEDS
    assert list(FIRST_SEED) == list(SPLITS)


def test_what_is_tidied_up_differs_between_the_folds():
    """The package deals the objects of twc out to the folds; seeds alone would give every fold all of them."""
    things = {}
    for split in SPLITS:
        factory = load_env("textworldexpress:game=twc,numLocations=1,numItemsToPutAway=3,includeDoors=0")
        things[split] = set()
        for task in factory.tasks(split, 25):
            env = factory()
            env.reset(task)
            things[split] |= {action for action in env._play.actions if action.startswith("take ")}
            env.close()
    assert all(len(found) > 20 for found in things.values())
    assert not any(things[a] & things[b] for a, b in itertools.combinations(SPLITS, 2))


def test_games_and_parameters_are_those_of_the_package(java):
    assert set(java.call("getGameNames")) == set(PARAMETERS)
    for game, parameters in PARAMETERS.items():
        for name, (low, high) in parameters.items():
            for value in (low, high):
                assert java.call("load", game, f"{name}={value}") == "", (game, name, value)
            if (game, name) != ("mapreader", "numLocations") and high > 1:
                assert java.call("load", game, f"{name}={high + 1}"), (game, name, high + 1)
    for locations in (2, 48):
        java.call("load", "mapreader", f"numLocations={locations},maxDistanceApart=1")
        assert java.call("generateNewGameJSON", 0, "train", False)
    for locations in (1, 49):
        java.call("load", "mapreader", f"numLocations={locations},maxDistanceApart=1")
        with pytest.raises(JavaRaised):
            java.call("generateNewGameJSON", 0, "train", False)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("game=chess", "option 'game' is 'chess'"),
        ("game=coin,numIngredients=2", "the game 'coin' has no parameter 'numIngredients'. Valid: includeDoors, "),
        ("game=arithmetic,numLocations=2", "the game 'arithmetic' has no parameter 'numLocations'. Valid: none."),
        ("game=twc,numLocations=4", "numLocations is 4; the game 'twc' expects 1 to 3"),
        ("max_turns=0", "max_turns is 0; expected 1 or more"),
    ],
)
def test_options_that_cannot_be(text, told):
    with pytest.raises(ConfigError) as raised:
        load_env(f"textworldexpress:{text}")()
    assert told in str(raised.value)


def test_what_the_agent_sees():
    env, seen = begin("peckingorder")
    task, room, actions = seen.splitlines()
    assert task.startswith("task: Your task is to read and follow the instructions book")
    assert room.startswith("You are in the kitchen. In one part of the room you see a stove.")
    assert actions == "actions: inventory | look around | read instructions book | take banana | take papaya | take peach | take strawberry"
    told = do(env, "read instructions book").observation.splitlines()[0]
    assert told == "The current task is to take the papaya."
    env.close()
    env, seen = begin("peckingorder", more="actions=false,text=short")
    assert seen.splitlines()[1:] == [
        "You are in the kitchen. stove. oven. fridge (closed). counter: a banana, a peach, and a strawberry. kitchen cupboard (closed). "
        "cutlery drawer (closed). trash can (closed). dishwasher (closed). dining chair: a papaya. instructions book."
    ]
    env.close()


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("In one part of the room you see a bed, that has nothing on it.", "bed."),
        ("There is also an end table, that is empty.", "end table."),
        ("You also see a fridge that is closed.", "fridge (closed)."),
        ("In another part of the room you see a counter that has a knife, and some water on it.", "counter: a knife, and some water."),
        ("To the North you see the attic. To the East you see a closed wood door.", "North: attic. East: closed wood door."),
        ("You take the knife.", "You take the knife."),
    ],
)
def test_fewer_words_for_the_same_things(text, short):
    assert shorten(text) == short


@pytest.mark.parametrize("game", PARAMETERS)
def test_short_descriptions_name_everything(game):
    """Every object that an action can be done to stands in the short text as it does in the full one."""
    for i in range(5):
        seen = []
        for text in ("full", "short"):
            env, first = begin(game, i, more=f"text={text}")
            rng, parts = random.Random(i), [first]
            for _ in range(12):
                step = env.step(env.random_action(rng))
                parts.append(step.observation)
                if step.terminated:
                    break
            env.close()
            seen.append(parts)
        for full, short in zip(*seen):
            full, _, actions = full.partition("\nactions: ")
            assert short.partition("\nactions: ")[2] == actions
            assert len(short) <= len(full) + len(actions) + 10
            for action in actions.split(" | "):
                thing = action.partition(" ")[2]
                assert (thing in full) <= (thing in short), (thing, full, short)


def test_thoughts_come_before_a_colon_and_nothing_is_corrected():
    env, _ = begin("twc", 2)
    assert do(env, "I will look first.\nthe flour: take flour").observation.startswith("You take the flour.")
    step = do(env, "Put the flour in the shelf!")
    assert step.observation.startswith("Unknown action")
    assert step.reward == 0
    assert "put flour in shelf" in step.observation
    assert step.info["moves"] == 2
    env.close()


def test_success_failure_and_truncation_are_three_things():
    env, _ = begin("arithmetic")
    lost = do(env, "take 6 oranges", "put 6 oranges in box")  # 22 / 11 is 2
    assert (lost.terminated, lost.truncated, lost.success, lost.info["reason"]) == (True, False, False, "failure")
    with pytest.raises(EnvError, match="over"):
        do(env, "look around")
    env.close()
    env, _ = begin("arithmetic")
    first = do(env, "take math problem", "read math problem")
    won = do(env, "take 2 bananas", "put 2 bananas in box")
    assert (first.reward, won.reward) == (0.5, 0.5)
    assert (won.terminated, won.success, won.info["reason"]) == (True, True, "success")
    assert "actions:" not in won.observation
    env.close()
    factory = load_env(spec("twc", "max_turns=3"))
    (episode,) = rollout(Agent(ExpertPolicy()), factory, factory.tasks("train", 1), progress=False)
    assert (episode.stop, episode.reason, episode.success) == (Stop.TRUNCATED, "max_turns", False)


@pytest.mark.parametrize("game", PARAMETERS)
def test_rewards_add_up_to_the_score(game):
    paid, ends = [], []
    for reward in ("score", "success"):
        env, _ = begin(game, 1, more=f"reward={reward}")
        rng, total = random.Random(0), 0.0
        for _ in range(env.max_turns):
            step = env.step(env.expert(rng))
            total += step.reward
            if step.terminated:
                break
        paid.append(total)
        ends.append(step)
        env.close()
    assert paid[0] == pytest.approx(ends[0].info["score"])
    assert paid == pytest.approx([1.0, 1.0])
    assert all(step.success for step in ends)


@pytest.mark.parametrize("game", PARAMETERS)
def test_episodes_of_one_task_do_not_disturb_each_other(game):
    """Four episodes of a task in one machine, in turns, each with its expert, which plays games of its own beside them."""
    factory = load_env(spec(game))
    (task,) = factory.tasks("train", 1, 3)

    def play(places):
        """What is seen in some of the places 0 to 3, each of which acts in its own way."""
        envs = {i: factory() for i in places}
        rngs = {i: random.Random(i) for i in places}
        seen = {i: [env.reset(task)] for i, env in envs.items()}
        going = set(places)
        for turn in range(25):
            for i in sorted(going):
                action = (envs[i].expert(rngs[i]) if (turn + i) % 3 else None) or envs[i].random_action(rngs[i])
                step = envs[i].step(action)
                seen[i] += [action.text, step.observation, step.reward]
                going -= {i} if step.terminated else set()
        for env in envs.values():
            env.close()
        return seen

    together = play(range(4))
    for i in range(4):
        assert play([i])[i] == together[i]


@pytest.mark.parametrize("game", ["cookingworld", "twc", "coin", "mapreader", "sorting"])
def test_the_expert_goes_on_from_where_others_have_been(game):
    won = tried = 0
    for i in range(6):
        env, _ = begin(game, i, "dev")
        rng = random.Random(i)
        for turn in range(env.max_turns):
            action = env.random_action(rng) if turn < 6 else env.expert(rng)
            if action is None:
                break
            step = env.step(action)
            if step.terminated:
                break
        tried += turn >= 6
        won += turn >= 6 and step.success
        env.close()
    assert tried >= 4
    assert won >= tried - 1


def test_the_expert_gives_up_when_all_is_lost():
    env, _ = begin("cookingworld")
    rng, eaten = random.Random(0), False
    for _ in range(env.max_turns):
        meals = [a for a in env._play.actions if a.startswith("eat ")]
        step = env.step(Action(text=meals[0]) if meals else env.expert(rng))
        eaten = eaten or bool(meals)
        if eaten:
            break
    assert eaten
    assert not step.success
    assert step.terminated or env.expert(rng) is None
    env.close()


def test_a_game_that_cannot_be_won_has_no_expert():
    """Where the package asks for the cucumber twice, taking it the first time is a failure. Its own gold path fails, too."""
    env, _ = begin("peckingorder", 22, "dev")
    assert do(env, "read instructions book").observation.startswith("The current task is to take the cucumber.")
    assert env.expert(random.Random(0)) is None
    end = do(env, "take cucumber")
    assert (end.terminated, end.success, end.info["score"]) == (True, False, -1.0)
    env.close()


def test_maps_that_the_package_cannot_make_are_not_among_the_tasks():
    factory = load_env("textworldexpress:game=mapreader,numLocations=6,maxDistanceApart=4")
    tasks = factory.tasks("train", 40)
    assert len(tasks) == 40
    assert tasks[-1].seed > 39  # a tenth of the seeds have no map
    assert tasks[5:12] == factory.tasks("train", 7, 5)
    for task in tasks[:10]:
        env = factory()
        assert env.reset(task)
        env.close()


def test_tasks_of_another_setting_are_refused():
    (task,) = load_env("textworldexpress:game=twc").tasks("train", 1)
    with pytest.raises(EnvError, match="is of"):
        load_env("textworldexpress:game=coin")().reset(task)


def test_before_and_after_the_episode_there_is_nothing_to_ask():
    env, _ = begin("coin")
    env.close()
    with pytest.raises(EnvError, match="has not begun, or is closed"):
        do(env, "look around")
    with pytest.raises(EnvError, match="closed while it began"):
        env.reset(load_env(spec("coin")).tasks("train", 1)[0])


@pytest.mark.parametrize("inline", [True, False])
def test_a_java_process_that_is_killed_in_the_middle_of_a_rollout(inline, monkeypatch, caplog):
    """The episodes that were under way in it begin anew, are counted, and end as they would have."""
    monkeypatch.setattr(TextWorldExpress, "inline", inline)
    factory = load_env(spec("twc"))
    tasks = factory.tasks("train", 16)
    before = rollout(Agent(ExpertPolicy()), factory, tasks, progress=False)
    turns, killed = itertools.count(1), []

    def act(request, rng):
        if next(turns) == 40:
            process = request.env._server.machine.process
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            killed.append(process.pid)
        return request.env.expert(rng)

    episodes = rollout(Agent(ScriptedPolicy(act)), factory, tasks, progress=False)
    assert len(killed) == 1
    assert all(episode.ok and episode.success for episode in episodes)
    assert [e.reward for e in episodes] == pytest.approx([1.0] * 16)
    again = [e for e in episodes if e.tags.get("attempts", 1) > 1]
    assert again, "nobody noticed"
    assert all((e.tags["attempts"], e.tags["broken"]) == (2, {"EnvError": 1}) for e in again)
    assert [[t.content for t in e.turns] for e in episodes] == [[t.content for t in e.turns] for e in before]
    assert killed[0] not in [machine.process.pid for machine in TextWorldExpress.servers._open]
    assert not os.path.exists(f"/proc/{killed[0]}")
    assert not [record for record in caplog.records if "py4j" in record.pathname], "py4j's tracebacks"


def test_what_cannot_be_mended_is_an_error_and_never_a_zero():
    """A machine that dies in every attempt: the episode has failed, and no reward is made up for it."""
    factory = load_env(spec("twc"))

    def act(request, rng):
        if request.env._task.id.endswith("/1"):
            request.env._server.machine.process.kill()
            return "look around"
        return request.env.expert(rng)

    tasks = factory.tasks("train", 3)
    episodes = rollout(Agent(ScriptedPolicy(act)), factory, tasks, limits=Limits(in_flight=1), progress=False)
    assert [e.ok for e in episodes] == [True, False, True]
    assert episodes[1].stop is Stop.ERROR
    assert "step 1: EnvError: the Java process" in episodes[1].error
    assert "has died (exit status -9)" in episodes[1].error
    assert (episodes[1].tags["attempts"], episodes[1].tags["broken"]) == (3, {"EnvError": 3})
    assert [e.success for e in episodes] == [True, False, True]
    found = evaluate(Agent(ScriptedPolicy(act)), factory, tasks, limits=Limits(in_flight=1))
    assert found.errors == {"EnvError": 1}
    assert (found.success.mean, found.reward.mean, found.success.n) == (1.0, pytest.approx(1.0), 2), "it is not scored"
