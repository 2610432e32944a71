"""CoEvol: what is trained on is what the judge let through, turn by turn."""

from __future__ import annotations

from typing import Any

import pytest

from helpers import spied, tiny_policy
from test_methods import improve, logged
from whet import methods
from whet.errors import ConfigError
from whet.methods.coevol import CoEvolConfig, versions
from whet.runs import Run
from whet.types import Example


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[list[Example]]:
    """The batches that the learner is given."""
    return spied(monkeypatch)


def taught(given: list[list[Example]]) -> set[str]:
    """What the rows of all batches teach to say."""
    tokenizer = tiny_policy().tokenizer
    return {tokenizer.decode(row.tokens[row.mask]) for batch in given for row in batch}


def test_the_evolved_responses_are_trained_on(given: list[list[Example]]) -> None:
    run = Run.scratch()
    improve("coevol", run, teacher="random", epochs=1)
    said = {turn.content for e in run.load_episodes("teacher") for turn in e.turns if turn.trained}
    assert said == {"yes", "no"}
    assert taught(given) == {"yes<|im_end|>" * 2}
    assert sum(len(batch) for batch in given) == 6
    ((_, _, metrics),) = logged(run)
    assert metrics["success"] == 1.0
    assert "teacher_success" in metrics
    assert metrics["edits_accepted"] == metrics["improved"] > 0
    (roles,) = run.events("roles")
    assert roles["scripted"]["judge"] == "script:judge"
    assert roles["scripted"]["teacher"] == "random"


def test_without_iterations_the_teachers_episodes_are_trained_on_as_they_are(given: list[list[Example]]) -> None:
    run = Run.scratch()
    improve("coevol", run, teacher="random", epochs=1, iterations=0)
    assert len(taught(given)) > 1
    ((_, _, metrics),) = logged(run)
    assert metrics["edits_judged"] == 0
    assert metrics["success"] == metrics["teacher_success"]
    (roles,) = run.events("roles")
    assert set(roles["played"]) == {"teacher"}


def test_the_judge_decides_and_not_the_environment(given: list[list[Example]]) -> None:
    run = Run.scratch()
    improve("coevol", run, teacher="expert", judge="script:contrarian", speaker="script", epochs=1)
    assert taught(given) == {"no<|im_end|>" * 2}
    ((_, _, metrics),) = logged(run)
    assert metrics["teacher_success"] == 1.0, "what was judged worse had been paid"


def test_every_epoch_sees_the_same_last_versions(given: list[list[Example]]) -> None:
    run = Run.scratch()
    improve("coevol", run, teacher="random", epochs=3, batch_size=6)
    assert [sorted(row.origin for row in batch) for batch in given] == [sorted(row.origin for row in given[0])] * 3
    assert {e.id for e in versions(run, 16)} == {row.origin for row in given[0]}
    assert len(versions(run, 16)) == 6


@pytest.mark.parametrize(("option", "value"), [("window", 0), ("turns", 0), ("iterations", -1), ("epochs", 0)])
def test_options_that_cannot_work(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option):
        CoEvolConfig(**{option: value})
    assert methods.get("coevol").paper == "arXiv:2406.07054"
