"""Client: guides of three families, what is asked and answered, a policy in the client's role, and the other roles."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.agents import Agent
from whet.envs import Action, load_env
from whet.envs.client import ANSWERS, FAMILIES, LOST, TOPICS, Client, Guide, make_guide
from whet.envs.search import call_of
from whet.envs.words import THINGS
from whet.errors import ConfigError, EnvError
from whet.policies import ScriptedPolicy, load_policy
from whet.policies.ask import ask
from whet.policies.base import Request
from whet.policies.forms import YES_NO, quote
from whet.rewards.judges import prefer, rate
from whet.rollout import rollout
from whet.types import Turn

GUIDE = Guide(
    family="booking",
    subject="cake",
    topics={"ride": ("bus", "boat"), "carry": ("bag", "box"), "sit": ("door", "wall")},
    start="ride",
    leads={"bus": "carry", "boat": "sit", "bag": "key", "box": "map", "door": "key", "wall": "map"},
    wants={"ride": "bus", "carry": "box", "sit": "wall"},
)


def begun(guide: Guide | None = GUIDE, **options: Any) -> Client:
    env = Client(**options)
    env.reset(env.tasks("train", 1)[0])
    if guide:
        env.guide = guide
    return env


def say(env: Client, text: str) -> tuple[Any, Mapping[str, Any]]:
    step = env.step(Action(text=text))
    return step.observation, step.info


def send(env: Client, page: str) -> Any:
    return env.step(call_of("", "send", page=page))


# -- guides ------------------------------------------------------------------------------------------------------------------


def test_a_guide_as_it_is_shown_and_where_it_leads() -> None:
    lines = ["Guide", "start ride", "bus carry", "boat sit", "bag send key", "box send map", "door send key", "wall send map"]
    assert str(GUIDE).splitlines() == lines
    assert GUIDE.path == ("ride", "carry")
    assert GUIDE.page == "map"
    assert GUIDE.pages == ["key", "map"]
    assert GUIDE.opening == "I want cake."
    assert GUIDE.cut("bus") == "Guide\nbus carry"


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**40), st.sampled_from(sorted(FAMILIES)), st.integers(1, TOPICS))
def test_guides_are_graphs_without_cycles_in_which_this_client_is_asked_so_much(seed: int, family: str, steps: int) -> None:
    guide = make_guide(random.Random(seed), THINGS["train"], family, steps)
    assert len(guide.path) == steps
    assert guide.page in guide.pages
    assert len(guide.leads) == TOPICS * ANSWERS
    words = [*guide.topics, *guide.leads, *guide.pages, guide.subject]
    assert len(set(words)) == len(words), "no word has two meanings"
    for topic in guide.topics:
        seen, at = set(), [topic]
        while at:
            here = at.pop()
            seen.add(here)
            at += [n for answer in guide.topics[here] if (n := guide.leads[answer]) in guide.topics]
            assert topic not in at, "back where it began"


def test_the_families_differ_in_their_graphs() -> None:
    def ends(family: str) -> list[int]:
        """How many answers of each question are the end, over many guides; the last two questions are left out."""
        guides = [make_guide(random.Random(i), THINGS["dev"], family, 3) for i in range(60)]
        topics = [(g, t) for g in guides for t in list(g.topics)[:-2]]
        return [sum(g.leads[answer] not in g.topics for answer in g.topics[t]) for g, t in topics]

    def leads(family: str) -> float:
        """Share of questions that all answers but one lead to the same next one."""
        guides = [make_guide(random.Random(i), THINGS["dev"], family, 3) for i in range(60)]
        found = [[g.leads[answer] for answer in g.topics[t]] for g in guides for t in list(g.topics)[:-1]]
        return sum(len(set(each)) <= 2 for each in found) / len(found)

    assert sum(n >= 1 for n in ends("return")) == len(ends("return"))
    assert sum(n >= 1 for n in ends("repair")) < len(ends("repair"))
    assert leads("booking") == 1.0
    assert leads("repair") < 0.9


def test_the_words_of_the_splits_are_disjoint() -> None:
    for split in ("train", "dev", "test"):
        env = Client()
        for task in env.tasks(split, 20):
            env.reset(task)
            assert {*env.guide.topics, *env.guide.leads, *env.guide.pages, env.guide.subject} <= set(THINGS[split])


# -- episodes ----------------------------------------------------------------------------------------------------------------


def test_a_client_answers_what_is_asked_and_nothing_else() -> None:
    env = begun()
    observation, info = say(env, "Hello!")
    assert observation == LOST
    assert (info["subgoals"], info["of"]) == (0, 2)
    assert info["workflow"] == ["ride?", "bus, carry?", "box send map send(page='map')"]
    observation, info = say(env, "What about sit, or a Ride?")
    assert "bus" in observation, "the last word counts"
    assert info["subgoals"] == 1
    observation, info = say(env, "sit?")
    assert "wall" in observation, "asked in vain, and answered"
    assert info["subgoals"] == 1
    observation, _ = say(env, "bus, carry?")
    assert "box" in observation
    step = send(env, " map ")
    assert (step.reward, step.terminated, step.success) == (1.0, True, True)
    assert step.info["reason"] == "sent"
    with pytest.raises(EnvError, match="the episode of 'Client' is over"):
        env.step(Action(text="ride?"))


@pytest.mark.parametrize(("asked", "page", "expected"), [((), "map", 0.0), (("ride?",), "map", 0.25), (("ride?", "carry?"), "key", 0.5)])
def test_the_right_page_is_worth_nothing_to_one_who_did_not_ask(asked: tuple[str, ...], page: str, expected: float) -> None:
    for reward, value in (("exact", 0.0), ("graded", expected)):
        env = begun(reward=reward)
        for text in asked:
            say(env, text)
        step = send(env, page)
        assert step.reward == value
        assert step.terminated
        assert not step.success


def test_questions_out_of_order_are_no_subgoals() -> None:
    env = begun()
    assert say(env, "carry?")[1]["subgoals"] == 0
    assert say(env, "ride?")[1]["subgoals"] == 1
    assert not send(env, "map").success, "carry was asked before there was a reason to"


@pytest.mark.parametrize("options", ["", "steps=1", "steps=5", "steps=2-5,reward=graded"])
def test_the_expert_sends_the_right_page(options: str) -> None:
    env = load_env(f"client:{options}".rstrip(":"))
    for split in ("train", "dev"):
        episodes = rollout(Agent(load_policy("expert")), env, env.tasks(split, 30))
        assert all(episode.success for episode in episodes)
        assert all(episode.n_actions == episode.tags["info"]["of"] + 1 for episode in episodes)


@pytest.mark.parametrize("steps", ["0", "6", "3-2", "many"])
def test_impossible_options_are_refused_with_their_value(steps: str) -> None:
    with pytest.raises(ConfigError, match=f"steps is '{steps}'; expected a number from 1 to 5"):
        Client(steps=steps)


# -- who plays the client ------------------------------------------------------------------------------------------------------


def test_a_policy_plays_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Turn, ...]] = []

    def client(request: Request, rng: random.Random) -> str:
        seen.append(request.turns)
        return f"I would like {GUIDE.wants['ride']}, thank you"

    monkeypatch.setattr("whet.envs.client.player", lambda spec: ScriptedPolicy(client, version=spec))
    monkeypatch.setattr("whet.envs.client.make_guide", lambda *args: GUIDE)
    env = load_env("client:client=openai:MODEL")
    assert not env().replayable
    (episode,) = rollout(Agent(load_policy("expert")), env, env.tasks("train", 1))
    assert episode.success
    assert [turn.content for turn in episode.turns if turn.role == "user"][1:] == ["I would like bus, thank you"] * 2
    system, *talk = seen[1]
    assert "ride: bus, carry: box, sit: wall" in system.content
    assert [(turn.role, turn.content) for turn in talk] == [
        ("user", "Hello, what can I do for you?"),
        ("assistant", "I want cake."),
        ("user", "ride?"),
        ("assistant", "I would like bus, thank you"),
        ("user", "bus, carry?"),
    ]


def test_the_environments_own_script_is_such_a_policy() -> None:
    told = [
        rollout(Agent(load_policy("expert")), env, env.tasks("train", 6))
        for env in map(load_env, ("client", "client:client=script:client"))
    ]
    texts = [[[turn.content for turn in episode.turns] for episode in episodes] for episodes in told]
    assert texts[0] == texts[1]


# -- roles -------------------------------------------------------------------------------------------------------------------


def role(env: Client, name: str, *turns: Turn) -> Any:
    return env.role(name, turns, random.Random(0))


def test_the_node_is_where_the_conversation_stands() -> None:
    env = begun()
    assert role(env, "node") == "Guide\nstart ride"
    assert role(env, "agent").text == "ride?"
    shown = (Turn(role="user", content="I want cake."), Turn(role="assistant", content="ride?"), Turn(role="user", content="bus."))
    assert role(env, "node", *shown) == "Guide\nbus carry", "by what the prompt shows"
    say(env, "ride?")
    assert role(env, "node") == "Guide\nbus carry", "by the state, in the midst of an episode"
    say(env, "carry?")
    assert role(env, "node") == "Guide\nbox send map"
    assert role(env, "agent").tool_calls[0].arguments == {"page": "map"}
    assert role(env, "client", Turn(role="user", content="sit?")) in [
        form.format("wall") for form in ("{}.", "{} please.", "The {}.", "Make it {}.")
    ]
    assert role(env, "nobody") is None


def test_judges() -> None:
    env = load_env("client")
    tasks, judge = env.tasks("train", 8), load_policy("script:judge")
    right, wrong = (rollout(Agent(load_policy(name)), env, tasks, seed=1) for name in ("expert", "random"))
    assert [verdict.score for verdict in rate(right, judge, env=env)] == [5.0] * 8
    assert all((verdict.score or 0) < 4 for verdict in rate(wrong, judge, env=env))
    assert {preference.score for preference in prefer(list(zip(wrong, right)), judge, env=env)} == {0.0}


def test_a_judge_says_whether_a_step_is_done() -> None:
    env = load_env("client:steps=2")
    (task,) = env.tasks("train", 1)
    world = env()
    world.reset(task)
    first, second = world.guide.path
    talk = quote("episode", f"user: ...\nassistant: {first}?\nuser: ...")
    prompts = [(Turn(role="user", content=f"Did the assistant ask {topic}?\n\n{talk}\n\n{YES_NO.ask}"),) for topic in (first, second)]
    answers = ask(load_policy("script:judge"), prompts, env=env, tasks=[task] * 2)
    assert [answer.content for answer in answers if answer] == ["yes", "no"]
