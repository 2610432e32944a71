"""A method of the user's is a file with one function, and stands beside the bundled ones on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from commandline import message, whet
from helpers import spied, tiny_policy
from whet import methods
from whet.agents import Agent
from whet.config import configure
from whet.envs.base import Action, Env, EnvFactory, Step
from whet.errors import ConfigError
from whet.methods.nat import CONTROLS
from whet.policies.base import Sampling
from whet.runs import Run
from whet.types import Data, Task

EXAMPLE = Path(__file__).parents[1] / "examples" / "marked_dpo.py"

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


@pytest.mark.slow
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


class Vowels(Env):
    """An answer is right if its first letter comes early in the alphabet: what babbles is right now and then."""

    max_turns = 1

    def reset(self, task: Task) -> str:
        return f"Say something about {task.id}."

    def step(self, action: Action) -> Step:
        right = action.text.strip()[:1].lower() < "m"
        return Step(reward=float(right), success=right, terminated=True)


def test_the_example_of_a_hybrid_prefers_failures_under_their_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    given, method, env, policy = spied(monkeypatch), methods.get(str(EXAMPLE)), EnvFactory(Vowels), tiny_policy(seed=1)
    bad, good = CONTROLS["sentence"]
    cfg: Any = configure(method.config, {"iterations": "1", "samples": "4", "batch_size": "2"}, of="marked_dpo")
    agent = Agent(policy, suffix=good, sampling=Sampling(max_tokens=4))
    better = method.function(agent, Data(train=env.tasks("train", 4)), env=env, run=Run.scratch(), cfg=cfg)
    assert better.suffix == good
    read = [
        [(policy.tokenizer.decode(row.tokens[~row.mask]), tuple(row.tokens[row.mask])) for row in (p.chosen, p.rejected)]
        for b in given
        for p in b
    ]
    assert read
    under_good = {(won[1], lost[1]) for won, lost in read if good in won[0] and good in lost[0]}
    under_bad = {(lost[1], won[1]) for won, lost in read if bad in won[0] and bad in lost[0]}
    assert under_good == under_bad, "each pair stands in both, the other way round"
    assert not any(good in text and bad in text for pair in read for text, _ in pair)


def test_the_page_shows_the_example_as_it_is() -> None:
    page = (EXAMPLE.parents[1] / "docs" / "methods.md").read_text()
    code = EXAMPLE.read_text()
    assert code[code.index("def marked_dpo") : code.index("def failing")].strip() in page
