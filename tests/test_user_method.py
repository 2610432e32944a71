"""A method of the user's is a file with one function, and stands beside the bundled ones on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commandline import message, whet
from whet import methods
from whet.errors import ConfigError
from whet.runs import Run

TWICE = '''"""Cloning twice."""
from dataclasses import dataclass

from whet.methods.sft import SFTConfig, sft

NEEDS = ("experts",)


@dataclass(frozen=True)
class TwiceConfig:
    lr: float = 1e-4


def twice(agent, data, *, env, run, cfg):
    for _ in range(2):
        agent = sft(agent, data, env=env, run=run, cfg=SFTConfig(epochs=1, lr=cfg.lr))
    return agent
'''


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "twice.py").write_text(TWICE)
    return tmp_path


def test_it_is_compared_with_a_bundled_one(place: Path) -> None:
    recipes = "sft,mine/twice.py,sft+mine/twice.py:lr=1e-3"
    sizes = ("--train-tasks", "4", "--test-tasks", "8", "--expert-episodes", "4", "--seeds", "1")
    done = whet("compare", "--env", "search:hops=1", "--recipes", recipes, *sizes, "twice.lr=2e-4", "--out", "out", cwd=place)
    assert done.returncode == 0, done.stderr
    assert [row["recipe"] for row in json.loads((place / "out" / "comparison.json").read_text())["rows"]] == recipes.split(",")
    both = [Run.open(place / "out" / "seed0" / name).config for name in ("mine_twice.py", "sft+mine_twice.py:lr=1e-3")]
    assert [(config["method"], config["cfg"]) for config in both] == [("mine/twice.py", {"lr": 2e-4}), ("mine/twice.py", {"lr": 1e-3})]
    assert "sft+mine/twice.py:lr=1e-3" in (place / "out" / "report.html").read_text()


def test_what_it_does_not_say_has_a_default(place: Path) -> None:
    method = methods.get(str(place / "mine" / "twice.py"))
    assert (method.name, method.title, method.needs, method.paper) == ("twice", "Cloning twice", ("experts",), "")
    (place / "bare.py").write_text("def bare(agent, data, *, env, run, cfg):\n    return agent\n")
    bare = methods.get(str(place / "bare.py"))
    assert (bare.title, bare.needs, bare.config) == ("bare", ("train",), methods.NoOptions)


def test_what_is_wrong_with_it_is_said(place: Path) -> None:
    (place / "other.py").write_text("def another(): ...\n")
    with pytest.raises(ConfigError, match=r"has no function 'other'; a method's function is named as its file: def other\(agent, data"):
        methods.get(str(place / "other.py"))
    said = message(whet("run", "mine/twcie.py", "--env", "search", cwd=place))
    assert "no such file: mine/twcie.py. Did you mean 'twice.py'?" in said
    assert "method 'mine/twice.py' has no option 'lrr'" in message(whet("run", "mine/twice.py", "lrr=1", "--env", "search", cwd=place))
