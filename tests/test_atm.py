"""ATM: who is trained on what, in which order, and what decides between two fabrications."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from helpers import tiny_policy
from test_methods import SAY, agent, contents, improve, logged, make_data
from whet import learn
from whet.envs import Action, Env, Step
from whet.envs.base import EnvFactory
from whet.errors import ConfigError
from whet.methods.atm import ATMConfig
from whet.rollout.contexts import answer_of, context_rows, documents, fabrication, papers, permuted, requests, showing
from whet.runs import Run
from whet.types import Episode, Example, Pair, Stop, Task, Turn, chain

DECODE = tiny_policy().tokenizer.decode


class Losses(learn.Learner):
    """A learner that keeps the name of each loss, whose weights it changed, and what it was given."""

    given: ClassVar[list[tuple[str, int, list[Any]]]] = []

    def forward_backward(self, rows: Any, loss: Any) -> dict[str, float]:
        self.given.append((loss.name, id(self), list(rows)))
        return super().forward_backward(rows, loss)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, list[Any]]]:
    Losses.given = []
    monkeypatch.setattr(learn, "Learner", Losses)
    return Losses.given


def text(row: Example) -> str:
    """All that a row holds."""
    return str(DECODE(row.tokens))


def test_attacker_and_generator_take_turns(given: list[tuple[str, int, list[Any]]]) -> None:
    improve("atm", Run.scratch())
    order = [(name, who) for i, (name, who, _) in enumerate(given) if i == 0 or given[i - 1][:2] != (name, who)]
    generator, attacker = order[0][1], order[1][1]
    assert generator != attacker
    turn = [("dpo", attacker), ("mito", generator)]
    assert order == [("nll", generator), ("nll", attacker), *turn, *turn]


def test_the_attacker_prefers_what_makes_the_right_answer_unlikely(given: list[tuple[str, int, list[Any]]]) -> None:
    improve("atm", Run.scratch(), rounds=1, fabrications=4, init_lr=0.0)  # so the generator that scores is the given policy
    golds = {episode.task.id: episode for episode in make_data().experts}
    pairs: list[Pair] = [pair for name, _, batch in given if name == "dpo" for pair in batch]
    assert pairs
    for pair in pairs:
        texts = [DECODE(row.tokens[row.mask]).removesuffix("<|im_end|>").strip() for row in (pair.chosen, pair.rejected)]
        rows = context_rows(agent(), SAY, [golds[pair.origin]] * 2, [[one] for one in texts])
        worse, better = np.exp(learn.mean_nll(rows, agent().policy))
        assert worse > better
        assert pair.margin == pytest.approx(worse - better, rel=1e-3)


def test_the_generator_answers_among_all_fabrications_as_it_does_without(given: list[tuple[str, int, list[Any]]]) -> None:
    improve("atm", Run.scratch(), rounds=1, batch_size=6, steps=1)
    (pairs,) = [batch for name, _, batch in given if name == "mito"]
    assert len(pairs) == 6
    for pair in pairs:
        attacked, clean = text(pair.chosen), text(pair.rejected)
        np.testing.assert_array_equal(pair.chosen.tokens[pair.chosen.mask], pair.rejected.tokens[pair.rejected.mask])
        assert clean.count("likes yes.") == 1
        assert "likes yes." in attacked
        assert len(attacked) > len(clean)


def test_the_reference_is_the_generator_at_the_rounds_start(given: list[tuple[str, int, list[Any]]]) -> None:
    improve("atm", Run.scratch(), rounds=1, batch_size=6, steps=2, init_lr=0.0)
    first, second = [batch for name, _, batch in given if name == "mito"]
    by_origin = {pair.origin: pair for pair in second}
    expected = learn.with_divergences(first, agent().policy)
    for pair, known in zip(first, expected, strict=True):
        for one in (pair, by_origin[pair.origin]):
            np.testing.assert_allclose(one.chosen.reference, known.chosen.reference, atol=1e-6)


def test_without_rounds_only_the_initial_tuning_is_left() -> None:
    run = Run.scratch()
    better = improve("atm", run, rounds=0)
    ((_, step, metrics),) = logged(run)
    assert step == 0
    assert "perplexity" not in metrics
    assert contents(better)["weights"] != contents(agent())["weights"]
    (roles,) = run.events("roles")
    assert roles["scripted"] == {}
    assert set(roles["played"]) == {"attacker"}


# -- contexts ----------------------------------------------------------------------------------------------------------------


def test_a_list_is_permuted_by_shares_that_are_rounded_down() -> None:
    texts = [f"d{i}" for i in range(20)]
    found = permuted(texts, random.Random(0), shuffle=0.95, drop=0.05, duplicate=0.2)
    assert len(found) == 20 - 1 + 4
    assert len(set(found)) == 19
    assert found != sorted(found, key=texts.index)
    assert permuted(texts, random.Random(0), shuffle=0.0, drop=0.0, duplicate=0.0) == texts
    kept = [permuted(["gold x", "a", "b"], random.Random(i), drop=1.0, duplicate=0.0, keep="x") for i in range(5)]
    assert kept == [["gold x"]] * 5


def test_an_attacker_is_shown_an_example_the_question_and_the_right_answer() -> None:
    golds = make_data().experts
    shown = documents(SAY, [episode.task for episode in golds])
    ((prompt,), *_) = requests(SAY, golds, shown)
    assert shown[0][0] in prompt.content
    assert shown[0][1] not in prompt.content, "the other documents are not shown"
    assert f"Say something about {golds[0].task.id}." in prompt.content
    assert prompt.content.endswith("yes yes")


def test_what_the_attacker_first_imitates_never_gives_the_answer() -> None:
    task = Task(id="t", env="say", split="train")
    said = [Turn(role="user", content="?"), Turn(role="assistant", content="red")]
    gold = Episode(id="g", task=task, turns=chain(said), stop=Stop.TERMINATED)
    other = replace(gold, id="h", turns=chain([said[0], Turn(role="assistant", content="blue")]))
    assert answer_of(gold) == "red"
    written = papers(SAY, [gold, other], [["it is red"], ["it is blue"]], random.Random(0))
    assert [fabrication(paper) for paper in written] == ["it is blue", "it is red"]


def test_documents_in_a_tasks_data_stand_in_the_place_of_its_own() -> None:
    task = SAY.tasks("train", 1)[0]
    assert documents(SAY, [showing(task, ["one", "two"])]) == [("one", "two")]


class Bare(Env):
    """Shows no documents."""

    def reset(self, task: Task) -> str:
        return "Say something."

    def step(self, action: Action) -> Step:
        return Step(terminated=True)


def test_an_environment_without_documents_is_refused_with_a_hint() -> None:
    env = EnvFactory(Bare)
    with pytest.raises(ConfigError, match=r"'bare/train/0' shows no documents.*search:given=6"):
        documents(env, env.tasks("train", 1))


@pytest.mark.parametrize(("option", "value"), [("fabrications", 1), ("steps", 0), ("rounds", -1), ("beta", -0.1), ("max_tokens", 0)])
def test_options_that_cannot_work(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option):
        ATMConfig(**{option: value})
