"""LLM-TMBR: dialogues of three roles, and acting by decomposition, judgement and backtracking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers import small_talk, spied, tiny_policy
from whet.agents import Agent
from whet.agents.branching import DIVIDE, Branching, remaining
from whet.agents.buffer import BUFFER, planning
from whet.envs import roles
from whet.envs.again import again, take
from whet.envs.base import Action, Env, EnvFactory
from whet.errors import CannotReplay, ConfigError, PolicyError
from whet.methods.llm_tmbr import LLMTMBRConfig, llm_tmbr
from whet.policies import ScriptedPolicy, load_policy
from whet.policies.base import Request
from whet.policies.loop import run_sync
from whet.rollout import Prefix, rollout
from whet.rollout.roleplay import FEEDBACK, Cast, roleplay
from whet.runs import Run
from whet.tools.function import tool
from whet.types import Data, Stop, Task, ToolCall, Turn


class Mix(Env):
    """Pour two of three bottles into one glass, of which nothing comes out again; then serve."""

    instructions = "Mix green."
    max_turns = 6
    max_tokens = 16

    def reset(self, task: Task) -> str:
        self.glass: list[str] = []
        return "A glass."

    @tool
    def pour(self, colour: str) -> str:
        """Pour from a bottle."""
        self.glass.append(colour)
        return " and ".join(self.glass)

    @tool
    def serve(self) -> str:
        """Serve it."""
        return self.finish("thanks", reward=float(sorted(self.glass) == ["blue", "yellow"]))

    def expert(self, rng: Any) -> Action:
        left = [colour for colour in ("blue", "yellow") if colour not in self.glass]
        return Action(text="next", tool_calls=(call("pour", colour=left[0]) if left else call("serve"),))

    def role(self, role: str, turns: tuple[Turn, ...], rng: Any) -> str | None:
        return "Mix me a green one." if role == "question" else roles.speak(self, role, turns, rng)  # type: ignore[return-value]


class Stubborn(Mix):
    """Cannot be played again."""

    replayable = False


MIX = EnvFactory(Mix)
TASKS = MIX.tasks("train", 3)


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(name=name, arguments=arguments, id="call_0")


def pour(*colours: str) -> list[ToolCall]:
    return [call("pour", colour=colour) for colour in colours]


def in_turn(*calls: ToolCall, seen: list[tuple[str, ...]] | None = None) -> ScriptedPolicy:
    """Makes these calls one after the other, however often it is sent back; then it serves."""
    left = list(calls)

    def make(request: Request, rng: Any) -> Action:
        if seen is not None:
            seen.append(tuple(turn.content for turn in request.turns))
        return Action(text="hm", tool_calls=(left.pop(0) if left else call("serve"),))

    return ScriptedPolicy(make)


def plans(*plans: str, asked: list[str] | None = None) -> ScriptedPolicy:
    left = list(plans)

    def plan(request: Request, rng: Any) -> str:
        if asked is not None:
            asked.append(request.turns[-1].content)
        return left.pop(0) if left else "serve"

    return ScriptedPolicy(plan)


def judge(*, wants: dict[str, str], asked: list[str] | None = None) -> ScriptedPolicy:
    """Finds a subtask done when the episode that it is shown ends with these words."""

    def say(request: Request, rng: Any) -> str:
        question = request.turns[-1].content
        if asked is not None:
            asked.append(question)
        subtask = question.partition("?")[0].removeprefix("Is this subtask done: ")
        return "yes" if question.partition("\n</episode>")[0].endswith(wants[subtask]) else "no, not yet"

    return ScriptedPolicy(say)


WANTS = {"blue": "tool: blue", "yellow": "tool: blue and yellow", "serve": "tool: thanks"}


def played(flow: Branching, task: int = 0) -> tuple[list[str], Any]:
    (episode,) = rollout(Agent(flow), MIX, [TASKS[task]])
    calls = [c for turn in episode.turns for c in turn.tool_calls]
    return [" ".join([c.name, *c.arguments.values()]) for c in calls], episode


# -- acting ------------------------------------------------------------------------------------------------------------------


def test_a_wrong_branch_is_undone_and_another_one_is_taken() -> None:
    flow = Branching(
        planner=plans("blue\nyellow\nserve"), judge=judge(wants=WANTS), worker=in_turn(*pour("blue", "red", "yellow")), patience=1
    )
    calls, episode = played(flow)
    assert calls == ["pour blue", "pour yellow", "serve"], "the red one was poured in a copy alone"
    assert episode.success
    assert episode.cost.env_steps == 3 + 4, "three steps of the episode, and four in copies"


def test_the_next_branch_begins_in_the_state_before_the_subtask() -> None:
    seen: list[tuple[str, ...]] = []
    worker = in_turn(*pour("blue", "red", "red", "yellow"), seen=seen)
    flow = Branching(planner=plans("blue\nyellow\nserve"), judge=judge(wants=WANTS), worker=worker, patience=2)
    assert played(flow)[1].success
    begin = ("Mix green.", "A glass.")
    assert seen[0] == ("Mix green.", "A glass.\nSubtask: blue")
    assert seen[1] == seen[3] == (*begin, "hm", "blue", "Subtask: yellow")
    assert seen[2] == (*seen[1], "hm", "blue and red")


def test_without_a_judges_yes_the_last_branch_that_did_not_end_the_episode_is_kept_and_the_rest_planned_anew() -> None:
    asked: list[str] = []
    worker = in_turn(*pour("red", "blue"), call("serve"), *pour("yellow"))
    wants = {"yellow": "tool: never", "green": "tool: blue and yellow", "serve": "tool: thanks"}
    flow = Branching(
        planner=plans("yellow\nserve", "green\nserve", asked=asked), judge=judge(wants=wants), worker=worker, patience=1, branches=3
    )
    calls, episode = played(flow)
    assert calls == ["pour blue", "pour yellow", "serve"]
    assert asked == [DIVIDE.format(k=3)] * 2
    heads = [turn.content.partition("\ncalls:")[0] for turn in episode.turns if turn.trained]
    assert heads == ["plan:\n- yellow\n- serve\ngiven up: yellow", "plan:\n- green\n- serve\ndone: green", "done: serve"]


def test_a_branch_of_several_calls_is_played_out_of_the_buffer() -> None:
    flow = Branching(planner=plans("yellow"), judge=judge(wants=WANTS), worker=in_turn(*pour("blue", "yellow")), patience=4, told=False)
    calls, episode = played(flow)
    assert calls[:2] == ["pour blue", "pour yellow"]
    said = [turn.content for turn in episode.turns if turn.trained]
    assert said[0] == "plan:\n- yellow\ndone: yellow\ncalls:\nhm pour(colour='blue')\nhm pour(colour='yellow')"
    assert said[1] == f"{BUFFER}\nhm"


def test_a_plan_has_at_most_three_subtasks_and_is_made_anew_when_it_is_through() -> None:
    asked: list[str] = []
    planner = plans("- blue\n\n* yellow", "serve\nserve\nserve\nserve", asked=asked)
    _, episode = played(Branching(planner=planner, judge=judge(wants=WANTS), worker=in_turn(*pour("blue", "yellow")), patience=1))
    assert len(asked) == 2
    last = next(turn for turn in reversed(episode.turns) if turn.trained)
    assert last.content.splitlines()[:4] == ["plan:", "- serve", "- serve", "- serve"]


def test_the_judge_is_shown_the_episode_as_the_worker_acted_it() -> None:
    asked: list[str] = []
    worker = in_turn(*pour("blue", "yellow"))
    played(Branching(planner=plans("blue\nyellow\nserve"), judge=judge(wants=WANTS, asked=asked), worker=worker, patience=1))
    shown = "system: Mix green.\nuser: A glass.\nassistant: hm pour(colour='blue')\ntool: blue\nassistant: hm pour(colour='yellow')"
    assert f"<episode>\n{shown}\ntool: blue and yellow\n</episode>" in asked[1]


def test_what_is_left_of_a_plan_is_read_from_the_conversation() -> None:
    one = [Turn(role="assistant", tool_calls=tuple(pour("x")))]
    first = planning("plan:\n- a\n- b\n- c\ndone: a", one)
    second, given_up = planning("done: b", one), planning("given up: b", one)
    between = Turn(role="assistant", content=BUFFER, tool_calls=one[0].tool_calls)
    assert remaining([]) == []
    assert remaining([first]) == ["b", "c"]
    assert remaining([first, between, second]) == ["c"]
    assert remaining([first, given_up]) == []
    assert remaining([first, second, planning("done: c", one)]) == []


def test_a_fork_goes_on_where_the_episode_was() -> None:
    flow = Branching(
        planner=plans("blue\nyellow\nserve"), judge=judge(wants=WANTS), worker=in_turn(*pour("blue", "red", "yellow")), patience=1
    )
    _, episode = played(flow)
    mute = Branching(planner=plans("red"), judge=judge(wants=WANTS), worker=in_turn(*pour("yellow")), patience=1)
    (again_,) = rollout(Agent(mute), MIX, [TASKS[0]], prefix=[Prefix.of(episode, actions=1)])
    assert [turn.content for turn in again_.turns] == [turn.content for turn in episode.turns]


def test_a_worker_without_a_call_speaks_for_itself() -> None:
    mute = ScriptedPolicy(lambda request, rng: "I cannot.")
    (episode,) = rollout(Agent(Branching(planner=plans("blue"), judge=judge(wants=WANTS), worker=mute, patience=1)), MIX, TASKS[:1])
    assert {turn.content for turn in episode.turns if turn.trained} == {"I cannot."}


def test_calls_that_no_tool_takes_stay_in_the_copy() -> None:
    worker = in_turn(call("drink"), call("pour", amount=1), *pour("blue"))
    calls, _ = played(Branching(planner=plans("blue"), judge=judge(wants=WANTS), worker=worker, patience=3))
    assert calls[0] == "pour blue"


def test_only_what_can_be_played_again_can_be_gone_back_in() -> None:
    env = EnvFactory(Stubborn)
    flow = Branching(planner=plans("blue"), judge=judge(wants=WANTS), worker=in_turn())
    with pytest.raises(CannotReplay, match="'stubborn' cannot replay"):
        rollout(Agent(flow), env, env.tasks("train", 1))

    async def outside() -> None:
        async with again(Mix(), ()):
            pass

    with pytest.raises(PolicyError, match="an episode that is under way"):
        run_sync(outside())


def test_a_copy_is_where_the_conversation_is_and_goes_its_own_way() -> None:
    found: list[Any] = []

    class Look(Branching):
        async def act(self, desk: Any) -> Turn:
            if any(turn.trained for turn in desk.turns):
                async with again(desk.request.env, desk.turns) as copy:
                    await take(copy, Turn(role="assistant", tool_calls=tuple(pour("red"))))
                    found.append((copy.glass, desk.request.env.glass))  # type: ignore[attr-defined]
                return Turn(role="assistant", tool_calls=(call("serve"),))
            return Turn(role="assistant", tool_calls=tuple(pour("blue")))

    rollout(Agent(Look(planner=plans(), judge=judge(wants={}), worker=in_turn())), MIX, TASKS[:1])
    assert found == [(["blue", "red"], ["blue"])]


# -- dialogues ------------------------------------------------------------------------------------------------------------


def cast(**played: Any) -> Cast:
    return Cast(**{role: load_policy(f"script:{name}") for role, name in ROLES.items()} | played)


ROLES = {"question": "question", "maker": "actor", "environment": "environment"}


def test_three_roles_make_a_dialogue() -> None:
    (one, *_) = roleplay(cast(), MIX, TASKS, seed=0, tag="d")
    assert [(turn.role, turn.content) for turn in one.turns] == [
        ("system", "Mix green."),
        ("user", "Mix me a green one."),
        ("assistant", "next"),
        ("tool", "blue"),
        ("assistant", "next"),
        ("tool", "blue and yellow"),
        ("assistant", "next"),
    ]
    assert (one.stop, one.reason, one.success, one.cost.episodes, one.cost.env_steps) == (Stop.TERMINATED, "done", True, 1, 0)
    assert one.tags["roles"] == {"question": "script:question", "maker": "script:actor", "environment": "script:environment"}


def test_a_model_that_is_the_environment_is_asked_for_what_comes_of_the_action() -> None:
    asked: list[tuple[str, ...]] = []

    def world(request: Request, rng: Any) -> str:
        asked.append(tuple(turn.content for turn in request.turns))
        return ["It foams.", "`Done`."][min(len(asked) - 1, 1)]

    maker = ScriptedPolicy(lambda request, rng: "I stir.")
    (one,) = roleplay(cast(maker=maker, environment=ScriptedPolicy(world)), MIX, TASKS[:1], seed=0, tag="d")
    assert [turn.content for turn in one.turns[2:]] == ["I stir.", "It foams.", "I stir."]
    assert [turn.role for turn in one.turns[2:]] == ["assistant", "user", "assistant"]
    assert asked[0] == ("Mix green.", "Mix me a green one.", "I stir.", FEEDBACK)
    assert one.success


@pytest.mark.parametrize(
    ("said", "actions", "stop", "reason"), [("over", 1, Stop.TERMINATED, "over"), ("Nothing.", 6, Stop.TRUNCATED, "max_turns")]
)
def test_a_dialogue_that_fails_or_goes_on_for_too_long_is_no_success(said: str, actions: int, stop: Stop, reason: str) -> None:
    world = ScriptedPolicy(lambda request, rng: said)
    (one,) = roleplay(cast(environment=world), MIX, TASKS[:1], seed=0, tag="d")
    assert (one.n_actions, one.stop, one.reason, one.success) == (actions, stop, reason, False)


def test_dialogues_take_no_steps_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: Any, action: Action) -> Any:
        raise AssertionError("the environment agent is the environment")

    monkeypatch.setattr(Mix, "step", forbidden)
    says = ScriptedPolicy(lambda request, rng: "done")
    roleplay(Cast(question=says, maker=says, environment=says), MIX, TASKS, seed=0, tag="d")


# -- the method ---------------------------------------------------------------------------------------------------------------


def improved(run: Run | None = None, **options: Any) -> Agent[Any]:
    cfg = LLMTMBRConfig(**{"epochs": 1, "batch_size": 4, "lr": 1e-2, **options})
    data = Data(train=TASKS, general=small_talk())
    return llm_tmbr(Agent(tiny_policy(seed=1)), data, env=MIX, run=run or Run.scratch(), cfg=cfg)


@pytest.mark.slow
def test_it_is_tuned_on_dialogues_that_were_done_and_on_general_conversations(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = spied(monkeypatch)
    run = Run.scratch()
    improved(run, mix=0.5, epochs=120)
    given = [row for batch in batches for row in batch]
    own = sum("dialogues/" in row.origin for row in given)
    assert len(given) >= 200
    assert abs(own / len(given) - 0.5) < 4 * (0.25 / len(given)) ** 0.5
    assert [event["scripted"] for event in run.events("roles")] == [
        {**{role: f"script:{name}" for role, name in ROLES.items()}, "planner": "script:plan", "judge": "script:judge"}
    ]


def test_the_tuned_model_may_plan_and_judge_for_itself(tmp_path: Path) -> None:
    better = improved(planner="self", judge="self")
    assert better.policy.planner is better.policy.judge is better.policy.worker
    better.policy.save(tmp_path / "flow")
    loaded = load_policy(str(tmp_path / "flow"))
    assert isinstance(loaded, Branching)
    assert loaded.planner is loaded.worker


def test_without_branching_the_tuned_model_acts_alone() -> None:
    assert not isinstance(improved(branching=False).policy, Branching)


def test_a_share_outside_of_its_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="mix is 0"):
        LLMTMBRConfig(mix=0.0)
    with pytest.raises(ConfigError, match="branches"):
        Branching(planner=plans(), judge=judge(wants={}), worker=in_turn(), branches=0)
