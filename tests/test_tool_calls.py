"""What becomes of tool calls: outcome classes, long and odd results, results that are kept, records and replay."""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
import time
from collections import Counter
from dataclasses import replace
from typing import ClassVar

import pytest

from whet import Agent, ToolError, load_env
from whet.envs import Action, Env, EnvFactory, ToolTimeout
from whet.envs.calling import caller_of
from whet.envs.journaled import diverging_calls, record_calls, replay_calls
from whet.errors import ConfigError, EnvError, StorageError
from whet.policies import ScriptedPolicy
from whet.rewards import tool_failures
from whet.rollout import Limits, rollout
from whet.tools import tool
from whet.tools.cache import RESULTS, ResultCache
from whet.tools.log import CallsDiverged, read_calls
from whet.tools.output import MAX_OUTPUT, clip, to_text
from whet.types import Stop, Task, ToolCall

TASK = Task(id="odd/train/0", env="odd", split="train", seed=3)


def call(tool, /, error=None, **arguments):
    return ToolCall(name=tool, arguments=arguments, error=error, id=f"id_{tool}")


def step(env, *calls):
    result = env.step(Action(tool_calls=calls))
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


def told(env, *calls):
    return [turn.content for turn in step(env, *calls).observation]


def scripted(*plan):
    """An agent that makes these calls, one a turn; a call may also be a function of the random numbers."""

    def act(request, rng):
        made = plan[sum(turn.trained for turn in request.turns)]
        return Action(tool_calls=(made(rng) if callable(made) else made,))

    return Agent(ScriptedPolicy(act, version="script"))


class Odd(Env):
    """Every way in which a tool can go wrong."""

    tool_timeout = 0.05
    inline = False

    def reset(self, task):
        self.made = 0
        return "go"

    @tool
    def fine(self, text: str = "fine") -> str:
        "Works."
        return text

    @tool
    def refuse(self) -> str:
        "Tells the model."
        raise ToolError("the drawer is locked")

    @tool
    async def refuse_later(self) -> str:
        "Tells the model."
        await asyncio.sleep(0)
        raise ToolError("the door is locked")

    @tool
    async def hang(self) -> str:
        "Never answers."
        await asyncio.sleep(60)
        return "too late"

    @tool
    async def own_timeout(self) -> str:
        "A timeout that is not ours."
        raise TimeoutError("the database")

    @tool
    def crash(self) -> str:
        "Breaks."
        raise ConnectionResetError("no database")

    @tool
    def give_up(self) -> str:
        "Waited in vain."
        raise ToolTimeout("the oven is still cold")

    @tool
    def done(self, reward: float = 1.0) -> str:
        "Ends it."
        return self.finish("bye", reward=reward)


def fresh(cls=Odd):
    env = cls()
    env.reset(TASK)
    return env


# -- outcomes ------------------------------------------------------------------------------------------------------------


def test_a_tool_tells_the_model_what_went_wrong():
    env = fresh()
    assert told(env, call("refuse"), call("fine"), call("refuse_later"), call("give_up")) == [
        "error: the drawer is locked",
        "fine",
        "error: the door is locked",
        "error: the oven is still cold",
    ]
    assert not env._over


def test_each_call_is_counted_by_what_became_of_it():
    env = fresh()
    told(env, call("fine"), call("refuse"), call("hang"), call("fin"), call("fine", text=[1]), call("", error="no JSON"), call("give_up"))
    assert caller_of(env).outcomes == {
        "ok": 1,
        "tool_error": 1,
        "timeout": 2,
        "unknown_tool": 1,
        "bad_arguments": 1,
        "malformed": 1,
    }


def test_what_else_a_tool_raises_is_infrastructure():
    for name, error in (("crash", ConnectionResetError), ("own_timeout", TimeoutError)):
        env = fresh()
        with pytest.raises(error):
            step(env, call("fine"), call(name), call("fine"))
        assert caller_of(env).outcomes == {"ok": 1, "infrastructure": 1}


def test_the_rollout_puts_the_outcomes_into_the_episode():
    agent = scripted(call("fine"), call("refuse"), call("hang"), call("fine", text="error: this is what the file says"), call("done"))
    (episode,) = rollout(agent, EnvFactory(Odd), [TASK])
    assert episode.tags["tools"] == {"ok": 3, "timeout": 1, "tool_error": 1}
    assert (episode.stop, episode.reward) == (Stop.TERMINATED, 1.0)
    assert tool_failures(episode) == 2 / 5, "a result that reads like a failure is none"
    imported = replace(episode, tags={})
    assert tool_failures(imported) == 3 / 5, "without counts there is only the text to go by"


def test_infrastructure_errors_drop_the_episode_with_a_reason_and_never_pay():
    agent = scripted(call("fine"), call("crash"))
    with pytest.raises(EnvError, match="ConnectionResetError: no database"):
        rollout(agent, EnvFactory(Odd), [TASK], limits=Limits(max_error_rate=1.0))
    agent = scripted(lambda rng: call("crash" if rng.random() < 0.5 else "done"))
    episodes = rollout(agent, EnvFactory(Odd), [TASK], n=40, seed=1, limits=Limits(retries=0, max_error_rate=1.0))
    failed = [e for e in episodes if not e.ok]
    assert 10 <= len(failed) <= 30
    assert {(e.stop, e.reason, e.success) for e in failed} == {(Stop.ERROR, "ConnectionResetError", False)}
    assert all(e.tags["tools"] == {"infrastructure": 1} for e in failed)
    assert {e.reward for e in episodes if e.ok} == {1.0}


class Flaky(Env):
    """Its tool fails three times in ten, differently in each attempt."""

    inline = False
    _random = random.Random(0)
    made: ClassVar = Counter()

    def reset(self, task):
        return "go"

    @tool
    def fetch(self) -> str:
        "Fetch."
        failed = Flaky._random.random() < 0.3
        Flaky.made["failed" if failed else "ok"] += 1
        if failed:
            raise ConnectionError("the line is dead")
        return "a page"

    @tool
    def done(self) -> str:
        "Ends it."
        return self.finish(reward=1.0)


def test_a_tool_that_fails_three_times_in_ten_costs_attempts_not_rewards():
    tasks = [replace(TASK, id=f"flaky/train/{i}") for i in range(60)]
    episodes = rollout(scripted(call("fetch"), call("done")), EnvFactory(Flaky), tasks, limits=Limits(retries=6))
    assert all(e.ok and e.reward == 1.0 and e.tags["tools"] == {"ok": 2} for e in episodes), "0.3 ** 7 is 2 in 10,000"
    again = [e for e in episodes if "attempts" in e.tags]
    assert sum(e.tags["broken"]["ConnectionError"] for e in again) == Flaky.made["failed"] >= 8
    assert all(e.tags["attempts"] == e.tags["broken"]["ConnectionError"] + 1 for e in again)


class Stuck(Odd):
    step_timeout = 0.2
    name = "odd"

    @tool
    def hang_hard(self) -> str:
        "Blocks its thread."
        time.sleep(1.0)
        return "too late"


def test_a_plain_tool_that_hangs_drops_its_episode_and_the_others_go_on():
    tasks = [replace(TASK, id=f"odd/train/{i}") for i in range(8)]
    hung = {tasks[2].id, tasks[5].id}

    def act(request, rng):
        first = request.turns[-1].role == "user"
        return Action(tool_calls=(call("hang_hard" if first and request.env.who in hung else "done"),))

    class Named(Stuck):
        def reset(self, task):
            self.who = task.id
            return super().reset(task)

    before = threading.active_count()
    episodes = rollout(Agent(ScriptedPolicy(act, version="s")), EnvFactory(Named), tasks)
    assert [(e.ok, e.reason) for e in episodes] == [
        (False, "step_deadline") if e.task.id in hung else (True, "terminated") for e in episodes
    ]
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


# -- output --------------------------------------------------------------------------------------------------------------


def test_long_text_loses_its_middle_and_says_how_much():
    text = "".join(chr(97 + i % 26) for i in range(1000))
    assert clip(text, 1000) == text
    short = clip(text, 101)
    assert short == f"{text[:51]}\n[... 899 characters cut ...]\n{text[-50:]}"
    assert clip(text, 1) == "a\n[... 999 characters cut ...]\n"
    million = clip("x" * 1_234_567, 100)
    assert "[... 1,234,467 characters cut ...]" in million


def test_bytes_become_text_whatever_they_are():
    assert to_text("grün".encode()) == "grün"
    assert to_text(b"a\xff\xfeb") == "a\ufffd\ufffdb"
    assert to_text(bytearray(b"abc")) == to_text(memoryview(b"abc")) == "abc"
    assert to_text({"page": b"\xffx", "n": 1}) == '{"page": "\ufffdx", "n": 1}'
    assert to_text(os.fsdecode(b"caf\xe9")) == "caf\ufffd", "a lone surrogate would break every tokenizer"
    long = to_text(b"\xff" * 5 + b"a" * 100_000 + b"\xfe" * 5, 100)
    assert long.startswith("\ufffd" * 5 + "a" * 45 + "\n[... about ")
    assert long.endswith("bytes cut ...]\n" + "a" * 45 + "\ufffd" * 5)
    assert to_text("é".encode() * 1000, 10) == "ééééé\n[... 990 characters cut ...]\nééééé"
    assert len(to_text(b"\xc3" + "é".encode() * 5000, 11).encode()) < 100


@pytest.mark.slow
@pytest.mark.parametrize(
    "result",
    [b"\xff" + b"a" * 50_000_000, b"a" * 50_000_000, "é" * 25_000_000, bytes(range(256)) * 200_000, ["x" * 50_000_000]],
    ids=["nearly UTF-8", "ASCII", "text", "binary", "JSON"],
)
def test_fifty_megabytes_are_shown_in_no_time(result):
    class Big(Odd):
        name = "odd"

        @tool
        def dump(self) -> str:
            "Dumps."
            return result

    env = fresh(Big)
    began = time.process_time()
    (text,) = told(env, call("dump"))
    assert time.process_time() - began < 2.0, "it is 0.2 s at most"
    assert MAX_OUTPUT <= len(text) < MAX_OUTPUT + 60
    assert "cut ...]" in text


def test_an_environment_and_a_tool_say_how_much_is_shown():
    class Short(Odd):
        max_output = 20
        name = "odd"

        @tool(max_output=6)
        def terse(self) -> str:
            "Says little."
            return "0123456789"

        @tool
        def fail(self) -> str:
            "Fails at length."
            raise ToolError("x" * 100)

    env = fresh(Short)
    terse, fine, failed = told(env, call("terse"), call("fine", text="y" * 30), call("fail"))
    assert terse == "012\n[... 4 characters cut ...]\n789"
    assert fine == "y" * 10 + "\n[... 10 characters cut ...]\n" + "y" * 10
    assert failed.startswith("error: " + "x" * 10 + "\n[... 80 characters cut")


# -- pure tools ----------------------------------------------------------------------------------------------------------


class Library(Env):
    """Counts how often its tools really run."""

    runs: ClassVar = Counter()
    inline = False

    def __init__(self, volume: int = 1) -> None:
        self.volume = volume

    def reset(self, task):
        self.secret = task.seed
        return "read"

    @tool(pure=True)
    def read(self, page: int, fast: bool = False) -> str:
        "Read a page of this task's book."
        Library.runs["read"] += 1
        if page < 0:
            raise ToolError("no such page")
        return f"volume {self.volume}, book {self.secret}, page {page}"

    @tool(pure="global")
    async def define(self, word: str) -> str:
        "What a word means."
        Library.runs["define"] += 1
        await asyncio.sleep(0)
        return f"{word} means {word}"

    @tool
    def impure(self) -> str:
        "Counts."
        Library.runs["impure"] += 1
        return str(Library.runs["impure"])

    @tool(pure=True)
    def answer(self, text: str) -> str:
        "Ends it."
        return self.finish("noted", reward=float(text == "right"))


@pytest.fixture(autouse=True)
def empty_cache():
    RESULTS.clear()
    Library.runs.clear()


def library_tasks(n):
    return [Task(id=f"library/train/{i}", env="library", split="train", seed=i) for i in range(n)]


def test_pure_tools_run_once_for_the_same_call_in_the_same_task():
    agent = scripted(
        call("read", page=1),
        call("read", fast=False, page=1),
        call("define", word="a"),
        call("define", word="a"),
        call("impure"),
        call("impure"),
    )
    agent = agent.replace(policy=agent.policy)
    tasks = library_tasks(3)

    class Six(Library):
        max_turns = 6
        name = "library"

    episodes = rollout(agent, EnvFactory(Six), tasks, n=4, limits=Limits(in_flight=1))
    assert all(e.ok and e.tags["tools"] == {"ok": 6} for e in episodes)
    assert Library.runs["read"] == 3 * 2, "two different calls (one names its default) for each of three tasks"
    assert Library.runs["define"] == 1, "it depends on its argument alone"
    assert Library.runs["impure"] == 3 * 4 * 2
    for episode in episodes:
        pages = [turn.content for turn in episode.turns if turn.role == "tool" and turn.name == "read"]
        assert pages == [f"volume 1, book {episode.task.seed}, page 1"] * 2


def test_results_never_cross_options_nor_failures_nor_ends():
    tasks = library_tasks(1)
    plan = scripted(call("read", page=1), call("read", page=-1), call("answer", text="right"))
    first = rollout(plan, EnvFactory(Library, {"volume": 1}), tasks)[0]
    second = rollout(plan, EnvFactory(Library, {"volume": 2}), tasks)[0]
    third = rollout(plan, EnvFactory(Library, {"volume": 2}), tasks)[0]
    assert [e.turns[-5].content for e in (first, second, third)] == [f"volume {v}, book 0, page 1" for v in (1, 2, 2)]
    assert Library.runs["read"] == 2 + 2 + 1, "a page is kept for each volume; what failed is tried again"
    assert [e.reward for e in (first, second, third)] == [1.0, 1.0, 1.0], "an end is never taken from the cache"


def test_by_hand_an_episode_keeps_its_results_to_itself():
    envs = [Library(), Library()]
    for seed, env in enumerate(envs):
        env.reset(replace(TASK, seed=seed))
        for _ in range(2):
            assert told(env, call("read", page=1)) == [f"volume 1, book {seed}, page 1"]
    assert Library.runs["read"] == 2


def test_the_cache_is_bounded_and_drops_what_was_used_longest_ago():
    cache = ResultCache(entries=3, characters=100)
    for key in "abc":
        cache.put(key, key)
    assert cache.get("a") == "a"
    cache.put("d", "d")
    assert [cache.get(key) for key in "abcd"] == ["a", None, "c", "d"]
    cache.put("e", "x" * 11)
    assert cache.get("e") is None, "longer than a tenth of everything"
    for i in range(50):
        cache.put(i, "y" * 10)
    assert len(cache) == 3
    small = ResultCache(entries=100, characters=100)
    for i in range(50):
        small.put(i, "y" * 10)
    assert len(small) == 10
    small.put(49, "z")
    assert small._size == 91


# -- records and replay --------------------------------------------------------------------------------------------------


PLAN = (call("fine", text="one"), call("refuse"), call("fin"), call("hang"), call("done", reward=0.5))


def test_every_call_is_on_record(tmp_path):
    env = record_calls(EnvFactory(Odd), tmp_path / "deep" / "calls.jsonl")
    (episode,) = rollout(scripted(*PLAN), env, [TASK], tag="t")
    lines = [json.loads(line) for line in (tmp_path / "deep" / "calls.jsonl").read_text().splitlines()]
    assert [(x["name"], x["outcome"], x["step"]) for x in lines] == [
        ("fine", "ok", 1),
        ("refuse", "tool_error", 2),
        ("fin", "unknown_tool", 3),
        ("hang", "timeout", 4),
        ("done", "ok", 5),
    ]
    assert lines[0]["arguments"] == {"text": "one"}
    assert lines[0]["output"] == "one"
    assert lines[0]["task"]["id"] == TASK.id
    assert all("task" not in line for line in lines[1:])
    assert lines[3]["output"] == "error: hang did not answer within 0.05 s"
    assert 0.04 < lines[3]["seconds"] < 5.0
    assert lines[-1]["end"] == [0.5, False]
    assert {line["episode"] for line in lines} == {episode.id} == {f"t/{TASK.id}#0"}


def test_a_record_answers_in_the_place_of_the_tools(tmp_path):
    log = tmp_path / "calls.jsonl"
    tasks = [replace(TASK, id=f"odd/train/{i}", seed=i) for i in range(5)]
    plan = (lambda rng: call("fine", text=str(rng.random())), *PLAN)
    first = rollout(scripted(*plan), record_calls(EnvFactory(Odd), log), tasks, n=2)

    class Dead(Odd):
        name = "odd"

        def call_tool(self, name, arguments):
            raise AssertionError("no tool may run")

    began = time.perf_counter()
    again = rollout(scripted(*plan), replay_calls(EnvFactory(Dead), log), tasks, n=2)
    assert time.perf_counter() - began < 5
    for a, b in zip(first, again):
        assert [(t.role, t.name, t.content, t.reward) for t in a.turns] == [(t.role, t.name, t.content, t.reward) for t in b.turns]
        assert (a.stop, a.reward, a.success, a.tags["tools"]) == (b.stop, b.reward, b.success, b.tags["tools"])


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            (call("fine", text="one"), call("fine", text="two")),
            r'episode \'odd/train/0#0\', call 2: recorded in .* was refuse\(\{\}\), now it is fine\(\{"text": "two"\}\)',
        ),
        ((*PLAN[:-1], call("done", reward=1.0)), r'call 5: recorded in .* was done\(\{"reward": 0.5\}\), now it is done'),
        ((*PLAN[:-1], call("done", error="no JSON")), r"now it is done\(\{\}\) \(unreadable: no JSON\)"),
    ],
)
def test_the_first_divergence_is_named(tmp_path, plan, message):
    log = tmp_path / "calls.jsonl"
    rollout(scripted(*PLAN), record_calls(EnvFactory(Odd), log), [TASK])
    with pytest.raises(EnvError, match=message):
        rollout(scripted(*plan), replay_calls(EnvFactory(Odd), log), [TASK])


def test_more_calls_than_recorded_and_episodes_that_were_not(tmp_path):
    log = tmp_path / "calls.jsonl"
    rollout(scripted(*PLAN), record_calls(EnvFactory(Odd), log), [TASK])
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])
    with pytest.raises(EnvError, match=r"3 calls are recorded in .*, and call 4 is hang"):
        rollout(scripted(*PLAN), replay_calls(EnvFactory(Odd), log), [TASK])
    env = replay_calls(EnvFactory(Odd), log)()
    env.reset(TASK)
    with pytest.raises(CallsDiverged, match="this episode is not in"):
        step(env, call("fine", text="one"))


@pytest.mark.slow
def test_of_several_attempts_the_last_is_replayed(tmp_path):
    log = tmp_path / "calls.jsonl"
    Flaky.made.clear()
    Flaky._random = random.Random(5)
    tasks = [replace(TASK, id=f"flaky/train/{i}") for i in range(20)]
    episodes = rollout(scripted(call("fetch"), call("done")), record_calls(EnvFactory(Flaky), log), tasks, limits=Limits(retries=6))
    attempts = read_calls(log)
    assert len(attempts) == sum(e.tags.get("attempts", 1) for e in episodes) > 20
    assert Counter(r.outcome for a in attempts for r in a.calls) == {"ok": 40, "infrastructure": len(attempts) - 20}
    ran = sum(Flaky.made.values())
    again = rollout(scripted(call("fetch"), call("done")), replay_calls(EnvFactory(Flaky), log), tasks)
    assert sum(Flaky.made.values()) == ran
    assert all(e.ok and "attempts" not in e.tags for e in again)


def test_tools_that_no_longer_answer_as_they_did_are_found(tmp_path):
    log = tmp_path / "calls.jsonl"
    env = load_env("search:hops=2")
    agent = Agent(ScriptedPolicy(lambda request, rng: request.env.expert(rng), version="s"))
    episodes = rollout(agent, record_calls(env, log), env.tasks("train", 6))
    assert all(e.success for e in episodes)
    assert diverging_calls(env, log) == []
    lines = log.read_text().splitlines()
    entry = json.loads(lines[4])
    assert entry["outcome"] == "ok"
    before, entry["output"] = entry["output"], "something else"
    log.write_text("\n".join([*lines[:4], json.dumps(entry), *lines[5:]]) + "\n")
    (found,) = diverging_calls(env, log)
    assert found.attempt == entry["episode"]
    assert found.recorded == "ok 'something else'"
    assert found.found.startswith(f"ok {before!r}")
    assert f"{found.attempt}, call {found.call}: {entry['name']}(" in str(found)


def test_several_calls_of_one_action_stay_together(tmp_path):
    log = tmp_path / "calls.jsonl"

    def act(request, rng):
        return Action(tool_calls=(call("fine", text="a"), call("refuse"), call("done")))

    rollout(Agent(ScriptedPolicy(act, version="s")), record_calls(EnvFactory(Odd), log), [TASK])
    (attempt,) = read_calls(log)
    assert [[r.name for r in s] for s in attempt.steps] == [["fine", "refuse", "done"]]
    assert diverging_calls(EnvFactory(Odd), log) == []


def test_records_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(ConfigError, match="no log of tool calls can be read from"):
        replay_calls(EnvFactory(Odd), tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"name": "x", "colour": 1}\n')
    with pytest.raises(ConfigError, match=r"line 1 of .*bad.jsonl is no record of a tool call"):
        read_calls(tmp_path / "bad.jsonl")
    with pytest.raises(StorageError, match="cannot be written"):
        record_calls(EnvFactory(Odd), tmp_path)


def test_a_full_disk_ends_the_rollout(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with pytest.raises(StorageError, match="No space left"):
        rollout(scripted(*PLAN), record_calls(EnvFactory(Odd), "/dev/full"), [TASK])


def test_parts_of_a_mixture_are_recorded_too(tmp_path):
    log = tmp_path / "calls.jsonl"
    env = load_env("search:hops=1 + search:hops=2")
    agent = Agent(ScriptedPolicy(lambda request, rng: request.env.expert(rng), version="s"))
    rollout(agent, record_calls(env, log), env.tasks("train", 4))
    assert len(read_calls(log)) == 4
    assert diverging_calls(env, log) == []


def test_an_attempt_has_an_id_that_no_other_has():
    seen = []

    class Named(Odd):
        def reset(self, task):
            seen.append(self.rollout_id)
            return "go"

    rollout(scripted(call("done")), EnvFactory(Named), [TASK], n=3)
    rollout(scripted(call("done")), EnvFactory(Named), [TASK], n=3)
    by_hand = fresh(Named).rollout_id
    assert len({*seen, by_hand}) == len(seen) + 0 == 7
    env = fresh(Named)
    assert env.rollout_id == env.rollout_id
