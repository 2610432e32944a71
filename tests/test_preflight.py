"""`whet preflight`: a sound environment passes, and each way of breaking training is found and named."""

from __future__ import annotations

import json
import os
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

from whet.cli import main
from whet.cli.preflight import COUNTS, MEMORY, findings, grown, quantile
from whet.envs import load_env
from whet.rollout.health import TimedFactory, descendants, examine

pytestmark = pytest.mark.slow

HEAD = """
import asyncio, os, random, signal, subprocess, tempfile, threading, time
from whet import Env, Step, tool
from whet.envs.base import Action

class Base(Env):
    instructions = "Say the number."
    max_turns = 3

    def reset(self, task):
        self.number = random.Random(task.seed).randint(0, 999)
        return f"number {self.number}"

    def step(self, action):
        done = action.text == str(self.number)
        return Step(observation="good" if done else "again", reward=float(done), terminated=done, success=done)

    def expert(self, rng):
        return Action(text=str(self.number))
"""


def preflight(tmp_path: Path, body: str, *options: str, episodes: int = 80) -> tuple[int, dict[str, Any], list[tuple[str, str]]]:
    """Exit code, record and (level, what) of the findings of class `Mine`."""
    (tmp_path / "mine.py").write_text(HEAD + textwrap.dedent(body))
    out = tmp_path / "out.json"
    argv = ["preflight", f"{tmp_path}/mine.py:Mine", "--episodes", str(episodes), "--concurrency", "8", "--json", str(out), *options]
    code = main(argv)
    record = json.loads(out.read_text())
    return code, record, [(f["level"], f["what"]) for f in record["findings"]]


def test_a_sound_environment_is_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, record, found = preflight(tmp_path, "class Mine(Base): pass", "--policy", "expert")
    assert (code, found) == (0, [])
    assert (record["played"], record["steps"], record["succeeded"], record["errors"]) == (80, 80, 80, {})
    assert [v["episodes"] for v in record["vitals"]] == list(range(0, 81, 8))
    assert record["stops"] == {"terminated": 80}
    assert {name: len(calls) for name, calls in record["seconds"]["mine"].items()} == {"reset": 80, "step": 80}
    assert (record["n_replayed"], record["replayed"]) == (16, {"here": [], "elsewhere": []})
    shown = capsys.readouterr().out
    assert "verdict: ready" in shown
    assert "mine step" in shown
    assert not list(Path(record["env"]).parent.glob("whet-preflight*"))


def test_what_an_environment_leaves_behind_is_counted(tmp_path: Path) -> None:
    body = """
    KEPT = []

    class Mine(Base):
        def reset(self, task):
            KEPT.append((open(__file__), bytearray(os.urandom(4096)) * 256))
            threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
            KEPT.append(subprocess.Popen(["sleep", "3600"], stdout=subprocess.DEVNULL))
            tempfile.mkstemp()
            return super().reset(task)
    """
    code, record, found = preflight(tmp_path, body, episodes=64)
    assert code == 1
    text = "\n".join(what for _, what in found)
    # One of each for each episode; of the descriptors two, as mkstemp leaves one open; a thread each, no matter who else has some.
    for told in ("processes leak: 1,000 more for every 1,000", "threads leak: 1,000 more", "temporary files leak: 1,000 more"):
        assert told in text
    assert "open files leak: 2,000 more" in text
    grown = re.search(r"the memory of the process grows by ([\d,]+) KiB an episode", text)
    assert 1000 < int(grown[1].replace(",", "")) < 1300  # a MiB, and what a thread takes
    # 64 episodes, and 16 replayed twice
    assert "96 processes outlived the program, such as 'sleep 3600'" in text
    assert "96 files outlived the program" in text
    assert len(record["processes_left"]) == 96
    assert not any(b"sleep\x003600" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(os.getpid()) or [])


def test_a_pool_that_fills_up_is_no_leak(tmp_path: Path) -> None:
    body = """
    from whet.envs.pool import Pool

    def make():
        return subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def end(process):
        process.stdin.close()
        process.stdout.close()
        process.wait()

    POOL = Pool(make, end, size=3, recycle=10)

    class Mine(Base):
        inline = False
        max_concurrent = 3

        def reset(self, task):
            self.process = POOL.take(30)
            return super().reset(task)

        def close(self):
            if hasattr(self, "process"):
                POOL.give(self.process)
                del self.process
    """
    code, record, found = preflight(tmp_path, body)
    assert (code, [what for level, what in found if level != "note"]) == (0, [])
    assert max(v["processes"] for v in record["vitals"]) == 3
    assert any("allows 3 episodes at once, so 8 were never reached" in what for _, what in found)


@pytest.mark.parametrize(
    ("body", "here", "elsewhere"),
    [
        # state that every episode shares: right alone, wrong among others
        (
            "def step(self, action):\n            Mine.n = getattr(Mine, 'n', 0) + 1\n            return Step(observation=str(Mine.n))",
            16,
            16,
        ),
        # the hash of a string differs between processes only
        ("def reset(self, task):\n            super().reset(task)\n            return f'{hash(task.id)}'", 0, 16),
        # the observations are the same, what is paid is not
        (
            "def step(self, action):\n            reward = random.random()\n"
            "            return Step(observation='x', reward=reward, terminated=True)",
            16,
            16,
        ),
    ],
)
def test_replays_that_diverge_are_found(tmp_path: Path, body: str, here: int, elsewhere: int) -> None:
    code, record, found = preflight(tmp_path, f"\n    class Mine(Base):\n        {body}\n")
    assert code == 1
    assert {where: len(told) for where, told in record["replayed"].items()} == {"here": here, "elsewhere": elsewhere}
    assert all(level == "error" and "of 16 episodes went otherwise" in what for level, what in found)


def test_failures_are_counted_by_reason_and_once(tmp_path: Path) -> None:
    body = """
    class Mine(Base):
        replayable = False

        def step(self, action):
            if self.number % 10 < 3:
                raise ConnectionError("the shop is closed")
            return super().step(action)
    """
    code, record, found = preflight(tmp_path, body, "--policy", "expert")
    failed = record["errors"]["ConnectionError"]
    assert code == 1
    assert failed == sum(e == "error" for e in record["stops"] for _ in range(record["stops"][e]))
    assert 10 < failed < 40  # three tenths of 80, within the luck of the numbers
    assert found[0][0] == "error"
    assert f"{failed} of 80 episodes failed with ConnectionError: environment 'mine'" in found[0][1]
    assert "ConnectionError: the shop is closed" in found[0][1]
    assert ("note", "mine cannot replay") in found
    assert record["n_replayed"] == 0


def test_hangs_deaths_and_slowness(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hangs = "class Mine(Base):\n    step_timeout = 0.2\n    def step(self, action): time.sleep(60)"
    code, record, found = preflight(tmp_path, hangs)
    assert code == 1
    assert record["errors"]["step_deadline"] >= 3
    assert any("given up" in what and "still running after 0.2 s" in what for _, what in found)

    dies = "class Mine(Base):\n    def step(self, action): os.kill(os.getpid(), signal.SIGKILL)"
    code, record, found = preflight(tmp_path, dies)
    assert (code, record["exit"], found) == (1, -9, [("error", "the process that played the episodes died of signal 9")])

    stays = """
    class Mine(Base):
        def reset(self, task):
            threading.Thread(target=time.sleep, args=(3600,), name="pump", daemon=False).start()
            return super().reset(task)
    """
    code, record, found = preflight(tmp_path, stays)
    assert (code, record["exit"]) == (1, None)
    assert ("error", "the program does not end, because threads go on that are no daemons: pump, pump, pump") in found

    slow = "class Mine(Base):\n    def step(self, action):\n        time.sleep(0.012)\n        return super().step(action)"
    code, record, found = preflight(tmp_path, slow)
    assert code == 0
    assert [what for _, what in found] == ["step of mine takes 12 ms at the median, and every other episode waits for it"]


def test_tool_calls_by_class_and_what_is_made_up(tmp_path: Path) -> None:
    body = """
    from whet.errors import ToolError

    class Mine(Env):
        max_turns = 4
        tool_timeout = 0.05

        def reset(self, task):
            self.n = 0
            return "go"

        @tool
        async def look(self, where: int) -> str:
            "Look."
            self.n += 1
            if self.n == 1:
                raise ToolError("nothing there")
            if self.n == 2:
                await asyncio.sleep(60)
            return "seen"
    """
    code, record, found = preflight(tmp_path, body)
    assert record["tools"] == {"tool_error": 80, "timeout": 80, "ok": 160}
    assert record["stops"] == {"truncated": 80}
    assert code == 0
    assert ("warning", "80 of 320 tool calls ended as timeout") in found
    assert ("note", "80 of 320 tool calls ended as tool_error") in found


def test_a_mixture_is_told_apart() -> None:
    found = examine(load_env("search:hops=1 + babyai:level=GoToLocal"), episodes=32, concurrency=8, policy="expert")
    assert set(found.seconds) == set(found.facts) == {"search", "babyai"}
    assert [len(found.seconds[name]["reset"]) for name in ("search", "babyai")] == [16, 16]
    assert found.succeeded == 32
    assert sum(len(kinds["step"]) for kinds in found.seconds.values()) == found.steps


def test_timing_changes_nothing_about_an_environment() -> None:
    env = load_env("search:hops=1")
    timed = TimedFactory(env)
    task = timed.tasks("train", 1)[0]
    assert timed.of(task).tools == env.tools
    assert timed.of(task)().reset(task) == env().reset(task)
    assert len(timed.seconds["search"]["reset"]) == 1


def test_too_few_episodes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preflight", "search", "--episodes", "100", "--concurrency", "64"]) == 1
    assert "expected at least 256 episodes" in capsys.readouterr().err


def test_an_unknown_environment_starts_no_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preflight", "serch"]) == 1
    assert "Did you mean 'search'" in capsys.readouterr().err


# -- verdicts by hand ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "least", "rate"),
    [
        ([0, 8, 8, 8, 8, 8, 8], COUNTS, None),  # a pool, full after the first chunk
        ([0, 2, 4, 6, 8, 8, 8], COUNTS, None),  # one that fills slowly, and ends
        ([0, 5, 6, 5, 7, 6, 5], COUNTS, None),  # comings and goings
        ([0, 1, 2, 3, 4, 5, 6], COUNTS, 0.1),  # one for every ten episodes; 4 more over 40
        ([0, 9, 9, 10, 10, 11, 11], COUNTS, None),  # two more: fewer than count
        ([0, 50 << 20, 60 << 20, 65 << 20, 66 << 20, 66 << 20, 66 << 20], MEMORY, None),  # settles
        ([0, 50 << 20, 60 << 20, 70 << 20, 80 << 20, 90 << 20, 100 << 20], MEMORY, 1 << 20),
        ([None] * 7, COUNTS, None),  # no /proc
        ([0, 1], COUNTS, None),  # given up early
    ],
)
def test_growth_by_hand(values: list[int | None], least: int, rate: float | None) -> None:
    vitals = [{"episodes": 10 * i, "files": value} for i, value in enumerate(values)]
    assert grown(vitals, "files", least) == rate


def test_quantiles_by_hand() -> None:
    values = [float(i) for i in range(1, 101)]
    assert [quantile(values, q) for q in (0.5, 0.95, 0.99, 1.0)] == [50.0, 95.0, 99.0, 100.0]
    assert quantile([7.0], 0.5) == 7.0


def test_rare_failures_are_a_warning() -> None:
    record = {"exit": 0, "processes_left": [], "files_left": [], "played": 1000, "errors": {"OSError": 9}, "examples": {"OSError": "gone"}}
    assert [(f.level, f.what) for f in findings(record)] == [("warning", "9 of 1000 episodes failed with OSError: gone")]
