"""ENVISIONS' own mechanism: which of a sample and its refinement is kept, what the pool holds, and what is trained on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from whet import Agent, learn
from whet.data import confidence, opening, reopened
from whet.envs.base import Action, Env, EnvFactory, Step
from whet.methods.envisions import REQUEST, ENVISIONSConfig, envisions, pool, superior
from whet.policies import load_policy
from whet.runs import Run
from whet.types import Data, Episode, Example, Stop, Task, Turn, chain

TASK = Task(id="t", env="e", split="train")


def episode(said: str, logprob: float, *, success: bool, opened: str = "Q", task: Task = TASK) -> Episode:
    turns = (Turn(role="user", content=opened), Turn(role="assistant", content=said, tokens=(len(said),), logprobs=(logprob,)))
    return Episode(id=f"{said}/{opened}", task=task, turns=chain(turns), stop=Stop.TERMINATED, success=success, reward=float(success))


@pytest.mark.parametrize(
    ("sample", "refined", "kept"),
    [
        ((False, -1.0), (True, -9.0), "refined"),  # wrong to right, however unlikely
        ((True, -2.0), (True, -1.0), "refined"),  # both right: the likelier one
        ((True, -1.0), (True, -2.0), "sample"),
        ((True, -9.0), (False, -1.0), "sample"),
        ((False, -9.0), (False, -1.0), "sample"),
    ],
)
def test_the_superior_of_a_sample_and_its_refinement(sample: Any, refined: Any, kept: str) -> None:
    run = Run.scratch()
    first = episode("a", sample[1], success=sample[0])
    second = episode("bb", refined[1], success=refined[0], opened="Hint: log\nQ")
    run.save_episodes([first], "explore0.0")
    run.save_episodes([second], "refine0.0")
    [(score, found)] = superior(run, 0, 0)
    assert score == (refined[1] if kept == "refined" else sample[1])
    assert found.turns[1].content == ("bb" if kept == "refined" else "a")
    assert found.turns[0].content == "Q", "what is learned from has no log before it"


def test_the_pool_ranks_different_samples_by_their_score() -> None:
    other = replace(TASK, id="u")
    scored = [
        (-3.0, episode("a", -3.0, success=True)),
        (-1.0, episode("bb", -1.0, success=True)),
        (-9.0, episode("a", -9.0, success=True)),  # said before
        (-2.0, episode("ccc", -2.0, success=False)),
        (-1.0, episode("dddd", -1.0, success=False, task=other)),
    ]
    (right, wrong), (none, second) = pool(scored)
    assert [e.turns[1].content for e in right] == ["bb", "a"]
    assert [e.turns[1].content for e in wrong] == ["ccc"]
    assert none == []
    assert [e.turns[1].content for e in second] == ["dddd"]


def test_confidence_is_the_mean_log_prob_of_what_was_sampled() -> None:
    turns = (Turn(role="user", tokens=(1, 2)), Turn(role="assistant", tokens=(3, 4), logprobs=(-1.0, -2.0)), Turn(role="assistant"))
    assert confidence(replace(episode("a", 0.0, success=True), turns=turns)) == -1.5
    assert confidence(replace(episode("a", 0.0, success=True), turns=turns[:1])) == float("-inf")


def test_an_episode_with_another_opening_keeps_what_was_done() -> None:
    found = reopened(episode("a", -1.0, success=True), (Turn(role="system", content="S"), Turn(role="user", content="R", tokens=(7,))))
    assert [(t.role, t.content, t.tokens, t.logprobs) for t in found.turns] == [
        ("system", "S", (), ()),
        ("user", "R", (), ()),
        ("assistant", "a", (1,), ()),
    ]
    assert [t.parent for t in found.turns] == [None, 0, 1]
    assert [t.content for t in opening(found)] == ["S", "R"]


class Coin(Env):
    """Right for what some of the base model's answers begin with, so that a few samples have both."""

    max_turns = 1
    max_tokens = 4

    def reset(self, task: Task) -> str:
        return "Say a number from one to nine."

    def step(self, action: Action) -> Step:
        good = len(action.text) % 2 == 0
        return Step(reward=float(good), success=good, terminated=True)


def test_it_trains_solutions_and_corrections_anew_from_the_given_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """L1 rows have the task alone in their prompt, L2 rows the wrong attempt too; every iteration restarts from the base."""
    agent = Agent(load_policy("base"))
    env = EnvFactory(Coin)
    batches: list[list[Example]] = []
    restarted: list[str] = []
    monkeypatch.setattr(learn, "optimise", lambda learner, rows, loss: batches.append([r for b in rows for r in b]) or {})
    restart = learn.Learner.restart
    monkeypatch.setattr(learn.Learner, "restart", lambda self, policy, **k: restarted.append(policy.version) or restart(self, policy, **k))
    cfg = ENVISIONSConfig(iterations=2, samples=4, keep=1, corrections=1, lr=1e-3)
    run = Run.scratch(seed=2)
    envisions(agent, Data(train=env.tasks("train", 3)), env=env, run=run, cfg=cfg)
    assert restarted == [agent.policy.version] * 2
    texts = [agent.policy.tokenizer.decode(row.tokens) for row in batches[0]]
    corrections = [text for text in texts if REQUEST.split(":")[0] in text]
    solved = {e.task.id for k in range(4) for tag in ("explore", "refine") for e in run.load_episodes(f"{tag}0.{k}") if e.success}
    failed = {task.id for task in env.tasks("train", 3)}
    assert 0 < len(corrections) <= len(failed)
    assert len(texts) - len(corrections) == len(solved)
    assert len(batches[1]) >= len(batches[0]), "the pool is kept"
