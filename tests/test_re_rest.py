"""Re-ReST: what the reflector is shown, what either of the two learns from, and that it never meets a test task."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from helpers import Spy, spied, tiny_policy
from test_methods import contents, logged
from whet.agents import Agent
from whet.envs import Action, Env, Step
from whet.envs.base import EnvFactory
from whet.evals import evaluate
from whet.methods.re_rest import REQUEST, ReReSTConfig, re_rest, request
from whet.rollout import retried
from whet.runs import Run
from whet.types import Data, Episode, Example, Pair, Stop, Task, Turn, chain

DECODE = tiny_policy().tokenizer.decode


class Second(Env):
    """Every third task succeeds, whatever is done."""

    max_turns = 1
    max_tokens = 3

    def reset(self, task: Task) -> str:
        self.task = task
        return f"Do {task.id}."

    def step(self, action: Action) -> Step:
        good = int(self.task.id.rsplit("/", 1)[-1]) % 3 == 0
        return Step(reward=float(good), success=good, terminated=True, info={"reason": "answered"})


class Helped(Second):
    """The same, and whoever is retried succeeds at it."""

    tried: ClassVar[dict[str, int]] = {}

    def step(self, action: Action) -> Step:
        step = super().step(action)
        before = Helped.tried.get(self.task.id, 0)
        Helped.tried[self.task.id] = before + 1
        good = step.success or before >= 2  # the first retry comes after two samples
        return Step(reward=float(good), success=good, terminated=True, info={"reason": "answered"})


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    Helped.tried.clear()
    return spied(monkeypatch)


def train(run: Run, env: type[Env] = Helped, n: int = 3, given: Agent[Any] | None = None, **options: Any) -> Agent[Any]:
    factory = EnvFactory(env)
    cfg = ReReSTConfig(**{"samples": 2, "lr": 1e-2, "dpo_lr": 1e-2, "epochs": 1, "batch_size": 100} | options)
    data = Data(train=factory.tasks("train", n), dev=factory.tasks("dev", n))
    return re_rest(given or agent(), data, env=factory, run=run, cfg=cfg)


def agent() -> Agent[Any]:
    return Agent(tiny_policy(seed=1), memory={"": ("It is a game.",)})


def prompt(row: Example) -> str:
    return str(DECODE(row.tokens[: row.mask.argmax()]))


def test_the_reflector_learns_corrections_after_the_attempt_and_the_agent_learns_them_without(given: list[list[Any]]) -> None:
    run = Run.scratch()
    train(run)
    lessons, learned = given
    assert sorted(row.origin for row in lessons) == [
        *("reflect0.1/helped/train/1#0", "reflect0.1/helped/train/2#0"),
        *("reflect0/helped/train/1#0", "reflect0/helped/train/2#0"),
    ]
    assert all(REQUEST in prompt(row) and "verdict: wrong (answered), reward 0" in prompt(row) for row in lessons)
    assert not any(REQUEST in prompt(row) for row in learned)
    assert all("Hint: It is a game." in prompt(row) for row in [*lessons, *learned])
    tasks = [row.origin.split("/", 1)[1].split("#")[0] for row in learned]
    assert set(tasks) == {f"helped/train/{i}" for i in range(3)}
    assert {row.origin.split("/")[0].split(".")[0] for row in learned} == {"sample0", "correct0"}, "by the trained reflector alone"
    ((_, _, metrics),) = logged(run)
    assert (metrics["corrected_before"], metrics["corrected"]) == (1.0, 1.0)
    assert metrics["success"] == pytest.approx(1 / 3)


def test_the_second_reflection_is_the_trained_reflectors(given: list[list[Any]]) -> None:
    run = Run.scratch()
    train(run)
    actors = {tag: {e.policy for e in run.load_episodes(tag)} for tag in ("sample0", "reflect0", "correct0")}
    start = agent().policy.version
    assert actors["sample0"] == actors["reflect0"] == {start}
    assert actors["correct0"] == {f"{start}+1"}


def test_the_reflector_never_sees_a_test_task_and_the_agent_acts_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Helped.tried.clear()
    shown: list[tuple[str, str]] = []
    opened = Agent.prompt

    def prompt_(self: Agent[Any], task: Task, instructions: str, observation: Any) -> tuple[Turn, ...]:
        turns = opened(self, task, instructions, observation)
        shown.append((task.split, turns[-1].content))
        return turns

    monkeypatch.setattr(Agent, "prompt", prompt_)
    better = train(Run.scratch())
    assert {split for split, text in shown if REQUEST in text} == {"train"}
    shown.clear()
    env = EnvFactory(Helped)
    evaluate(better, env, env.tasks("test", 4))
    assert {split for split, _ in shown} == {"test"}
    assert not any(REQUEST in text for _, text in shown)
    assert better.memory == agent().memory
    assert type(better.policy) is type(agent().policy), "an agent of its own, not a pair with a reflector"


def test_without_reflection_it_is_self_training(given: list[list[Any]]) -> None:
    run = Run.scratch()
    train(run, reflect=False)
    (learned,) = given
    assert {row.origin.split("#")[0] for row in learned} == {"sample0/helped/train/0"}
    assert run.cost.episodes == 6


class Batches(Spy):
    """Keeps how many steps the weights have behind them as well."""

    def forward_backward(self, rows: Any, loss: Any) -> dict[str, float]:
        NOTED.append((loss.name, self.version.partition("+")[2]))
        return super().forward_backward(rows, loss)


NOTED: list[tuple[str, str]] = []


def test_dpo_holds_what_is_right_against_what_was_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    Helped.tried.clear()
    given = spied(monkeypatch, Batches)
    NOTED.clear()
    run = Run.scratch()
    train(run, beta=0.1)
    pairs: list[Pair] = given[-1]
    assert len(pairs) == 4, "task 0 has nothing wrong"
    for pair in pairs:
        assert pair.chosen.origin.startswith("correct0")
        assert pair.rejected.origin.startswith("sample0")
        assert prompt(pair.chosen) == prompt(pair.rejected)
    assert NOTED == [("nll", ""), ("nll", ""), ("dpo", "1/2")], "from the agent that SFT made"  # a step, and two restarts
    assert logged(run)[0][2]["dpo_loss"] == pytest.approx(0.6931, abs=1e-3), "and against it"


def test_where_nothing_is_corrected_nobody_learns_from_it() -> None:
    run = Run.scratch()
    better = train(run, Second, n=2, given=agent())
    assert run.cost.episodes == 4 + 2 + 2
    assert contents(better) != contents(agent()), "task 0 is right by itself"
    assert logged(run)[0][2]["corrected"] == 0


def test_an_attempt_is_retried_with_its_own_note() -> None:
    """Two attempts at one task, and one at another: each note stands before the task's own, in the episode of that attempt."""
    env = EnvFactory(Second)
    tasks = env.tasks("train", 2)
    attempts = [episode("a", tasks[0]), episode("b", tasks[0]), episode("c", tasks[1])]
    run = Run.scratch()
    again = retried(agent(), env, attempts, lambda e: f"You said {e.turns[-1].content}.", seed=1, run=run, tag="again")
    assert [e.task.id for e in again] == [tasks[0].id, tasks[0].id, tasks[1].id]
    assert [e.turns[0].content.splitlines()[:2] for e in again] == [[f"Hint: You said {x}.", "Hint: It is a game."] for x in "abc"]
    assert len({e.seed for e in again}) == 3
    assert {e.id.split("/")[0] for e in again} == {"again", "again.1"}


def episode(said: str, task: Task) -> Episode:
    turns = chain([Turn(role="user", content="?"), Turn(role="assistant", content=said)])
    return Episode(id=said, task=task, turns=turns, stop=Stop.TRUNCATED, reason="max_turns", reward=0.5)


def test_the_request_shows_the_attempt_and_the_verdict() -> None:
    (task,) = EnvFactory(Second).tasks("train", 1)
    assert request(episode("no", task)).splitlines()[1:] == ["assistant: no", "verdict: wrong (max_turns), reward 0.5"]
