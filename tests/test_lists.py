"""`whet envs`: what it says, what is missing, and that what it says of its figures is true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from whet.cli import main
from whet.cli.lists import print_envs
from whet.envs import EnvInfo, describe, glance, load_env, names
from whet.envs.base import Action, Env, EnvFactory, Step
from whet.envs.info import measured
from whet.errors import ConfigError
from whet.evals.environments import count, machine, measure
from whet.types import Split, Task

CLASS = """
import random
from whet import Env, Step, Task
from whet.envs.base import Action
from whet.errors import ConfigError

class Coin(Env):
    max_turns = 1

    def __init__(self, size: int = 3):
        self.size = size

    def tasks(self, split, n, start=0):
        if split == "train":
            raise ConfigError("no train tasks")
        limit = self.size if split == "dev" else n + start
        return super().tasks(split, max(0, min(n, limit - start)), start)

    def reset(self, task):
        self.head = task.seed % 2
        return "head or tail"

    def step(self, action):
        right = action.text == str(self.head)
        return Step(observation="so", reward=0.5 * right, terminated=True, success=right)

    def expert(self, rng):
        return Action(text=str(self.head))
"""


@pytest.fixture
def coin(tmp_path: Path) -> str:
    (tmp_path / "coin.py").write_text(CLASS)
    return f"{tmp_path}/coin.py:Coin"


def test_measure_by_hand(coin: str) -> None:
    record = measure(f"{coin}:size=7", n=50)
    assert record["tasks"] == {"train": 0, "dev": 7, "test": None}
    assert record["split"] == "dev"
    assert record["expert"]["success"]["mean"] == 1.0
    assert record["expert"]["success"]["n"] == 7
    assert record["expert"]["reward"]["mean"] == 0.5
    assert record["random"] is None
    assert record["steps_per_second"] == pytest.approx(1000 / record["step_ms"], rel=0.1)
    assert record["machine"].split(", load")[0] == machine().split(", load")[0]
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025, 5000])
def test_the_size_of_a_split_is_found(coin: str, size: int) -> None:
    assert count(load_env(f"{coin}:size={size}"), "dev") == size


def test_an_expert_that_has_nothing_to_say_is_none() -> None:
    class Shy(Env):
        def reset(self, task: Task) -> str:
            return "hello"

        def step(self, action: Action) -> Step:
            return Step(observation="bye", terminated=True)

        def expert(self, rng: Any) -> None:
            return None

        def random_action(self, rng: Any) -> Action:
            return Action(text="x")

    from whet.evals.environments import _success

    assert _success(EnvFactory(Shy), "expert", "dev", 4, 0) is None
    found = _success(EnvFactory(Shy), "random", "dev", 4, 0)
    assert found is not None
    assert found["success"]["mean"] == 0.0


def test_the_table_and_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs"]) == 0
    shown = capsys.readouterr().out
    for name in names():
        assert re.search(rf"^ *{name}\b", shown, re.MULTILINE), name
    assert "Measured on" in shown
    assert "search + babyai" in shown or "search:hops=1 + babyai" in shown
    assert main(["envs", "search", "babyai"]) == 0
    shown = capsys.readouterr().out
    assert "hops: str = '1-3'" in shown
    assert "level: str = 'GoToLocal'" in shown
    assert re.search(r"expert: success 1\.00 \[0\.\d\d, 1\.00\], \d+ dev tasks", shown)
    assert re.search(r"measured \d{4}-\d\d-\d\d on .*Python 3", shown)
    assert main(["envs", "serch"]) == 1
    assert "Did you mean 'search'" in capsys.readouterr().err


def test_measuring_here(coin: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs", f"{coin}:size=5", "--measure", "-n", "4"]) == 0
    shown = capsys.readouterr().out
    assert "tasks train/dev/test: 0/5/endless" in shown
    assert "expert: success 1.00 [" in shown
    assert "], 4 dev tasks; reward 0.500 [0.500, 0.500]" in shown
    assert main(["envs", "--measure"]) == 1
    assert "needs the environments to measure" in capsys.readouterr().err


def test_what_is_missing_is_said_with_its_cure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("py4j")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    info = glance("textworldexpress")
    assert info.missing == describe("textworldexpress").missing
    assert info.missing is not None
    assert "no program 'java'" in info.missing
    assert "apt-get install" in info.missing
    print_envs([info, describe("search")])
    shown = capsys.readouterr().out
    assert "needs more" in shown
    assert "textworldexpress needs more: the environment 'textworldexpress' needs a Java runtime" in shown


def test_a_narrow_terminal_gets_fewer_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.setenv("TERM", "dumb")
    print_envs([describe("search")])
    shown = capsys.readouterr().out.splitlines()
    assert "licence" not in shown[1]
    assert "expert" in shown[1]
    assert all(len(line) <= 90 for line in shown[:5])


def test_an_environment_that_nobody_measured_is_listed_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    print_envs([EnvInfo(name="fresh", summary="New.", options={})])
    assert re.search(r"fresh +yes", capsys.readouterr().out)


def test_the_figures_are_of_environments_and_options_that_exist() -> None:
    figures = measured()
    assert set(figures) <= set(names())
    assert "search" in figures
    for name, found in figures.items():
        assert found["licence"]
        for row in found["rows"]:
            assert row["spec"].partition(":")[0] == name or name == "mix", row["spec"]
            assert row["split"] in ("train", "dev", "test")
            for policy in ("expert", "random"):
                if row[policy] is not None:
                    s = row[policy]["success"]
                    assert 0 <= s["low"] <= s["mean"] <= s["high"] + 1e-9 <= 1 + 2e-9
                    # An expert may know no way: such tasks are counted, and pages say so; whatever else fails is not to be kept.
                    most = 0.1 * s["n"] if policy == "expert" else 0
                    assert row[policy]["failed"] <= most, f"{row['spec']}: episodes of {policy} failed while it was measured"


@pytest.mark.parametrize("name", ["search", pytest.param("babyai", marks=pytest.mark.slow)])
def test_what_is_said_of_chance_is_true(name: str) -> None:
    """The committed figures are those that the same tasks and seeds give here."""
    if name == "babyai":
        pytest.importorskip("minigrid")
    if not measured().get(name, {}).get("rows"):
        pytest.skip(f"{name} has not been measured yet (python scripts/environments.py {name})")
    row = measured()[name]["rows"][0]
    again = measure(row["spec"], n=row["random"]["success"]["n"], timed=2)
    for policy in ("expert", "random"):
        assert again[policy] == row[policy]


def test_splits_are_refused_by_name(coin: str) -> None:
    with pytest.raises(ConfigError, match="no train tasks"):
        load_env(coin).tasks("train", 1)
    split: Split = "test"
    assert len(load_env(coin).tasks(split, 4)) == 4
