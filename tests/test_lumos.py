"""Agent Lumos: what its two modules are asked when they act, and that they were trained on the same words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from helpers import tiny_policy
from whet.agents import Agent
from whet.agents.plan_ground import PlanGround, grounded, to_grounder, to_planner
from whet.envs.base import Action, Env, EnvFactory
from whet.errors import ConfigError
from whet.methods.lumos import QUESTION, LumosConfig, lumos, subgoal
from whet.policies import ScriptedPolicy, load_policy
from whet.policies.base import Request
from whet.rollout import rollout
from whet.runs import Run
from whet.tools.function import tool
from whet.types import Data, Episode, ToolCall, Turn


class Doors(Env):
    """One of two doors is open; a note says which. Opening it takes a key first."""

    instructions = "Get out."
    max_turns = 4
    max_tokens = 16

    def reset(self, task: Any) -> str:
        self.colour, self.key, self.read = ("red", "blue")[int(task.id[-1]) % 2], "", False
        return "There is a note."

    @tool
    def look(self) -> str:
        """Read the note."""
        self.read = True
        return f"the {self.colour} one"

    @tool
    def fetch(self, key: str) -> str:
        """Get a key."""
        self.key = key
        return f"have the {key} key"

    @tool
    def leave(self, door: str) -> str:
        """Go through a door."""
        return self.finish("out", reward=float(door == self.colour == self.key))

    def expert(self, rng: Any) -> Action:
        if not self.read:
            return act("look")
        return act("leave", door=self.colour) if self.key else act("fetch", key=self.colour)

    def role(self, role: str, turns: tuple[Turn, ...], rng: Any) -> str | None:
        if role == "mute" and self.colour == "blue":
            return "I cannot say."
        told = " ".join(turn.content for turn in turns if turn.role == "tool")
        return "next: read" if "one" not in told else f"next: open {self.colour}"


def act(name: str, **arguments: str) -> Action:
    return Action(tool_calls=(ToolCall(name=name, arguments=arguments, id="call_0"),))


DOORS = EnvFactory(Doors)
TASKS = DOORS.tasks("train", 4)
EXPERTS = tuple(rollout(Agent(load_policy("expert")), DOORS, TASKS))


def said(turns: Sequence[Turn]) -> list[str]:
    """A conversation in a few words."""
    return [turn.content or " ".join(call.name for call in turn.tool_calls) for turn in turns]


class Modules:
    """A planner and a grounder that write down what they are asked. The planner opens whichever door it has read of."""

    def __init__(self, plan: str = "") -> None:
        self.plans: list[list[str]] = []
        self.orders: list[list[str]] = []

        def planner(request: Request, rng: Any) -> str:
            self.plans.append(said(request.turns))
            assert not request.tools
            return plan or ("next: read" if len(self.plans) == 1 else f"next: open {request.turns[-1].content.split()[1]}")

        def grounder(request: Request, rng: Any) -> Action:
            self.orders.append(said(request.turns))
            assert [t.name for t in request.tools] == ["look", "fetch", "leave"]
            *_, order, word = request.turns[-1].content.split()
            calls = [act("look")] if order != "open" else [act("fetch", key=word), act("leave", door=word)]
            return Action(tool_calls=tuple(call for action in calls for call in action.tool_calls))

        self.planner, self.grounder = ScriptedPolicy(planner), ScriptedPolicy(grounder)


@pytest.mark.parametrize(("task", "colour"), [(0, "red"), (1, "blue")])
def test_lumos_i_plans_by_what_came_of_the_last_subgoal(task: int, colour: str) -> None:
    modules = Modules()
    (episode,) = rollout(Agent(PlanGround(modules.planner, modules.grounder)), DOORS, [TASKS[task]])
    assert modules.plans == [["Get out.", "There is a note."], ["Get out.", "There is a note.", "next: read", f"the {colour} one"]]
    assert modules.orders[0] == ["Get out.", "There is a note.\nSubgoal: next: read"]
    assert modules.orders[1][2:] == ["look", f"the {colour} one", f"Subgoal: next: open {colour}"]
    assert [turn.content for turn in episode.turns if turn.trained] == ["next: read", f"next: open {colour}"]
    assert episode.success


def test_lumos_o_plans_once_without_knowing_any_result() -> None:
    modules = Modules("next: read\nnext: open red")
    red, blue = rollout(Agent(PlanGround(modules.planner, modules.grounder, iterative=False)), DOORS, TASKS[:2])
    assert modules.plans == [["Get out.", "There is a note."]] * 2
    assert {order[-1] for order in modules.orders} == {"There is a note.\nSubgoal: next: read", "Subgoal: next: open red"}
    assert (red.success, blue.success) == (True, False), "the plan does not change with the note"


def test_lumos_o_repeats_its_last_subgoal_when_the_plan_is_through() -> None:
    modules = Modules("next: read\nnext: read on")
    (episode,) = rollout(Agent(PlanGround(modules.planner, modules.grounder, iterative=False)), DOORS, TASKS[:1])
    assert said([turn for turn in episode.turns if turn.trained])[1:] == ["next: read on"] * 3


def test_actions_that_serve_one_subgoal_become_a_turn() -> None:
    episode = grounded(EXPERTS[1], ["next: read", "next: open blue", "next: open blue"])
    assert [turn.role for turn in episode.turns] == ["system", "user", "assistant", "tool", "assistant", "tool", "tool"]
    last = episode.turns[4]
    assert (last.content, last.reward) == ("next: open blue", 1.0)
    assert [(call.id, call.name) for call in last.tool_calls] == [("call_0", "fetch"), ("call_1", "leave")]
    assert [(turn.call_id, turn.content) for turn in episode.turns[5:]] == [("call_0", "have the blue key"), ("call_1", "out")]
    assert [turn.parent for turn in episode.turns] == [None, 0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("iterative", [True, False])
def test_the_modules_are_trained_on_the_words_that_they_are_asked_with(iterative: bool) -> None:
    """Behind every prefix of an annotated solution the workflow asks what stands before that turn in the training data."""
    episode = grounded(EXPERTS[0], ["next: read", "next: open red", "next: open red"])
    plan, calls = to_planner(episode.turns, iterative=iterative), to_grounder(episode.turns)
    modules = Modules("" if iterative else "next: read\nnext: open red")
    rollout(Agent(PlanGround(modules.planner, modules.grounder, iterative=iterative)), DOORS, [EXPERTS[0].task])
    assert modules.plans == [said(plan[:at]) for at, turn in enumerate(plan) if turn.trained]
    assert modules.orders == [said(calls[:at]) for at, turn in enumerate(calls) if turn.trained]
    assert not any(turn.content for turn in calls if turn.trained)
    assert not any(turn.tool_calls for turn in plan)


def learned(**options: Any) -> tuple[Run, Agent[Any]]:
    run = Run.scratch()
    cfg = LumosConfig(**{"epochs": 1, "lr": 1e-2, "batch_size": 4, **options})
    return run, lumos(Agent(tiny_policy(seed=1)), Data(experts=EXPERTS), env=DOORS, run=run, cfg=cfg)


def test_solutions_without_a_readable_subgoal_are_left_out() -> None:
    run, _ = learned(annotator="script:mute")
    assert [(event["kept"], event["dropped"]) for event in run.events("annotated")] == [(2, 2)]
    assert [event["scripted"] for event in run.events("roles")] == [{"annotator": "script:mute"}]


def test_the_modules_are_two_models_trained_apart() -> None:
    run, better = learned()
    weights = {name: part.weights for name, part in better.policy.parts.items()}
    base = tiny_policy(seed=1).weights
    for one, other in ((weights["planner"], base), (weights["grounder"], base), (weights["planner"], weights["grounder"])):
        assert any(not one[name].equal(other[name]) for name in base)
    assert [event["phase"] for event in run.events("log")] == ["lumos_planner", "lumos_grounder"]


def test_the_annotator_sees_the_solution_up_to_the_action_and_the_action(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def annotator(request: Request, rng: Any) -> str:
        seen.append(said(request.turns))
        return "next: go on"

    monkeypatch.setattr("whet.methods.lumos.player", lambda spec, agent: ScriptedPolicy(annotator))
    learned()
    assert seen[1] == ["Get out.", "There is a note.", "look", "the red one", QUESTION.format(action="fetch(key='red')")]


@pytest.mark.parametrize(
    ("answer", "named"),
    [("next: make it", "next: make it"), (" Next: a\nbecause", "Next: a"), ("make it", ""), ("next: ", ""), ("", ""), ("so\nnext: a", "")],
)
def test_a_subgoal_stands_alone_on_the_first_line(answer: str, named: str) -> None:
    assert subgoal(answer) == named


def test_actions_in_words_have_no_place_for_a_subgoal() -> None:

    episode = Episode(
        id="e", task=TASKS[0], turns=(Turn(role="user", content="Say it."), Turn(role="assistant", content="it")), stop=EXPERTS[0].stop
    )
    with pytest.raises(ConfigError, match="'e' has an action without a tool call"):
        grounded(episode, ["next: say it"])
