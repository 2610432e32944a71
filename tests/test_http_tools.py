"""Tools behind HTTP endpoints, with a real server that fails in every way: what is retried, what the model sees, what drops."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

pytest.importorskip("httpx2")
pytest.importorskip("jsonschema")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from starlette.applications import Starlette  # noqa: E402
from starlette.responses import JSONResponse, PlainTextResponse, Response  # noqa: E402
from starlette.routing import Route  # noqa: E402

from mcpservers import free_port  # noqa: E402
from whet import Agent, check_env, load_env  # noqa: E402
from whet.envs import Action, Env  # noqa: E402
from whet.envs.base import EnvFactory  # noqa: E402
from whet.errors import ConfigError, EnvError, ToolError, ToolTimeout  # noqa: E402
from whet.policies import ScriptedPolicy  # noqa: E402
from whet.rollout import Limits, rollout  # noqa: E402
from whet.tools.http import EndpointError, HttpTools  # noqa: E402
from whet.types import Task, ToolCall  # noqa: E402

pytestmark = pytest.mark.slow

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
LISTED = [
    {"name": "add", "description": "Put something\n into the cart.", "parameters": NUMBER | {"title": "Add"}},
    {"type": "function", "function": {"name": "status", "description": "Answers with a status.", "parameters": NUMBER}},
    *(
        {"name": name, "description": "Answers.", "parameters": {}}
        for name in ("flaky", "hang", "big", "bytes", "plain", "json", "refuse", "echo", "busy")
    ),
    {"name": "elsewhere", "description": "Answers.", "parameters": {}, "url": "/other/place"},
]


class Server:
    """A tool server that keeps a cart for each rollout, and notes what it was asked."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.carts: defaultdict[str, list[int]] = defaultdict(list)
        self.asked: list[tuple[str, str, str]] = []
        self.fails = 0
        """How many times `flaky` is still to fail."""
        self.every = 0
        """Or: every how many times."""
        routes = [Route("/tools", self.tools), Route("/{tool:path}", self.call, methods=["POST"])]
        self._server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=self.port, log_level="critical"))
        threading.Thread(target=self._server.run, daemon=True).start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True

    async def tools(self, request):
        return JSONResponse({"tools": LISTED})

    async def call(self, request):
        tool = request.path_params["tool"]
        who, key = request.headers["x-whet-rollout"], request.headers["idempotency-key"]
        self.asked.append((tool, who, key))
        arguments = await request.json()
        if tool == "add":
            self.carts[who].append(arguments["n"])
            return JSONResponse({"result": self.carts[who]})
        if tool == "status":
            return JSONResponse({"detail": "you said so"}, status_code=arguments["n"])
        if tool == "flaky":
            self.fails -= 1
            failed = self.fails >= 0 or (self.every and len(self.asked) % self.every == 0)
            return PlainTextResponse("out of order", status_code=503) if failed else JSONResponse({"result": "fine"})
        if tool == "hang":
            await asyncio.sleep(60)
        answers = {
            "big": lambda: Response(b"x" * 50_000_000),
            "bytes": lambda: Response(b"caf\xe9"),
            "plain": lambda: PlainTextResponse("just text"),
            "json": lambda: JSONResponse([1, {"a": None}]),
            "refuse": lambda: JSONResponse({"error": "the drawer is locked"}),
            "echo": lambda: JSONResponse({"result": arguments}),
            "busy": lambda: PlainTextResponse("later", status_code=429, headers={"Retry-After": "1"} if len(self.asked) < 2 else {}),
            "other/place": lambda: PlainTextResponse("here"),
            "grade": lambda: JSONResponse({"reward": len(self.carts[who]) / 2, "success": self.carts[who] == arguments["goal"]}),
            "misgrade": lambda: JSONResponse({"error": "no idea"}, status_code=404),
        }
        return answers[tool]()


@pytest.fixture(scope="module")
def running():
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def server(running):
    running.asked.clear()
    running.carts.clear()
    running.fails = running.every = 0
    return running


def ask(tools, name, arguments=None, rollout="r1"):
    return asyncio.run(tools.call(name, arguments or {}, rollout=rollout))


# -- calls ---------------------------------------------------------------------------------------------------------------


def test_tools_are_described_by_their_server(server):
    tools = {tool.name: tool for tool in HttpTools(server.url).tools()}
    assert len(tools) == len(LISTED)
    assert tools["add"].description == "Put something into the cart."
    assert tools["add"].parameters == NUMBER
    assert tools["status"].parameters == NUMBER
    with pytest.raises(ValueError, match="bad arguments for add: n: 'x' is not of type 'integer'"):
        tools["add"].check({"n": "x"})
    inline = HttpTools(server.url, description=LISTED[:1])
    assert [tool.name for tool in inline.tools()] == ["add"]
    elsewhere = HttpTools("http://127.0.0.1:9/nowhere", description=f"{server.url}/tools")
    assert len(elsewhere.tools()) == len(LISTED)


def test_answers_in_every_form(server):
    tools = HttpTools(server.url)
    assert ask(tools, "echo", {"a": "grün"}) == {"a": "grün"}
    assert ask(tools, "plain") == b"just text"
    assert ask(tools, "json") == [1, {"a": None}]
    assert ask(tools, "bytes") == b"caf\xe9"
    assert ask(tools, "elsewhere") == b"here"
    with pytest.raises(ToolError, match=r"^the drawer is locked$"):
        ask(tools, "refuse")
    assert tools.counts == {"ok": 6}


def test_the_rollout_is_named_and_each_call_has_a_key(server):
    tools = HttpTools(server.url)
    assert ask(tools, "add", {"n": 1}, rollout="step3/tische/ä#2@7") == [1]
    assert ask(tools, "add", {"n": 2}, rollout="step3/tische/ä#2@7") == [1, 2]
    assert ask(tools, "add", {"n": 3}, rollout="other") == [3]
    names = [who for _, who, _ in server.asked]
    assert names == ["step3/tische/%C3%A4#2@7"] * 2 + ["other"]
    assert len({key for *_, key in server.asked}) == 3


@pytest.mark.parametrize("status", [400, 403, 404, 422])
def test_what_the_model_got_wrong_is_told_at_once(server, status):
    tools = HttpTools(server.url)
    with pytest.raises(ToolError, match=r"^you said so$"):
        ask(tools, "status", {"n": status})
    assert len(server.asked) == 1
    assert tools.counts == {"4xx": 1}


@pytest.mark.parametrize("fails", [1, 3])
def test_a_failing_server_is_asked_again(server, fails):
    server.fails = fails
    tools = HttpTools(server.url, pause=0.01)
    assert ask(tools, "flaky") == "fine"
    assert len(server.asked) == fails + 1
    assert len({key for *_, key in server.asked}) == 1, "all tries of a call have one key"
    assert tools.counts == {"5xx": fails, "ok": 1}


def test_after_three_more_tries_it_is_given_up(server):
    server.fails = 99
    tools = HttpTools(server.url, pause=0.05)
    began = time.monotonic()
    with pytest.raises(EndpointError, match=r"POST http://127.0.0.1:\d+/flaky failed 4 times; the last time: 503 out of order"):
        ask(tools, "flaky")
    assert len(server.asked) == 4
    assert time.monotonic() - began > 0.05 + 0.1 + 0.2, "pauses grow"


def test_a_busy_server_says_how_long_to_wait(server):
    tools = HttpTools(server.url, pause=0.01, retries=1)
    began = time.monotonic()
    with pytest.raises(EndpointError, match="the last time: 429 later"):
        ask(tools, "busy")
    assert time.monotonic() - began >= 1.0
    assert tools.counts == {"429": 2}


def test_nobody_there(server):
    tools = HttpTools(f"http://127.0.0.1:{free_port()}", description=LISTED, pause=0.01)
    with pytest.raises(EndpointError, match=r"failed 4 times; the last time: ConnectError"):
        ask(tools, "add", {"n": 1})
    assert tools.counts == {"connection": 4}
    with pytest.raises(EndpointError, match="failed 4 times"):
        HttpTools(f"http://127.0.0.1:{free_port()}", pause=0.01).tools()


def test_a_deadline_of_ours_covers_all_tries(server):
    tools = HttpTools(server.url, timeout=0.5)
    began = time.monotonic()
    with pytest.raises(ToolTimeout, match=r"hang did not answer within 0.5 s"):
        ask(tools, "hang")
    server.fails = 99
    slow = HttpTools(server.url, timeout=0.5, pause=0.4)
    with pytest.raises(ToolTimeout):
        ask(slow, "flaky")
    assert time.monotonic() - began < 5
    assert slow.counts["timeout"] == 1


def test_fifty_megabytes(server):
    tools = HttpTools(server.url)
    began = time.process_time()
    assert len(ask(tools, "big")) == 50_000_000
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: HttpTools("localhost:80"), "'localhost:80' is no address of a tool server"),
        (lambda: HttpTools("http://x", retries=-1), "retries is -1"),
        (
            lambda: HttpTools("http://x", description="ftp").tools and HttpTools("http://x", description=[{"nam": 1}]).tools(),
            "is described by",
        ),
        (lambda: HttpTools("http://x", description=[{"name": "a", "parameters": {"type": "nonsense"}}]).tools(), "is no JSON Schema"),
    ],
)
def test_what_cannot_be(make, told):
    with pytest.raises(ConfigError, match=told):
        make()


def test_a_listing_that_is_none(server):
    with pytest.raises(ConfigError, match="which is to describe the tools, gave: Method Not Allowed"):
        HttpTools(server.url, description="/add").tools()


# -- as an environment ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("http") / "tasks.jsonl"
    lines = [
        {"id": i, "prompt": f"Put {i} and {i + 1} into the cart.", "split": s, "answer": "x", "data": {"goal": [i, i + 1]}}
        for i, s in enumerate(("train", "train", "dev", "dev", "test", "test"))
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def call(tool, /, **arguments):
    return ToolCall(name=tool, arguments=arguments, id="call_0")


def scripted(*plan):
    def act(request, rng):
        made = plan[sum(turn.trained for turn in request.turns)]
        return Action(tool_calls=(made(request) if callable(made) else made,))

    return Agent(ScriptedPolicy(act, version="script"))


def spec(server, tasks, *options):
    return ",".join([f"whet.envs.http:HTTP:url={server.url},tasks={tasks}", *options])


def first(request):
    return call("add", n=request.env._task.data["data"]["goal"][0])


def second(request):
    return call("add", n=request.env._task.data["data"]["goal"][1])


def test_it_keeps_the_contract(server, tasks):
    report = check_env(spec(server, tasks, "hide=hang,big,flaky,busy,status"), tasks=2)
    assert report.ok, report
    assert not report.warnings, report


def test_tools_and_grader_share_the_rollout(server, tasks):
    env = load_env(spec(server, tasks, f"grader={server.url}/grade", "only=add"))
    episodes = rollout(scripted(first, second, call("answer")), env, env.tasks("train", 2), n=4)
    assert [(e.ok, e.reward, e.success) for e in episodes] == [(True, 1.0, True)] * 8
    by_rollout = Counter(who for _, who, _ in server.asked)
    assert len(by_rollout) == 8
    assert set(by_rollout.values()) == {3}, "two calls and a grade each"
    half = rollout(scripted(first, call("answer")), env, env.tasks("train", 1))
    assert (half[0].reward, half[0].success) == (0.5, False)


def test_failures_by_class(server, tasks):
    plan = (call("status", n=404), call("add", n="x"), call("bytes"), call("refuse"), call("hang"), call("big"), call("answer", text="x"))
    env = load_env(spec(server, tasks, "timeout=3"))
    (episode,) = rollout(scripted(*plan), env, env.tasks("train", 1))
    told = [turn.content for turn in episode.turns if turn.role == "tool"]
    assert told[:5] == [
        "error: you said so",
        "error: bad arguments for add: n: 'x' is not of type 'integer'",
        "caf\ufffd",
        "error: the drawer is locked",
        "error: hang did not answer within 3 s",
    ]
    assert "[... 49,992,000 characters cut ...]" in told[5]
    assert episode.tags["tools"] == {"ok": 3, "tool_error": 2, "bad_arguments": 1, "timeout": 1}
    assert episode.reward == 1.0


def test_a_server_that_is_down_drops_the_episode_with_a_reason(server, tasks):
    server.fails = 10**6
    env = load_env(spec(server, tasks))
    plan = (lambda r: call("flaky") if r.env._task.id.endswith("/1") else call("plain"), call("answer", text="x"))
    episodes = rollout(scripted(*plan), env, env.tasks("train", 2), limits=Limits(retries=1, max_error_rate=0.9))
    good, bad = episodes
    assert (good.ok, good.reward) == (True, 1.0)
    assert (bad.ok, bad.reason, bad.reward) == (False, "EndpointError", 0.0)
    assert "failed 4 times; the last time: 503 out of order" in bad.error
    assert bad.tags["tools"] == {"infrastructure": 1}
    assert bad.tags["broken"] == {"EndpointError": 2}
    assert sum(tool == "flaky" for tool, *_ in server.asked) == 8


def test_a_grader_that_refuses_is_no_zero_reward(server, tasks):
    env = load_env(spec(server, tasks, f"grader={server.url}/misgrade"))
    with pytest.raises(EnvError, match=r"EndpointError: POST .*/misgrade failed: no idea"):
        rollout(scripted(call("answer")), env, env.tasks("train", 1), limits=Limits(retries=0))


class Shop(Env):
    """An environment of the user's own that calls an endpoint from one of its tools."""

    server: HttpTools

    def reset(self, task):
        return "buy"

    @property
    def tools(self):
        return self.server.tools()

    def call_tool(self, name, arguments):
        return self.server.call(name, arguments, rollout=self.rollout_id)

    def step(self, action):
        return super().step(action)


def test_endpoints_in_an_environment_of_ones_own(server):
    Shop.server = HttpTools(server.url, pause=0.01)
    Shop.max_turns = 2
    task = Task(id="shop/train/0", env="shop", split="train")
    episodes = rollout(scripted(call("add", n=1), call("add", n=2)), EnvFactory(Shop), [task], n=3)
    assert [e.turns[-1].content for e in episodes] == ["[1, 2]"] * 3
    assert len(server.carts) == 3


def test_a_server_that_fails_three_times_in_ten_and_nothing_leaks(server, tasks):
    """A hundred episodes of three calls each, of which every third request fails."""
    env = load_env(spec(server, tasks, "only=add,flaky", f"grader={server.url}/grade"))
    plan = (first, call("flaky"), second, call("answer"))
    limits = Limits(retries=2, in_flight=32)
    rollout(scripted(*plan), env, env.tasks("train", 2), n=32, limits=limits)
    server.every = 3
    server.asked.clear()

    def usage():
        gc.collect()
        loops = [o for o in gc.get_objects() if isinstance(o, asyncio.AbstractEventLoop) and not o.is_closed()]
        return sum(len(asyncio.all_tasks(loop)) for loop in loops), threading.active_count(), len(os.listdir("/proc/self/fd"))

    before = usage()
    episodes = rollout(scripted(*plan), env, env.tasks("train", 2), n=50, limits=limits)
    assert all(e.ok and e.reward == 1.0 for e in episodes), [e.error for e in episodes if not e.ok]
    assert sum(tool == "flaky" for tool, *_ in server.asked) > 110, "asked again where it failed"
    end = time.monotonic() + 10
    while not (usage()[0] <= before[0] + 1 and usage()[1] <= before[1] and usage()[2] <= before[2] + 2):
        assert time.monotonic() < end, f"{usage()} is more than {before}"
        time.sleep(0.1)
