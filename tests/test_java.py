"""Java machines behind environments: shared, replaced when they die or hang, and none is left. With TextWorldExpress's jar."""

import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest

if shutil.which("java") is None:
    pytest.skip("there is no Java runtime", allow_module_level=True)
pytest.importorskip("py4j")
pytest.importorskip("textworld_express")

from textworld_express.constants import JAR_PATH

from whet.envs.java import JavaEnv, Servers
from whet.envs.jvm import JavaRaised
from whet.errors import EnvError, MissingExtra

pytestmark = pytest.mark.slow

INTERFACE = "textworldexpress.runtime.PythonInterface"


@pytest.fixture
def servers():
    made = []

    def make(**options):
        made.append(Servers("test", INTERFACE, lambda: str(JAR_PATH), **options))
        return made[-1]

    yield make
    pids = [machine.process.pid for each in made for machine in each._open]
    for each in made:
        each.pool.close()
    assert not any(map(runs, pids))


def runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


def test_servers_share_a_machine_until_it_is_full(servers):
    java = servers(size=2, share=2)
    a, b, c, d = (java.take(60) for _ in range(4))
    assert a.machine is b.machine
    assert c.machine is d.machine
    assert a.machine is not c.machine
    with pytest.raises(EnvError, match=r"no place in Java for the environment 'test' in 0\.1 s: there are 2 machines with 2 episodes each"):
        java.take(0.1)
    java.give(c)
    e = java.take(1)
    assert e.machine is d.machine
    # What one does does not touch the other.
    for server, game in ((a, "coin"), (b, "twc")):
        assert server.call("load", game, "") == ""
        server.call("generateNewGameJSON", 0, "train", False)
    assert "coin" in a.call("getTaskDescription")
    assert "coin" not in b.call("getTaskDescription")


def test_a_machine_that_dies_is_told_and_replaced(servers):
    java = servers(size=1)
    a, b = java.take(60), java.take(60)
    pid = a.machine.process.pid
    os.kill(pid, signal.SIGKILL)
    begin = time.monotonic()
    for server in (a, b):
        with pytest.raises(EnvError, match=rf"the Java process {pid} of the environment 'test' has died \(exit status -9\)"):
            server.call("getGameNames")
    assert time.monotonic() - begin < 5
    java.give(a)
    c = java.take(60)  # while b still holds a place in the dead one
    assert c.machine.process.pid != pid
    assert "twc" in c.call("getGameNames")
    java.give(b)
    java.give(c)
    assert java.pool.counts().broken == 1


def test_one_that_died_while_nobody_used_it_is_not_lent(servers):
    java = servers(size=1)
    a = java.take(60)
    java.give(a)
    a.machine.process.kill()
    a.machine.process.wait()
    assert java.take(60).call("getGameNames")


def test_a_machine_that_hangs_is_given_up(servers):
    java = servers(size=1, answer_s=3)
    a = java.take(60)
    pid = a.machine.process.pid
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(EnvError, match=r"did not answer within 3 s"):
        a.call("getGameNames")
    java.give(a)
    until(lambda: not runs(pid))
    assert java.take(60).call("getGameNames")


def test_one_that_is_given_back_in_the_middle_of_a_call_is_ended(servers):
    java = servers(size=1, answer_s=30)
    a, told = java.take(60), []

    def ask():
        try:
            a.call("getGameNames")
        except EnvError as error:
            told.append(str(error))

    os.kill(a.machine.process.pid, signal.SIGSTOP)
    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: a._busy)
    java.give(a)  # what a rollout does after a deadline
    thread.join(10)
    assert "has died" in told[0]


def test_an_exception_in_java_leaves_the_machine_running(servers):
    java = servers()
    a = java.take(60)
    a.call("load", "mapreader", "numLocations=1")
    with pytest.raises(JavaRaised, match="No locations could be found"):
        a.call("generateNewGameJSON", 0, "train", False)
    assert a.call("load", "coin", "") == ""
    java.give(a)
    assert java.take(1).machine is a.machine


def test_recycled_when_its_last_server_is_given_back(servers):
    java = servers(size=2, recycle=3)
    first = [java.take(60) for _ in range(3)]
    other = java.take(60)
    old = first[0].machine
    assert other.machine is not old
    for server in first:
        assert runs(old.process.pid)
        java.give(server)
    until(lambda: not runs(old.process.pid))
    assert java.pool.counts().recycled == 1
    full = servers(size=1, recycle=1)
    assert full.take(60).machine is full.take(1).machine  # rather a worn one than none


def test_objects_are_kept_under_their_key(servers):
    java = servers()
    a = java.take(60, "coin")
    assert not a.ready
    a.call("load", "coin", "")
    a.ready = True
    thing = a.object
    java.give(a)
    assert java.take(1, "twc").object is not thing
    again = java.take(1, "coin")
    assert again.ready
    assert again.object is thing
    assert not java.take(1, "coin").ready  # the one that there was is taken


def test_a_forgotten_episode_gives_its_place_back(servers):
    class Forgetful(JavaEnv):
        pass

    Forgetful.servers = servers(size=1, share=1)
    env = Forgetful()
    env._begin()
    with pytest.raises(EnvError, match="no place"):
        Forgetful.servers.take(0.05)
    del env
    gc.collect()
    Forgetful.servers.take(1)


def test_strangers_are_refused(servers):
    a = servers().take(60)
    port = a.machine.gateway.gateway_parameters.port
    with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
        line.sendall(b"c\nt\nexit\ne\n")
        assert line.recv(1000).startswith(b"!x")  # an error, where a command that is let through answers !y
    assert a.machine.alive()


def test_without_a_java_runtime(servers, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(MissingExtra, match=r"runs on a Java runtime .* apt-get install default-jre-headless"):
        servers().take(5)


@pytest.mark.parametrize("ending", ["pass", "os.kill(os.getpid(), 9)", "raise KeyboardInterrupt"])
def test_java_ends_with_the_process(ending):
    code = f"""
        import os
        from textworld_express.constants import JAR_PATH
        from whet.envs.java import Servers
        server = Servers("test", "{INTERFACE}", lambda: str(JAR_PATH)).take(60)
        print(server.machine.process.pid, flush=True)
        {ending}
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=100)
    pid = int(done.stdout)
    until(lambda: not runs(pid))


def test_a_forked_child_starts_its_own(servers):
    java = servers()
    a = java.take(60)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            own = java.take(60)
            os.write(write, str(own.machine.process.pid).encode())
            java.pool.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    pid = int(os.read(read, 100))
    os.close(read)
    assert pid != a.machine.process.pid
    until(lambda: not runs(pid))
    assert a.call("getGameNames")
