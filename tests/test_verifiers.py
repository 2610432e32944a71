"""verifiers: episodes on the library's own environment server, with its own harness; the agent is this process."""

import json

import pytest

pytest.importorskip("zmq")
pytest.importorskip("msgpack")

from serving import needs, serve
from whet.agents import Agent
from whet.envs import load_env
from whet.envs.base import Action
from whet.envs.verifiers import Verifiers, rows
from whet.envs.verifiers_wire import Asked, Assembly, Ended
from whet.errors import ConfigError, EnvError
from whet.policies import ScriptedPolicy
from whet.rollout import Limits, rollout
from whet.types import Stop, ToolCall

# The harness is a program that `uv` prepares from PyPI when a server first needs it, which takes half a minute.
served = needs("verifiers")


def call(name: str, id: str = "", **arguments) -> Action:
    return Action(tool_calls=(ToolCall(name=name, arguments=arguments, id=id),))


@pytest.fixture(scope="module")
def guessing(tmp_path_factory):
    file = tmp_path_factory.mktemp("guessing") / "tasks.jsonl"
    with serve("verifiers", "guessing", str(file)) as (url, _):
        yield {"tasks": str(file), "url": url}


@served
def test_an_episode_with_the_servers_user_is_played_turn_by_turn(guessing):
    env = Verifiers(**guessing)
    task = env.tasks("train", 8)[6]
    assert task.data["number"] == 6
    (first,) = env.reset(task)
    assert (first.role, first.content) == ("user", "Guess a number from 0 to 9.")
    assert env.tools == ()
    assert env.instructions == ""
    seen = []
    for guess in ("3", "8", "six"):
        step = env.step(Action(text=guess))
        seen += [(turn.role, turn.content) for turn in step.observation]
        assert not step.terminated
    assert seen == [("user", "higher"), ("user", "lower"), ("user", "higher")]
    step = env.step(Action(text="6"))
    assert (step.reward, step.terminated, step.success) == (1.0, True, True)
    assert step.info["rewards"] == {"found": 1.0}
    assert step.info["metrics"]["hints"] == 3
    with pytest.raises(EnvError, match="is over"):
        env.step(Action(text="6"))
    env.close()


@served
def test_failures_on_the_server_are_errors_and_no_rewards(guessing):
    env = Verifiers(**guessing)
    env.reset(env.tasks("dev", 1)[0])
    with pytest.raises(EnvError, match="the user has left"):
        env.step(Action(text="break"))
    env.close()
    env = Verifiers(**guessing)
    env.reset(env.tasks("test", 1)[0])
    for _ in range(3):
        env.step(Action(text="silence"))
    with pytest.raises(EnvError, match="without a reward"):
        env.step(Action(text="silence"))
    env.close()


@served
def test_a_rollout_plays_several_at_once_and_leaves_what_it_cuts_off(guessing):
    def counting(request, rng):
        return str(sum(turn.role == "assistant" for turn in request.turns))

    factory = load_env(f"verifiers:tasks={guessing['tasks']},url={guessing['url']}")
    tasks = factory.tasks("train", 8)
    assert [task.data["number"] for task in tasks] == list(range(8))
    episodes = rollout(Agent(ScriptedPolicy(counting)), factory, tasks[2:5], limits=Limits(retries=0))
    assert [episode.stop for episode in episodes] == [Stop.TERMINATED] * 3
    assert [episode.reward for episode in episodes] == [1.0, 1.0, 0.0], "it counts 0, 1, 2, 3 and then the hints end"
    cut = load_env(f"verifiers:tasks={guessing['tasks']},url={guessing['url']},max_turns=2")
    (episode,) = rollout(Agent(ScriptedPolicy(counting)), cut, tasks[7:8], limits=Limits(retries=0))
    assert (episode.stop, episode.reason) == (Stop.TRUNCATED, "max_turns")
    (after,) = rollout(Agent(ScriptedPolicy(counting)), factory, tasks[:1], limits=Limits(retries=0))
    assert after.reward == 1.0


@served
def test_the_servers_tools_are_the_agents_tools(tmp_path):
    file = tmp_path / "lamps.jsonl"
    with serve("verifiers", "lamp_shop", str(file)) as (url, _):
        env = Verifiers(str(file), url=url, success_at=0.9)
        env.reset(env.tasks("train", 1)[0])
        assert env.instructions == "Be brief."
        (tool,) = env.tools
        assert (tool.name, tool.description) == ("shop_price", "Price of an item.")
        assert tool.parameters == {"type": "object", "properties": {"item": {"type": "string"}}, "required": ["item"]}
        broken = env.step(Action(tool_calls=(ToolCall(name="shop_price", error="the tool call is not valid JSON", id="a"),)))
        assert broken.observation[0].content == "error: the tool call is not valid JSON"
        (turn,) = env.step(call("shop_price", id="b", item="moon")).observation
        assert "there is no moon" in turn.content
        (turn,) = env.step(call("shop_prize", id="c", item="lamp")).observation
        assert turn.content == "error: unknown tool 'shop_prize'"
        (turn,) = env.step(call("shop_price", id="d", item="lamp")).observation
        assert (turn.role, turn.name, turn.call_id, turn.content) == ("tool", "shop_price", "d", "a dozen more than thirty")
        step = env.step(Action(text="42"))
        assert step.reward == pytest.approx(0.5 * 1.0 + 0.5), "half of `right`, and `brief`"
        assert step.success
        env.close()


def lines(tmp_path, n: int, name: str = "t.jsonl") -> str:
    file = tmp_path / name
    file.write_text("".join(json.dumps({"idx": i, "prompt": f"p{i}"}) + "\n" for i in range(n)))
    return str(file)


def test_a_file_is_dealt_to_disjoint_splits(tmp_path):
    path = lines(tmp_path, 25)
    dealt = {split: [place for place, _ in rows(path, split)] for split in ("train", "dev", "test")}
    assert dealt["dev"] == [8, 18]
    assert dealt["test"] == [9, 19]
    assert sorted(place for places in dealt.values() for place in places) == list(range(25))
    env = Verifiers(path)
    assert [task.data["idx"] for task in env.tasks("train", 3, start=7)] == [7, 10, 11]
    assert env.tasks("dev", 9) == env.tasks("dev", 2)


def test_files_with_a_split_in_their_name_are_taken_as_they_are(tmp_path):
    lines(tmp_path, 3, "a-train.jsonl")
    lines(tmp_path, 2, "a-dev.jsonl")
    env = Verifiers(str(tmp_path / "a-{split}.jsonl"))
    assert len(env.tasks("train", 9)) == 3
    assert len(env.tasks("dev", 9)) == 2
    with pytest.raises(ConfigError, match="cannot be read"):
        env.tasks("test", 9)
    (tmp_path / "bad.jsonl").write_text('{"idx": 0}\nnope\n')
    with pytest.raises(ConfigError, match="line 2 of"):
        Verifiers(str(tmp_path / "bad.jsonl")).tasks("train", 9)


def test_without_a_server_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("whet.envs.verifiers_wire.GREETING", 0.5)
    env = Verifiers(lines(tmp_path, 3), url="tcp://127.0.0.1:9")
    with pytest.raises(EnvError, match=r"no verifiers server answered at tcp://127.0.0.1:9 within 0.5 s"):
        env.reset(env.tasks("train", 1)[0])
    env.close()
    with pytest.raises(ConfigError, match="expected the address"):
        Verifiers("t.jsonl", url="http://localhost")


def test_a_conversation_that_was_rewritten_is_refused(tmp_path):
    env = Verifiers(lines(tmp_path, 1))
    first = {"role": "user", "content": "hello"}
    said = {"role": "assistant", "content": "hi"}
    env._sent = [first]
    assert env._new(Asked({"messages": [first, said, {"role": "user", "content": "and?"}]}), said) == [{"role": "user", "content": "and?"}]
    env._sent = [first]
    with pytest.raises(EnvError, match=r"message 0 .* user 'hello' became user 'a summary'"):
        env._new(Asked({"messages": [{"role": "user", "content": "a summary"}, said]}), said)
    with pytest.raises(EnvError, match="shrank from 2 to 1"):
        env._new(Asked({"messages": [first]}), said)
    with pytest.raises(EnvError, match="content of the type 'image_url'"):
        env._turns([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])


def test_pieces_of_an_episode_are_put_together():
    assembly = Assembly()
    assembly.apply({"trace": "a", "open": {"id": "a"}, "set": {"rewards": {}}})
    assembly.apply({"trace": "b", "open": {"id": "b"}})
    assembly.apply({"trace": "a", "errors": [{"type": "X"}], "nodes": [{}]})
    assembly.apply({"trace": "b", "discard": True})
    assembly.apply({"trace": "a", "set": {"rewards": {"r": {"score": 1.0}}}})
    ended = assembly.finish({"head": {"ok": True}, "traces": [{"id": "a"}]})
    assert ended.traces[0]["rewards"] == {"r": {"score": 1.0}}
    assert ended.traces[0]["errors"] == [{"type": "X"}]
    ended = assembly.finish({"head": {}, "traces": [{"id": "b"}]})
    assert ended == Ended(error="it never told about trace b, which belongs to the episode")
