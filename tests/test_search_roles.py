"""The scripted speakers of Search: readers who go by what they are shown, and who err as often as they say."""

from __future__ import annotations

import random
from typing import Any

import pytest

from whet import Agent, load_env, load_policy
from whet.agents.exchange import Exchange
from whet.agents.four_roles import bare
from whet.agents.modules import MODULES, Modules
from whet.envs.search import Search
from whet.envs.search_roles import ERRS, grade
from whet.policies.forms import RATING, YES_NO, quote
from whet.rewards.judges import criteria, prefer, rate
from whet.rollout import rollout
from whet.rollout.debate import Draft, Panel, evolve, written
from whet.rollout.four_roles import annotate, whole
from whet.rollout.modules import process_feedback
from whet.transcript import line, read_transcript, transcript
from whet.types import Episode, Turn, chain

ENV = load_env("search:hops=2")
JUDGE = load_policy("script:judge")


def play(spec: str, n: int = 60, env: Any = ENV) -> list[Episode]:
    return rollout(Agent(load_policy(spec)), env, env.tasks("train", n))


def at(episode: Episode) -> Search:
    world = ENV()
    assert isinstance(world, Search)
    world.reset(episode.task)
    return world


def drafts(episodes: list[Episode]) -> list[Draft]:
    """Each action of each episode, with the conversation before it."""
    return [
        Draft(task=e.task, turns=e.turns[:i], response=turn) for e in episodes for i, turn in enumerate(e.turns) if turn.role == "assistant"
    ]


def right(draft: Draft, response: Turn) -> bool:
    """Whether a response is the expert's after these turns."""
    world, log = ENV(), list(draft.turns)
    world.reset(draft.task)
    pages = [turn.content.splitlines()[0] for turn in log if turn.role == "tool" and "\n" in turn.content]
    action = world.after(pages, [])
    return line(Turn(role="assistant", content=action.text, tool_calls=action.tool_calls)) == line(response)


def test_experts_are_rated_best_and_lucky_guesses_are_not() -> None:
    experts, others = play("expert"), play("random", 400)
    assert {verdict.score for verdict in rate(experts, JUDGE, env=ENV)} == {5.0}
    judged = list(zip(others, rate(others, JUDGE, env=ENV), strict=True))
    assert max(v.score for e, v in judged if not e.success and v.score is not None) <= 2.0
    lucky = [v.score for e, v in judged if e.success]
    assert lucky
    assert min(score for score in lucky if score is not None) < 3.0, "an answer that does not follow from what was read"


def test_a_judge_answers_every_form_and_no_other_question() -> None:
    episode = play("expert", 1)[0]
    world, shown = at(episode), quote("episode", transcript(episode.turns))
    for form, answer in ((RATING, "5"), (YES_NO, "yes")):
        prompt = f"Good?\n\n{shown}\n\n{form.ask}"
        assert world.role("judge", (Turn(role="user", content=prompt),), random.Random(0)) == answer
    assert world.role("judge", (Turn(role="user", content=f"Good?\n\n{shown}"),), random.Random(0)) is None
    assert world.role("jury", (Turn(role="user", content=shown),), random.Random(0)) is None
    assert [v.score for v in criteria([episode], JUDGE, env=ENV)] == [1.0]


def test_better_steps_are_preferred_and_equal_ones_go_by_the_position() -> None:
    expert, other = play("expert", 1)[0], next(e for e in play("random", 1))
    good, bad, same = prefer([(expert, other), (other, expert), (expert, expert)], JUDGE, env=ENV)
    assert (good.score, bad.score) == (1.0, 0.0)
    assert (same.first, same.swapped, same.score) == (1.0, 0.0, 0.5)


def test_judges_go_by_the_pages_that_were_read() -> None:
    episode = play("expert", 1)[0]
    world, log = at(episode), read_transcript(transcript(episode.turns))
    assert grade(world, log) == (1.0, True)
    unread = [turn for turn in log if turn.role != "tool"]
    worth, follows = grade(world, unread)
    assert worth < 1.0
    assert not follows, "the right answer, but nobody has read the pages that it stands on"
    assert grade(world, log[:1]) == (0.0, False)
    thoughtless = [Turn(role=t.role, content=t.content[t.content.find("search(") :]) if "search(" in t.content else t for t in log]
    assert grade(world, thoughtless)[0] == pytest.approx((1.0 + 0.8 + 1.0) / 3)


@pytest.mark.slow
def test_the_debate_mends_most_of_what_is_wrong_and_spoils_little_of_what_is_right() -> None:
    tried = drafts(play("expert@0.5", 150))
    evolved = evolve(tried, Panel.of("script"), env=ENV)
    wrong = [right(d, e.response) for d, e in zip(tried, evolved, strict=True) if not right(d, d.response)]
    fine = [right(d, e.response) for d, e in zip(tried, evolved, strict=True) if right(d, d.response)]
    expected = (1 - ERRS) ** 2  # the critic finds the step, and the other debater calls it plausible
    assert len(wrong) > 100
    assert expected - 0.12 < sum(wrong) / len(wrong) < expected + 0.12
    assert all(fine), "the judge prefers no other step to the right one"


def test_an_editor_ignores_what_is_beyond_it() -> None:
    draft = drafts(play("expert", 1))[0]
    prompt = "\n\n".join([quote("suggestions", "Be kinder.\nWrite in French."), quote("response", written(draft.response))])
    action = at(play("expert", 1)[0]).role("editor", (Turn(role="user", content=prompt),), random.Random(0))
    assert action is not None
    assert not isinstance(action, str)
    assert line(Turn(role="assistant", content=action.text, tool_calls=action.tool_calls)) == line(draft.response)


def test_sums_are_judged_too() -> None:
    env = load_env("search:arithmetic=1")
    episodes = play("expert", 20, env)
    assert {verdict.score for verdict in rate(episodes, JUDGE, env=env)} == {5.0}
    hasty = [Episode(id="x", task=e.task, turns=chain(e.turns[:2] + e.turns[-2:]), stop=e.stop) for e in episodes]
    assert {verdict.score for verdict in rate(hasty, JUDGE, env=env)} == {0.0}


GIVEN = load_env("search:hops=1-3,given=12")


@pytest.mark.parametrize("style", ["", "Speak in full sentences.", "Speak in JSON."])
def test_two_partners_answer_by_halves_of_the_pages_in_any_style(style: str) -> None:
    partner = load_policy("script:partner")
    talks = rollout(Agent(Exchange(partner, partner, style)), GIVEN, GIVEN.tasks("train", 30))
    assert all(episode.success for episode in talks)
    assert max(episode.n_actions for episode in talks) > 2, "some had to go back and forth"
    facts = {fact for episode in talks for page in episode.turns[1].content.split("\n\n")[:-1] for fact in page.split("\n")[1:]}
    first = next(turn.content for episode in talks for turn in episode.turns if turn.trained)
    assert (first in facts or first.startswith("no ")) == (style == "")


def test_modules_find_the_answer_and_their_steps_are_right_by_the_feedback() -> None:
    machine = Modules(**{module: load_policy(f"script:module:{module}") for module in MODULES})
    episodes = rollout(Agent(machine), GIVEN, GIVEN.tasks("train", 30))
    assert sum(episode.success for episode in episodes) >= 28, "a page may not be among the three that are found"
    samples, _ = process_feedback([e for e in episodes if e.success], load_policy("script:feedback"), GIVEN, top=3, queries=6)
    assert {sample.step.ask.module for sample in samples} == set(MODULES)
    assert all(sample.right for sample in samples)


@pytest.mark.parametrize(("module", "said"), [("decompose", "[Finish]"), ("complete", "i think answer(text='Nobody')"), ("judge", "maybe")])
def test_feedback_finds_what_is_wrong(module: str, said: str) -> None:
    world = GIVEN()
    world.reset(GIVEN.tasks("train", 1)[0])
    assert isinstance(world, Search)
    told = f"{world.question.text}\n<X>" if module != "judge" else f"{world.question.path[0]} boss\n\nAbc\nboss Def\n<X>"
    prompt = "\n\n".join(quote(tag, text) for tag, text in (("module", module), ("told", told), ("said", said)))
    assert world.role("feedback", (Turn(role="user", content=prompt),), random.Random(0)) == "no"


def test_sums_have_no_script_of_modules() -> None:
    world = load_env("search:arithmetic=1,given=6")()
    world.reset(GIVEN.tasks("train", 1)[0])
    assert world.role("module:decompose", (Turn(role="user", content="?\n<X>"),), random.Random(0)) is None


def test_the_locator_marks_what_the_question_needs() -> None:
    golds = rollout(Agent(load_policy("expert")), GIVEN, GIVEN.tasks("train", 20))
    notes, _ = annotate(golds, {role: load_policy(f"script:{role}") for role in ("reconstructor", "locator")}, GIVEN, top=12)
    found = whole(golds, notes, 12)
    assert len(found) == len(golds)
    for gold, trajectory in zip(golds, found, strict=True):
        marks = bare(trajectory.episode.turns[-3].content, "locator")
        path = [line.partition("] [Relevant] ")[2] for line in marks.splitlines() if "[Relevant]" in line]
        assert sorted(path) == sorted(fact.strip() for fact in gold.turns[-2].content.split(","))
