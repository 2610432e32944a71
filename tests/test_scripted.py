"""Scripted policies, mixtures, and finding policies by name."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from whet.agents import Agent
from whet.envs.base import Action, Env, EnvFactory, Step
from whet.errors import CheckpointError, ConfigError, MissingExtra, PolicyError
from whet.policies import EndpointPolicy, ExpertPolicy, MixedPolicy, Policy, RandomPolicy, ScriptedPolicy, load_policy
from whet.policies.base import Request
from whet.rollout import rollout
from whet.tools.function import tool
from whet.types import Task, ToolCall, Turn


class Door(Env):
    """Opens with the right number."""

    max_turns = 4

    def reset(self, task: Task) -> str:
        self.key = task.seed % 10
        return "A door."

    @tool
    def press(self, key: int) -> str:
        """Press a key."""
        return self.finish("open", reward=1.0) if key == self.key else "still shut"

    def expert(self, rng: random.Random) -> Action:
        return Action(text="I know.", tool_calls=(ToolCall(name="press", arguments={"key": self.key}),))

    def random_action(self, rng: random.Random) -> Action:
        return Action(tool_calls=(ToolCall(name="press", arguments={"key": rng.randrange(10)}),))


class Mute(Env):
    def reset(self, task: Task) -> str:
        return "?"

    def step(self, action: Action) -> Step:
        return Step(terminated=True)


DOOR, MUTE = EnvFactory(Door), EnvFactory(Mute)


def test_the_expert_opens_every_door_and_chance_few() -> None:
    tasks = DOOR.tasks("train", 200)
    expert = rollout(Agent(policy=ExpertPolicy()), DOOR, tasks)
    assert all(e.success and e.n_actions == 1 and e.tags["actor"] == "expert" for e in expert)
    turn = expert[0].turns[1]
    assert (turn.content, turn.tool_calls[0].name, turn.tool_calls[0].id, turn.tokens, turn.finish) == (
        "I know.",
        "press",
        "call_0",
        (),
        "stop",
    )
    assert expert[0].turns[2].call_id == "call_0"
    chance = rollout(Agent(policy=RandomPolicy()), DOOR, tasks)
    assert 0.2 < sum(e.success for e in chance) / 200 < 0.5, "1 - 0.9**4 = 0.34"
    assert [e.success for e in chance] == [e.success for e in rollout(Agent(policy=RandomPolicy()), DOOR, tasks)]


@pytest.mark.parametrize(("policy", "what"), [(ExpertPolicy(), "no expert"), (RandomPolicy(), "no random actions")])
def test_an_environment_without_one_is_named(policy: Policy, what: str) -> None:
    with pytest.raises(PolicyError, match=f"environment 'mute'.*{what}"):
        rollout(Agent(policy=policy), MUTE, MUTE.tasks("train", 2))


def test_a_script_gives_text_or_an_action_and_sees_the_live_environment() -> None:
    def script(request: Request, rng: random.Random) -> Action | str:
        assert isinstance(request.env, Door)
        if len(request.turns) == 1:
            return "thinking"
        return Action(tool_calls=(ToolCall(name="press", arguments={"key": request.env.key}, id="mine"),))

    (episode,) = rollout(Agent(policy=ScriptedPolicy(script, version="v2")), DOOR, DOOR.tasks("dev", 1))
    assert [t.content for t in episode.turns] == ["A door.", "thinking", "No tool call found. Call one of: press.", "", "open"]
    assert episode.turns[3].tool_calls[0].id == "mine"
    assert episode.policy == "v2"


def test_a_mixture_acts_by_each_of_its_parts() -> None:
    tasks = DOOR.tasks("train", 300)
    wrong = ScriptedPolicy(lambda request, rng: "no", version="wrong")
    share = []
    for p in (0.0, 0.3, 1.0):
        policy = MixedPolicy(ExpertPolicy(), wrong, p)
        episodes = rollout(Agent(policy=policy), DOOR, tasks)
        turns = [t for e in episodes for t in e.turns if t.trained]
        share.append(sum(bool(t.tool_calls) for t in turns) / len(turns))
    assert share[0] == 0.0
    assert 0.25 < share[1] < 0.35
    assert share[2] == 1.0
    assert policy.version == "1*expert+0*wrong"
    with pytest.raises(ConfigError, match=r"p is 1\.5"):
        MixedPolicy(ExpertPolicy(), wrong, 1.5)


def test_what_a_mixtures_second_part_writes_is_read_by_the_first() -> None:
    released = []

    class Tokens(ScriptedPolicy):
        def observe(self, turns: Any, new: Any, tools: Any) -> tuple[Turn, ...]:
            return tuple(Turn(role=t.role, content=t.content, tokens=tuple(t.content.encode())) for t in new)

        def release(self, session: str) -> None:
            released.append(session)

    policy = MixedPolicy(Tokens(lambda request, rng: ""), ScriptedPolicy(lambda request, rng: "written"), 0.0)
    (episode,) = rollout(Agent(policy=policy), MUTE, MUTE.tasks("train", 1))
    assert [t.tokens for t in episode.turns] == [tuple(b"?"), tuple(b"written")]
    assert len(released) == 1


def test_policies_are_policies() -> None:
    for policy in (
        ExpertPolicy(),
        RandomPolicy(),
        ScriptedPolicy(lambda request, rng: ""),
        MixedPolicy(ExpertPolicy(), RandomPolicy(), 0.5),
    ):
        assert isinstance(policy, Policy)


def test_policies_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert isinstance(load_policy("expert"), ExpertPolicy)
    assert isinstance(load_policy("random"), RandomPolicy)
    endpoint = load_policy("openai:org/model@v2@http://127.0.0.1:1/v1", timeout=3)
    assert isinstance(endpoint, EndpointPolicy)
    assert (endpoint.model, endpoint.base_url) == ("org/model@v2", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    plain = load_policy("openai:gpt-x")
    assert isinstance(plain, EndpointPolicy)
    assert (plain.version, plain.base_url) == ("gpt-x", None)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("exprt", {}, "unknown policy 'exprt'.*Did you mean 'expert'"),
        ("runs/mine/final", {}, "no model directory 'runs/mine/final'"),
        ("openai:", {}, "names no model"),
        ("openai:gpt-x", {}, "set OPENAI_API_KEY"),
        ("expert", {"dtype": "float32"}, "'expert' has no option 'dtype'"),
        ("openai:m@http://h/v1", {"timout": 1}, "Did you mean 'timeout'"),
    ],
)
def test_names_that_cannot_work(spec: str, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ConfigError, match=message):
        load_policy(spec, **options)


def test_a_directory_is_loaded_as_local_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_policy(str(tmp_path))
    with pytest.raises(ConfigError, match=r"no option 'dtyp'.*Did you mean 'dtype'"):
        load_policy(str(tmp_path), dtyp="float32")


def test_optional_packages_are_asked_for_when_they_are_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtra, match=r"pip install 'whet\[openai\]'"):
        load_policy("openai:m@http://h/v1")
    monkeypatch.delitem(sys.modules, "whet.policies.local", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("whet.policies.engine") or name == "whet.policies.loading"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtra, match=r"'torch'.*pip install 'whet\[train\]'"):
        load_policy(str(tmp_path))


def test_neither_torch_nor_openai_comes_with_the_room() -> None:
    script = "import sys, whet.policies, whet.rollout; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'openai')))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
