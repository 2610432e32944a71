"""Connections to real MCP servers over stdio, over HTTP and in process; and environments as MCP servers, played by real clients."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("mcp")
psutil = pytest.importorskip("psutil")

import mcp  # noqa: E402

from mcpservers import OLD_SERVER, PYTHON, SERVER, free_port, running  # noqa: E402
from whet import load_env  # noqa: E402
from whet.envs.mcp_server import env_server  # noqa: E402
from whet.errors import ConfigError, ToolError, ToolTimeout  # noqa: E402
from whet.tools.mcp import (  # noqa: E402
    Local,
    ServerError,
    ServerLost,
    Url,
    close_shared,
    connect,
    connect_shared,
    listing,
    open_connections,
)
from whet.tools.stdio import Command  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A directory with the servers."""
    path = tmp_path_factory.mktemp("mcp")
    (path / "server.py").write_text(SERVER)
    (path / "old.py").write_text(OLD_SERVER)
    return path


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left():
    """After all tests no server process of ours runs, and no connection is open."""
    yield
    close_shared()
    gc.collect()
    wait_until(lambda: open_connections() == 0, "connections close")
    wait_until(lambda: not children(), f"processes end: {children()}")


def children() -> list[str]:
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if child.status() != psutil.STATUS_ZOMBIE and "server.py" in " ".join(child.cmdline()):
                found.append(" ".join(child.cmdline()))
        except psutil.Error:
            pass
    return found


def wait_until(condition, what, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not come to pass that {what}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def stdio(place) -> Command:
    return Command((sys.executable, str(place / "server.py")))


@pytest.fixture(scope="module")
def http(place):
    port = free_port()
    with running(str(place / "server.py"), str(port), port=port):
        yield Url(f"http://127.0.0.1:{port}/mcp")


@pytest.fixture(scope="module")
def local() -> Local:
    namespace = {"__name__": "oddities"}
    exec(compile(SERVER, "server.py", "exec"), namespace)
    return Local(namespace["make"], "oddities")


def talk(server, *calls, timeout=20.0, **options):
    """The listing, and what the calls give or raise, over one connection; a call is a name and its arguments."""

    async def main():
        connection = await connect(server, timeout=120, **options)
        given = []
        try:
            for name, arguments in calls:
                try:
                    given.append(await connection.call(name, arguments, timeout=timeout))
                except Exception as error:
                    given.append(error)
            return connection.listing, given
        finally:
            await asyncio.to_thread(connection.close)

    return asyncio.run(main())


# -- connections ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stdio", "http", "local"])
def test_all_transports_give_the_same(kind, request):
    listed, given = talk(
        request.getfixturevalue(kind),
        ("lookup", {"name": "Rosa"}),
        ("lookup", {"name": "Nobody"}),
        ("boom", {}),
        ("nothing", {}),
        ("picture", {}),
    )
    assert listed.instructions == "Look things up."
    tools = {tool.name: tool for tool in listed.tools}
    assert tools["lookup"].description == "Read a page."
    assert tools["lookup"].parameters == {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    with pytest.raises(ValueError, match=r"bad arguments for add: at: .* is not valid under any of the given schemas"):
        tools["add"].check({"item": "x", "at": {"x": -1}})
    with pytest.raises(ValueError, match="bad arguments for add: arguments: 'item' is a required property"):
        tools["add"].check({})
    found, missing, boom, nothing, picture = given
    assert found.text == "boss Joe"
    assert isinstance(missing, ToolError)
    assert "no page of Nobody" in str(missing)
    assert isinstance(boom, ToolError)
    assert "secret" not in str(boom), "the SDK hides what it was"
    assert isinstance(nothing, ToolError)
    assert picture.text == "a dot\n[image/png, 9 bytes]"


@pytest.mark.parametrize("kind", [pytest.param("stdio", marks=pytest.mark.slow), "local"])
def test_each_connection_has_a_state_of_its_own(kind, request):
    for _ in range(2):
        _, (one, two) = talk(request.getfixturevalue(kind), ("add", {"item": "milk"}), ("add", {"item": "eggs", "at": {"x": 1}}))
        assert one.structured == {"result": ["milk"]}
        assert two.structured == {"result": ["milk", "eggs"]}


@pytest.mark.parametrize("kind", ["stdio", "http", "local"])
@pytest.mark.parametrize("protocol", ["auto", "legacy"])
def test_a_deadline_of_ours_ends_every_call(kind, protocol, request):
    began = time.monotonic()
    server = request.getfixturevalue(kind)
    _, (late, fine) = talk(server, ("hang", {"seconds": 30}), ("lookup", {"name": "Rosa"}), timeout=3.0, protocol=protocol)
    assert isinstance(late, ToolTimeout)
    assert str(late) == "hang did not answer within 3 s"
    assert getattr(fine, "text", fine) == "boss Joe", "the connection can still be used"
    assert time.monotonic() - began < 25


def test_a_server_in_this_process_that_blocks_holds_nobody_up(local):
    async def main():
        connection = await connect(local, timeout=10)
        began = time.monotonic()
        with pytest.raises(ToolTimeout):
            await connection.call("block", {"seconds": 8}, timeout=0.3)
        assert time.monotonic() - began < 4, "the package's own deadline would have waited"
        other = await connect(local, timeout=10)
        assert (await other.call("lookup", {"name": "Joe"}, timeout=5)).text == "friend Otto"
        assert time.monotonic() - began < 8, "another loop took the blocked one's place"
        await asyncio.to_thread(other.close)
        await asyncio.to_thread(connection.close, 20)

    asyncio.run(main())


def test_fifty_megabytes_over_stdio(stdio):
    began = time.process_time()
    _, (big, fine) = talk(stdio, ("big", {"n": 50_000_000}), ("lookup", {"name": "Rosa"}), timeout=200)
    assert len(big.text) == 50_000_000
    assert fine.text == "boss Joe"
    assert time.process_time() - began < 15, "1 s; with the transport of the SDK it is 57 s"


def test_an_old_server_that_talks_out_of_turn_and_no_utf8(place):
    old = Command((sys.executable, str(place / "old.py")))
    listed, (raw, junk, again) = talk(old, ("raw", {"n": 1}), ("junk", {}), ("raw", {}))
    assert [tool.name for tool in listed.tools] == ["raw", "junk"], "both pages of the listing"
    assert raw.text == again.text == "caf\ufffd"
    assert isinstance(junk, ServerError)
    assert not isinstance(junk, (ServerLost, ToolError))
    assert "failed in a call of junk: the database is gone (-32603)" in str(junk)


def test_servers_that_cannot_be_started(tmp_path):
    with pytest.raises(ConfigError, match="the server 'no-such-program' cannot be started: No such file or directory"):
        talk(Command(("no-such-program",)))
    (tmp_path / "broken.py").write_text("import sys\nraise SystemExit('no licence key')\n")
    with pytest.raises(ServerLost, match=r"did not start .*: exit status 1; no licence key"):
        talk(Command((sys.executable, str(tmp_path / "broken.py"))))
    with pytest.raises(ServerLost, match=r"the MCP server 'http://127.0.0.1:\d+/mcp' did not start \(ConnectError"):
        talk(Url(f"http://127.0.0.1:{free_port()}/mcp"))
    with pytest.raises(ConfigError, match="environment variable 'NO_SUCH_VARIABLE', which is not set"):
        talk(Command(("x",), pass_env=("NO_SUCH_VARIABLE",)))


def test_a_server_that_never_answers_is_given_up_and_killed(tmp_path):
    (tmp_path / "mute_server.py").write_text("import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(1000)\n")
    mute = Command((sys.executable, str(tmp_path / "mute_server.py")))

    async def main():
        with pytest.raises(ServerLost, match="did not answer within 1 s"):
            await connect(mute, timeout=1)

    asyncio.run(main())
    wait_until(lambda: not [line for line in children() if "mute_server.py" in line], "it is killed")


def test_a_call_that_hangs_is_given_up(stdio):
    _, (late, fine) = talk(stdio, ("hang", {"seconds": 30}), ("lookup", {"name": "Rosa"}), timeout=1.0)
    assert isinstance(late, ToolTimeout)
    assert getattr(fine, "text", fine) == "boss Joe"


def test_a_server_that_dies_says_how(stdio):
    _, (fine, dead, after) = talk(stdio, ("lookup", {"name": "Rosa"}), ("die", {}), ("lookup", {"name": "Rosa"}))
    assert fine.text == "boss Joe"
    assert isinstance(dead, ServerLost)
    assert str(dead).endswith("ended during a call of die: exit status 3; goodbye cruel world")
    assert isinstance(after, ServerLost)
    assert "is gone: exit status 3" in str(after)


def test_a_server_over_http_that_dies_is_lost(place):
    port = free_port()
    url = Url(f"http://127.0.0.1:{port}/mcp")

    async def main(process):
        connection = await connect(url, timeout=30, rollout="tische/ä#1")
        assert (await connection.call("lookup", {"name": "Rosa"}, timeout=20)).text == "boss Joe"
        call = asyncio.create_task(connection.call("hang", {"seconds": 60}, timeout=20))
        await asyncio.sleep(0.5)
        process.kill()
        with pytest.raises(ServerError):
            await call
        with pytest.raises(ServerError):
            await connection.call("lookup", {"name": "Rosa"}, timeout=20)
        await asyncio.to_thread(connection.close)

    with running(str(place / "server.py"), str(port), port=port) as process:
        asyncio.run(main(process))


def test_an_owner_that_never_began_gives_its_place_back(place):
    (place / "single_server.py").write_text(SERVER)
    single = Command((sys.executable, str(place / "single_server.py")))

    async def main():
        for pause in (0, 0, 0.001, 0.05):
            given_up = asyncio.create_task(connect(single, timeout=60, limit=1))
            await asyncio.sleep(pause)
            given_up.cancel()
        connection = await asyncio.wait_for(connect(single, timeout=60, limit=1), 30)
        await asyncio.to_thread(connection.close)

    asyncio.run(main())


def test_what_a_server_leaves_behind_is_killed(stdio):
    _, (bred,) = talk(stdio, ("breed", {}))
    pid = int(bred.text)

    def gone():
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    wait_until(gone, "its child is killed")


def test_secrets_stay_here(stdio, monkeypatch):
    monkeypatch.setenv("API_KEY", "secret")
    monkeypatch.setenv("TOKEN", "wanted")
    _, (bare,) = talk(stdio, ("environment", {}))
    assert not {"API_KEY", "TOKEN"} & set(bare.structured)
    assert "PATH" in bare.structured
    _, (given,) = talk(Command(stdio.argv, pass_env=("TOKEN",)), ("environment", {}))
    assert given.structured["TOKEN"] == "wanted"
    assert "API_KEY" not in given.structured


def test_a_shared_connection_is_replaced_when_it_hangs_or_dies(stdio):
    async def main():
        first = await connect_shared(stdio, timeout=60)
        assert await connect_shared(stdio, timeout=60) is first
        slow = asyncio.create_task(first.call("hang", {"seconds": 3}, timeout=30))
        with pytest.raises(ToolTimeout):
            await first.call("hang", {"seconds": 60}, timeout=0.3)
        second = await connect_shared(stdio, timeout=60)
        assert second is not first
        assert (await slow).text == "at last", "whoever was waiting still gets an answer"
        await asyncio.to_thread(wait_until, lambda: not first.alive, "the first one is closed")
        with pytest.raises(ServerLost):
            await second.call("die", {}, timeout=20)
        third = await connect_shared(stdio, timeout=60)
        assert (await third.call("lookup", {"name": "Joe"}, timeout=20)).text == "friend Otto"

    asyncio.run(main())
    close_shared()


def test_no_more_processes_than_allowed(place):
    (place / "scarce_server.py").write_text(SERVER)
    scarce = Command((sys.executable, str(place / "scarce_server.py")))
    counts = []
    going = threading.Event()

    def watch():
        while not going.wait(0.02):
            counts.append(sum("scarce" in line for line in children()))

    async def episode():
        connection = await connect(scarce, timeout=60, limit=2)
        await connection.call("hang", {"seconds": 0.2}, timeout=20)
        await asyncio.to_thread(connection.close)

    async def main():
        given_up = asyncio.create_task(connect(scarce, timeout=60, limit=2))
        await asyncio.sleep(0.01)
        given_up.cancel()  # its place must become free again
        await asyncio.gather(*(episode() for _ in range(6)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        asyncio.run(main())
    finally:
        going.set()
        watcher.join()
    assert 1 <= max(counts) <= 2


def test_many_calls_at_once_over_one_connection(stdio):
    async def main():
        connection = await connect(stdio, timeout=60)
        given = await asyncio.gather(
            *(connection.call("lookup", {"name": ("Rosa", "Joe", "Otto")[i % 3]}, timeout=60) for i in range(256)),
            *(connection.call("hang", {"seconds": 60}, timeout=0.5) for _ in range(16)),
            return_exceptions=True,
        )
        assert [g.text for g in given[:256]] == [("boss Joe", "friend Otto", "teacher Mila")[i % 3] for i in range(256)]
        assert {type(g) for g in given[256:]} == {ToolTimeout}
        await asyncio.to_thread(connection.close)

    asyncio.run(main())


def test_listing_is_asked_for_once(stdio):
    listing(stdio, timeout=60)
    began = time.perf_counter()
    for _ in range(100):
        assert len(listing(stdio, timeout=60).tools) == 13
    assert time.perf_counter() - began < 0.2


# -- environments as servers ---------------------------------------------------------------------------------------------


async def through_search(client, index, *, named=False):
    """Play a task of Search by its expert, in two worlds at once: the server's and our own. Returns the episode's name."""
    factory = load_env("search:hops=1-3")
    task = factory.tasks("train", 1, index)[0]
    env = factory()
    first = env.reset(task)
    record = (await client.call_tool("reset", {"split": "train", "index": index})).structured_content
    assert record["observation"] == first
    assert record["task"] == task.id
    assert record["instructions"] == env.instructions
    name = {"episode": record["episode"]} if named else {}
    while not record["terminated"]:
        action = env.expert(None)
        made = action.tool_calls[0]
        step = env.step(action)
        record = (await client.call_tool(made.name, {**dict(made.arguments), **name})).structured_content
        assert record["observation"] == step.observation[0].content
        assert (record["reward"], record["terminated"], record["success"]) == (step.reward, step.terminated, step.success)
    assert record["total"] == 1.0
    return record["episode"]


def test_a_client_plays_an_environment_over_stdio():
    async def main():
        command, *argv = PYTHON.split()
        server = mcp.StdioServerParameters(command=command, args=[*argv, "-m", "whet.envs.mcp_server", "--env", "search:hops=1-3"])
        async with mcp.Client(server) as client:
            assert client.instructions == "Answer the question. Search one person at a time.\nBegin with reset."
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert set(tools) == {"reset", "status", "close", "search", "answer"}
            assert tools["search"].input_schema["required"] == ["query"]
            for index in range(3):
                await through_search(client, index)
            over = await client.call_tool("answer", {"text": "x"})
            assert over.is_error
            assert "is over (success True, total 1); reset begins another one" in over.content[0].text
            assert (await client.call_tool("status", {})).structured_content["total"] == 1.0
            await client.call_tool("reset", {})
            bad = await client.call_tool("search", {"q": "x"})
            assert bad.is_error
            assert bad.content[0].text.startswith("error: bad arguments for search")
            for arguments, told in (
                ({"split": "test"}, "split 'test' is not served"),
                ({"index": -1}, "index is -1"),
                ({"index": "x"}, "index is 'x'"),
            ):
                refused = await client.call_tool("reset", arguments)
                assert refused.is_error
                assert told in refused.content[0].text

    asyncio.run(main())


def test_two_clients_play_at_once_over_http():
    port = free_port()
    with running("-m", "whet.envs.mcp_server", "--env", "search:hops=1-3", "--http", f"127.0.0.1:{port}", port=port):

        async def one(indices):
            async with mcp.Client(f"http://127.0.0.1:{port}/mcp") as client:
                return [await through_search(client, index, named=True) for index in indices]

        async def main():
            played = await asyncio.gather(one(range(0, 4)), one(range(4, 8)))
            assert len({id for ids in played for id in ids}) == 8

        asyncio.run(main())


COIN = """
from whet import Env, Step
class Coin(Env):
    instructions = "Call it."
    max_turns = 2
    def reset(self, task):
        return "heads or tails?"
    def step(self, action):
        if action.text == "edge":
            raise RuntimeError("the coin rolled away")
        return Step(observation="again", reward=0.25)
"""


def test_environments_without_tools_turn_limits_and_failures(tmp_path):
    (tmp_path / "coin.py").write_text(COIN)

    async def main():
        async with mcp.Client(env_server(load_env(f"{tmp_path}/coin.py:Coin"))) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == {"reset", "status", "close", "act"}
            nothing = await client.call_tool("act", {"text": "heads"})
            assert nothing.content[0].text == "no episode has begun; call reset"
            a = (await client.call_tool("reset", {})).structured_content["episode"]
            b = (await client.call_tool("reset", {"index": 1})).structured_content["episode"]
            which = await client.call_tool("act", {"text": "heads"})
            assert which.content[0].text == "2 episodes are open; name one"
            broke = await client.call_tool("act", {"text": "edge", "episode": a})
            assert broke.is_error
            assert broke.content[0].text == "the environment failed, and the episode is over: RuntimeError: the coin rolled away"
            gone = await client.call_tool("act", {"text": "heads", "episode": a})
            assert "is over" in gone.content[0].text
            records = [(await client.call_tool("act", {"text": "heads"})).structured_content for _ in range(2)]
            assert [(r["total"], r["truncated"], r["terminated"]) for r in records] == [(0.25, False, False), (0.5, True, False)]
            assert (await client.call_tool("status", {"episode": b})).structured_content["total"] == 0.5
            assert (await client.call_tool("act", {"episode": b, "text": 3})).is_error
            assert (await client.call_tool("close", {"episode": b})).structured_content["observation"] == "closed"
            assert "there is no episode" in (await client.call_tool("status", {"episode": b})).content[0].text

    asyncio.run(main())


def test_no_more_episodes_than_allowed():
    async def main():
        async with mcp.Client(env_server(load_env("search:hops=1"))) as client:
            for _ in range(64):
                assert not (await client.call_tool("reset", {})).is_error
            full = await client.call_tool("reset", {})
            assert full.content[0].text == "64 episodes are open; finish or close one first"
            await client.call_tool("answer", {"text": "x", "episode": "e3"})
            assert not (await client.call_tool("reset", {})).is_error

    asyncio.run(main())


def test_names_that_clash(tmp_path):
    (tmp_path / "own.py").write_text("from whet import Env, tool\nclass Own(Env):\n    @tool\n    def status(self) -> str:\n        'x'\n")
    env = load_env(f"{tmp_path}/own.py:Own")
    with pytest.raises(ConfigError, match="has a tool 'status' of its own; give ours a prefix"):
        env_server(env)
    assert env_server(env, prefix="whet_") is not None
    with pytest.raises(ConfigError, match="unknown split 'tset'"):
        env_server(load_env("search"), splits=("tset",))
