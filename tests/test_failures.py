"""What goes wrong ends in one message and a non-zero exit, with the run intact: real commands in real processes.

Runs that need no model use `--model random` and a method that changes no weights: such a process takes half a second.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from commandline import BASE, done, intact, message, needs_base, result, start, steps_logged, until, whet
from whet.cli import main
from whet.runs import Run

pytestmark = pytest.mark.slow

SMALL = ("--train-tasks", "8", "--dev-tasks", "2", "--test-tasks", "8", "--quiet")
SEARCH = ("--env", "search:hops=1", *SMALL)
NO_MODEL = ("--model", "random", "reflector=environment")

ENVS = """
import random, time
from whet import Action, Env, Step

class Coin(Env):
    max_tokens = 4
    step_timeout = 0.5
    reset_timeout = 0.5
    def reset(self, task):
        return "heads or tails?"
    def step(self, action):
        return Step(reward=1.0, terminated=True, success=True)
    def random_action(self, rng):
        return Action(text=rng.choice(["heads", "tails"]))
"""
RAISES_IN_RESET = ("return", 'raise RuntimeError("no disk in drive A")\n        return')
HANGS_IN_RESET = ("return", "time.sleep(60)\n        return")
HANGS_IN_STEP = ("return Step", "time.sleep(60)\n        return Step")
RAISES_ON_TRAIN = ("return", 'assert task.split == "test", "no train tasks today"\n        return')


def envs(cwd: Path, change: tuple[str, str] = ("", "")) -> tuple[str, ...]:
    """The environment in a file of the user's, with the first of one text replaced by another."""
    (cwd / "envs.py").write_text(ENVS.replace(*change, 1) if change[0] else ENVS)
    return ("--env", "envs.py:Coin", *SMALL)


def reflexion(cwd: Path, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return whet("run", "reflexion", "trials=2", *NO_MODEL, "--out", "r", *argv, cwd=cwd, **env)


# -- names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("run", "grop", *SEARCH), "unknown method 'grop'. Did you mean 'grpo'?"),
        (("run", "grpo", "--env", "serch"), "unknown environment 'serch'. Did you mean 'search'?"),
        (("run", "grpo", *SEARCH, "stpes=3"), "method 'grpo' has no option 'stpes'. Did you mean 'steps'?"),
        (("run", "grpo", *SEARCH, "steps=3.5"), "option 'steps' of method 'grpo' is '3.5'; expected int"),
        (("run", "grpo", "--env", "search:hop=3"), "'search:hop=3': the environment has no option 'hop'. Did you mean 'hops'?"),
        (("run", "grpo", *SEARCH, "--preset", "dmeo"), "environment 'search' has no preset 'dmeo'. Did you mean 'demo'?"),
        (("run", "grpo", "--env", "nowhere.py:Shop"), "no such file: nowhere.py"),
        (("run", "grpo", *SEARCH, "--model", "bsae"), "unknown policy 'bsae'"),
    ],
)
def test_unknown_names(tmp_path: Path, argv: tuple[str, ...], told: str) -> None:
    assert message(whet(*argv, cwd=tmp_path)).startswith(told)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--test-tasks", "--seed"])
def test_numbers_that_cannot_be(tmp_path: Path, option: str) -> None:
    failed = whet("run", "grpo", *SEARCH, option, "-1" if option == "--seed" else "0", cwd=tmp_path)
    assert failed.returncode == 2
    assert f"argument {option}: " in failed.stderr.splitlines()[0]
    assert "expected an integer of at least" in failed.stderr.splitlines()[0]
    assert not any(tmp_path.iterdir())


# -- models --------------------------------------------------------------------------------------------------------------


@needs_base
def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*"))
    told = message(whet("run", "grpo", *SEARCH, "--model", "model", "--out", "r", cwd=tmp_path))
    assert told == "'model' has no tokenizer; expected tokenizer.json and tokenizer_config.json beside the weights"
    assert not (tmp_path / "r").exists()


@needs_base
def test_a_truncated_checkpoint(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    told = message(whet("run", "grpo", *SEARCH, "--model", "model", "--out", "r", cwd=tmp_path))
    assert told.startswith("the weights of 'model' are truncated or damaged")
    assert not (tmp_path / "r").exists()


# -- environments --------------------------------------------------------------------------------------------------------


def test_an_environment_that_raises_in_reset(tmp_path: Path) -> None:
    options = envs(tmp_path, RAISES_IN_RESET)
    told = message(reflexion(tmp_path, *options))
    assert "environment 'coin', task 'coin/test/0', reset: RuntimeError: no disk in drive A" in told
    assert told.endswith(f"({tmp_path / 'envs.py'}, line 10)")
    intact(tmp_path / "r", "failed")
    envs(tmp_path)  # mended
    assert "reflexion" in done("run", "reflexion", "trials=2", *NO_MODEL, *options, "--out", "r", "--resume", cwd=tmp_path)
    intact(tmp_path / "r", "done")


@pytest.mark.parametrize(("change", "where"), [(HANGS_IN_STEP, "step"), (HANGS_IN_RESET, "reset")])
def test_an_environment_that_hangs(tmp_path: Path, change: tuple[str, str], where: str) -> None:
    options = envs(tmp_path, change)
    told = message(reflexion(tmp_path, *options))
    assert f"still running after 0.5 s (the environment's {where}_timeout)" in told
    assert f"({tmp_path / 'envs.py'}, line " in told
    intact(tmp_path / "r", "failed")
    envs(tmp_path)
    assert reflexion(tmp_path, *options, "--resume").returncode == 0
    intact(tmp_path / "r", "done")


def test_an_environment_that_breaks_in_the_method(tmp_path: Path) -> None:
    options = envs(tmp_path, RAISES_ON_TRAIN)
    assert "task 'coin/train/0', reset: AssertionError: no train tasks today" in message(reflexion(tmp_path, *options))
    run = intact(tmp_path / "r", "failed")
    (before,) = run.evaluations().values()
    assert before["success"]["mean"] == 1.0
    envs(tmp_path)
    assert reflexion(tmp_path, *options, "--resume").returncode == 0
    resumed = intact(tmp_path / "r", "done")
    assert resumed.evaluations()["before"] == before
    assert len(list(resumed.load_episodes("eval/before"))) == 8


# -- what does not go together --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("grpo",), "policy 'random' has no weights here that could be trained"),
        (("sft",), "policy 'random' works on text and has no tokenizer"),
    ],
)
def test_methods_that_change_weights_on_policies_without_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", *SEARCH, "--model", "random", "--out", "r", "--expert-episodes", "4", *argv]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {told}")
    intact(tmp_path / "r", "failed")


def test_an_environment_whose_expert_never_succeeds(tmp_path: Path) -> None:
    told = message(whet("run", "sft", *envs(tmp_path), "--expert-episodes", "4", "--model", "random", "--out", "r", cwd=tmp_path))
    assert "environment 'coin' has no expert here; define `expert(self, rng)`" in told
    intact(tmp_path / "r", "failed")


def test_an_environment_that_hands_out_test_tasks_for_training(tmp_path: Path) -> None:
    options = envs(tmp_path)
    with open(tmp_path / "envs.py", "a") as file:
        file.write("    def tasks(self, split, n, start=0):\n        return super().tasks('test', n, start)\n")
    assert "returned task 'coin/test/0' of split 'test' when asked for 'train'" in message(reflexion(tmp_path, *options))
    assert not list(intact(tmp_path / "r", "failed").load_episodes())


@pytest.mark.parametrize(
    ("missing", "argv", "told"),
    [
        ("minigrid", ("eval", "--env", "babyai", "--model", "random"), "pip install 'whet[envs]'"),
        ("torch", ("eval", "--env", "search", "--model", "base"), "pip install 'whet[train]'"),
        ("torch", ("run", "grpo", *SEARCH, "--model", "random"), "pip install 'whet[train]'"),
        ("openai", ("eval", "--env", "search", "--model", "openai:m@http://127.0.0.1:9/v1"), "pip install 'whet[openai]'"),
    ],
)
def test_extras_that_are_not_installed(tmp_path: Path, missing: str, argv: tuple[str, ...], told: str) -> None:
    hidden = tmp_path / "hidden" / missing
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text(f"raise ModuleNotFoundError(\"No module named '{missing}'\", name='{missing}')\n")
    text = message(whet(*argv, "--out", "r", cwd=tmp_path, PYTHONPATH=str(hidden.parent)))
    assert f"needs the package {missing!r}, which is not installed" in text
    assert told in text


# -- endpoints -----------------------------------------------------------------------------------------------------------


class _Answers(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "heads"}}
        body = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_an_endpoint_that_is_down(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = ("reflexion", *envs(tmp_path), "--model", f"openai:m@http://127.0.0.1:{port}/v1", "trials=1", "--out", "r")
    told = message(whet("run", *argv, cwd=tmp_path))
    assert f"PolicyUnavailable: endpoint m@http://127.0.0.1:{port}/v1 failed" in told
    intact(tmp_path / "r", "failed")
    server = HTTPServer(("127.0.0.1", port), _Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        done("run", *argv, "--resume", cwd=tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    assert intact(tmp_path / "r", "done").evaluations()["final"]["success"]["mean"] == 1.0


# -- a full disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that `resize` can make smaller or larger. Skips where nothing may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no command to mount a tmpfs with: {error}")
    if mounted.returncode != 0:
        pytest.skip(f"mounting a tmpfs is not permitted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def test_a_full_disk_without_a_model(tmp_path: Path, disk: Path) -> None:
    argv = ("run", "reflexion", *SEARCH, *NO_MODEL, "trials=40", "--train-tasks", "64")
    done(*argv, "--out", "whole", cwd=tmp_path)
    resize(disk, "512k")
    told = message(whet(*argv, "--out", "disk/r", cwd=tmp_path))
    assert told.startswith("cannot write disk/r/")
    assert told.endswith("What was written before is intact; free some space or give write access, then go on with --resume.")
    assert Run.open(disk / "r").status in ("failed", "interrupted")
    resize(disk, "16m")
    done(*argv, "--out", "disk/r", "--resume", cwd=tmp_path)
    assert result(disk / "r") == result(tmp_path / "whole")


@needs_base
@pytest.mark.parametrize("size", ["3m", "7m"])  # the weights do not fit, or the optimiser's state does not
def test_a_disk_that_fills_up_under_a_checkpoint(tmp_path: Path, disk: Path, size: str) -> None:
    argv = ("run", "grpo", *SEARCH, "steps=4", "tasks_per_step=4", "group_size=4", "lr=5e-4", "--no-baseline")
    resize(disk, size)
    told = message(whet(*argv, "--out", "disk/r", cwd=tmp_path))
    assert "No space left on device" in told
    assert Run.open(disk / "r").status in ("failed", "interrupted")
    assert not [file for file in (disk / "r" / "checkpoints").iterdir() if file.name.startswith(".")]
    resize(disk, "64m")
    done(*argv, "--out", "disk/r", "--resume", cwd=tmp_path)
    assert steps_logged(disk / "r") == 4
    intact(disk / "r", "done")


# -- Ctrl-C --------------------------------------------------------------------------------------------------------------


@needs_base
@pytest.mark.parametrize(
    "signals",
    [
        (signal.SIGINT,),
        pytest.param((signal.SIGINT, signal.SIGINT), marks=pytest.mark.slow),
        pytest.param((signal.SIGTERM,), marks=pytest.mark.slow),
    ],
    ids=["once", "twice", "sigterm"],
)
def test_ctrl_c_in_the_middle_of_a_grpo_step(tmp_path: Path, signals: tuple[int, ...]) -> None:
    argv = ("run", "grpo", *SEARCH, "steps=1000", "tasks_per_step=8", "group_size=8", "--no-baseline", "--out", "r")
    process = start(*argv, cwd=tmp_path)
    until(lambda: steps_logged(tmp_path / "r") >= 2, "the second step", process)
    for number in signals:
        os.killpg(process.pid, number)
        time.sleep(0.02)
    out, errors = process.communicate(timeout=30)
    told = message(subprocess.CompletedProcess(argv, process.returncode, out, errors), 130)
    assert told == f"interrupted. Go on with: whet {' '.join(argv)} --resume"
    run = intact(tmp_path / "r", "interrupted")
    assert json.loads((tmp_path / "r" / "commit.json").read_text())["phases"]["grpo"]["done"] >= 1
    assert not run.evaluations()


# -- damaged runs --------------------------------------------------------------------------------------------------------


@needs_base
def test_a_run_whose_checkpoint_was_damaged_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("run", "grpo", *SEARCH, "steps=1000", "tasks_per_step=2", "group_size=2", "--no-baseline", "--out", "r")
    process = start(*argv, cwd=tmp_path)
    until(lambda: (tmp_path / "r" / "commit.json").exists(), "a checkpoint", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    monkeypatch.chdir(tmp_path)
    checkpoint = json.loads((tmp_path / "r" / "commit.json").read_text())["phases"]["grpo"]["checkpoint"]
    directory = tmp_path / "r" / "checkpoints" / checkpoint
    for name in ("model.safetensors", "learner.pt"):
        whole = (directory / name).read_bytes()
        (directory / name).write_bytes(whole[: len(whole) // 2])
        assert main([*argv, "--resume"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{checkpoint} cannot be resumed from: " in line
        intact(tmp_path / "r", "failed")
        (directory / name).write_bytes(whole)
    shutil.rmtree(directory)
    assert main([*argv, "--resume"]) == 1
    assert f"{checkpoint} is missing, so the run cannot be resumed" in capsys.readouterr().err
