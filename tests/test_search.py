"""Search: questions with disjoint casts, an expert that always finds the way, rewards, and a reflection from the log alone."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.envs import EnvFactory
from whet.envs.base import Action
from whet.envs.search import NAMES, RELATIONS, Search, call_of, make_question
from whet.errors import ConfigError
from whet.types import Turn


def play(env: Search, task, act):
    observation, log, total = env.reset(task), [], 0.0
    for _ in range(env.max_turns):
        step = env.step(act(env))
        log += step.observation
        total += step.reward
        if step.terminated:
            return total, step, tuple(log), observation
    return total, step, tuple(log), observation


def expert(env: Search) -> Action:
    return env.expert(random.Random(0))


def test_the_casts_of_the_splits_are_disjoint():
    assert len({name for names in NAMES.values() for name in names}) == sum(map(len, NAMES.values()))
    for split in ("train", "dev", "test"):
        env = Search()
        for task in env.tasks(split, 20):
            env.reset(task)
            assert set(env.question.pages) <= set(NAMES[split])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**40), st.integers(1, 4), st.integers(1, 8), st.integers(9, 20), st.booleans())
def test_every_question_can_be_answered_from_its_pages(seed, hops, facts, people, arithmetic):
    question = make_question(random.Random(seed), NAMES["train"], (hops, hops), facts, people, float(arithmetic))
    assert len(question.pages) == people
    for person, page in question.pages.items():
        assert person not in page.values()
        assert len([r for r in page if r in RELATIONS]) == max(facts, 2 if question.sum_of and person == question.path[0] else 1)
    if question.sum_of:
        assert int(question.answer) == sum(int(question.pages[person]["age"]) for person in question.sum_of)
    else:
        assert len(question.relations) == hops
        at = question.path[0]
        for relation in question.relations:
            at = question.pages[at][relation]
        assert at == question.answer
        assert len(set(question.path)) == len(question.path), "a path never comes back to where it was"


@pytest.mark.parametrize("options", [{"hops": "1"}, {"hops": "4"}, {"hops": "1-3"}, {"arithmetic": 1.0}, {"hops": "2-3", "facts": 8}])
def test_the_expert_answers_everything(options):
    for task in EnvFactory(Search, options).tasks("test", 40):
        reward, step, _, _ = play(Search(**options), task, expert)
        assert reward == 1.0
        assert step.success
        assert step.info["reason"] == "answered"


def test_the_number_of_hops_is_what_was_asked_for():
    seen = set()
    for task in Search().tasks("train", 60):
        env = Search(hops="2-3")
        env.reset(task)
        seen.add(len(env.question.relations))
    assert seen == {2, 3}


def test_rewards_exact_and_graded():
    task = Search(hops="3").tasks("train", 1)[0]
    exact, graded = Search(hops="3"), Search(hops="3", reward="graded")
    for env, expected in ((exact, 0.0), (graded, 0.5 * 2 / 3)):  # two of three pages read, then a wrong answer
        env.reset(task)
        env.step(expert(env))
        env.step(expert(env))
        step = env.step(call_of("", "answer", text="nobody"))
        assert step.reward == pytest.approx(expected)
        assert not step.success
    for env in (Search(hops="3"), Search(hops="3", reward="graded")):
        env.reset(task)
        assert env.step(call_of("", "answer", text=env.question.answer)).reward == 1.0, "a right guess is a right answer"


def test_what_the_tools_say():
    env = Search(arithmetic=1.0)
    env.reset(env.tasks("train", 1)[0])
    person = next(iter(env.question.pages))
    page = env.step(call_of("", "search", query=f" {person} ")).observation[0].content
    assert page.splitlines()[0] == person
    assert page.splitlines()[1:] == [f"{k} {v}" for k, v in env.question.pages[person].items()]
    assert env.step(call_of("", "search", query="Nobody")).observation[0].content == "No page of Nobody."
    assert env.step(call_of("", "calculate", expression="12 + 3 * -4")).observation[0].content.startswith("error: cannot calculate")
    assert env.step(call_of("", "calculate", expression="12 + 3 * 4 - 1")).observation[0].content == "23"
    for bad in ("__import__('os')", "2 ** 99", "1 +", "1.5 + 1", "9" * 300):
        assert env.step(call_of("", "calculate", expression=bad)).observation[0].content.startswith("error")


def test_calculate_is_offered_only_where_it_may_be_needed():
    assert [t.name for t in Search().tools] == ["search", "answer"]
    assert [t.name for t in Search(arithmetic=0.1).tools] == ["search", "calculate", "answer"]


def test_the_reflection_says_what_the_log_shows_and_no_more():
    env = Search(hops="3")
    task = env.tasks("train", 1)[0]
    env.reset(task)
    first, second, third = env.question.relations
    start, a, b, answer = env.question.path
    assert env.reflect(()) == f"search {start} first."
    log = [*env.step(expert(env)).observation]
    assert env.reflect(tuple(log)) == f"{first} {a}, then {second}."
    log += env.step(expert(env)).observation
    assert env.reflect(tuple(log)) == f"{first} {a}, {second} {b}, then {third}."
    assert answer not in (env.reflect(tuple(log)) or ""), "what no page has shown yet is not told"
    log += env.step(expert(env)).observation
    assert env.reflect((Turn(role="user", content="?"), *log)) == f"{first} {a}, {second} {b}, {third} {answer}."


@pytest.mark.parametrize(
    "options", [{"hops": "0"}, {"hops": "3-2"}, {"hops": "x"}, {"facts": 0}, {"people": 3}, {"people": 8, "facts": 8}, {"arithmetic": 2}]
)
def test_impossible_options_are_refused_with_their_value(options):
    with pytest.raises(ConfigError, match=r"expected"):
        Search(**options)
