"""Graders: what the environment paid, how many tool calls failed, and sums of both."""

import pytest

from whet import Agent, load_env
from whet.envs.base import Action
from whet.policies import ScriptedPolicy
from whet.rewards import environment, tool_failures, weighted
from whet.rollout import rollout
from whet.types import Episode, ToolCall


def episode(*calls: tuple[str, dict]) -> Episode:
    """One of Search in which these calls are made, one per turn."""
    env = load_env("search:hops=1")

    def act(request, rng):
        n = sum(turn.trained for turn in request.turns)
        return Action(tool_calls=(ToolCall(name=calls[n][0], arguments=calls[n][1], id="call_0"),))

    return rollout(Agent(ScriptedPolicy(act, version="script")), env, env.tasks("train", 1))[0]


def test_failed_calls_are_counted_whatever_was_wrong_with_them():
    tried = episode(("search", {"query": "Nobody"}), ("serch", {"query": "x"}), ("search", {"q": "x"}), ("answer", {"text": "x"}))
    assert environment(tried) == 0.0
    assert tool_failures(tried) == 2 / 4, "a page that does not exist is an answer; an unknown tool and a bad argument are failures"
    assert tool_failures(episode(("answer", {"text": "x"}))) == 0.0


def test_graders_add_up():
    tried = episode(("serch", {}), ("answer", {"text": "x"}))
    grader = weighted((2.0, lambda e: 1.0), (-0.5, tool_failures), (1.0, environment))
    assert grader(tried) == pytest.approx(2.0 - 0.25)
