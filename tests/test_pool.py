"""The pool of servers: real processes that die, hang and are fought over, and none is left in the end."""

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter

import pytest

from whet.envs.pool import Pool
from whet.errors import ConfigError, EnvError, MissingExtra

STUBBORN = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"]


def sleeper():
    return subprocess.Popen(["sleep", "1000"])


def stubborn():
    process = subprocess.Popen(STUBBORN, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def stop(process):
    process.terminate()
    process.wait()


def force(process):
    process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()


def lives(process):
    return process.poll() is None


def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)


def exists(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # a zombie has ended; whoever started it has yet to look
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def pools():
    """Makes pools of processes; in the end they are closed, and no process is left."""
    made, processes = [], []

    def pool(make=sleeper, close=stop, **options):
        def start():
            processes.append(make())
            return processes[-1]

        made.append(Pool(start, close, **{"size": 2, "alive": lives, "kill": force, "name": "sleepers", **options}))
        made[-1].processes = processes
        return made[-1]

    yield pool
    for each in made:
        each.close()
    assert [p.pid for p in processes if exists(p.pid)] == []


def test_an_item_is_made_when_it_is_needed_and_used_again(pools):
    pool = pools()
    assert pool.processes == []
    first = pool.take(1)
    assert pool.counts().taken == 1
    pool.give(first)
    assert pool.take(1) is first
    second = pool.take(1)
    assert second is not first
    assert (pool.counts().made, pool.counts().taken, pool.counts().idle) == (2, 2, 0)


def test_the_deadline_names_the_pool(pools):
    pool = pools(size=1)
    pool.take(1)
    begin = time.monotonic()
    with pytest.raises(EnvError, match=r"pool 'sleepers' had nothing free for 0\.1 s: the only one is in use\. .* enlarge the pool"):
        pool.take(0.1)
    assert 0.1 <= time.monotonic() - begin < 0.5
    assert pool.counts().made == 1


def test_one_that_dies_is_replaced(pools):
    pool = pools(size=1)
    first = pool.take(1)
    pool.give(first)
    force(first)  # while nobody had it
    second = pool.take(5)
    assert second is not first
    assert lives(second)
    force(second)  # while it was in use
    pool.give(second)
    third = pool.take(5)
    assert lives(third)
    pool.give(third, broken=True)
    until(lambda: not lives(third))
    assert lives(pool.take(5))
    assert (pool.counts().broken, pool.counts().made) == (3, 4)


def test_recycled_after_n_uses(pools):
    pool = pools(size=1, recycle=3)
    used = []
    for _ in range(7):
        used.append(pool.take(5))
        pool.give(used[-1])
    assert list(Counter(p.pid for p in used).values()) == [3, 3, 1]
    assert pool.counts().recycled == 2
    assert not lives(used[0])


def test_one_that_hangs_on_close_is_killed_and_holds_nobody_up(pools):
    pool = pools(make=stubborn, size=1, recycle=1, patience=0.3)
    first = pool.take(5)
    begin = time.monotonic()
    pool.give(first)
    assert time.monotonic() - begin < 0.1
    assert exists(first.pid)
    second = pool.take(5)
    assert 0.25 < time.monotonic() - begin < 2
    assert second is not first
    assert not exists(first.pid)
    assert pool.counts().stuck == 1


def hangs(process):
    force(process)
    time.sleep(60)


def breaks(process):
    force(process)
    raise OSError("the pipe is gone")


@pytest.mark.parametrize("close", [hangs, breaks])
def test_closing_that_hangs_or_raises_frees_the_place_even_without_kill(pools, close):
    pool = pools(close=close, kill=None, size=1, recycle=1, patience=0.2)
    for _ in range(3):
        pool.give(pool.take(5))
    until(lambda: pool.counts().stuck == 3)
    assert pool.counts().closing == 0


def test_two_hundred_takes_from_sixteen_threads(pools):
    alive, most, lock, errors = 0, 0, threading.Lock(), []

    def start():
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return sleeper()

    def end(process):
        nonlocal alive
        stop(process)
        with lock:
            alive -= 1

    pool = pools(make=start, close=end, size=4, recycle=9)
    out: set[int] = set()
    left = iter(range(200))
    rng = random.Random(0)

    def work():
        try:
            for i in left_over():
                item = pool.take(30)
                with lock:
                    assert item.pid not in out, "two threads have the same item"
                    out.add(item.pid)
                time.sleep(rng.random() * 0.004)
                if i % 23 == 0:
                    item.kill()
                with lock:
                    out.discard(item.pid)
                pool.give(item, broken=i % 31 == 0)
        except BaseException as error:
            errors.append(error)

    def left_over():
        while True:
            with lock:
                i = next(left, None)
            if i is None:
                return
            yield i

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert most <= 4, f"{most} lived at once"
    counts = pool.counts()
    assert counts.taken == 0
    assert counts.made >= 200 // 9
    assert counts.broken >= 200 // 31
    pool.close()
    assert pool.counts().idle == pool.counts().closing == 0
    assert alive == 0


def test_those_who_asked_first_are_served_first(pools):
    pool = pools(size=1)
    item, order, threads = pool.take(1), [], []

    def ask(i):
        mine = pool.take(10)
        order.append(i)
        pool.give(mine)

    for i in range(6):
        threads.append(threading.Thread(target=ask, args=(i,)))
        threads[-1].start()
        until(lambda i=i: len(pool._waiting) == i + 1)
    pool.give(item)
    for thread in threads:
        thread.join(10)
    assert order == list(range(6))


def test_what_cannot_be_made_frees_its_place(pools):
    broken = True

    def start():
        if broken:
            raise OSError("no such program")
        return sleeper()

    pool = pools(make=start, size=1)
    for _ in range(3):
        with pytest.raises(EnvError, match="pool 'sleepers' could not make a new item: OSError: no such program"):
            pool.take(1)
    broken = False
    assert lives(pool.take(1))

    def lacks():
        raise MissingExtra("install it")

    with pytest.raises(MissingExtra, match="install it"):
        pools(make=lacks).take(1)


def test_an_interrupted_wait_loses_nothing(pools):
    pool = pools(size=1)
    item = pool.take(1)

    def interrupt(signum, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            pool.take(10)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not pool._waiting
    pool.give(item)
    assert pool.take(1) is item


def test_misuse_is_told(pools):
    with pytest.raises(ConfigError, match="size is 0"):
        Pool(sleeper, stop, size=0)
    with pytest.raises(ConfigError, match="recycle is 0"):
        Pool(sleeper, stop, size=1, recycle=0)
    pool = pools()
    item = pool.take(1)
    pool.give(item)
    for wrong in (item, object()):
        with pytest.raises(EnvError, match="had not lent, or that was given back before"):
            pool.give(wrong)
    taken = pool.take(1)
    pool.close()
    assert not exists(taken.pid)
    pool.give(taken)  # an episode that ends after its pool
    with pytest.raises(EnvError, match="pool 'sleepers' is closed"):
        pool.take(1)


def test_closing_wakes_those_who_wait(pools):
    pool, told = pools(size=1), []
    pool.take(1)

    def ask():
        try:
            pool.take(30)
        except EnvError as error:
            told.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: pool._waiting)
    pool.close()
    thread.join(5)
    assert told == ["pool 'sleepers' is closed"]


def script(body, **options):
    """Runs Python with a pool of processes in it; the ids that it printed, and how it ended."""
    head = """
        import os, subprocess, sys, threading, time
        from whet.envs.pool import Pool
        def make():
            process = subprocess.Popen(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"], stdout=subprocess.PIPE)
            process.stdout.readline()
            print(process.pid, flush=True)
            return process
        def hang(process):
            process.terminate()
            process.wait()
        pool = Pool(make, hang, size=4, kill=lambda p: p.kill(), patience=0.3)
    """
    code = textwrap.dedent(head) + textwrap.dedent(body)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, **options)
    return [int(line) for line in done.stdout.split()], done


@pytest.mark.parametrize(
    ("ending", "code"),
    [("", 0), ("sys.exit(3)", 3), ("raise RuntimeError('broke')", 1), ("os.kill(os.getpid(), 2); time.sleep(9)", -2)],
)
def test_everything_is_closed_at_exit(ending, code):
    begin = time.monotonic()
    pids, done = script(f"taken = pool.take(5), pool.take(5), pool.take(5)\npool.give(taken[0])\n{ending}\n")
    assert done.returncode == code, done.stderr
    assert len(pids) == 3
    until(lambda: not any(map(exists, pids)))
    assert time.monotonic() - begin < 5


def test_what_is_being_made_at_exit_is_closed_too():
    body = """
        slow = Pool(lambda: (time.sleep(0.3), make())[1], hang, size=1, kill=lambda p: p.kill(), patience=1)
        threading.Thread(target=slow.take, args=(5,), daemon=True).start()
        time.sleep(0.1)
    """
    pids, done = script(body)
    assert done.returncode == 0, done.stderr
    assert len(pids) == 1
    until(lambda: not exists(pids[0]))


def test_a_forked_child_begins_with_an_empty_pool(pools):
    pool = pools()
    item = pool.take(1)
    idle = pool.take(1)
    pool.give(idle)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            pool.give(item)  # an episode of the parent's that the child closes, too
            mine = pool.take(5)
            ours = pool.counts()
            pool.close()
            os.write(write, f"{mine.pid} {ours.made} {ours.taken} {lives(mine)}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    pid, made, taken, still = os.read(read, 1000).decode().split()
    os.close(read)
    assert (made, taken, still) == ("1", "1", "False")
    assert int(pid) not in (item.pid, idle.pid)
    assert lives(item)
    assert lives(idle)
    pool.give(item)
    assert pool.counts().idle == 2


def _worker(queue):
    pool = Pool(sleeper, stop, size=1, kill=force)
    queue.put(pool.take(5).pid)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_multiprocessing_leave_nothing(method):
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_worker, args=(queue,))
    process.start()
    pid = queue.get(timeout=20)
    process.join(20)
    assert process.exitcode == 0
    until(lambda: not exists(pid))
