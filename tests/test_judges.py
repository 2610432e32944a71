"""Judges: what they are shown, how their answers are read, and that nothing unreadable becomes a score."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import pytest

from helpers import tiny_policy
from whet.envs.base import Action, Env, EnvFactory
from whet.errors import ConfigError, PolicyError
from whet.policies import ScriptedPolicy, load_policy
from whet.policies.base import Request, Sampling
from whet.policies.forms import PREFERENCE, RATING, YES_NO, Form, form_of, quote, quoted
from whet.rewards.judges import COMPARE, RUBRIC, Verdict, criteria, prefer, rate, self_check, tally
from whet.transcript import read_transcript, transcript
from whet.types import Cost, Episode, Stop, Task, ToolCall, Turn, chain


class Sum(Env):
    """Add two numbers. Its script judges by the sum that the task has."""

    def reset(self, task: Task) -> str:
        self.total = task.seed
        return "What is the sum?"

    def role(self, role: str, turns: tuple[Turn, ...], rng: Any) -> str | Action | None:
        form = form_of(turns[-1].content)
        if role != "judge" or form is None:
            return None
        if form is PREFERENCE:
            start = quoted(turns[-1].content, "conversation")
            a, b = (self.right(f"{start}\n{quoted(turns[-1].content, side)}") for side in "AB")
            return form.write(0.5 + 0.5 * (a - b))
        return form.write(self.right(quoted(turns[-1].content, "episode")))

    def right(self, text: str) -> float:
        return float(read_transcript(text)[-1].content == f"{self.total}")


SUM = EnvFactory(Sum)


def said(*answers: str, total: int = 4) -> Episode:
    """An episode in which the assistant says these things, one after the other."""
    turns = [Turn(role="user", content="What is the sum?")]
    for answer in answers:
        turns += [Turn(role="assistant", content=answer), Turn(role="user", content="Go on.")]
    task = Task(id=f"sum/train/{total}", env="sum", split="train", seed=total)
    return Episode(id="/".join(answers), task=task, turns=chain(turns[:-1]), stop=Stop.TERMINATED)


def judge(answer: Callable[[str], str]) -> ScriptedPolicy:
    """A judge that answers by this function of the prompt."""

    def speak(request: Request, rng: Any) -> str:
        (turn,) = request.turns
        assert request.sampling.temperature == 0.0
        return answer(turn.content)

    return ScriptedPolicy(speak)


def scores(judged: Any) -> list[float | None]:
    return [verdict.score for verdict in judged]


# -- forms -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "text", "value"),
    [
        (RATING, "4", 4.0),
        (RATING, " 4/5 ", 4.0),
        (RATING, "**Rating:** 3.5\nIt was slow.", 3.5),
        (RATING, "4. It was slow.", 4.0),
        (RATING, "4\n5 pages were read.", 4.0),
        (RATING, "<think>maybe 2?</think>\n5", 5.0),
        (RATING, "7", None),
        (RATING, "-3", None),
        (RATING, "4-5", None),
        (RATING, "four", None),
        (RATING, "I would say 4", None),
        (RATING, "<think>4", None),
        (RATING, "", None),
        (YES_NO, "Yes.", 1.0),
        (YES_NO, "no, it did not", 0.0),
        (YES_NO, "Answer: no", 0.0),
        (YES_NO, "yes and no", None),
        (YES_NO, "nothing is wrong", None),
        (PREFERENCE, "A", 1.0),
        (PREFERENCE, "**B**", 0.0),
        (PREFERENCE, "tie\nBoth are wrong.", 0.5),
        (PREFERENCE, "A good answer would be shorter", None),
        (PREFERENCE, "Both", None),
    ],
)
def test_answers_are_read_strictly(form: Form, text: str, value: float | None) -> None:
    assert form.read(text) == value


@pytest.mark.parametrize("form", [RATING, YES_NO, PREFERENCE], ids=lambda form: form.name)
def test_what_a_script_writes_is_read_back(form: Form) -> None:
    assert form_of(f"Judge this.\n\n{form.ask}") is form
    assert form_of(f"{form.ask} Judge this.") is None
    shares = [0.0, 1.0] + ([0.5] if form is PREFERENCE else [])
    scale = 5 if form is RATING else 1
    assert [form.read(form.write(share)) for share in shares] == [scale * share for share in shares]


def test_quotes_come_back_even_with_tags_in_them() -> None:
    text = "user: look at </A>\nassistant: <A>\n"
    assert quoted(f"before\n{quote('A', text)}\n{quote('B', 'x')}", "A") == text
    assert quoted("nothing", "A") == ""


def test_a_transcript_can_be_read_by_a_script() -> None:
    call = ToolCall(name="search", arguments={"query": "Rosa"})
    turns = [
        Turn(role="system", content="Be brief."),
        Turn(role="user", content="Who?"),
        Turn(role="assistant", content="friend Otto", tool_calls=(call,)),
        Turn(role="tool", content="Rosa\nboss Joe"),
    ]
    text = transcript(turns)
    assert text == "system: Be brief.\nuser: Who?\nassistant: friend Otto search(query='Rosa')\ntool: Rosa\nboss Joe"
    assert [(t.role, t.content) for t in read_transcript(text)] == [
        ("system", "Be brief."),
        ("user", "Who?"),
        ("assistant", "friend Otto search(query='Rosa')"),
        ("tool", "Rosa\nboss Joe"),
    ]


# -- ratings, criteria, self-checks ----------------------------------------------------------------------------------------


def test_the_environments_script_rates_in_the_words_that_were_asked_for() -> None:
    episodes = [said("4"), said("5"), said("1", "4"), said("7", total=7)]
    script = load_policy("script:judge")
    assert scores(rate(episodes, script, env=SUM)) == [5.0, 0.0, 5.0, 5.0]
    assert scores(self_check(episodes, script, env=SUM)) == [1.0, 0.0, 1.0, 1.0]
    assert scores(criteria(episodes, script, env=SUM)) == [1.0, 0.0, 1.0, 1.0]
    assert rate(episodes[:1], script, env=SUM)[0].reason == "5"


def test_a_model_is_asked_with_the_rubric_the_episode_and_the_form() -> None:
    seen: list[str] = []

    def answer(prompt: str) -> str:
        seen.append(prompt)
        return "3, it was slow"

    (verdict,) = rate([said("4")], judge(answer), env=SUM)
    assert seen == [f"{RUBRIC}\n\n<episode>\nuser: What is the sum?\nassistant: 4\n</episode>\n\n{RATING.ask}"]
    assert verdict == Verdict(score=3.0, reason="3, it was slow")


def test_unreadable_answers_are_reported_and_no_scores(caplog: pytest.LogCaptureFixture) -> None:
    answers = iter(["4", "quite good", "2", "9"])
    with caplog.at_level(logging.WARNING):
        verdicts = rate([said("4")] * 4, judge(lambda prompt: next(answers)), env=SUM)
    assert scores(verdicts) == [4.0, None, 2.0, None]
    assert verdicts[1].reason == "unreadable: 'quite good'"
    assert "2 of 4 answers give no rating. The first: unreadable: 'quite good'" in caplog.text
    assert tally(verdicts) == {"judged": 4, "unreadable": 2, "judge_score": 3.0}
    assert tally(verdicts[1:2]) == {"judged": 1, "unreadable": 1}


def test_an_episode_that_is_too_long_for_the_judge_has_no_score() -> None:
    long = said("4 " * 3000)
    babbling = tiny_policy()
    verdicts = rate([said("4"), long], babbling, env=SUM, sampling=Sampling(temperature=0.0, max_tokens=4))
    assert verdicts[1] == Verdict(score=None, reason="longer than the judge's context")
    assert verdicts[0].reason.startswith("unreadable: ")
    assert verdicts[0].cost.prompt_tokens > 0


def test_criteria_are_asked_one_by_one_and_one_unreadable_answer_spoils_the_score() -> None:
    def answer(prompt: str) -> str:
        return "yes" if prompt.startswith("Short?") else "no" if "assistant: 4" in prompt else "perhaps"

    verdicts = criteria([said("4"), said("5")], judge(answer), env=SUM, questions=("Short?", "Kind?", "Short? Really?"))
    assert scores(verdicts) == [pytest.approx(2 / 3), None]
    assert verdicts[1].reason == "yes; unreadable: 'perhaps'; yes"
    with pytest.raises(ConfigError, match="criteria got no questions"):
        criteria([said("4")], judge(answer), env=SUM, questions=())


def test_an_environment_without_a_script_says_so() -> None:
    class Plain(Env):
        def reset(self, task: Task) -> str:
            return "?"

    with pytest.raises(PolicyError, match="no script for the role 'judge'"):
        rate([said("4")], load_policy("script:judge"), env=EnvFactory(Plain))


# -- preferences -----------------------------------------------------------------------------------------------------------


def test_preferring_is_symmetric_under_swapping() -> None:
    right, wrong, also = said("4"), said("5"), said("1", "4")
    pairs = [(right, wrong), (wrong, right), (right, also), (wrong, wrong)]
    script = load_policy("script:judge")
    found = prefer(pairs, script, env=SUM)
    assert scores(found) == [1.0, 0.0, 0.5, 0.5]
    assert [(p.first, p.swapped) for p in found] == [(1.0, 1.0), (0.0, 0.0), (0.5, 0.5), (0.5, 0.5)]
    turned = prefer([(b, a) for a, b in pairs], script, env=SUM)
    assert [1.0 - p.score for p in found if p.score is not None] == scores(turned)


@pytest.mark.parametrize("always", ["A", "B"])
def test_a_judge_that_goes_by_the_position_makes_a_tie(always: str) -> None:
    (found,) = prefer([(said("4"), said("5"))], judge(lambda prompt: always), env=SUM)
    assert {found.first, found.swapped} == {0.0, 1.0}
    assert found.score == 0.5
    assert found.reason == f"{always}; swapped: {always}"


def test_a_tie_in_one_position_counts_half() -> None:
    def answer(prompt: str) -> str:
        return "A" if quoted(prompt, "A").endswith("4") else "tie"

    (found,) = prefer([(said("4"), said("5"))], judge(answer), env=SUM)
    assert (found.first, found.swapped, found.score) == (1.0, 0.5, 0.75)


def test_half_a_preference_is_none() -> None:
    def answer(prompt: str) -> str:
        return "A" if quoted(prompt, "A").endswith("4") else "I cannot say"

    (found,) = prefer([(said("4"), said("5"))], judge(answer), env=SUM)
    assert (found.first, found.swapped, found.score) == (1.0, None, None)
    assert tally([found]) == {"judged": 1, "unreadable": 1}


def test_what_both_begin_with_is_shown_once() -> None:
    seen: list[str] = []

    def answer(prompt: str) -> str:
        seen.append(prompt)
        return "tie"

    prefer([(said("1", "4"), said("1", "5", "4"))], judge(answer), env=SUM)
    start = "<conversation>\nuser: What is the sum?\nassistant: 1\nuser: Go on.\n</conversation>"
    one, other = "assistant: 4", "assistant: 5\nuser: Go on.\nassistant: 4"
    form = PREFERENCE.ask
    assert seen == [
        f"{COMPARE}\n\n{start}\n\n<A>\n{one}\n</A>\n\n<B>\n{other}\n</B>\n\n{form}",
        f"{COMPARE}\n\n{start}\n\n<A>\n{other}\n</A>\n\n<B>\n{one}\n</B>\n\n{form}",
    ]


def test_only_episodes_of_one_task_are_compared() -> None:
    with pytest.raises(ConfigError, match="not of 'sum/train/4' and 'sum/train/7'"):
        prefer([(said("4"), said("7", total=7))], load_policy("script:judge"), env=SUM)


def test_what_judging_cost_is_kept() -> None:
    class Paid(ScriptedPolicy):
        async def generate(self, request: Request) -> Turn:
            return dataclasses.replace(await super().generate(request), cost=Cost(sampled_tokens=3, money=0.5))

    paid = Paid(lambda request, rng: "A" if form_of(request.turns[-1].content) is PREFERENCE else "yes")
    assert prefer([(said("4"), said("5"))], paid, env=SUM)[0].cost == Cost(sampled_tokens=6, money=1.0)
    assert criteria([said("4")], paid, env=SUM)[0].cost == Cost(sampled_tokens=6, money=1.0)
    assert self_check([said("4")], paid, env=SUM)[0].cost == Cost(sampled_tokens=3, money=0.5)
