"""Any MCP server as an environment: isolation, graders, task files, servers that die, leaks, and a model that learns from one."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("mcp")
psutil = pytest.importorskip("psutil")

from commandline import BASE, done, intact, needs_base  # noqa: E402
from mcpservers import EXAMPLES, PYTHON, SERVER  # noqa: E402
from whet import Agent, check_env, load_env  # noqa: E402
from whet.envs import Action  # noqa: E402
from whet.envs.grading import matches, read_grade  # noqa: E402
from whet.envs.journaled import diverging_calls, record_calls, replay_calls  # noqa: E402
from whet.errors import ConfigError, EnvError  # noqa: E402
from whet.policies import ScriptedPolicy  # noqa: E402
from whet.rollout import Limits, rollout  # noqa: E402
from whet.tools.cache import RESULTS  # noqa: E402
from whet.tools.mcp import close_shared, open_connections  # noqa: E402
from whet.types import ToolCall  # noqa: E402

QUESTIONS = (
    ("Rosa", "boss", "Joe", "train"),
    ("Joe", "friend", "Otto", "train"),
    ("Otto", "teacher", "Mila", "dev"),
    ("Mila", "rival", "Rosa", "test"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A directory with a server, and a task file."""
    path = tmp_path_factory.mktemp("mcp")
    (path / "server.py").write_text(SERVER)
    (path / "tasks.jsonl").write_text(
        "".join(
            json.dumps({"id": f"q{i}", "prompt": f"Who is {name}'s {key}?", "split": split, "answer": value, "data": {"i": i}}) + "\n"
            for i, (name, key, value, split) in enumerate(QUESTIONS)
        )
    )
    return path


@pytest.fixture(autouse=True)
def nothing_is_left():
    """After each test no connection is open."""
    RESULTS.clear()
    yield
    close_shared()
    # check_env leaves some to the collector, which takes a second in a process that has run many tests.
    wait_until(lambda: open_connections() == 0 or (gc.collect() >= 0 and open_connections() == 0), "connections close")


def wait_until(condition, what, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not come to pass that {what}"
        time.sleep(0.02)


def spec(place, *options, server="server", tasks=None, **more):
    """The environment's spec: a server in this process, or a command."""
    what = {"command": f"{sys.executable} {place / 'server.py'}", "server": f"{place / 'server.py'}:make"}[server]
    more = {"tasks": tasks or place / "tasks.jsonl", **more}
    return ",".join([f"mcp:{server}={what}", *(f"{key}={value}" for key, value in more.items()), *options])


def call(tool, /, **arguments):
    return ToolCall(name=tool, arguments=arguments, id="call_0")


def scripted(*plan):
    """An agent that makes these calls, one a turn; a call may also be a function of the request."""

    def act(request, rng):
        made = plan[sum(turn.trained for turn in request.turns)]
        return Action(tool_calls=(made(request) if callable(made) else made,))

    return Agent(ScriptedPolicy(act, version="script"))


def told(episode):
    return [turn.content for turn in episode.turns if turn.role == "tool"]


# -- episodes ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_example_keeps_the_contract(monkeypatch):
    monkeypatch.chdir(EXAMPLES.parent)
    report = check_env(f"mcp:command={sys.executable} examples/mcp_server.py,tasks=examples/mcp_tasks.jsonl,shared=true", tasks=6)
    assert report.ok, report
    assert not report.warnings, report


@pytest.mark.slow
def test_the_examples_task_file_is_what_it_says():
    made = subprocess.run([sys.executable, str(EXAMPLES / "mcp_server.py"), "--tasks"], capture_output=True, text=True, check=True)
    assert made.stdout == (EXAMPLES / "mcp_tasks.jsonl").read_text()


@pytest.mark.slow
def test_in_process_it_keeps_the_contract(place):
    hidden = "die,hang,block,big,breed,environment,boom"  # the last one, because pytest keeps what it logs
    report = check_env(spec(place, hide=hidden), tasks=2, processes=False)
    assert report.ok, report
    assert not report.warnings, report


def test_the_model_sees_the_tools_and_one_that_ends_the_episode(place):
    env = load_env(spec(place, only="lookup,add"))
    assert [tool.name for tool in env.tools] == ["lookup", "add", "answer"]
    hidden = load_env(spec(place, hide="die,boom", grader="tool:judge", setup="prepare", answer_tool="finish", pure="lookup"))
    names = {tool.name: tool for tool in hidden.tools}
    assert not {"die", "boom", "judge", "prepare", "answer"} & set(names)
    assert names["finish"].parameters["properties"]["text"]["default"] == ""
    assert [tool.name for tool in hidden.tools if tool.pure] == ["lookup"]
    flat = load_env(spec(place, only="add", schema="flat"))
    assert "$ref" not in json.dumps(flat.tools[0].schema())
    (episode,) = rollout(scripted(call("judge", goal=[]), call("answer", text="Joe")), env, env.tasks("train", 1))
    assert told(episode)[0] == "error: unknown tool 'judge'. Valid: add, answer, lookup."
    assert episode.turns[0].content == "Look things up."
    assert episode.tags["tools"] == {"ok": 1, "unknown_tool": 1}
    other = load_env(spec(place, "instructions=Be quick."))
    assert rollout(scripted(call("answer", text="Joe")), other, other.tasks("train", 1))[0].turns[0].content == "Be quick."


@pytest.mark.parametrize("server", [pytest.param("command", marks=pytest.mark.slow), "server"])
def test_each_episode_has_a_server_of_its_own(place, server):
    env = load_env(spec(place, server=server))
    plan = (call("add", item="milk"), call("lookup", name="Nobody"), call("add", item="eggs"), call("answer", text="Joe"))
    episodes = rollout(scripted(*plan), env, env.tasks("train", 2), n=2)
    for episode in episodes:
        assert episode.ok, episode.error
        milk, nobody, eggs, _ = told(episode)
        assert (milk, eggs) == ("milk", "milk\neggs"), "nobody else's"
        assert nobody.startswith("error: ")
        assert episode.tags["tools"] == {"ok": 3, "tool_error": 1}
        right = episode.task.data["answer"] == "Joe"
        assert (episode.reward, episode.success, episode.reason) == (float(right), right, "answered")
        assert episode.tags["info"] == {"reason": "answered", "answer": "Joe"}


def test_a_hung_tool_is_told_to_the_model_and_a_wrong_argument_never_leaves(place):
    env = load_env(spec(place, "timeout=2.0"))
    plan = (call("hang", seconds=30), call("add"), call("lookup", name="Rosa"), call("answer", text=" Joe "))
    (episode,) = rollout(scripted(*plan), env, env.tasks("train", 1))
    assert told(episode)[:3] == [
        "error: hang did not answer within 2 s",
        "error: bad arguments for add: arguments: 'item' is a required property",
        "boss Joe",
    ]
    assert episode.reward == 1.0
    assert episode.tags["tools"] == {"ok": 2, "timeout": 1, "bad_arguments": 1}


def test_a_long_result_is_cut(place):
    env = load_env(spec(place))
    (episode,) = rollout(scripted(call("big", n=50_000_000), call("answer", text="Joe")), env, env.tasks("train", 1))
    assert "[... 49,992,000 characters cut ...]" in told(episode)[0]
    assert len(told(episode)[0]) < 8_100


@pytest.mark.slow
def test_a_server_that_dies_is_no_zero_reward(place):
    env = load_env(spec(place, server="command"))
    alive, deadly = env.tasks("train", 2)

    def second(request):
        return call("die") if request.env._task.id == deadly.id else call("lookup", name="Joe")

    plan = (call("lookup", name="Rosa"), second, call("answer", text="Joe"))
    episodes = rollout(scripted(*plan), env, [alive, deadly], n=2, limits=Limits(retries=1))
    assert [(e.ok, e.reward) for e in episodes[:2]] == [(True, 1.0)] * 2
    for episode in episodes[2:]:
        assert not episode.ok
        assert episode.reason == "ServerLost"
        assert "ended during a call of die: exit status 3; goodbye cruel world" in episode.error
        assert episode.tags["tools"] == {"ok": 1, "infrastructure": 1}
        assert episode.tags["attempts"] == 2
        assert episode.tags["broken"] == {"ServerLost": 2}


@pytest.mark.slow
def test_a_shared_server_that_dies_takes_no_episode_with_it(place):
    env = load_env(spec(place, "shared=true", server="command"))
    died = []

    def second(request):
        if not died and request.env.rollout_id.startswith("mcp/q1#0@"):
            died.append(request.env.rollout_id)
            return call("die")
        return call("lookup", name="Joe")

    plan = (call("lookup", name="Rosa"), second, call("lookup", name="Otto"), call("answer", text="Joe"))
    episodes = rollout(scripted(*plan), env, env.tasks("train", 2), n=8)
    assert all(e.ok for e in episodes), [e.error for e in episodes if not e.ok]
    broken = Counter()
    for episode in episodes:
        broken.update(episode.tags.get("broken", {}))
    assert set(broken) == {"ServerLost"}
    assert [e.reward for e in episodes] == [1.0] * 8 + [0.0] * 8


def test_pure_tools_of_a_server_are_asked_once_for_a_task(place):
    env = load_env(spec(place, pure="add"))
    plan = (call("add", item="milk"), call("add", item="milk"), call("add", item="eggs"), call("answer", text="Joe"))
    episodes = rollout(scripted(*plan), env, env.tasks("train", 1), n=3, limits=Limits(in_flight=1))
    assert [told(e)[:3] for e in episodes] == [["milk", "milk", "milk\neggs"]] * 3, "the cart gives away that it was asked once"


def test_calls_are_recorded_and_replayed(place, tmp_path):
    env = load_env(spec(place))
    plan = (call("add", item="milk"), call("lookup", name="Nobody"), call("answer", text="Joe"))
    log = tmp_path / "calls.jsonl"
    first = rollout(scripted(*plan), record_calls(env, log), env.tasks("train", 2))
    assert diverging_calls(env, log) == []
    again = rollout(scripted(*plan), replay_calls(env, log), env.tasks("train", 2))
    assert [[t.content for t in e.turns] for e in first] == [[t.content for t in e.turns] for e in again]
    assert [e.reward for e in first] == [e.reward for e in again] == [1.0, 0.0]


# -- grading -------------------------------------------------------------------------------------------------------------


def write_tasks(path, *entries):
    path.write_text("".join(json.dumps({"split": "train", **entry}) + "\n" for entry in entries))
    return path


def play(text, *plan, task=0):
    env = load_env(text)
    return rollout(scripted(*plan), env, env.tasks("train", task + 1)[task:], limits=Limits(retries=0, max_error_rate=1.0))[0]


def test_a_tool_of_the_server_sets_up_and_another_grades(place, tmp_path):
    tasks = write_tasks(
        tmp_path / "cart.jsonl",
        {"id": "a", "data": {"start": ["milk"], "goal": ["milk", "eggs"]}},
        {"id": "b", "prompt": "Buy eggs.", "data": {"start": [], "goal": ["eggs"]}},
    )
    text = spec(place, tasks=tasks, setup="prepare", grader="tool:judge")
    half = play(text, call("answer"))
    assert half.turns[1].content == "The cart of mcp/a holds milk."
    assert (half.reward, half.success) == (0.5, False)
    whole = play(text, call("add", item="eggs"), call("answer", text="done"))
    assert (whole.reward, whole.success) == (1.0, True)
    asked = play(text, call("add", item="eggs"), call("add", item="ham"), call("answer"), task=1)
    assert asked.turns[1].content == "Buy eggs."
    assert (asked.reward, asked.success) == (1.0, False), "the grader's own word on success"


GRADERS = """
def by_answer(answer, expected):
    return 0.25 if answer == expected else 0.0

async def by_calls(calls, task, rollout, i):
    made = [(c["name"], c["arguments"], c["output"]) for c in calls]
    known = made == [("lookup", {"name": "Rosa"}, "boss Joe")] and (task, i) == ("mcp/q0", 0)
    return {"reward": 0.5, "success": known and rollout.startswith("mcp/q0#0@")}

def everything(**facts):
    return (1.0, sorted(facts) == ["answer", "calls", "expected", "i", "prompt", "rollout", "split", "task"])

def breaks(answer):
    raise KeyError("no table")

def says_nothing(answer):
    return None

def wants_more(answer, table): ...

def infinite(answer):
    return float("inf")

async def sleeps(answer):
    import asyncio
    await asyncio.sleep(60)
"""


@pytest.fixture(scope="module")
def graders(place):
    (place / "graders.py").write_text(GRADERS)
    return place / "graders.py"


@pytest.mark.parametrize(
    ("function", "reward", "success"), [("by_answer", 0.25, False), ("by_calls", 0.5, True), ("everything", 1.0, True)]
)
def test_a_function_grades_by_what_it_names(place, graders, function, reward, success):
    episode = play(spec(place, grader=f"{graders}:{function}"), call("lookup", name="Rosa"), call("answer", text="Joe"))
    assert (episode.reward, episode.success) == (reward, success), episode.error


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("breaks", "raised KeyError: 'no table'"),
        ("says_nothing", "graded with None; expected a number, or an object with 'reward'"),
        ("infinite", "graded with inf"),
        ("sleeps", "did not answer within 2 s"),
    ],
)
def test_a_grader_that_fails_is_no_zero_reward(place, graders, function, says):
    with pytest.raises(EnvError, match=f"the grader '.*{says}"):
        play(spec(place, "timeout=2", grader=f"{graders}:{function}"), call("answer", text="Joe"))


def test_grading_tools_that_fail(place, tmp_path):
    with pytest.raises(EnvError, match=r"the grader 'tool:misjudge' graded with .*'very good'"):
        play(spec(place, grader="tool:misjudge"), call("answer", text="Joe"))
    tasks = write_tasks(tmp_path / "t.jsonl", {"id": 1, "prompt": "?", "data": {"name": "Mia"}})
    with pytest.raises(EnvError, match=r"tool 'lookup' of .* could not grade: .*no page of Mia"):
        play(spec(place, tasks=tasks, grader="tool:lookup"), call("answer", text="Joe"))


def test_graders_that_cannot_be_used(place, graders):
    with pytest.raises(ConfigError, match=r"graders.py:wants_more' wants 'table', which is not known of a task"):
        play(spec(place, grader=f"{graders}:wants_more"), call("answer", text="Joe"))
    with pytest.raises(ConfigError, match=r"graders.py has no function 'by_anwser'. Did you mean 'by_answer'"):
        load_env(spec(place, grader=f"{graders}:by_anwser"))()
    with pytest.raises(ConfigError, match=r"'judge' names no function; expected path/to/file.py:name or package.module:name"):
        load_env(spec(place, grader="judge"))()
    with pytest.raises(
        ConfigError, match=r"option 'grader' names a tool 'jugde' that the MCP server .* does not have. Did you mean 'judge'"
    ):
        _ = load_env(spec(place, grader="tool:jugde")).tools
    with pytest.raises(ConfigError, match="option 'hide' names a tool 'dye'"):
        _ = load_env(spec(place, hide="die,dye")).tools


@pytest.mark.parametrize(
    ("answer", "expected", "how", "right"),
    [
        (" Joe\n", "Joe", "exact", True),
        ("joe", "Joe", "exact", False),
        ("  JOE  Smith. ", "Joe Smith", "loose", True),
        ("Joe Smith Jr", "Joe Smith", "loose", False),
        ("b", ["a", "b"], "exact", True),
        ("c", ["a", "b"], "exact", False),
        ("7", 7, "exact", True),
        ("true", True, "exact", True),
        ("it costs 1,234.50 in all", 1234.5, "number", True),
        ("12 of 13", "12", "number", False),
        ("-3e2", "-300", "number", True),
        ("none", "0", "number", False),
    ],
)
def test_answers_are_compared(answer, expected, how, right):
    assert matches(answer, expected, how) is right


@pytest.mark.parametrize(
    ("given", "grade"),
    [
        (1, (1.0, True)),
        (0.5, (0.5, False)),
        (True, (1.0, True)),
        ("0.5", (0.5, False)),
        ('{"reward": 2}', (2.0, True)),
        ({"result": {"reward": 0, "success": True}}, (0.0, True)),
        ((0.7, True), (0.7, True)),
        ({"reward": 1, "success": False}, (1.0, False)),
    ],
)
def test_grades_are_read(given, grade):
    assert read_grade(given, "it") == grade


@pytest.mark.parametrize("given", [None, "good", {}, {"score": 1}, [1], float("nan"), {"reward": 1, "success": "yes"}, "NaN", b"1"])
def test_what_is_no_grade_is_refused(given):
    with pytest.raises(EnvError, match="it graded with"):
        read_grade(given, "it")


def test_a_final_tool_of_the_servers_own_ends_the_episode(place, tmp_path):
    tasks = write_tasks(tmp_path / "t.jsonl", {"id": 1, "prompt": "Whose boss is Joe?", "answer": "Rosa"})
    text = spec(place, tasks=tasks, answer_tool="lookup")
    right = play(text, call("lookup", name="Rosa"))
    assert (right.turns[-1].content, right.reward) == ("boss Joe", 1.0)
    missed = play(text, call("lookup", name="Nobody"), call("lookup", name="Joe"))
    assert missed.turns[3].content.endswith("no page of Nobody"), "a call that fails ends nothing"
    assert (missed.turns[-1].content, missed.reward) == ("friend Otto", 0.0)


# -- tasks and options ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "is empty; expected one task a line"),
        (["{"], "line 1 of .* is no JSON"),
        (["[1]"], "line 1 of .* is list; expected an object"),
        (['{"prompt": "x"}'], "line 1 of .* has the id None"),
        (['{"id": 1, "answer": "x"}'], "line 1 of .* has the prompt None"),
        (['{"id": 1, "prompt": "x", "answr": 1}'], "has a field 'answr'. Did you mean 'answer'"),
        (['{"id": 1, "prompt": "x", "split": "tset"}'], "is of split 'tset'. Did you mean 'test'"),
        (['{"id": 1, "prompt": "x", "data": 1}'], "has data 1; expected an object"),
        (
            ['{"id": 1, "prompt": "x", "answer": 1}', "", '{"id": "1", "prompt": "y", "answer": 1}'],
            "lines 1 and 3 of .* have the same id '1'",
        ),
        (
            ['{"id": 1, "prompt": "x", "answer": 1, "split": "train"}', '{"id": 2, "prompt": "x", "answer": 1, "split": "test"}'],
            "tasks '1' of train and '2' of test in .* are the same; a split would leak",
        ),
        (['{"id": 1, "prompt": "x", "split": "train"}', '{"id": 2, "prompt": "y"}'], "1 of 2 tasks in .* say their split"),
        (['{"id": 1, "prompt": "x"}'], "task 'mcp/1' in .* has no answer to compare with"),
    ],
)
def test_task_files_that_are_none(place, tmp_path, lines, says):
    (tmp_path / "tasks.jsonl").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=says):
        load_env(spec(place, tasks=tmp_path / "tasks.jsonl")).tasks("train", 1)


def test_tasks_without_splits_are_dealt_out_and_stay_where_they_are(place, tmp_path):
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps({"id": i, "prompt": f"{i}?", "answer": i}) + "\n" for i in range(500)))
    env = load_env(spec(place, tasks=file))
    before = {split: [t.id for t in env.tasks(split, 1000)] for split in ("train", "dev", "test")}
    assert sum(map(len, before.values())) == 500
    assert 360 < len(before["train"]) < 440
    assert 25 < len(before["test"]) < 80
    assert [t.id for t in env.tasks("train", 2, 3)] == before["train"][3:5]
    file.write_text(file.read_text() + json.dumps({"id": "new", "prompt": "new?", "answer": 1}) + "\n")
    after = {split: [t.id for t in env.tasks(split, 1000)] for split in ("train", "dev", "test")}
    assert {split: [id for id in ids if id != "mcp/new"] for split, ids in after.items()} == before
    assert sum(map(len, after.values())) == 501, "the file is read again when it has changed"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mcp:tasks=t.jsonl", "mcp needs one of command, url and server"),
        ("mcp:command=x,url=y,tasks=t", "mcp needs one of command, url and server"),
        ("mcp:command=x", "mcp needs tasks"),
        ("mcp:command=x 'y,tasks=t.jsonl", "cannot be read: No closing quotation"),
        ("mcp:command=x,tasks=t,connections=0", "connections is 0"),
        ("mcp:command=x,tasks=t,shared=true,setup=s", "setup=s would change the state of a server that all episodes share"),
        ("mcp:command=x,tasks=t,timeout=0", "timeout is 0.0"),
        ("mcp:server=nowhere.py:make,tasks=t", "no such file: nowhere.py"),
    ],
)
def test_options_that_cannot_be(text, says):
    with pytest.raises(ConfigError, match=says):
        load_env(text)()


def test_a_single_server_object_must_be_declared_stateless(place, tmp_path):
    (tmp_path / "one.py").write_text(SERVER.replace('if __name__ == "__main__":', "one = make()\nif False:"))
    text = f"mcp:server={tmp_path}/one.py:one,tasks={place}/tasks.jsonl"
    with pytest.raises(ConfigError, match="is one server object, whose state all episodes would share"):
        load_env(text)()
    assert play(f"{text},shared=true", call("lookup", name="Rosa"), call("answer", text="Joe")).reward == 1.0


def test_a_program_that_is_none_ends_the_rollout(place):
    env = load_env(f"mcp:command=no-such-program,tasks={place}/tasks.jsonl")
    with pytest.raises(ConfigError, match="the server 'no-such-program' cannot be started"):
        rollout(scripted(call("answer", text="x")), env, env.tasks("train", 2), n=8)


# -- an environment behind its own server --------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_environment_served_is_an_environment_again(tmp_path):
    """Search behind its own MCP server gives the rewards that Search gives."""
    tasks = write_tasks(tmp_path / "t.jsonl", *({"id": f"s{i}", "data": {"index": i}} for i in range(3)))
    text = (
        f"mcp:command={PYTHON} -m whet.envs.mcp_server --env search:hops=1-3,tasks={tasks},setup=reset,answer_tool=answer,"
        "grader=tool:status,hide=close"
    )
    env, direct = load_env(text), load_env("search:hops=1-3")
    assert [tool.name for tool in env.tools] == ["search", "answer"]

    def act(request, rng):
        inner = direct()
        inner.reset(direct.tasks("train", 1, request.env._task.data["data"]["index"])[0])
        for turn in request.turns:
            if turn.trained:
                inner.step(Action(tool_calls=turn.tool_calls))
        action = inner.expert(rng)
        wrong = action.tool_calls[0].name == "answer" and request.env._task.id.endswith("s1")
        return Action(tool_calls=(call("answer", text="wrong"),)) if wrong else action

    episodes = rollout(Agent(ScriptedPolicy(act, version="s")), env, env.tasks("train", 3))
    assert [e.ok for e in episodes] == [True] * 3, [e.error for e in episodes]
    assert [(e.reward, e.success) for e in episodes] == [(1.0, True), (0.0, False), (1.0, True)]
    assert [e.turns[1].content for e in episodes] == [direct().reset(direct.tasks("train", 1, i)[0]) for i in range(3)]


# -- leaks ---------------------------------------------------------------------------------------------------------------


def usage():
    gc.collect()
    loops = [o for o in gc.get_objects() if isinstance(o, asyncio.AbstractEventLoop) and not o.is_closed()]
    return {
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "processes": len(psutil.Process().children(recursive=True)),
        "tasks": sum(len(asyncio.all_tasks(loop)) for loop in loops),
        "connections": open_connections(),
    }


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
@pytest.mark.parametrize(("server", "n"), [("server", 100), ("command", 20)])
def test_nothing_leaks(place, server, n):
    """A fifth of the episodes hang in a call, and a fifth lose their server where that is a process, which takes a second to start."""
    plan = (
        call("lookup", name="Rosa"),
        lambda r: call("hang", seconds=30) if r.seed % 5 == 0 else call("lookup", name="Nobody"),
        lambda r: call("die") if r.seed % 5 == 1 and server == "command" else call("add", item="x"),
        call("answer", text="Joe"),
    )
    env = load_env(spec(place, "timeout=1.5", "connections=4", server=server))
    limits = Limits(retries=1, max_error_rate=1.0, in_flight=16)
    rollout(scripted(*plan), env, env.tasks("train", 2), n=4, limits=limits, seed=2)
    wait_until(lambda: open_connections() == 0, "the first ones are closed")
    before = usage()
    episodes = rollout(scripted(*plan), env, env.tasks("train", 2), n=n // 2, limits=limits, seed=1)
    assert len(episodes) == n
    outcomes = Counter()
    for episode in episodes:
        outcomes.update(episode.tags["tools"])
    assert outcomes["ok"] > n
    assert outcomes["timeout"] > n / 20
    if server == "command":
        assert outcomes["infrastructure"] > n / 20
        assert {e.reason for e in episodes if not e.ok} == {"ServerLost"}
    wait_until(lambda: all(usage()[k] <= before[k] for k in before), f"{usage()} is no more than {before}")


# -- learning ------------------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.slow
@needs_base
@pytest.mark.timeout(1500)
def test_the_bundled_model_learns_from_a_users_server(tmp_path):
    env = f"mcp:command={sys.executable} {EXAMPLES}/mcp_server.py,tasks={EXAMPLES}/mcp_tasks.jsonl,shared=true,max_turns=4,max_tokens=32"
    argv = ("run", "grpo", "--env", env, "--preset", "small", "--model", str(BASE), "--out", "r", "--quiet")
    out = done(*argv, cwd=tmp_path, timeout=1200)
    assert "39 test tasks" in out
    run = intact(tmp_path / "r", "done")
    rewards = [event["metrics"]["reward"] for event in run.events("log")]
    assert sum(rewards[-8:]) / 8 > sum(rewards[:3]) / 3 + 0.2
