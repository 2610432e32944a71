"""NLRL: what values in words rest on, who chooses by them, and what each of the two models learns from.

`Doors` has three states and is small enough to be counted out: left and then left again is right, everything else is wrong.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from helpers import spied, tiny_policy
from test_methods import SAY, agent, improve, logged, runs_of
from whet.agents import Agent
from whet.data import last_action, to_examples
from whet.envs import Action, Env, Step, roles
from whet.envs.base import EnvFactory
from whet.envs.roles_language import WORTH, chosen, worth
from whet.errors import ConfigError
from whet.methods.nlrl import NLRLConfig, told
from whet.policies import ScriptedPolicy, load_policy
from whet.policies.base import Request
from whet.policies.forms import quoted
from whet.policies.language import Choice, Evaluation, read_choice, read_evaluation
from whet.rollout import rollout
from whet.rollout.language import Moment, aggregate, continued, evaluate, moments, propose, taken, valued
from whet.rollout.language import improve as best_of
from whet.runs import Run
from whet.types import Episode, Task, Turn

DECODE = tiny_policy().tokenizer.decode


class Doors(Env):
    """Two doors, twice."""

    max_turns = 2

    def reset(self, task: Task) -> str:
        self.went: list[str] = []
        return "left or right?"

    def step(self, action: Action) -> Step:
        self.went.append(action.text)
        if len(self.went) < 2:
            return Step(observation="and now?")
        good = self.went == ["left", "left"]
        return Step(reward=float(good), success=good, terminated=True)

    def role(self, role: str, turns: tuple[Turn, ...], rng: random.Random) -> Any:
        return roles.speak(self, role, turns, rng)


DOORS = EnvFactory(Doors)
TASKS = DOORS.tasks("train", 1)
AGGREGATOR, IMPROVER = load_policy("script:aggregator"), load_policy("script:improver")


def walker(*ways: str) -> Agent[Any]:
    """Goes these ways: the first in a first turn, and so on; a way with a bar is drawn, evenly."""

    def go(request: Request, rng: random.Random) -> str:
        turn = sum(t.trained for t in request.turns)
        return rng.choice(ways[turn].split("|"))

    return Agent(ScriptedPolicy(go))


def critic(words: dict[str, Evaluation]) -> ScriptedPolicy:
    """Values an action by its name alone."""
    return ScriptedPolicy(lambda request, rng: str(words.get(quoted(request.turns[-1].content, "action"), "?")))


def first(*ways: str) -> Moment:
    """The first action of an episode that goes these ways."""
    (episode,) = rollout(walker(*ways), DOORS, TASKS)
    return moments([episode], 2, random.Random(0))[0]


# -- estimates ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("door", "second", "expected"),
    [
        ("left", "left", Evaluation("4 of 4 end well.", "good")),
        ("left", "right", Evaluation("0 of 4 end well.", "bad")),
        ("right", "left", Evaluation("0 of 4 end well.", "bad")),
    ],
)
def test_monte_carlo_counts_how_continuations_end(door: str, second: str, expected: Evaluation) -> None:
    met = [first(door, second)]
    run = Run.scratch()
    ways = continued(walker(door, second), met, env=DOORS, n=4, run=run, tag="ahead")
    assert [len(each) for each in ways] == [4]
    assert [turn.content for turn in ways[0][0].turns] == [second], "what stood before is not told again"
    assert aggregate(AGGREGATOR, met, ways, env=DOORS) == [expected]
    assert run.cost.episodes == 4


def test_monte_carlo_of_a_policy_that_draws_is_near_its_chance() -> None:
    met = [first("left", "left")]
    ways = continued(walker("left", "left|right"), met, env=DOORS, n=400, seed=3)
    (value,) = aggregate(AGGREGATOR, met, ways, env=DOORS)
    assert value is not None
    assert worth(str(value)) == pytest.approx(0.5, abs=0.1)  # four standard deviations
    assert value.verdict == "even"


def test_an_action_that_ended_the_episode_needs_no_continuation() -> None:
    (episode,) = rollout(walker("left", "left"), DOORS, TASKS)
    last = moments([episode], 2, random.Random(0))[1]
    run = Run.scratch()
    ways = continued(walker("left", "left"), [last], env=DOORS, n=4, run=run)
    assert [way.end for way in ways[0]] == ["outcome: success"]
    assert run.cost.episodes == 0
    assert aggregate(AGGREGATOR, [last], ways, env=DOORS) == [Evaluation("1 of 1 end well.", "good")]


class Corridor(Doors):
    """Three doors, of which only the last counts."""

    max_turns = 3

    def step(self, action: Action) -> Step:
        self.went.append(action.text)
        good = action.text == "left"
        over = len(self.went) == 3
        return Step(observation="on", reward=float(good and over), success=good and over, terminated=over)


def test_a_temporal_difference_estimate_rests_on_the_value_model_and_not_on_the_outcome() -> None:
    env = EnvFactory(Corridor)
    (episode,) = rollout(walker("left", "left", "left"), env, env.tasks("train", 1))
    met = moments([episode], 3, random.Random(0))
    says = critic({"left": Evaluation("1 of 4 end well.", "bad")})
    ways = continued(walker("left", "left", "left"), met, env=env, n=4, ahead=1, critic=says)
    assert [way.end for way in ways[0]] == ['evaluation: {"thought": "1 of 4 end well.", "final_evaluation": "bad"}'] * 4
    assert [way.end for way in ways[1]] == ["outcome: success"] * 4, "one action further the episode had ended"
    values = aggregate(AGGREGATOR, met, ways, env=env)
    assert [value.thought for value in values if value] == ["1 of 4 end well.", "4 of 4 end well.", "1 of 1 end well."]


def test_what_the_value_model_says_unreadably_is_left_out_of_an_estimate() -> None:
    env = EnvFactory(Corridor)
    (episode,) = rollout(walker("left", "left", "left"), env, env.tasks("train", 1))
    met = moments([episode], 3, random.Random(0))[:1]
    ways = continued(walker("left", "left", "left"), met, env=env, n=2, ahead=1, critic=critic({}))
    assert ways == [[]]
    assert aggregate(AGGREGATOR, met, ways, env=env) == [None]


# -- improvement -------------------------------------------------------------------------------------------------------------


def test_every_different_action_is_proposed_once_the_most_frequent_first() -> None:
    met = [first("left", "left")]
    (found,) = propose(walker("left|left|left|right"), DOORS, met, n=40, top=10)
    assert [moment.action.content for moment in found] == ["left", "right"]
    assert [moment.before for moment in found] == [met[0].before] * 2
    (capped,) = propose(walker("left|left|left|right"), DOORS, met, n=40, top=1)
    assert [moment.action.content for moment in capped] == ["left"]


def test_the_improver_goes_by_the_words_alone() -> None:
    met = first("left", "left")
    (moves,) = propose(walker("left|right"), DOORS, [met], n=20, top=2)
    doors = [moment.action.content for moment in moves]
    for better in ("left", "right"):  # whatever is so, what the evaluations say decides
        words = {door: Evaluation(f"{3 if door == better else 1} of 4 end well.", "even") for door in doors}
        values = evaluate(critic(words), moves, env=DOORS)
        (choice,) = best_of(IMPROVER, [[(m, v) for m, v in zip(moves, values, strict=True) if v]], env=DOORS)
        assert choice is not None
        assert doors[choice.best - 1] == better


def test_policy_iteration_by_hand_finds_the_way() -> None:
    """Estimate each door by continuations of an even policy, and choose: left both times."""
    even, way = walker("left|right", "left|right"), []
    for turn in range(2):
        (episode,) = rollout(walker(*way, *["left"] * (2 - turn)), DOORS, TASKS)
        here = moments([episode], 2, random.Random(0))[turn]
        (moves,) = propose(even, DOORS, [here], n=20, top=2)
        played = [rollout(walker(*way, m.action.content, "right"), DOORS, TASKS)[0] for m in moves]
        met = [moments([e], 2, random.Random(0))[turn] for e in played]
        values = aggregate(AGGREGATOR, met, continued(even, met, env=DOORS, n=20, seed=turn), env=DOORS)
        (choice,) = best_of(IMPROVER, [[(m, v) for m, v in zip(met, values, strict=True) if v]], env=DOORS)
        assert choice is not None
        way.append(met[choice.best - 1].action.content)
    assert way == ["left", "left"]


def test_ties_go_to_the_more_frequent_move() -> None:
    moves = "1. left\nevaluation: {0}\n2. right\nevaluation: {0}".format(Evaluation("", "good"))
    assert chosen(moves).best == 1


# -- words -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('So: {"thought": "fine", "final_evaluation": "good"} I think.', Evaluation("fine", "good")),
        ('{"final_evaluation": "bad"}', Evaluation("", "bad")),
        ('{"thought": "fine"}', None),
        ('{"thought": 3, "final_evaluation": "good"}', None),
        ('{"final_evaluation": " "}', None),
        ("good", None),
        ("[1]", None),
        ("{broken}", None),
    ],
)
def test_an_evaluation_is_read_or_left(text: str, expected: Evaluation | None) -> None:
    assert read_evaluation(text) == expected


@pytest.mark.parametrize(
    ("text", "best"),
    [('{"best_move": 2}', 2), ('{"best_move": "1"}', 1), ('{"best_move": 3}', None), ('{"best_move": 0}', None), ("2", None)],
)
def test_a_choice_is_read_only_if_it_names_one_of_the_moves(text: str, best: int | None) -> None:
    assert read_choice(text, 2) == (Choice("", best) if best else None)


def test_scripts_read_shares_and_verdicts() -> None:
    assert worth(str(Evaluation("3 of 4 end well.", "bad"))) == 0.75
    assert {word: worth(str(Evaluation("", word))) for word in WORTH} == WORTH
    assert worth("nonsense") == 0.5


# -- the method --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    return spied(monkeypatch)


@pytest.mark.slow
def test_the_value_model_learns_estimates_and_the_policy_choices(given: list[list[Any]]) -> None:
    run = Run.scratch()
    improve("nlrl", run, iterations=2, reasons=True, moments=2)
    answers = [DECODE(row.tokens[row.mask]) for batch in given for row in batch]
    values = [answer for answer in answers if "final_evaluation" in answer]
    actions = [answer for answer in answers if "final_evaluation" not in answer]
    assert values
    assert actions
    assert all(read_evaluation(value) for value in values)
    assert all("it is best." in action for action in actions), "the operator's reasons stand before the action"
    assert all(runs_of(row.mask) == 1 for batch in given for row in batch), "one turn alone is trained on"
    (event,) = run.events("roles")
    assert event["scripted"] == {"aggregator": "script:aggregator", "improver": "script:improver"}


def test_estimates_of_the_last_iterations_are_merged() -> None:
    run = Run.scratch()
    for step in range(4):
        run.event("estimates", step=step, written=[[f"prompt {step}", f"value {step}"]])
    assert [[turn.content for turn in episode.turns] for episode in told(run, 3)] == [[f"prompt {i}", f"value {i}"] for i in (1, 2, 3)]


def test_a_policy_that_plays_the_roles_is_named_in_the_config(given: list[list[Any]]) -> None:
    run = Run.scratch()
    improve("nlrl", run, iterations=1, aggregator="self", improver="self")
    ((_, _, metrics),) = logged(run)
    assert metrics["estimates"] == 0, "an untrained model writes no evaluation that can be read"
    assert given == []
    (event,) = run.events("roles")
    assert event["scripted"] == {}


def test_only_the_last_action_of_a_row_is_trained_on() -> None:
    (episode,) = rollout(agent(), SAY, SAY.tasks("train", 1))
    row = to_examples(episode, agent().policy)[0]
    last = last_action(row)
    (one, other) = [turn for turn in episode.turns if turn.trained]
    assert row.tokens[row.mask].tolist() == [*one.tokens, *other.tokens]
    assert last.tokens[last.mask].tolist() == list(other.tokens)
    assert float(last.weights.sum()) == len(other.tokens)
    np.testing.assert_array_equal(last_action(last).mask, last.mask)


def test_a_choice_becomes_the_last_turn_of_its_episode() -> None:
    met = first("left", "left")
    plain, reasoned = taken(met), taken(met, "it is best.")
    assert [turn.content for turn in plain.turns] == ["left or right?", "left"]
    assert reasoned.turns[-1].content == "it is best.\nleft"
    assert isinstance(plain, Episode)
    assert "<action>\nleft\n</action>" in valued(met)[0].content


@pytest.mark.parametrize(("option", "value"), [("continuations", 0), ("samples", 0), ("top", 0), ("ahead", -1), ("merged", 0)])
def test_options_that_cannot_work(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option):
        NLRLConfig(**{option: value})
