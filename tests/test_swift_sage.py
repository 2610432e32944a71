"""SwiftSage: each of the rules by which it switches, its buffer, and what Swift is trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers import tiny_policy
from whet import learn
from whet.agents import Agent
from whet.agents.buffer import BUFFER, buffered, planning, valid, valid_calls
from whet.agents.fast_slow import GROUND, PLAN, SAGE, FastSlow, Step, Switch, steps_of
from whet.envs.base import Action, Env, EnvFactory
from whet.methods.swift_sage import SwiftSageConfig, per_kind, swift_sage, without
from whet.policies import ScriptedPolicy, load_policy
from whet.policies.base import Request
from whet.rollout import Prefix, rollout
from whet.runs import Run
from whet.tools.function import tool
from whet.types import Data, Example, Task, ToolCall, Turn, chain


class Dial(Env):
    """Turn a dial to the number, then press. Some numbers jam."""

    max_turns = 12
    max_tokens = 16

    def reset(self, task: Task) -> str:
        self.at = 0
        return "Dial 3."

    @tool
    def turn(self, to: int) -> str:
        """Turn the dial."""
        if to == 9:
            return "it is jammed"
        self.at = to
        return f"at {to}"

    @tool
    def press(self) -> str:
        """Press the button; ends the episode."""
        return self.finish("click", reward=float(self.at == 3))

    def expert(self, rng: Any) -> Action:
        return Action(tool_calls=(call("press") if self.at == 3 else call("turn", to=min(self.at + 1, 3)),))

    def role(self, role: str, turns: tuple[Turn, ...], rng: Any) -> str | None:
        return "turn(to=3)\npress()" if role == "sage" else None


DIAL = EnvFactory(Dial)
TASK = DIAL.tasks("train", 1)[0]
RULES: dict[str, Any] = {"failed": ("jammed", "^error: "), "critical": ("^press",)}


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(name=name, arguments=arguments, id="call_0")


def to(*numbers: int) -> list[ToolCall]:
    return [call("turn", to=number) for number in numbers]


def swift(*calls: ToolCall) -> ScriptedPolicy:
    """Proposes these one after another, each as often as it is asked at the same place; the last one for ever."""

    def propose(request: Request, rng: Any) -> Action:
        n = sum(turn.trained for turn in request.turns)
        return Action(text="hm", tool_calls=(calls[min(n, len(calls) - 1)],))

    return ScriptedPolicy(propose)


def sage(*answers: str, asked: list[tuple[str, ...]] | None = None) -> ScriptedPolicy:
    """Grounds its plans in these lists of calls, one after another; the last one for ever."""
    grounded = 0

    def answer(request: Request, rng: Any) -> str:
        nonlocal grounded
        if asked is not None:
            asked.append(tuple(turn.content for turn in request.turns))
        if request.turns[-1].content == PLAN:
            return "turn(to=8) would be wrong"
        grounded += 1
        return answers[min(grounded, len(answers)) - 1]

    return ScriptedPolicy(answer)


def who(flow: FastSlow, turns: int = 12) -> list[str]:
    """Who acted in each turn, and what was called."""
    (episode,) = rollout(Agent(flow), DIAL, [TASK])
    return [f"{step.by} {step.action}" for step in steps_of(episode.turns)][:turns]


def step(by: Any, action: ToolCall, observed: str = "at 1", reward: float = 0.0) -> Step:
    turn = Turn(role="assistant", tool_calls=(action,), reward=reward)
    return Step(by, turn, (Turn(role="tool", content=observed),))


def flow(**options: Any) -> FastSlow:
    return FastSlow(swift=swift(*to(1)), sage=sage("press()"), **{**RULES, **options})


# -- the rules -------------------------------------------------------------------------------------------------------------

AGAIN = Turn(role="assistant", tool_calls=(call("turn", to=1),))
OTHER = Turn(role="assistant", tool_calls=(call("turn", to=2),))
STUCK = [step("swift", action) for action in to(5, 6, 7, 4, 1)]
"""Five actions without reward or Sage, the last of which is `AGAIN`."""


def test_swift_is_stuck_if_it_repeats_itself_without_reward_or_help() -> None:
    assert not flow(early=5).trusts(AGAIN, STUCK, DIAL.tools)


@pytest.mark.parametrize(
    ("why", "steps", "proposed", "options"),
    [
        ("it is early", STUCK, AGAIN, {"early": 6}),
        ("it does something else", STUCK, OTHER, {"early": 0}),
        ("the same was longer ago", [*STUCK, *(step("swift", action) for action in to(5, 6, 7))], AGAIN, {"early": 0}),
        ("Sage was asked lately", [step("sage", to(5)[0]), *STUCK[1:]], AGAIN, {"early": 0}),
        ("there was a reward lately", [step("swift", to(5)[0], reward=0.1), *STUCK[1:]], AGAIN, {"early": 0}),
    ],
)
def test_swift_is_not_stuck(why: str, steps: list[Step], proposed: Turn, options: dict[str, Any]) -> None:
    assert flow(**options).trusts(proposed, steps, DIAL.tools), why
    longer_ago = [*steps[:1], step("swift", to(8)[0]), *steps[1:]]
    if "lately" in why:
        assert not flow(**options).trusts(proposed, longer_ago, DIAL.tools), f"no longer: {why}"


@pytest.mark.parametrize(
    "calls",
    [
        (),
        (call("jump"),),
        (call("turn"),),
        (call("turn", to="far"),),
        (replace(call("press"), error="no JSON"),),
        (call("turn", to=2), call("jump")),
    ],
)
def test_swift_is_not_trusted_with_what_is_no_valid_call(calls: tuple[ToolCall, ...]) -> None:
    turn = Turn(role="assistant", content="turn(to=2)", tool_calls=calls)
    assert not valid(turn, DIAL.tools)
    assert not flow(early=100).trusts(turn, [], DIAL.tools)
    assert valid(OTHER, DIAL.tools)


def test_sage_decides_on_the_first_critical_action() -> None:
    press = Turn(role="assistant", content="sure", tool_calls=(call("press"),))
    assert not flow(early=100).trusts(press, STUCK, DIAL.tools)
    assert flow(early=100, critical=()).trusts(press, STUCK, DIAL.tools)
    assert flow(early=100).trusts(press, [step("sage", call("press")), *STUCK], DIAL.tools), "it is not the first one"


def test_swift_is_trusted_with_anything_after_sage_was_asked_twice_in_a_row() -> None:
    twice = [step("sage", to(1)[0]), step("buffer", to(2)[0]), step("sage", to(3)[0])]
    assert flow().sages_in_a_row(twice) == 2
    assert flow().trusts(Turn(role="assistant", content="I give up"), twice, DIAL.tools)
    between = [*twice[:2], step("swift", to(1)[0]), twice[2]]
    assert flow().sages_in_a_row(between) == 1
    assert not flow().trusts(Turn(role="assistant", content="I give up"), between, DIAL.tools)


def test_failures_are_counted_from_where_sage_was_last_asked() -> None:
    jam = step("swift", to(9)[0], "it is jammed")
    assert flow().failures_since([jam, step("swift", to(1)[0]), jam]) == 2
    assert flow().failures_since([jam, jam, step("sage", to(9)[0], "error: no"), jam]) == 2
    assert flow().failures_since([jam, jam, step("sage", to(1)[0])]) == 0


# -- whole episodes -----------------------------------------------------------------------------------------------------------


def test_two_failures_bring_sage_whose_buffer_is_played_out() -> None:
    slow = sage("turn(to=2)\nturn(to=3)\nturn(to=3)\npress()")
    acted = who(FastSlow(swift=swift(*to(9)), sage=slow, **RULES))
    assert acted == ["swift turn(to=9)"] * 2 + ["sage turn(to=2)", "buffer turn(to=3)", "buffer turn(to=3)", "buffer press()"]


def test_swift_goes_on_when_the_buffer_is_empty() -> None:
    fast = swift(*to(9, 9), *to(3, 3, 2))
    assert who(FastSlow(swift=fast, sage=sage("turn(to=4)\nturn(to=5)"), **RULES), 5) == [
        *("swift turn(to=9)", "swift turn(to=9)", "sage turn(to=4)", "buffer turn(to=5)", "swift turn(to=2)")
    ]


def test_a_failed_call_of_the_buffer_is_dropped_and_two_bring_sage_anew_but_not_a_third_time() -> None:
    slow = sage("turn(to=9)\nturn(to=1)\nturn(to=9)\nturn(to=5)", "turn(to=9)\nturn(to=9)\npress()")
    assert who(FastSlow(swift=swift(*to(9)), sage=slow, **RULES), 8) == [
        *("swift turn(to=9)", "swift turn(to=9)"),
        *("sage turn(to=9)", "buffer turn(to=1)", "buffer turn(to=9)"),
        *("sage turn(to=9)", "buffer turn(to=9)", "swift turn(to=9)"),
    ]


def test_sage_is_asked_for_a_plan_and_then_for_calls_by_it() -> None:
    asked: list[tuple[str, ...]] = []
    who(FastSlow(swift=swift(call("press")), sage=sage("So: turn(to=3),\nthen `press()`.", asked=asked), **RULES))
    assert [turns[-1] for turns in asked] == [PLAN, GROUND.format(plan="Your plan:\nturn(to=8) would be wrong", n=5)]
    assert [turns[:-1] for turns in asked] == [("Dial 3.",)] * 2


def test_calls_that_no_tool_takes_stay_out_of_the_buffer_which_holds_five() -> None:
    slow = sage("jump()\nturn(far=1)\n" + "\n".join(f"turn(to={k})" for k in range(1, 8)))
    (episode,) = rollout(Agent(FastSlow(swift=swift(call("press")), sage=slow, **RULES)), DIAL, [TASK])
    first = next(turn for turn in episode.turns if turn.trained)
    assert first.content == "\n".join([SAGE, "calls:", *(f"turn(to={k})" for k in range(1, 6))])


def test_a_sage_that_names_no_call_leaves_it_to_swift() -> None:
    assert who(FastSlow(swift=swift(call("press")), sage=sage("I do not know."), **RULES)) == ["swift press()"]


def test_swift_sees_calls_alone_where_sage_acted() -> None:
    seen: list[list[str]] = []

    def propose(request: Request, rng: Any) -> Action:
        seen.append([turn.content for turn in request.turns if turn.trained])
        return Action(text="I press", tool_calls=(call("press"),))

    who(FastSlow(swift=ScriptedPolicy(propose), sage=sage("turn(to=1)\nturn(to=2)"), **RULES))
    assert seen == [[], ["", ""], ["", "", "", ""]]  # and then it is forced to press


def test_the_buffer_is_read_from_the_conversation_so_a_fork_goes_on_with_it() -> None:
    agent = Agent(FastSlow(swift=swift(call("press")), sage=sage("turn(to=2)\nturn(to=3)\npress()"), **RULES))
    (episode,) = rollout(agent, DIAL, [TASK])
    mute = Agent(FastSlow(swift=swift(*to(9)), sage=sage("none"), **RULES))
    (again,) = rollout(mute, DIAL, [TASK], prefix=[Prefix.of(episode, actions=1)])
    assert [(turn.content, turn.tool_calls) for turn in again.turns] == [(turn.content, turn.tool_calls) for turn in episode.turns]
    assert episode.success
    assert [turn.content for turn in episode.turns if turn.trained][1:] == [BUFFER] * 2


def test_an_abandoned_buffer_is_not_taken_up_again() -> None:
    plan = planning(SAGE, to(1, 2))
    assert [c.arguments for c in buffered([plan], DIAL.tools)] == [{"to": 2}]
    assert buffered([plan, OTHER], DIAL.tools) == []
    assert buffered([], DIAL.tools) == []


def test_calls_that_could_not_be_read_again_are_not_planned() -> None:
    class Pen(Env):
        @tool
        def write(self, text: str) -> str:
            """Write."""
            return text

    texts = ["plain", "it's", 'a "b"', "line\nbreak", """it's "both\"""", "f(x), write(text='no')"]
    kept = valid_calls([call("write", text=text) for text in texts], Pen().tools)
    assert [c.arguments["text"] for c in kept] == [text for text in texts if text != """it's "both\""""]
    again = buffered([planning("plan", [call("write", text="first"), *kept])], Pen().tools)
    assert [c.arguments for c in again] == [c.arguments for c in kept]


# -- training -----------------------------------------------------------------------------------------------------------------


def paths(n: int = 4) -> tuple[Any, ...]:
    tasks = [replace(task, data={"kind": "ab"[i % 4 == 3]}) for i, task in enumerate(DIAL.tasks("train", n))]
    return tuple(rollout(Agent(load_policy("expert")), DIAL, tasks))


def test_each_kind_of_task_has_at_most_as_many_paths() -> None:
    kinds = [episode.task.data["kind"] for episode in per_kind(paths(8), 2)]
    assert sorted(kinds) == ["a", "a", "b", "b"]
    assert len(per_kind(paths(8), 0)) == 8


def test_idle_actions_are_left_out_with_what_came_of_them() -> None:
    left = without(paths(1)[0], ("^turn\\(to=[12]\\)",))
    assert [turn.content or turn.tool_calls[0].name for turn in left.turns] == ["Dial 3.", "turn", "at 3", "press", "click"]
    assert left.turns == chain(left.turns)


def test_swift_is_trained_on_the_paths_and_sage_stands_by(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[Example] = []

    class Spy(learn.Learner):
        def forward_backward(self, rows: Any, loss: Any) -> dict[str, float]:
            given.extend(rows)
            return super().forward_backward(rows, loss)

    monkeypatch.setattr(learn, "Learner", Spy)
    run = Run.scratch()
    cfg = SwiftSageConfig(epochs=1, batch_size=2, per_kind=1, idle=("to=1",), switch=Switch(early=7, critical=("^press",)))
    better = swift_sage(Agent(tiny_policy()), Data(experts=paths()), env=DIAL, run=run, cfg=cfg)
    decoded = [tiny_policy().tokenizer.decode(row.tokens[row.mask]) for row in given]
    assert len(decoded) == 2
    assert all("2" in text and "3" in text and "1" not in text.replace("<|im_end|>", "") for text in decoded)
    better.policy.save(tmp_path / "flow")
    loaded = load_policy(str(tmp_path / "flow"))
    assert isinstance(loaded, FastSlow)
    assert (loaded.early, loaded.critical, loaded.sage.version) == (7, ("^press",), "script:sage")
    assert [event["scripted"] for event in run.events("roles")] == [{"sage": "script:sage"}]


def test_without_sage_the_agent_is_swift_alone() -> None:
    cfg = SwiftSageConfig(epochs=1, slow=False)
    assert "weights" in dir(swift_sage(Agent(tiny_policy()), Data(experts=paths()), env=DIAL, run=Run.scratch(), cfg=cfg).policy)


def test_the_environments_sage_gets_a_lost_swift_to_the_end() -> None:
    assert who(FastSlow(swift=swift(*to(9)), sage=load_policy("script:sage"), **RULES))[2:] == ["sage turn(to=3)", "buffer press()"]
