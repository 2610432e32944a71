"""Debate, advice, edits and the judge that accepts them, by speakers whose every word is known."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from helpers import tiny_policy
from whet.agents import Agent
from whet.envs.base import Action, Env, EnvFactory, Step
from whet.errors import CannotReplay
from whet.policies import RolePolicy, ScriptedPolicy
from whet.policies.base import Request
from whet.policies.forms import quoted
from whet.rollout import rollout
from whet.rollout.debate import (
    ADVISOR,
    CRITIC,
    EDITOR,
    POSITIVE,
    WEIGH,
    Draft,
    Evolving,
    Panel,
    Round,
    advise,
    counts,
    debate,
    evolve,
    evolve_turns,
    read_response,
    recent,
    written,
)
from whet.runs import Run
from whet.tools.function import tool
from whet.types import Task, ToolCall, Turn


class Count(Env):
    """Say one, two, three; each word is answered by how many have been said."""

    max_turns = 3
    paid: ClassVar[int] = 0

    def reset(self, task: Task) -> str:
        self.said: list[str] = []
        return "Count."

    def step(self, action: Action) -> Step:
        self.said.append(action.text)
        Count.paid += len(self.said) == 3
        return Step(observation=f"{self.said}", terminated=len(self.said) == 3, reward=-1.0)

    def role(self, role: str, turns: tuple[Turn, ...], rng: random.Random) -> str | None:
        return "I am the script." if role == "critic" else None


COUNT = EnvFactory(Count)
TASK = Task(id="count/train/0", env="count", split="train")
WORDS = ("one", "two", "three")


def speaker(answer: Callable[[list[str]], str], heard: list[list[str]] | None = None) -> ScriptedPolicy:
    """A policy that answers by this function of what was said so far; `heard` keeps that."""

    def speak(request: Request, rng: Any) -> str:
        said = [turn.content for turn in request.turns]
        if heard is not None:
            heard.append(said)
        return answer(said)

    return ScriptedPolicy(speak)


def panel(**speakers: Callable[[list[str]], str]) -> Panel:
    """Speakers who say their role's name, but for those given. The judge goes for the longer response."""

    def longer(said: list[str]) -> str:
        a, b = len(quoted(said[-1], "A")), len(quoted(said[-1], "B"))
        return "A" if a > b else "B" if b > a else "tie"

    made: dict[str, Any] = {role: speaker(lambda said, role=role: f"{role}.") for role in ("positive", "critic", "advisor", "editor")}
    return Panel(**(made | {"judge": speaker(longer)} | {role: speaker(answer) for role, answer in speakers.items()}))


def draft(text: str = "one", *calls: ToolCall) -> Draft:
    return Draft(task=TASK, turns=(Turn(role="user", content="Count."),), response=Turn(role="assistant", content=text, tool_calls=calls))


def appended(said: list[str]) -> str:
    """An editor who makes a response longer by a mark."""
    return quoted(said[-1], "response") + "!"


# -- who hears what ----------------------------------------------------------------------------------------------------------

CONVERSATION = "<conversation>\nuser: Count.\n</conversation>"
RESPONSE = "<response>\none\n</response>"


def test_debaters_hold_their_positions_then_weigh_each_other() -> None:
    pro: list[list[str]] = []
    con: list[list[str]] = []
    voices = iter(["It is right.", "Not so."]), iter(["It is wrong.", "Maybe."])
    ((*said,),) = debate([draft()], speaker(lambda _: next(voices[0]), pro), speaker(lambda _: next(voices[1]), con), env=COUNT)
    assert [turn.content for turn in said] == ["It is right.", "It is wrong.", "Not so.", "Maybe."]
    for heard, task, mine, other in ((pro, POSITIVE, "It is right.", "It is wrong."), (con, CRITIC, "It is wrong.", "It is right.")):
        first = f"{task}\n\n{CONVERSATION}\n\n{RESPONSE}"
        assert heard == [[first], [first, mine, f"{WEIGH}\n\n<review>\n{other}\n</review>"]]


def test_the_advisor_hears_the_discussion_and_gives_three_suggestions_at_most() -> None:
    heard: list[list[str]] = []
    said = [Turn(role="assistant", content=text) for text in ("for", "against", "hm", "well")]
    (advice,) = advise([draft()], [said], speaker(lambda _: "1\n\n2\n3\n4", heard), env=COUNT)
    assert advice is not None
    assert advice.content == "1\n2\n3"
    minutes = "<discussion>\nReviewer 1: for\nReviewer 2: against\nReviewer 1: hm\nReviewer 2: well\n</discussion>"
    assert heard == [[f"{ADVISOR}\n\n{CONVERSATION}\n\n{RESPONSE}\n\n{minutes}"]]


def test_the_editor_sees_the_suggestions_and_the_tools() -> None:
    class Tools(Count):
        @tool
        def shout(self, word: str) -> str:
            """Say it loudly."""
            return word

    heard: list[list[str]] = []
    call = ToolCall(name="shout", arguments={"word": "one"})
    editor = speaker(lambda _: 'two\n<tool_call>{"name": "shout", "arguments": {"word": "two"}}</tool_call>', heard)
    speakers = {**vars(panel(advisor=lambda _: "Say two.")), "editor": editor}
    (found,) = evolve([draft("one", call)], Panel(**speakers), env=EnvFactory(Tools), iterations=1)
    ((prompt,),) = heard
    assert prompt.startswith(EDITOR)
    assert quoted(prompt, "suggestions") == "Say two."
    assert quoted(prompt, "response") == 'one\n<tool_call>{"name": "shout", "arguments": {"word": "one"}}</tool_call>'
    assert '"description": "Say it loudly."' in quoted(prompt, "tools")
    response = found.rounds[0].response
    assert response is not None
    assert (response.content, response.tool_calls[0].name, response.tool_calls[0].arguments) == ("two", "shout", {"word": "two"})


def test_responses_are_written_and_read() -> None:
    call = ToolCall(name="search", arguments={"query": "Rosa"})
    for turn in (Turn(role="assistant", content="hm", tool_calls=(call, call)), Turn(role="assistant", content="hm")):
        back = read_response(Turn(role="assistant", content=written(turn)))
        assert back is not None
        assert (back.content, [(c.name, c.arguments) for c in back.tool_calls]) == ("hm", [(c.name, c.arguments) for c in turn.tool_calls])
    native = Turn(role="assistant", content="hm", tool_calls=(call,))
    assert (read := read_response(native)) is not None
    assert read.tool_calls == (call,)
    assert read_response(Turn(role="assistant", content="")) is None
    assert read_response(Turn(role="assistant", content="hm <tool_call>{search}</tool_call>")) is None


def test_only_the_last_exchanges_are_in_view() -> None:
    turns = [Turn(role="system", content="s"), Turn(role="user", content="q")]
    for i in range(4):
        turns += [Turn(role="assistant", content=f"a{i}"), Turn(role="user", content=f"o{i}")]
    assert [t.content for t in recent(turns, 9)] == [t.content for t in turns]
    assert [t.content for t in recent(turns, 5)] == [t.content for t in turns]
    assert [t.content for t in recent(turns, 3)] == ["s", "q", "o1", "a2", "o2", "a3", "o3"]
    assert [t.content for t in recent(turns, 1)] == ["s", "q", "o3"]
    assert [t.content for t in recent(turns[:2], 1)] == ["s", "q"]


# -- the loop ----------------------------------------------------------------------------------------------------------------


def test_accepted_edits_are_edited_again_three_times_at_most() -> None:
    (found,) = evolve([draft()], panel(editor=appended), env=COUNT)
    assert found.response.content == "one!!!"
    assert found.accepted == len(found.rounds) == 3
    assert counts([found]) == {"drafts": 1, "improved": 1, "edits_judged": 3, "edits_accepted": 3, "unreadable": 0}


def test_the_first_edit_that_is_not_preferred_ends_it() -> None:
    edits = iter(["one!", "o", "one!!!"])
    (found,) = evolve([draft()], panel(editor=lambda _: next(edits)), env=COUNT)
    assert found.response.content == "one!"
    assert [one.accepted for one in found.rounds] == [True, False]
    assert [one.preference and one.preference.score for one in found.rounds] == [1.0, 0.0]


@pytest.mark.parametrize("position", ["A", "B"])
def test_a_judge_that_goes_by_the_position_accepts_nothing(position: str) -> None:
    (found,) = evolve([draft()], panel(editor=appended, judge=lambda _: position), env=COUNT)
    assert found.response.content == "one"
    assert [one.preference and one.preference.score for one in found.rounds] == [0.5]


@pytest.mark.parametrize(
    ("speakers", "asked", "unreadable"),
    [
        ({"editor": lambda _: "one"}, False, 0),  # nothing new to be judged
        ({"editor": lambda _: ""}, False, 1),
        ({"editor": lambda _: "<tool_call>{</tool_call>"}, False, 1),
        ({"editor": appended, "judge": lambda _: "The new one, I think."}, True, 1),
    ],
)
def test_what_cannot_be_read_changes_nothing(speakers: dict[str, Any], asked: bool, unreadable: int) -> None:
    (found,) = evolve([draft()], panel(**speakers), env=COUNT)
    assert found.response.content == "one"
    assert [one.preference is not None for one in found.rounds] == [asked]
    assert counts([found])["unreadable"] == unreadable


def test_drafts_do_not_wait_for_each_other() -> None:
    def editor(said: list[str]) -> str:
        response = quoted(said[-1], "response")
        return response if response.startswith("two") else response + "!"

    found = evolve([draft("one"), draft("two"), draft("six")], panel(editor=editor), env=COUNT)
    assert [one.response.content for one in found] == ["one!!!", "two", "six!!!"]
    assert [len(one.rounds) for one in found] == [3, 1, 3]


def test_a_speaker_with_too_little_room_leaves_a_draft_as_it_is() -> None:
    speakers = {**vars(panel(editor=appended)), "advisor": tiny_policy()}
    found = evolve([draft("one " * 2000), draft("one")], Panel(**speakers), env=COUNT, iterations=1)
    assert found[0].rounds == (Round(),)
    assert found[0].response.content == "one " * 2000
    assert found[1].response.content == "one!"
    assert found[1].cost.prompt_tokens > 0


def test_a_panel_is_found_by_names() -> None:
    found = Panel.of("script", judge="expert", editor="")
    assert [(role, policy.version) for role, policy in vars(found).items()] == [
        ("positive", "script:positive"),
        ("critic", "script:critic"),
        ("advisor", "script:advisor"),
        ("editor", "script:editor"),
        ("judge", "expert"),
    ]
    (said,) = debate([draft()], speaker(lambda _: "Fine."), RolePolicy("critic"), env=COUNT)
    assert said is not None
    assert said[1].content == "I am the script."


# -- whole episodes ------------------------------------------------------------------------------------------------------------

TEACHER = Agent(ScriptedPolicy(lambda request, rng: f"uh {len(request.turns) // 2}"))


def fix(said: list[str]) -> str:
    """An editor who knows which word is due at which place."""
    return WORDS[quoted(said[-1], "conversation").count("assistant:")]


def sure(said: list[str]) -> str:
    return "A" if quoted(said[-1], "A").endswith(WORDS) else "B"


def test_the_teacher_goes_on_from_what_the_environment_shows_after_an_edit() -> None:
    run = Run.scratch()
    taught = rollout(TEACHER, COUNT, [TASK], run=run)
    (episode,), evolved = evolve_turns(taught, TEACHER, panel(editor=fix, judge=sure), env=COUNT, run=run)
    assert [turn.content for turn in episode.turns] == [
        "Count.",
        "one",
        "['one']",
        "two",
        "['one', 'two']",
        "three",
        "['one', 'two', 'three']",
    ]
    assert [each.accepted for each in evolved] == [1, 1, 1]
    between = [[turn.content for turn in e.turns if turn.trained] for t in range(3) for e in run.load_episodes(f"turn{t}")]
    assert between == [["one", "uh 1", "uh 2"], ["one", "two", "uh 2"], ["one", "two", "three"]]
    assert run.cost.episodes == 4


def test_the_environments_reward_decides_nothing() -> None:
    taught = rollout(TEACHER, COUNT, [TASK])
    assert taught[0].reward == -3.0
    (kept,), _ = evolve_turns(taught, TEACHER, panel(editor=fix, judge=lambda said: "tie"), env=COUNT)
    assert kept is taught[0]
    (edited,), _ = evolve_turns(taught, TEACHER, panel(editor=fix, judge=sure), env=COUNT)
    assert edited.reward == -3.0


def test_only_the_first_actions_are_evolved_where_that_was_asked_for() -> None:
    taught = rollout(TEACHER, COUNT, [TASK])
    (episode,), evolved = evolve_turns(taught, TEACHER, panel(editor=fix, judge=sure), Evolving(turns=1), env=COUNT)
    assert [turn.content for turn in episode.turns if turn.trained] == ["one", "uh 1", "uh 2"]
    assert len(evolved) == 1


def test_an_environment_that_cannot_replay_is_refused() -> None:
    class Once(Count):
        replayable = False

    env = EnvFactory(Once)
    with pytest.raises(CannotReplay, match="'once' cannot replay"):
        evolve_turns(rollout(TEACHER, env, [TASK]), TEACHER, panel(editor=fix, judge=sure), env=env)
