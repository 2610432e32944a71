"""What scripts of roles share: calls read from text, twins that go their own way, and the state that a prompt is about."""

from __future__ import annotations

import random

import pytest

from whet.envs.roles import after, ahead, behind, shown, twin
from whet.envs.search import Search, call_of
from whet.policies.forms import quote
from whet.transcript import calls_in, transcript
from whet.types import ToolCall, Turn


@pytest.fixture
def env():
    found = Search(hops="2")
    found.reset(found.tasks("train", 1)[0])
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("friend Otto search(query='Otto')", [("search", {"query": "Otto"})]),
        ("""search(query="O'tto") answer(text='a (b) c')""", [("search", {"query": "O'tto"}), ("answer", {"text": "a (b) c"})]),
        ("search(query='a\\'b')", []),
        ("search(query=Otto), research(query='x'), search('x'), fetch(query='x')", [("search", {})]),
        ("search(query='Otto'", []),
        ("search(query=__import__('os'))", []),
        ("answer(text=3)", [("answer", {"text": 3})]),
    ],
)
def test_calls_in_a_text(env, text, expected):
    assert [(call.name, dict(call.arguments)) for call in calls_in(text, env.tools)] == expected


def test_calls_survive_a_transcript(env):
    calls = [ToolCall(name="search", arguments={"query": value}) for value in ("Otto", 'say "x"', "it's", "(a) b")]
    turns = [Turn(role="user", content="search(query='no')"), *(Turn(role="assistant", tool_calls=(call,)) for call in calls)]
    prompt = Turn(role="user", content=quote("episode", transcript(turns)))
    assert [action.tool_calls for action in shown((prompt,), env)] == [(call,) for call in calls]
    assert [action.tool_calls for action in shown(tuple(turns), env)] == [(call,) for call in calls]


def test_a_twin_goes_its_own_way(env):
    other = twin(env)
    step = other.step(other.expert(random.Random(0)))
    assert step.observation
    assert (len(other._read), len(env._read)) == (1, 0)
    assert not behind(env, ())[0]._read
    env.step(env.expert(random.Random(0)))
    assert behind(env, ())[0]._read == env._read, "in the midst of an episode: as it stands"


def test_a_state_behind_actions_ends_where_the_episode_does(env):
    actions = ahead(env, random.Random(0))
    assert [action.tool_calls[0].name for action in actions] == ["search", "search", "answer"]
    assert ahead(env, random.Random(0), 1) == actions[:1]
    other, steps = after(env, [*actions, *actions])
    assert steps[-1].success
    assert len(steps) == 3
    assert other._read
    assert not env._read
    wrong = call_of("", "answer", text="nobody")
    assert len(after(env, [wrong, *actions])[1]) == 1
