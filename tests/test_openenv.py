"""OpenEnv: episodes on real OpenEnv servers (openenv-core's own code), each in a process of its own."""

import random
import threading
import time

import pytest

pytest.importorskip("websockets")

from serving import needs, serve
from whet.agents import Agent
from whet.envs import EnvFactory, check_env, load_env
from whet.envs.base import Action
from whet.envs.openenv import OpenEnv, Session
from whet.errors import ConfigError, EnvError
from whet.policies import ScriptedPolicy
from whet.rollout import Limits, rollout
from whet.types import Stop, ToolCall

served = needs("openenv")


def call(name: str, **arguments) -> Action:
    return Action(tool_calls=(ToolCall(name=name, arguments=arguments, id="c"),))


def text(step) -> str:
    return step.observation if isinstance(step.observation, str) else step.observation[0].content


@pytest.fixture(scope="module")
def guess():
    with serve("openenv", "guess", "2") as (port, _):
        yield f"http://127.0.0.1:{port}"


def secret(task, top: int = 9) -> int:
    """What the server's environment hides, which draws it from the seed that it is given."""
    return random.Random(task.seed % 2**31).randint(0, top)


@served
def test_an_action_of_several_fields_is_a_tool(guess):
    env = OpenEnv(guess)
    (act,) = env.tools
    assert act.name == "act"
    assert act.description == "Guess the hidden number."
    assert set(act.parameters["properties"]) == {"number", "sure"}
    assert act.parameters["required"] == ["number"]
    task = env.tasks("train", 1)[0]
    assert env.reset(task) == "hint: guess\nleft: 4"
    assert env.instructions == "Guess a number from 0 to 9."
    number = secret(task)
    wrong = (number + 1) % 10
    step = env.step(call("act", number=wrong))
    assert text(step) == f"hint: {'higher' if number > wrong else 'lower'}\nleft: 3"
    assert (step.reward, step.terminated) == (-0.1, False)
    step = env.step(call("act", number=number))
    assert (step.reward, step.terminated, step.success) == (1.0, True, False), "the return is 0.9, and 1 counts as solved"
    with pytest.raises(EnvError, match="is over"):
        env.step(call("act", number=1))
    env.close()


@served
def test_what_the_server_finds_wrong_with_an_action_is_told_to_the_agent_and_costs_no_step(guess):
    env = OpenEnv(guess)
    env.reset(env.tasks("train", 1)[0])
    assert text(env.step(call("act", number=11))).startswith("error: bad action: number: Input should be less than or equal to 9")
    assert text(env.step(call("act"))).startswith("error: bad action: number: Field required")
    assert text(env.step(call("act", number=1, bet=2))).startswith("error: bad action: bet: Extra inputs")
    task = env.tasks("train", 1)[0]
    assert text(env.step(call("act", number=(secret(task) + 1) % 10))).endswith("left: 3")
    env.close()


@served
def test_what_breaks_on_the_server_is_no_observation(guess):
    env = OpenEnv(guess, arguments={"broken": True})
    env.reset(env.tasks("train", 1)[0])
    with pytest.raises(EnvError, match=r"EXECUTION_ERROR: the numbers ran out"):
        env.step(call("act", number=7))
    env.close()


@served
def test_options_reach_the_server_and_choose_what_is_seen(guess):
    env = OpenEnv(guess, show="hint", arguments={"top": 0}, success_at=0.5)
    assert env.reset(env.tasks("dev", 1)[0]) == "guess"
    step = env.step(call("act", number=0))
    assert (text(step), step.reward, step.success) == ("right", 1.0, True)
    env.close()
    with pytest.raises(ConfigError, match=r"no field 'hunt'. Did you mean 'hint'"):
        OpenEnv(guess, show="hunt").reset(env.tasks("dev", 1)[0])
    with pytest.raises(ConfigError, match=r"no field 'nmber'. Did you mean 'number'"):
        OpenEnv(guess, field="nmber").reset(env.tasks("dev", 1)[0])
    with pytest.raises(ConfigError, match="expected the address"):
        OpenEnv("localhost:8000")


@served
def test_it_keeps_the_contract_where_the_user_calls_it_replayable(guess):
    report = check_env(f"openenv:url={guess},replayable=true", tasks=3)
    assert not report.problems, report
    assert "replay" in report.passed
    assert check_env(f"openenv:url={guess}", tasks=2, processes=False).skipped["replay"] == "replayable is False"


@served
def test_more_episodes_than_the_server_has_room_for_wait_their_turn(guess):
    """Two sessions, twelve episodes: each waits for a place, and every one is played."""
    halving = ScriptedPolicy(bisect)
    factory = load_env(f"openenv:url={guess},success_at=0.6")
    episodes = rollout(Agent(halving), factory, factory.tasks("train", 12), limits=Limits(retries=0))
    assert [episode.stop for episode in episodes] == [Stop.TERMINATED] * 12
    assert sum(episode.success for episode in episodes) >= 10, "four halvings nearly always find one of ten"


def bisect(request, rng):
    low, high = 0, 9
    asked = [turn.tool_calls[0].arguments["number"] for turn in request.turns if turn.role == "assistant"]
    told = [turn.content for turn in request.turns if turn.role == "tool"]
    for number, hint in zip(asked, told):
        low, high = (number + 1, high) if hint.startswith("hint: higher") else (low, number - 1)
    return call("act", number=(low + high) // 2)


@served
def test_an_action_of_one_text_field_is_the_agents_text():
    with serve("openenv", "echo", "4") as (port, _):
        env = OpenEnv(f"http://127.0.0.1:{port}")
        task = env.tasks("test", 1)[0]
        assert env.tools == ()
        assert env.reset(task) == f"seed {task.seed % 2**31}"
        assert env.step(Action(text="hello")).observation == "hello"
        step = env.step(Action(text="stop"))
        assert (step.reward, step.terminated, step.success) == (1.0, True, True)
        env.close()


@served
def test_the_environment_that_openenv_init_writes(tmp_path):
    """None of ours: it echoes, pays a tenth for each letter, never ends, and has one place."""
    with serve("openenv", "init", str(tmp_path)) as (port, _):
        url = f"http://127.0.0.1:{port}"
        env = OpenEnv(url)
        assert env.reset(env.tasks("train", 1)[0]) == "echoed_message: Lamp Env environment ready!\nmessage_length: 0"
        assert env.tools == ()
        step = env.step(Action(text="hello"))
        assert (step.observation, step.reward) == ("echoed_message: hello\nmessage_length: 5", 0.5)
        env.close()
        factory = load_env(f"openenv:url={url},max_turns=2,show=echoed_message")
        episodes = rollout(Agent(ScriptedPolicy(lambda request, rng: "ab")), factory, factory.tasks("train", 4), limits=Limits(retries=0))
        assert [(e.stop, e.reason, round(e.reward, 6)) for e in episodes] == [(Stop.TRUNCATED, "max_turns", 0.4)] * 4
        assert [turn.content for turn in episodes[0].turns if not turn.trained][-1] == "ab"


@served
def test_mcp_tools_come_with_their_names_and_schemas():
    with serve("openenv", "shop", "2") as (port, _):
        env = OpenEnv(f"http://127.0.0.1:{port}")
        task = env.tasks("train", 1)[0]
        assert [(t.name, t.description, list(t.parameters["properties"])) for t in env.tools] == [
            ("price", "Price of an item.", ["item"]),
            ("answer", "Say what the lamp costs.", ["price"]),
        ]
        env.reset(task)
        price = random.Random(task.seed % 2**31).randint(10, 99)
        assert text(env.step(call("price", item="lamp"))) == f"lamp: {price}"
        assert text(env.step(call("price", item="moon"))).startswith("error: ")
        assert text(env.step(call("prize", item="lamp"))).startswith("error: unknown tool 'prize'. Did you mean 'price'?")
        step = env.step(call("answer", price=price))
        assert (text(step), step.reward, step.terminated, step.success) == ("noted", 1.0, True, True)
        env.close()


@served
def test_an_end_without_any_reward_is_an_error_and_no_zero():
    with serve("openenv", "mute", "1") as (port, _):
        env = OpenEnv(f"http://127.0.0.1:{port}")
        env.reset(env.tasks("train", 1)[0])
        with pytest.raises(EnvError, match="never gave a reward"):
            env.step(Action(text="anything"))
        env.close()


@served
def test_a_session_ends_with_its_episode_and_a_server_that_dies_is_an_error():
    with serve("openenv", "echo", "1") as (port, process):
        url = f"http://127.0.0.1:{port}"
        first = OpenEnv(url)
        first.reset(first.tasks("train", 1)[0])
        done = threading.Event()

        def wait():
            Session(url, 10.0).close()
            done.set()

        threading.Thread(target=wait, daemon=True).start()
        time.sleep(1.0)
        assert not done.is_set(), "the server has one place, and it is taken"
        del first  # never closed, but nobody holds it any more
        assert done.wait(10.0)
        env = OpenEnv(url)
        env.reset(env.tasks("train", 1)[0])
        process.kill()
        with pytest.raises(EnvError, match="closed the session"):
            env.step(Action(text="hello"))
        env.close()
        with pytest.raises(EnvError, match="no OpenEnv server"):
            env.reset(env.tasks("train", 1)[0])


def test_factories_can_be_made_without_a_server():
    factory = load_env("openenv:url=http://127.0.0.1:9")
    assert isinstance(factory, EnvFactory)
    assert len(factory.tasks("train", 3)) == 3
    with pytest.raises(EnvError, match=r"no OpenEnv server answers at http://127.0.0.1:9/schema"):
        factory().tools  # noqa: B018
