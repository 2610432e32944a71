"""Roles played by scripts, questions about tasks, control strings, and policies made of policies."""

import json
from dataclasses import dataclass

import pytest

from helpers import tiny_policy
from whet import Agent, Env, evaluate, tool
from whet.envs.base import EnvFactory
from whet.errors import CheckpointError, ConfigError, PolicyError
from whet.policies import load_policy
from whet.policies.base import Policy, Sampling
from whet.policies.scripted import ScriptedPolicy
from whet.policies.workflow import Desk, Workflow, load_workflow
from whet.rollout import Limits, Prefix, ask, rollout
from whet.types import ToolCall, Turn


class Door(Env):
    """Say the word on the door."""

    instructions = "Open the door."
    max_turns = 3

    def reset(self, task):
        self.word = f"w{task.seed % 7}"
        return f"The word is {self.word}."

    @tool
    def say(self, word: str) -> str:
        "Say a word."
        return self.finish("open", reward=float(word == self.word)) if word == self.word else "Nothing happens."

    def role(self, role, turns, rng):
        if role == "judge":
            return f"{len(turns)} {self.word} {turns[-1].content}"
        return None


@dataclass(frozen=True)
class PlanAct(Workflow):
    planner: Policy
    actor_: Policy
    times: int = 2
    words: tuple[str, ...] = ("a",)

    async def act(self, desk: Desk) -> Turn:
        plan = await desk.ask("planner", (*desk.turns, Turn(role="user", content="What now?")))
        for _ in range(self.times - 1):
            plan = await desk.ask("planner", (*desk.turns, Turn(role="user", content=f"Sure of {plan.content}?")))
        return await desk.ask("actor_", (*desk.turns, Turn(role="user", content=plan.content)), tools=desk.tools)


def read_word(request, rng):
    return next(t.content for t in request.turns if t.content.startswith("The word is")).removeprefix("The word is ").rstrip(".")


def say_last(request, rng):
    assert [t.name for t in request.tools] == ["say"]
    from whet.envs.base import Action

    return Action(tool_calls=(ToolCall(name="say", arguments={"word": request.turns[-1].content}),))


ENV = EnvFactory(Door)
TASKS = ENV.tasks("train", 3)


def test_a_role_is_played_by_the_environment_at_the_task():
    prompts = [(Turn(role="user", content="Good?"),)] * 3
    answers = ask(load_policy("script:judge"), prompts, env=ENV, tasks=TASKS)
    assert [a.content for a in answers] == [f"1 w{task.seed % 7} Good?" for task in TASKS]


def test_a_role_without_a_script_says_who_could_play_it():
    with pytest.raises(PolicyError, match="'door' has no script for the role 'client'"):
        ask(load_policy("script:client"), [(Turn(role="user", content="Hi"),)], env=ENV, tasks=TASKS[:1])
    with pytest.raises(PolicyError, match=r"environment '\(none\)'"):
        ask(load_policy("script:judge"), [(Turn(role="user", content="Hi"),)])
    with pytest.raises(ConfigError, match="one for each"):
        ask(load_policy("script:judge"), [(Turn(role="user", content="Hi"),)], env=ENV, tasks=TASKS)


@pytest.mark.parametrize(("spec", "text"), [("script:", "names no role"), ("expert@much", "names no skill"), ("expert@2", "probability")])
def test_wrong_names_of_scripts(spec, text):
    with pytest.raises(ConfigError, match=text):
        load_policy(spec)


def test_a_noisy_expert_keeps_its_name():
    assert load_policy("expert@0.8").version == "expert@0.8"


def test_a_suffix_follows_the_first_observation_and_replays():
    agent = Agent(ScriptedPolicy(lambda request, rng: "hm"), suffix="Do it well.")
    episode = rollout(agent, ENV, TASKS[:1])[0]
    assert episode.turns[1].content == f"The word is w{TASKS[0].seed % 7}.\nDo it well."
    plain = rollout(agent.replace(suffix=""), ENV, TASKS[:1])[0]
    assert plain.tags["prompt"] != episode.tags["prompt"]
    again = rollout(agent, ENV, TASKS[:1], prefix=[Prefix.of(episode, actions=1)])[0]
    assert [t.content for t in again.turns] == [t.content for t in episode.turns]


def test_a_workflow_asks_its_parts_in_its_own_words():
    heard = []

    def planner(request, rng):
        heard.append(request.turns[-1].content)
        return read_word(request, rng)

    flow = PlanAct(ScriptedPolicy(planner), ScriptedPolicy(say_last))
    episodes = rollout(Agent(flow), ENV, TASKS)
    assert all(e.success for e in episodes)
    assert sorted(heard)[0].startswith("Sure of w")
    assert len(heard) == 6
    # what the parts were told is not part of the episode
    assert [t.role for t in episodes[0].turns] == ["system", "user", "assistant", "tool"]
    assert episodes[0].tags["actor"] == "mixed"


def test_a_workflow_is_scripted_where_a_part_is() -> None:
    model, script = tiny_policy(), ScriptedPolicy(say_last)
    assert PlanAct(model, model).actor == PlanAct(model, PlanAct(model, model)).actor == "workflow"
    assert PlanAct(model, script).actor == PlanAct(model, PlanAct(script, model)).actor == "mixed"
    for flow, labelled in ((PlanAct(model, model), False), (PlanAct(model, script), True)):
        assert evaluate(Agent(flow), ENV, TASKS[:1], limits=Limits(max_error_rate=1.0)).scripted is labelled


def test_a_workflow_counts_what_its_parts_cost_and_frees_their_caches():
    base = load_policy("base")
    flow = PlanAct(base, base, times=1)
    agent = Agent(flow, sampling=Sampling(max_tokens=4))
    episodes = rollout(agent, ENV, TASKS, seed=3)
    assert all(0 < e.cost.sampled_tokens <= 8 * e.n_actions for e in episodes)
    assert all(not t.tokens for e in episodes for t in e.turns)
    again = rollout(agent, ENV, TASKS, seed=3)
    assert [[t.content for t in e.turns] for e in again] == [[t.content for t in e.turns] for e in episodes]


def test_a_workflow_on_disk(tmp_path):
    base = load_policy("base")
    PlanAct(base, load_policy("expert@0.8"), times=3, words=("b", "c")).save(tmp_path / "flow")
    found = load_policy(str(tmp_path / "flow"))
    assert isinstance(found, PlanAct)
    assert (found.times, found.words) == (3, ("b", "c"))
    assert found.planner.version == base.version
    assert found.actor_.version == "expert@0.8"
    PlanAct(base, base).save(tmp_path / "shared")
    assert not (tmp_path / "shared" / "actor_").exists()  # one policy in two parts is written once
    shared = load_workflow(tmp_path / "shared")
    assert shared.actor_ is shared.planner


def test_a_damaged_workflow_is_refused(tmp_path):
    (tmp_path / "workflow.json").write_text(json.dumps({"class": "whet.types:Turn", "parts": {}, "options": {}}))
    with pytest.raises(CheckpointError, match="no workflow"):
        load_policy(str(tmp_path))
