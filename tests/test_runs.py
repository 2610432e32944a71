"""Runs: what is written survives kill -9, torn lines and full disks, and a resumed run equals an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.errors import CheckpointError, ConfigError, StorageError
from whet.runs import JsonState, Run
from whet.runs.codec import decode, encode
from whet.runs.files import EventLog, read_events, write_atomic, write_directory
from whet.types import SCHEMA_VERSION, Cost, Episode, Stop, Task, ToolCall, Turn, chain

# -- helpers -------------------------------------------------------------------------------------------------------------


def episode(i: int = 0, **changes: object) -> Episode:
    turns = chain([Turn(role="user", content="go"), Turn(role="assistant", content="ok", tokens=(1, 2), logprobs=(-0.5, -0.25))])
    made = Episode(
        id=f"e{i}",
        task=Task(id=f"t{i}", env="toy", split="train"),
        turns=turns,
        stop=Stop.TERMINATED,
        reward=i / 7,
        success=i % 2 == 0,
        cost=Cost(episodes=1, sampled_tokens=2),
    )
    return replace(made, **changes)


def without_clock(events: object) -> list[dict]:
    """Events without what depends on the clock."""
    cleaned = []
    for event in events:
        event = {key: value for key, value in event.items() if key != "time"}
        event.get("spent", {}).pop("seconds", None)
        cleaned.append(event)
    return cleaned


class Toy:
    """A learner whose state depends on everything it has done, in order."""

    def __init__(self) -> None:
        self.weights = np.zeros(4)
        self.loads = 0

    def update(self, seed: int) -> float:
        self.weights = np.tanh(self.weights * 1.1 + np.random.default_rng(seed).normal(size=4))
        return float(self.weights.sum())

    def save_state(self, directory: Path) -> None:
        np.save(directory / "weights.npy", self.weights)

    def load_state(self, directory: Path) -> None:
        self.weights = np.load(directory / "weights.npy")
        self.loads += 1


def program(path: Path, *, resume: bool = False, every: int | None = 1, stop_at: tuple[str, int] | None = None) -> Toy:
    """Work between two phases, episodes, costs, a nested phase: everything that a resumption has to get right."""
    with Run.create(path, {"seed": 3}, resume=resume, quiet=True) as run:
        learner = Toy()
        run.event("begin")
        run.save_episodes([episode(100)], "experts")
        for phase, n in (("warm", 3), ("main", 5)):
            for step in run.steps(n, learner, name=phase, every=every):
                run.save_episodes([episode(step)], phase)
                run.spend(Cost(episodes=1))
                for inner in run.steps(2, name="epoch"):
                    loss = learner.update(run.seed(phase, step, inner))
                    run.log(inner, loss=loss)
                if stop_at == (phase, step):
                    raise KeyboardInterrupt
                run.log(step, reward=np.float32(0.5), loss=loss)
            run.event("between", after=phase, weights=learner.weights)
    return learner


def contents(path: Path) -> tuple[list[dict], list[Episode], int]:
    run = Run.open(path)
    return without_clock(run.events()), list(run.load_episodes()), run.cost.episodes


# -- resuming ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2, None])
@pytest.mark.parametrize("stop_at", [("warm", 0), ("warm", 2), ("main", 0), ("main", 1), ("main", 4)])
def test_a_resumed_run_equals_an_undisturbed_one(tmp_path: Path, stop_at: tuple[str, int], every: int | None) -> None:
    whole = program(tmp_path / "whole", every=every)
    with pytest.raises(KeyboardInterrupt):
        program(tmp_path / "cut", every=every, stop_at=stop_at)
    assert Run.open(tmp_path / "cut").status == "interrupted"
    resumed = program(tmp_path / "cut", every=every, resume=True)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert np.array_equal(resumed.weights, whole.weights)
    assert Run.open(tmp_path / "cut").status == "done"


def test_resuming_a_finished_run_does_no_step_again(tmp_path: Path) -> None:
    whole = program(tmp_path / "run")
    before = contents(tmp_path / "run")
    again = program(tmp_path / "run", resume=True)
    assert again.loads == 2
    assert np.array_equal(again.weights, whole.weights)
    assert contents(tmp_path / "run") == before


def test_committed_steps_are_not_yielded_again(tmp_path: Path) -> None:
    def steps(stop: int | None, resume: bool) -> list[int]:
        seen = []
        with Run.create(tmp_path / "run", {"seed": 0}, resume=resume, quiet=True) as run:
            for step in run.steps(6, name="a", every=1):
                seen.append(step)
                if step == stop:
                    raise KeyboardInterrupt
        return seen

    with pytest.raises(KeyboardInterrupt):
        steps(3, resume=False)
    assert steps(None, resume=True) == [3, 4, 5]


def test_json_state_is_restored(tmp_path: Path) -> None:
    def go(resume: bool, stop: bool) -> dict:
        state = JsonState(memory={})
        with Run.create(tmp_path / "run", {"seed": 0}, resume=resume, quiet=True) as run:
            for step in run.steps(3, state, name="trial", every=1):
                state["memory"][f"task{step}"] = ["note"]
                if stop and step == 2:
                    raise KeyboardInterrupt
        return dict(state)

    with pytest.raises(KeyboardInterrupt):
        go(resume=False, stop=True)
    assert go(resume=True, stop=False) == {"memory": {f"task{i}": ["note"] for i in range(3)}}


def test_a_break_leaves_its_step_to_be_done_again(tmp_path: Path) -> None:
    def go(resume: bool, fail: bool) -> list[int]:
        seen = []
        with Run.create(tmp_path / "run", {"seed": 0}, resume=resume, quiet=True) as run:
            for step in run.steps(9, name="a", every=1):
                seen.append(step)
                run.log(step, reward=float(step))
                if step == 2:
                    break
            for step in run.steps(2, name="b", every=1):
                run.log(step, reward=float(step))
                if fail and step == 1:
                    raise KeyboardInterrupt
        return seen

    with pytest.raises(KeyboardInterrupt):
        go(resume=False, fail=True)
    assert go(resume=True, fail=False) == [2]
    assert [(e["phase"], e["step"]) for e in Run.open(tmp_path / "run").events("log")] == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]


def test_work_outside_of_steps_is_committed_by_name(tmp_path: Path) -> None:
    done = []

    def go(resume: bool, fail: bool) -> None:
        with Run.create(tmp_path / "run", {"seed": 0}, resume=resume, quiet=True) as run:
            for name in ("x", "y"):
                key = run.unique(name)
                if not run.already(key):
                    done.append(name)
                    run.event("work", name=name)
                    if fail and name == "y":
                        raise KeyboardInterrupt
                    run.commit(key)

    with pytest.raises(KeyboardInterrupt):
        go(resume=False, fail=True)
    go(resume=True, fail=False)
    assert done == ["x", "y", "y"]
    assert [e["name"] for e in Run.open(tmp_path / "run").events("work")] == ["x", "y"]


def test_a_repeated_phase_name_is_numbered(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", {"seed": 0}, quiet=True) as run:
        for _ in range(2):
            for step in run.steps(2, Toy(), name="epoch"):
                run.log(step, loss=0.0)
    assert [e["phase"] for e in Run.open(tmp_path / "run").events("log")] == ["epoch", "epoch", "epoch#2", "epoch#2"]


def test_only_the_last_and_the_final_checkpoints_are_kept(tmp_path: Path) -> None:
    program(tmp_path / "done")
    assert sorted(os.listdir(tmp_path / "done/checkpoints")) == ["main-5-final", "warm-3-final"]
    with pytest.raises(KeyboardInterrupt):
        program(tmp_path / "cut", stop_at=("main", 3))
    assert sorted(os.listdir(tmp_path / "cut/checkpoints")) == ["main-3", "warm-3-final"]


def test_a_resumed_program_that_differs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        program(tmp_path / "run", stop_at=("main", 2))
    with (
        pytest.raises(CheckpointError, match="phase 'main', which the resumed program never reached"),
        Run.create(tmp_path / "run", {"seed": 3}, resume=True, quiet=True),
    ):
        pass


_KILLED = """
    import sys, time
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    import test_runs

    original = test_runs.Toy.update
    def slow(self, seed):
        time.sleep(0.015)
        return original(self, seed)
    test_runs.Toy.update = slow
    print("ready", flush=True)
    test_runs.program(Path({path!r}), resume=True)
"""


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(tmp_path: Path) -> None:
    program(tmp_path / "whole")
    script = textwrap.dedent(_KILLED.format(tests=str(Path(__file__).parent), path=str(tmp_path / "cut")))
    rng = random.Random(0)
    kills = 0
    for _ in range(30):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        try:
            _, errors = process.communicate(timeout=rng.uniform(0.02, 0.2) * (1 + kills / 8))
            assert process.returncode == 0, errors.decode()
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
    else:
        pytest.fail("the run never came to its end")
    assert kills >= 2
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


# -- events --------------------------------------------------------------------------------------------------------------


def test_a_torn_last_line_is_left_out_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.append({"kind": "a", "n": 1})
    log.close()
    with open(path, "ab") as file:
        file.write(b'{"kind": "b", "te')
    assert [e["kind"] for e in read_events(path)] == ["a"]
    log = EventLog(path)
    log.append({"kind": "c"})
    assert [e["kind"] for e in read_events(path)] == ["a", "c"]


def test_damage_inside_the_log_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"kind": "a"}\n{"kind": oops}\n{"kind": "c"}\n')
    with pytest.raises(CheckpointError, match="line 2"):
        list(read_events(path))


def test_events_hold_numpy_values_and_lone_surrogates(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"seed": 0}, quiet=True)
    run.event("x", scalar=np.float32(0.5), array=np.arange(3), text="\ud800 \x00 ü", other={1, 2})
    (event,) = run.events("x")
    assert (event["scalar"], event["array"], event["text"], event["other"]) == (0.5, [0, 1, 2], "\ud800 \x00 ü", [1, 2])


# -- episodes ------------------------------------------------------------------------------------------------------------

_text = st.text(max_size=12)
_json = st.dictionaries(_text, st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(allow_nan=False), _text), max_size=3)
_floats = st.floats(allow_nan=False)
_costs = st.builds(Cost, episodes=st.integers(0, 9), prompt_tokens=st.integers(0, 9), seconds=_floats)
_calls = st.builds(ToolCall, name=_text, arguments=_json, id=_text, error=st.none() | _text)


@st.composite
def _turns(draw: st.DrawFn) -> tuple[Turn, ...]:
    turns = []
    for i in range(draw(st.integers(0, 4))):
        n = draw(st.integers(0, 3))
        turns.append(
            Turn(
                role=draw(st.sampled_from(["system", "user", "assistant", "tool"])),
                content=draw(_text),
                tool_calls=tuple(draw(st.lists(_calls, max_size=2))),
                name=draw(st.none() | _text),
                call_id=draw(st.none() | _text),
                tokens=tuple(range(n)),
                logprobs=tuple(draw(st.lists(_floats, min_size=n, max_size=n))),
                versions=(("v1", n),) if n else (),
                temperature=draw(_floats),
                finish=draw(st.sampled_from(["stop", "length", "none"])),
                reward=draw(_floats),
                parent=draw(st.none() | st.integers(0, i)),
                cost=draw(_costs),
            )
        )
    return tuple(turns)


_episodes = st.builds(
    Episode,
    id=_text,
    task=st.builds(Task, id=_text, env=_text, split=st.sampled_from(["train", "dev", "test"]), seed=st.integers(0, 2**63), data=_json),
    turns=_turns(),
    stop=st.sampled_from(Stop),
    reason=_text,
    reward=_floats,
    success=st.booleans(),
    error=st.none() | _text,
    policy=_text,
    seed=st.integers(0, 2**63),
    cost=_costs,
    tags=_json,
)


@settings(max_examples=60, deadline=None)
@given(_episodes)
def test_an_episode_comes_back_equal(one: Episode) -> None:
    assert decode(encode(one)) == one
    run = Run.scratch()
    run.save_episodes([one], "x")
    assert list(run.load_episodes("x")) == [one]


def test_episodes_are_streamed_by_tag_in_order(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"seed": 0}, quiet=True)
    many = [episode(i) for i in range(600)]
    run.save_episodes(many[:300], "a")
    run.save_episodes([episode(7, stop=Stop.ERROR, error="lost")], "b")
    run.save_episodes(many[300:], "a")
    stream = run.load_episodes("a")
    assert next(stream) == many[0]
    run.save_episodes([episode(1)], "c")
    assert [e.id for e in stream] == [e.id for e in many[1:]]
    reader = Run.open(tmp_path / "run")
    assert sum(1 for _ in reader.load_episodes()) == 602
    assert reader.store is not None
    summary = {t.tag: t for t in reader.store.tags()}
    assert (summary["a"].n, summary["a"].success, summary["b"].errors, summary["b"].success) == (600, 0.5, 1, None)
    assert [e.id for e in reader.store.select("a", success=True, limit=2)] == ["e598", "e596"]
    assert [e.error for e in reader.store.select("b", ok=False)] == ["lost"]


def test_a_store_of_another_schema_or_no_store_is_refused(tmp_path: Path) -> None:
    Run.create(tmp_path / "run", {"seed": 0}, quiet=True).close()
    with sqlite3.connect(tmp_path / "run/episodes.db") as db:
        db.execute("update meta set value = '99'")
    with pytest.raises(CheckpointError, match=f"schema version 99, but this whet reads version {SCHEMA_VERSION}"):
        Run.create(tmp_path / "run", {"seed": 0}, resume=True, quiet=True)
    for file in (tmp_path / "run").glob("episodes.db*"):
        file.unlink()
    (tmp_path / "run/episodes.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(CheckpointError, match="cannot be opened as an episode store"):
        Run.create(tmp_path / "run", {"seed": 0}, resume=True, quiet=True)


# -- steps, budget, seeds ------------------------------------------------------------------------------------------------


def test_the_budget_ends_the_steps(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", {"seed": 0, "budget": 10}, quiet=True) as run:
        done = []
        for step in run.steps(100, name="a"):
            done.append(step)
            run.spend(Cost(episodes=4, seconds=1000.0))
        assert done == [0, 1, 2]
        assert run.cost.episodes == 12
        assert run.cost.seconds < 10
        assert list(run.steps(5, name="b")) == []


def test_the_budget_of_environment_steps_ends_the_steps(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", {"seed": 0, "env_steps": 10, "budget": 1000}, quiet=True) as run:
        for _ in run.steps(100, name="a"):
            run.spend(Cost(episodes=1, env_steps=4))
        assert run.cost.env_steps == 12


def test_files_that_lost_what_was_committed_are_refused(tmp_path: Path) -> None:
    for name, damage in (
        ("events", lambda run: (run / "events.jsonl").write_text("")),
        ("episodes", lambda run: [file.unlink() for file in run.glob("episodes.db*")]),
    ):
        with pytest.raises(KeyboardInterrupt):
            program(tmp_path / name, stop_at=("main", 2))
        damage(tmp_path / name)
        with pytest.raises(CheckpointError, match="were committed; the file was damaged"):
            program(tmp_path / name, resume=True)
    with pytest.raises(ConfigError, match="every is 0"):
        next(Run.scratch().steps(3, name="a", every=0))


def test_a_scratch_run_leaves_nothing_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run.scratch(seed=1, budget=3)
    for step in run.steps(9, Toy(), name="a"):
        run.save_episodes([episode(step)], "train")
        run.spend(Cost(episodes=1))
        run.log(step, reward=0.5)
    assert [e["step"] for e in run.events("log")] == [0, 1, 2]
    assert len(list(run.load_episodes("train"))) == 3
    run.close()
    assert os.listdir(tmp_path) == []


def test_seeds_follow_from_names_and_the_run() -> None:
    one, two = Run.scratch(1), Run.scratch(2)
    assert one.seed("grpo", 1) == Run.scratch(1).seed("grpo", 1)
    assert len({one.seed("grpo", 1), one.seed("grpo", 2), two.seed("grpo", 1)}) == 3


# -- directories ---------------------------------------------------------------------------------------------------------


def test_a_directory_in_use_is_refused_and_a_dead_owner_is_not(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"seed": 0}, quiet=True)
    assert Run.open(tmp_path / "run").status == "running"
    with pytest.raises(ConfigError, match=f"being written by process {os.getpid()}"):
        Run.create(tmp_path / "run", {"seed": 0}, resume=True, quiet=True)
    run.close()
    assert Run.open(tmp_path / "run").status == "interrupted"
    Run.create(tmp_path / "run", {"seed": 0}, resume=True, quiet=True).close()


def test_a_lock_kept_by_a_dead_owners_child_is_taken_over(tmp_path: Path) -> None:
    script = f"""
import os, time
from whet.runs import Run
run = Run.create({str(tmp_path / "run")!r}, {{"seed": 0}}, quiet=True)
if os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(60)
    os._exit(0)
time.sleep(60)
"""
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    try:
        with pytest.raises(ConfigError, match=f"process {owner.pid}"):
            Run.create(tmp_path / "run", {"seed": 0}, resume=True, quiet=True)
        owner.kill()
        owner.wait()
        Run.create(tmp_path / "run", {"seed": 0}, resume=True, quiet=True).close()
    finally:
        owner.kill()
        os.kill(child, signal.SIGKILL)


def test_an_existing_run_needs_resume_and_the_same_config(tmp_path: Path) -> None:
    Run.create(tmp_path / "run", {"seed": 0, "lr": 1.0}, quiet=True).close()
    with pytest.raises(ConfigError, match="holds a run already"):
        Run.create(tmp_path / "run", {"seed": 0, "lr": 1.0}, quiet=True)
    with pytest.raises(ConfigError, match=r"lr: was 1\.0, is 2\.0"):
        Run.create(tmp_path / "run", {"seed": 0, "lr": 2.0}, resume=True, quiet=True)
    with pytest.raises(CheckpointError, match="not a run directory"):
        Run.open(tmp_path / "nowhere")


def test_a_run_for_reading_cannot_be_written_to(tmp_path: Path) -> None:
    Run.create(tmp_path / "run", {"seed": 0}, quiet=True).close()
    with pytest.raises(ConfigError, match="opened for reading"):
        Run.open(tmp_path / "run").event("x")


def test_status_tells_failure_from_interruption(tmp_path: Path) -> None:
    for name, error, status in (("a", ValueError("x"), "failed"), ("b", KeyboardInterrupt(), "interrupted")):
        with pytest.raises(type(error)), Run.create(tmp_path / name, {"seed": 0}, quiet=True):
            raise error
        assert Run.open(tmp_path / name).status == status


def test_what_it_takes_to_repeat_a_run_is_written_down(tmp_path: Path) -> None:
    Run.create(tmp_path / "run", {"seed": 0, "cfg": {"lr": 0.1}}, quiet=True).close()
    record = json.loads((tmp_path / "run/config.json").read_text())
    assert record["config"] == {"seed": 0, "cfg": {"lr": 0.1}}
    assert record["whet"]["packages"]["numpy"] == np.__version__
    assert record["whet"]["command"] == sys.argv


# -- full disks ----------------------------------------------------------------------------------------------------------


def test_atomic_writes_leave_the_old_or_the_new(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "old")
    with pytest.raises(ZeroDivisionError):
        write_directory(tmp_path / "d", lambda directory: 1 / 0)
    assert sorted(os.listdir(tmp_path)) == ["a"]
    with pytest.raises(StorageError, match="cannot write"):
        write_atomic(tmp_path / "missing" / "a", "new")
    assert (tmp_path / "a").read_text() == "old"


_FULL = """
import json, resource, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_runs import Toy, episode
from whet.errors import StorageError
from whet.runs import Run
from whet.types import Turn

if {limit}:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
big = episode(0, turns=(Turn(role="user", content="x" * 5000),))
committed = -1
try:
    with Run.create({path!r}, {{"seed": 0}}, quiet=True) as run:
        for step in run.steps(10_000, Toy(), name="a", every=1):
            committed = step - 1
            run.log(step, note="y" * 2000)
            run.save_episodes([big], "train")
except StorageError as error:
    print(json.dumps({{"message": str(error), "committed": committed}}))
"""


def _fill(path: Path, limit: int) -> dict:
    script = _FULL.format(tests=str(Path(__file__).parent), path=str(path), limit=limit)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def _check_intact(path: Path, committed: int) -> None:
    """Whatever was committed is there, readable, and can be gone on with."""
    run = Run.open(path)
    assert committed >= 3
    assert len([e for e in run.events("log") if e["step"] <= committed]) == committed + 1
    assert len(list(run.load_episodes("train"))) >= committed + 1
    run.close()
    resumed = Run.create(path, {"seed": 0}, resume=True, quiet=True)
    assert next(iter(resumed.steps(10_000, Toy(), name="a", every=1))) >= committed + 1
    resumed.close()


def test_files_that_may_not_grow_end_in_a_storage_error(tmp_path: Path) -> None:
    told = _fill(tmp_path / "run", 60_000)
    assert "cannot write" in told["message"]
    assert "intact" in told["message"]
    _check_intact(tmp_path / "run", told["committed"])


@pytest.fixture
def small_disk(tmp_path: Path) -> object:
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"mounting a small disk is not permitted here: {made.stderr.strip()}")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_full_disk_ends_in_a_storage_error(small_disk: Path) -> None:
    told = _fill(small_disk / "run", 0)
    assert "cannot write" in told["message"]
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    _check_intact(small_disk / "run", told["committed"])


def test_a_read_only_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*file"):
        Run.create(tmp_path / "file" / "run", {"seed": 0}, quiet=True)


def test_a_checkpoint_that_cannot_be_saved_is_a_storage_error(tmp_path: Path) -> None:
    class Failing(Toy):
        def save_state(self, directory: Path) -> None:
            raise RuntimeError("I/O error: No space left on device (os error 28)")

    with pytest.raises(StorageError, match="No space left"), Run.create(tmp_path / "run", {"seed": 0}, quiet=True) as run:
        for _ in run.steps(2, Failing(), name="a"):
            pass
    assert Run.open(tmp_path / "run").status == "failed"


def test_rlimit_of_this_process_is_untouched() -> None:
    """The tests above must limit their children only."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_checkpoints_by_themselves_take_a_small_share_of_the_time(tmp_path: Path) -> None:
    class Slow(Toy):
        saves = 0

        def save_state(self, directory: Path) -> None:
            time.sleep(0.05)
            Slow.saves += 1
            super().save_state(directory)

    with Run.create(tmp_path / "run", {"seed": 0}, quiet=True) as run:
        for _ in run.steps(100, Slow(), name="a"):
            time.sleep(0.005)
    assert 2 <= Slow.saves <= 10
