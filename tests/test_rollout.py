"""Rollouts: order, seeds, every way to stop, deadlines, retries, waves, replay, interruption."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest

from whet.agents import Agent
from whet.envs.base import Action, Env, EnvFactory, Step
from whet.errors import CannotReplay, ConfigError, ContextFull, EnvError, PolicyError, PolicyUnavailable, SplitError
from whet.policies.base import Request
from whet.policies.gate import current_gate
from whet.policies.scripted import ScriptedPolicy
from whet.rollout import Limits, Prefix, arollout, arollout_groups, rollout, rollout_groups
from whet.seeding import derive_seed
from whet.tools.function import tool
from whet.types import Cost, Episode, Stop, Task, ToolCall, Turn, chain


class Walk(Env):
    """Counts the actions up to `goal`. Class attributes count what happens to all of them."""

    name = "walk"
    instructions = "Walk."
    max_turns = 12
    closed: ClassVar[Counter[str]] = Counter()

    def __init__(self, goal: int = 3) -> None:
        self.goal, self.at = goal, 0

    def reset(self, task: Task) -> str:
        self.task = task
        return f"start {task.seed % 97}"

    def step(self, action: Action) -> Step:
        self.at += 1
        done = self.at >= self.goal
        return Step(observation=f"at {self.at} after {action.text}", reward=1.0 if done else 0.25, terminated=done, success=done)

    def close(self) -> None:
        Walk.closed[self.task.id if hasattr(self, "task") else "unborn"] += 1


def agent_of(function: Any = lambda request, rng: "go", **options: Any) -> Agent[Any]:
    return Agent(policy=ScriptedPolicy(function), **options)


AGENT = agent_of()
QUICK = Limits(step_s=0.2, reset_s=0.2, turn_s=0.2, close_s=0.2, retries=0, max_error_rate=1.0)


def tasks_of(env: EnvFactory, n: int, split: Any = "train") -> tuple[Task, ...]:
    return env.tasks(split, n)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Walk.closed.clear()


class Sink:
    def __init__(self) -> None:
        self.saved: list[Episode] = []
        self.tags: set[str] = set()
        self.cost = Cost()

    def save_episodes(self, episodes: Any, tag: str) -> None:
        self.saved += episodes
        self.tags.add(tag)

    def spend(self, cost: Cost) -> None:
        self.cost += cost


# -- records ---------------------------------------------------------------------------------------------------------


def test_an_episode_records_what_happened() -> None:
    env = EnvFactory(Walk)
    (episode,) = rollout(AGENT, env, tasks_of(env, 1), seed=5, tag="try")
    task = episode.task
    assert [(t.role, t.content, t.reward) for t in episode.turns] == [
        ("system", "Walk.", 0.0),
        ("user", f"start {task.seed % 97}", 0.0),
        ("assistant", "go", 0.25),
        ("user", "at 1 after go", 0.0),
        ("assistant", "go", 0.25),
        ("user", "at 2 after go", 0.0),
        ("assistant", "go", 1.0),
        ("user", "at 3 after go", 0.0),
    ]
    assert [t.parent for t in episode.turns] == [None, *range(7)]
    assert (episode.stop, episode.reason, episode.reward, episode.success) == (Stop.TERMINATED, "terminated", 1.5, True)
    assert episode.id == f"try/{task.id}#0"
    assert episode.seed == derive_seed(5, task.id, 0)
    assert (episode.policy, episode.error, episode.ok) == ("script", None, True)
    assert (episode.cost.episodes, episode.cost.env_steps) == (1, 3)
    assert episode.cost.seconds > 0
    assert (episode.tags["tag"], episode.tags["actor"], episode.tags["temperature"]) == ("try", "script", 1.0)
    assert Walk.closed == {task.id: 1}


def test_the_prompt_tag_tells_prompts_apart() -> None:
    env = EnvFactory(Walk)
    one, two = tasks_of(env, 2)
    plain = rollout(AGENT, env, [one, two])
    hinted = rollout(AGENT.replace(memory={one.id: ("turn left",)}), env, [one, two])
    told = rollout(AGENT.replace(instructions="Hurry."), env, [one])
    hashes = [e.tags["prompt"] for e in (*plain, *hinted, *told)]
    assert hashes[0] == hashes[1] == hashes[3]
    assert len({hashes[0], hashes[2], hashes[4]}) == 3
    assert hinted[0].turns[1].content.startswith("Hint: turn left\n")


def test_order_is_by_task_whatever_finishes_first() -> None:
    class Uneven(Walk):
        name = "uneven"

        def step(self, action: Action) -> Step:
            self.goal = 1 + self.task.seed % 9
            return super().step(action)

    env = EnvFactory(Uneven)
    tasks = tasks_of(env, 20)
    sink = Sink()
    episodes = rollout(AGENT, env, tasks, n=3, limits=Limits(in_flight=7), run=sink, tag="t")
    assert [e.id for e in episodes] == [f"t/{task.id}#{i}" for task in tasks for i in range(3)]
    assert len({e.seed for e in episodes}) == 60
    assert sorted(e.id for e in sink.saved) == sorted(e.id for e in episodes)
    assert [e.id for e in sink.saved] != [e.id for e in episodes], "streaming should let short episodes overtake long ones"
    assert sink.cost == sum((e.cost for e in sink.saved), Cost())
    assert sink.tags == {"t"}


def test_seconds_are_shares_that_add_up_to_the_rollouts_own() -> None:
    class Slow(Walk):
        def step(self, action: Action) -> Step:
            time.sleep(0.002)
            return super().step(action)

    env = EnvFactory(Slow)
    began = time.perf_counter()
    episodes = rollout(AGENT, env, tasks_of(env, 30), limits=Limits(in_flight=10))
    took = time.perf_counter() - began
    assert 0.8 * took < sum(e.cost.seconds for e in episodes) <= took


def test_groups_hold_the_episodes_of_their_task() -> None:
    env = EnvFactory(Walk)
    tasks = tasks_of(env, 3)
    groups = rollout_groups(AGENT, env, tasks, n=4, seed=1)
    assert [g.task for g in groups] == list(tasks)
    assert all(len(g.episodes) == 4 and {e.task.id for e in g.episodes} == {g.task.id} for g in groups)
    assert [e.seed for g in groups for e in g.episodes] == [e.seed for e in rollout(AGENT, env, tasks, n=4, seed=1)]


def test_a_task_listed_twice_counts_its_attempts_on() -> None:
    env = EnvFactory(Walk)
    (task,) = tasks_of(env, 1)
    assert [e.id for e in rollout(AGENT, env, [task, task], n=2)] == [f"{task.id}#{i}" for i in range(4)]


def test_each_turn_has_its_own_seed_and_repeats_with_it() -> None:
    env = EnvFactory(Walk)
    agent = agent_of(lambda request, rng: f"go {rng.random()}")
    first, again, other = (rollout(agent, env, tasks_of(env, 3), n=2, seed=seed) for seed in (1, 1, 2))
    texts = [[t.content for e in episodes for t in e.turns if t.trained] for episodes in (first, again, other)]
    assert texts[0] == texts[1]
    assert len(set(texts[0] + texts[2])) == 36


def test_requests_carry_the_environments_and_the_agents_settings() -> None:
    seen: list[Request] = []

    def script(request: Request, rng: random.Random) -> str:
        seen.append(request)
        return "go"

    from whet.policies.base import Sampling

    env = EnvFactory(Walk)
    rollout(agent_of(script), env, tasks_of(env, 1))
    rollout(agent_of(script, sampling=Sampling(max_tokens=7, temperature=0.5)), env, tasks_of(env, 1))
    assert {r.max_tokens for r in seen[:3]} == {Walk.max_tokens}
    assert {r.max_tokens for r in seen[3:]} == {7}
    assert [len(r.turns) for r in seen[:3]] == [2, 4, 6]
    assert len({r.session for r in seen}) == 2, "sessions are told apart even where ids are the same"


def test_no_tasks_no_episodes_and_n_must_be_positive() -> None:
    env = EnvFactory(Walk)
    assert rollout(AGENT, env, []) == []
    with pytest.raises(ConfigError, match="n is 0"):
        rollout(AGENT, env, tasks_of(env, 1), n=0)
    with pytest.raises(ConfigError, match=r"Limits\.step_s is -1"):
        Limits(step_s=-1)
    with pytest.raises(ConfigError, match="in_flight"):
        Limits(in_flight=0)


def test_test_tasks_are_refused() -> None:
    env = EnvFactory(Walk)
    tasks = tasks_of(env, 1, "test")
    with pytest.raises(SplitError, match=tasks[0].id):
        rollout(AGENT, env, tasks)
    assert rollout(AGENT, env, tasks, allow_test=True)[0].ok
    assert rollout(AGENT, env, tasks_of(env, 1, "dev"))[0].ok


# -- ways to stop ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "stop", "reason"),
    [
        (Step(terminated=True, info={"reason": "answered"}), Stop.TERMINATED, "answered"),
        (Step(truncated=True), Stop.TRUNCATED, "truncated"),
        (Step(truncated=True, info={"reason": "clock"}), Stop.TRUNCATED, "clock"),
        (Step(terminated=True, truncated=True), Stop.TERMINATED, "terminated"),
        (Step(observation="more"), Stop.TRUNCATED, "max_turns"),
    ],
)
def test_how_an_episode_stops(step: Step, stop: Stop, reason: str) -> None:
    class Fixed(Walk):
        max_turns = 3

        def step(self, action: Action) -> Step:
            return step

    env = EnvFactory(Fixed)
    (episode,) = rollout(AGENT, env, tasks_of(env, 1))
    assert (episode.stop, episode.reason, episode.ok) == (stop, reason, True)
    assert episode.n_actions == (3 if reason == "max_turns" else 1)


def test_a_full_context_truncates() -> None:
    def script(request: Request, rng: random.Random) -> str:
        if len(request.turns) > 4:
            raise ContextFull("no room")
        return "go"

    env = EnvFactory(Walk)
    (episode,) = rollout(agent_of(script), env, tasks_of(env, 1))
    assert (episode.stop, episode.reason, episode.n_actions, episode.reward) == (Stop.TRUNCATED, "context", 2, 0.5)


def test_a_turn_cut_by_its_token_limit_still_reaches_the_environment() -> None:
    class Cut(ScriptedPolicy):
        async def generate(self, request: Request) -> Turn:
            return Turn(role="assistant", content="half a tho", finish="length", cost=Cost(prompt_tokens=7, sampled_tokens=3, seconds=99))

    env = EnvFactory(Walk)
    (episode,) = rollout(Agent(policy=Cut(lambda request, rng: "")), env, tasks_of(env, 1))
    assert episode.turns[3].content == "at 1 after half a tho"
    assert episode.turns[2].finish == "length"
    assert (episode.cost.prompt_tokens, episode.cost.sampled_tokens) == (21, 9)
    assert episode.cost.seconds < 9


# -- failures ----------------------------------------------------------------------------------------------------------


class Flaky(Walk):
    """Breaks in `where` for the tasks whose number is among `bad`, in the first `times` tries at each."""

    name = "flaky"
    tries: ClassVar[Counter[str]] = Counter()

    def __init__(self, where: str = "step", bad: tuple[int, ...] = (1,), times: int = 99, hang: float = 0.0) -> None:
        super().__init__()
        self.where, self.bad, self.times, self.hang = where, bad, times, hang

    def _maybe(self, where: str) -> None:
        key = f"{where} {self.task.id}"
        if where != self.where or int(self.task.id.rsplit("/")[-1]) not in self.bad:
            return
        Flaky.tries[key] += 1
        if Flaky.tries[key] > self.times:
            return
        if self.hang:
            time.sleep(self.hang)
        else:
            raise ConnectionError("the shop is closed")

    def reset(self, task: Task) -> str:
        observation = super().reset(task)
        self._maybe("reset")
        return observation

    def step(self, action: Action) -> Step:
        self._maybe("step")
        return super().step(action)


class Outside(Flaky):
    name = "outside"
    inline = False


@pytest.fixture(autouse=True)
def _no_tries() -> None:
    Flaky.tries.clear()


@pytest.mark.parametrize("where", ["reset", "step"])
@pytest.mark.parametrize("cls", [Flaky, Outside])
def test_a_broken_episode_is_a_record_and_leaves_its_siblings_alone(cls: type[Flaky], where: str) -> None:
    env = EnvFactory(cls, {"where": where})
    tasks = tasks_of(env, 6)
    episodes = rollout(AGENT, env, tasks, limits=QUICK)
    assert [e.ok for e in episodes] == [True, False, True, True, True, True]
    broken = episodes[1]
    assert (broken.stop, broken.reason, broken.success, broken.cost.episodes) == (Stop.ERROR, "ConnectionError", False, 1)
    assert broken.error is not None
    for part in (env.name, tasks[1].id, where, "ConnectionError: the shop is closed", "_maybe"):
        assert part in broken.error
    assert "rollout/calls.py" not in broken.error, "only the environment's own lines are of interest"
    assert set(Walk.closed) == {task.id for task in tasks}


@pytest.mark.parametrize("cls", [Flaky, Outside])
def test_what_breaks_once_is_tried_again_from_the_start(cls: type[Flaky]) -> None:
    env = EnvFactory(cls, {"times": 1})
    episodes = rollout(AGENT, env, tasks_of(env, 3), limits=Limits(retries=1))
    assert all(e.ok and e.reward == 1.5 for e in episodes)
    assert [e.cost.env_steps for e in episodes] == [3, 4, 3], "a lost step was still taken"
    assert [e.tags.get("attempts") for e in episodes] == [None, 2, None]
    assert [Walk.closed[e.task.id] for e in episodes] == [1, 2, 1]


def test_retries_are_counted_and_end() -> None:
    env = EnvFactory(Flaky, {"where": "reset"})
    episodes = rollout(AGENT, env, tasks_of(env, 3), limits=Limits(retries=3))
    assert [e.ok for e in episodes] == [True, False, True]
    assert Flaky.tries == {"reset flaky/train/1": 4}


@pytest.mark.parametrize("where", ["reset", "step"])
@pytest.mark.parametrize("cls", [Flaky, Outside])
def test_a_call_that_hangs_is_given_up_at_its_deadline(cls: type[Flaky], where: str) -> None:
    env = EnvFactory(cls, {"where": where, "hang": 1.5})
    tasks = tasks_of(env, 5)
    began = time.perf_counter()
    episodes = rollout(AGENT, env, tasks, limits=QUICK)
    assert time.perf_counter() - began < 1.2
    assert [e.ok for e in episodes] == [True, False, True, True, True]
    hung = episodes[1]
    assert hung.reason == f"{where}_deadline"
    assert hung.error is not None
    assert f"still running after 0.2 s (Limits.{where}_s)" in hung.error
    assert tasks[1].id in hung.error
    assert "time.sleep(self.hang)" in hung.error, "the message shows where it hangs"
    assert Walk.closed[tasks[1].id] == 1
    assert Flaky.tries[f"{where} {tasks[1].id}"] == 1, "a deadline is not tried again"


def test_a_coroutine_that_hangs_and_will_not_be_cancelled_is_abandoned() -> None:
    class Stubborn(Walk):
        async def step(self, action: Action) -> Step:  # type: ignore[override]
            if self.task.id.endswith("/1"):
                for _ in range(10):
                    try:
                        await asyncio.sleep(0.4)
                    except asyncio.CancelledError:
                        continue
            return Walk.step(self, action)

    env = EnvFactory(Stubborn)
    episodes = rollout(AGENT, env, tasks_of(env, 3), limits=QUICK)
    assert [(e.stop, e.reason) for e in episodes] == [
        (Stop.TERMINATED, "terminated"),
        (Stop.ERROR, "step_deadline"),
        (Stop.TERMINATED, "terminated"),
    ]


def test_a_policy_that_hangs_and_an_episode_that_lasts_too_long() -> None:
    class Sleepy(ScriptedPolicy):
        async def generate(self, request: Request) -> Turn:
            await asyncio.sleep(5 if "start 0" in request.turns[1].content else 0.03)
            return Turn(role="assistant", content="go")

    env = EnvFactory(Walk, {"goal": 10})
    tasks = [Task(id=f"walk/{seed}", env="walk", split="train", seed=seed) for seed in (0, 1)]
    agent = Agent(policy=Sleepy(lambda request, rng: ""))
    hung, fine = rollout(agent, env, tasks, limits=QUICK)
    assert (hung.reason, fine.reason) == ("turn_deadline", "terminated")
    assert hung.error is not None
    assert "the policy's turn 1" in hung.error
    limits = Limits(episode_s=0.15, retries=0, max_error_rate=1.0)
    with pytest.raises((EnvError, PolicyError), match=r"still running after 0\.15 s \(Limits\.episode_s\)"):
        rollout(agent, env, tasks[1:], limits=limits)


def test_a_policys_faults_are_told_apart() -> None:
    calls: Counter[str] = Counter()

    def script(request: Request, rng: random.Random) -> str:
        kind = request.turns[1].content
        calls[kind] += 1
        if kind == "start 1":
            raise PolicyError("refused")
        if kind == "start 2" and calls[kind] == 1:
            raise PolicyUnavailable("overloaded")
        if kind == "start 3" and calls[kind] == 1:
            raise ConnectionResetError("gone")
        return "go"

    env = EnvFactory(Walk)
    tasks = [Task(id=f"walk/{seed}", env="walk", split="train", seed=seed) for seed in range(4)]
    episodes = rollout(agent_of(script), env, tasks)
    assert [e.ok for e in episodes] == [True, False, True, True]
    assert episodes[1].reason == "PolicyError"
    assert episodes[1].error is not None
    assert "refused" in episodes[1].error
    assert calls == {"start 0": 3, "start 1": 1, "start 2": 4, "start 3": 4}


def test_a_policy_that_drops_a_request_is_no_interruption() -> None:
    class Dropping(ScriptedPolicy):
        async def generate(self, request: Request) -> Turn:
            if "start 1" in request.turns[1].content:
                future = asyncio.get_running_loop().create_future()
                future.cancel()
                await future
            return Turn(role="assistant", content="go")

    env = EnvFactory(Walk)
    tasks = [Task(id=f"walk/{seed}", env="walk", split="train", seed=seed) for seed in range(3)]
    episodes = rollout(Agent(policy=Dropping(lambda request, rng: "")), env, tasks, limits=Limits(retries=0))
    assert [e.reason for e in episodes] == ["terminated", "PolicyUnavailable", "terminated"]


def test_an_environment_that_always_raises_ends_in_one_message() -> None:
    class Broken(Walk):
        name = "broken"
        resets = 0

        def reset(self, task: Task) -> str:
            Broken.resets += 1
            raise KeyError("price")

    env = EnvFactory(Broken)
    sink = Sink()
    with pytest.raises(EnvError, match=r"failed.*environment 'broken', task 'broken/train/0', reset: KeyError: 'price'") as caught:
        rollout(AGENT, env, tasks_of(env, 1000), limits=Limits(in_flight=32), run=sink)
    assert isinstance(caught.value.__cause__, KeyError)
    assert Broken.resets < 3 * 100, "it must not wait for a thousand failures"
    assert sink.saved
    assert all(e.stop is Stop.ERROR for e in sink.saved), "failures that were seen are kept"
    with pytest.raises(EnvError, match="1 of the first 1 episodes failed"):
        rollout(AGENT, env, tasks_of(env, 1))


def test_half_the_episodes_may_fail_but_no_more() -> None:
    limits = Limits(retries=0, in_flight=16)
    env = EnvFactory(Flaky, {"bad": tuple(range(0, 40, 2))})
    assert sum(e.ok for e in rollout(AGENT, env, tasks_of(env, 40), limits=limits)) == 20
    env = EnvFactory(Flaky, {"bad": tuple(range(25))})
    with pytest.raises(EnvError):
        rollout(AGENT, env, tasks_of(env, 40), limits=limits)
    env = EnvFactory(Flaky, {"bad": tuple(range(10))})
    early_failures = rollout(AGENT, env, tasks_of(env, 40), limits=Limits(retries=0, in_flight=40))
    assert sum(e.ok for e in early_failures) == 30, "failures come first, but the others in flight count as well"


def test_an_environment_that_always_hangs_is_given_up_early() -> None:
    env = EnvFactory(Flaky, {"bad": tuple(range(40)), "hang": 1.0})
    began = time.perf_counter()
    with pytest.raises(EnvError, match=r"still running after 0\.2 s \(Limits\.step_s\)"):
        rollout(AGENT, env, tasks_of(env, 40), limits=QUICK)
    assert time.perf_counter() - began < 2.5


def test_a_policy_that_is_down_is_named_as_the_culprit() -> None:
    def script(request: Request, rng: random.Random) -> str:
        raise PolicyError("model 'gtp-4' does not exist")

    env = EnvFactory(Walk)
    with pytest.raises(PolicyError, match="gtp-4"):
        rollout(agent_of(script), env, tasks_of(env, 4))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "step returned NoneType"),
        (Step(observation=7), "observation of type int"),  # type: ignore[arg-type]
        (Step(reward=float("nan")), "reward nan"),
        (Step(observation=(Turn(role="assistant", content="x"),)), "assistant turn"),
    ],
)
def test_a_step_that_breaks_the_contract_is_named(returned: Any, message: str) -> None:
    class Wrong(Walk):
        def step(self, action: Action) -> Step:
            return returned  # type: ignore[no-any-return]

    env = EnvFactory(Wrong)
    with pytest.raises(EnvError, match=message):
        rollout(AGENT, env, tasks_of(env, 1))


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("thrown", [SystemExit(3), StopIteration(), KeyboardInterrupt()])
def test_what_an_environment_throws_never_ends_the_rollout(inline: bool, thrown: BaseException) -> None:
    class Thrower(Walk):
        def step(self, action: Action) -> Step:
            if self.task.id.endswith("/0"):
                raise thrown
            return super().step(action)

    Thrower.inline = inline
    env = EnvFactory(Thrower)
    episodes = rollout(AGENT, env, tasks_of(env, 3), limits=QUICK)
    assert [e.ok for e in episodes] == [False, True, True]
    assert type(thrown).__name__ in str(episodes[0].error) or isinstance(thrown, StopIteration)


def test_close_is_bounded_and_its_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Clingy(Walk):
        def close(self) -> None:
            super().close()
            if self.task.id.endswith("/0"):
                raise OSError("cannot let go")
            if self.task.id.endswith("/1"):
                time.sleep(1.0)

    env = EnvFactory(Clingy)
    episodes = rollout(AGENT, env, tasks_of(env, 4), limits=QUICK)
    assert all(e.ok for e in episodes)
    assert "cannot let go" in caplog.text
    assert "still running after 0.2 s" in caplog.text
    assert sum(Walk.closed.values()) == 4


def test_an_environment_made_after_its_deadline_is_closed_all_the_same() -> None:
    closed = threading.Event()

    class Late(Env):
        name = "late"

        def __init__(self) -> None:
            time.sleep(0.4)

        def reset(self, task: Task) -> str:
            raise AssertionError("nobody waits for it")

        def close(self) -> None:
            closed.set()

    tasks = (Task(id="late/0", env="late", split="train"),)
    with pytest.raises(EnvError, match="reset_s"):
        rollout(AGENT, EnvFactory(Late), tasks, limits=QUICK)
    assert closed.wait(2.0)


# -- concurrency ---------------------------------------------------------------------------------------------------------


def test_two_thousand_episodes_in_flight() -> None:
    class Counted(Walk):
        def step(self, action: Action) -> Step:
            if self.at == 0:
                waiting.append(self.task.id)
            return super().step(action)

    waiting: list[str] = []
    most = 0

    class Watching(ScriptedPolicy):
        async def generate(self, request: Request) -> Turn:
            nonlocal most
            most = max(most, len(waiting))
            await asyncio.sleep(0)
            return Turn(role="assistant", content="go")

    env = EnvFactory(Counted)
    episodes = rollout(Agent(policy=Watching(lambda request, rng: "")), env, tasks_of(env, 2000), limits=Limits(in_flight=2000))
    assert len(episodes) == 2000
    assert all(e.ok and e.success for e in episodes)
    assert most == 2000, "all were under way when the first went on"


@pytest.mark.parametrize("kind", ["coroutine", "tool", "thread"])
def test_calls_that_wait_overlap(kind: str) -> None:
    class Coroutine(Walk):
        async def step(self, action: Action) -> Step:  # type: ignore[override]
            await asyncio.sleep(0.05)
            return Walk.step(self, action)

    class Tooled(Env):
        def reset(self, task: Task) -> str:
            return "call"

        @tool
        async def wait(self, n: int) -> str:
            """Wait."""
            await asyncio.sleep(0.15)
            return self.finish("waited", reward=1.0)

    class Threaded(Walk):
        inline = False

        def step(self, action: Action) -> Step:
            time.sleep(0.05)
            return super().step(action)

    env = EnvFactory({"coroutine": Coroutine, "tool": Tooled, "thread": Threaded}[kind])
    agent = agent_of(lambda request, rng: Action(tool_calls=(ToolCall(name="wait", arguments={"n": 1}),)))
    began = time.perf_counter()
    episodes = rollout(agent, env, tasks_of(env, 40))
    assert all(e.success for e in episodes)
    assert time.perf_counter() - began < 1.5, "40 episodes that wait 0.15 s each take 6 s one after another"


def test_a_coroutine_tool_that_hangs_is_the_models_to_see() -> None:
    class Slow(Env):
        tool_timeout = 0.2
        max_turns = 1

        def reset(self, task: Task) -> str:
            return "call"

        @tool
        async def wait(self, n: int) -> str:
            """Wait."""
            await asyncio.sleep(9)
            return "never"

    env = EnvFactory(Slow)
    call = ToolCall(name="wait", arguments={"n": 1})
    agent = agent_of(lambda request, rng: Action(tool_calls=(call, call)))
    (episode,) = rollout(agent, env, tasks_of(env, 1), limits=QUICK)
    assert (episode.stop, episode.reason) == (Stop.TRUNCATED, "max_turns")
    assert [t.content for t in episode.turns[-2:]] == ["error: wait did not answer within 0.2 s"] * 2


def test_the_number_of_threads_is_bounded() -> None:
    now = most = 0
    lock = threading.Lock()

    class Threaded(Walk):
        inline = False

        def step(self, action: Action) -> Step:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.005)
            with lock:
                now -= 1
            return super().step(action)

    env = EnvFactory(Threaded)
    assert all(e.ok for e in rollout(AGENT, env, tasks_of(env, 20), limits=Limits(threads=3)))
    assert most == 3
    time.sleep(0.05)
    assert not [t for t in threading.enumerate() if t.name == "whet-env"], "threads end with their rollout"


class Batcher(ScriptedPolicy):
    """Decodes as an engine does: in bursts over at most `slots` requests, whenever no gate is blocked."""

    def __init__(self, slots: int) -> None:
        super().__init__(lambda request, rng: "")
        self.__dict__.update(slots=slots, waiting=[], batches=[], pump=None)

    async def generate(self, request: Request) -> Turn:
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((request, current_gate.get(), future))
        if self.pump is None:
            self.__dict__["pump"] = asyncio.get_running_loop().create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self.waiting:
            while any(gate.blocked() for _, gate, _ in self.waiting):
                await asyncio.sleep(0)
            batch = self.waiting[: self.slots]
            del self.waiting[: self.slots]
            self.batches.append([f"{r.session.split('@')[0]} {len(r.turns)}" for r, _, _ in batch])
            for request, _, future in batch:
                if not future.done():
                    future.set_result(Turn(role="assistant", content=f"go {request.seed % 5}"))
            await asyncio.sleep(0)
        self.__dict__["pump"] = None


class Jittery(Walk):
    """Episodes of different lengths whose steps take a different time in each run; one of them breaks once."""

    name = "jittery"

    def step(self, action: Action) -> Step:
        time.sleep(random.SystemRandom().random() * 0.002)
        self.goal = 1 + self.task.seed % 5
        if self.task.id.endswith("/5") and Walk.closed[self.task.id] == 0:
            raise OSError("once")
        return super().step(action)


def test_batches_do_not_depend_on_the_clock() -> None:
    env = EnvFactory(Jittery)
    runs = []
    for _ in range(3):
        Walk.closed.clear()
        policy = Batcher(slots=4)
        episodes = rollout(Agent(policy=policy), env, tasks_of(env, 25), n=2, limits=Limits(in_flight=10))
        runs.append((policy.batches, [[t.content for t in e.turns] for e in episodes]))
    assert runs[0] == runs[1] == runs[2]
    assert max(len(batch) for batch in runs[0][0]) == 4


def test_without_waves_batches_form_while_others_wait() -> None:
    """The counterpart: a slow overlapped environment must not hold decoding back."""

    class Threaded(Walk):
        inline = False

        def step(self, action: Action) -> Step:
            time.sleep(0.3 if self.task.id.endswith("/0") else 0.0)
            return super().step(action)

    env = EnvFactory(Threaded)
    policy = Batcher(slots=8)
    rollout(Agent(policy=policy), env, tasks_of(env, 4))
    slow = [i for i, batch in enumerate(policy.batches) if any("/0#0" in name for name in batch)]
    assert slow[1] - slow[0] >= 3, "the others decoded their later turns while the slow one was in its first step"


def test_inside_an_event_loop_the_async_twins_are_to_be_used() -> None:
    env = EnvFactory(Walk)

    async def main() -> None:
        with pytest.raises(ConfigError, match="await arollout"):
            rollout(AGENT, env, tasks_of(env, 1))
        with pytest.raises(ConfigError, match="await arollout"):
            rollout_groups(AGENT, env, tasks_of(env, 1), n=2)
        one, groups = await asyncio.gather(arollout(AGENT, env, tasks_of(env, 2)), arollout_groups(AGENT, env, tasks_of(env, 2), n=2))
        assert [len(one), [len(g.episodes) for g in groups]] == [2, [2, 2]]

    asyncio.run(main())


def test_the_gate_is_the_rollouts_own_and_ends_with_it() -> None:
    gates = set()

    def script(request: Request, rng: random.Random) -> str:
        gates.add(current_gate.get())
        return "go"

    env = EnvFactory(Walk)
    for _ in range(2):
        rollout(agent_of(script), env, tasks_of(env, 2))
    assert len(gates) == 2
    assert None not in gates
    assert not any(gate.blocked() for gate in gates if gate is not None)
    assert current_gate.get() is None


# -- prefixes ------------------------------------------------------------------------------------------------------------


class Tokenised(ScriptedPolicy):
    """Gives turns tokens, as a local policy does: of turns read together, the last one holds them all."""

    read: ClassVar[list[Any]] = []

    def observe(self, turns: Any, new: Any, tools: Any) -> tuple[Turn, ...]:
        Tokenised.read.append([t.content for t in new])
        text = " ".join(t.content for t in new)
        *rest, last = new
        return (*rest, Turn(role=last.role, content=last.content, tokens=tuple(text.encode())))

    async def generate(self, request: Request) -> Turn:
        text = f"{self.version} {request.seed % 1000}"
        tokens = tuple(text.encode())
        logprobs = (-0.5,) * len(tokens)
        return Turn(role="assistant", content=text, tokens=tokens, logprobs=logprobs, versions=((self.version, len(tokens)),))


def test_a_prefix_is_replayed_and_then_handed_over() -> None:
    env = EnvFactory(Walk, {"goal": 5})
    tasks = tasks_of(env, 2)
    old, new = (Agent(policy=Tokenised(lambda request, rng: "", version)) for version in ("old", "new"))
    source = rollout(old, env, tasks, seed=1)
    Tokenised.read.clear()
    forks = rollout(new, env, tasks, n=3, seed=2, prefix=[Prefix.of(source[0], actions=2), None])
    for fork in forks[:3]:
        assert fork.turns[:6] == source[0].turns[:6], "tokens, log-probs, versions, rewards and parents stay"
        assert [t.versions[0][0] for t in fork.turns if t.trained] == ["old", "old", "new", "new", "new"]
        assert fork.tags["fork"] == {"episode": source[0].id, "actions": 2}
        assert (fork.reward, fork.cost.env_steps, fork.stop) == (2.0, 5, Stop.TERMINATED)
        assert [t.parent for t in fork.turns] == [None, *range(len(fork.turns) - 1)]
    assert len({fork.turns[6].content for fork in forks[:3]}) == 3
    assert "fork" not in forks[3].tags
    assert all("at 1" not in text for texts in Tokenised.read for text in texts[:-1]), "replayed turns are not read again"
    by_id = rollout(new, env, tasks, n=3, seed=2, prefix={tasks[0].id: Prefix.of(source[0], actions=2)})
    assert [[t.content for t in e.turns] for e in by_id] == [[t.content for t in e.turns] for e in forks]


def test_a_prefix_without_tokens_is_read_by_the_policy() -> None:
    env = EnvFactory(Walk, {"goal": 4})
    (task,) = tasks_of(env, 1)
    (source,) = rollout(AGENT, env, [task])
    (fork,) = rollout(Agent(policy=Tokenised(lambda request, rng: "", "new")), env, [task], prefix=[source.turns[:4]])
    assert [bool(t.tokens) for t in fork.turns] == [False, *[True] * (len(fork.turns) - 1)]
    assert [t.content for t in fork.turns[:4]] == [t.content for t in source.turns[:4]]
    assert fork.n_actions == 4


def test_a_prefix_keeps_the_prompt_it_was_sampled_with() -> None:
    env = EnvFactory(Walk, {"goal": 4})
    (task,) = tasks_of(env, 1)
    hinted = AGENT.replace(memory={"": ("left first",)})
    (source,) = rollout(hinted, env, [task])
    (fork,) = rollout(AGENT, env, [task], prefix=[Prefix.of(source, actions=1)])
    assert fork.turns[1].content == source.turns[1].content
    assert fork.turns[1].content.startswith("Hint: left first\n")


def test_a_prefix_may_be_empty_or_the_whole_episode() -> None:
    env = EnvFactory(Walk)
    (task,) = tasks_of(env, 1)
    (source,) = rollout(AGENT, env, [task])
    whole, nothing = (rollout(AGENT, env, [task], prefix=[Prefix.of(source, actions=k)])[0] for k in (3, 0))
    assert whole.turns == nothing.turns == source.turns
    assert (whole.stop, whole.reward) == (Stop.TERMINATED, 1.5)
    with pytest.raises(ConfigError, match="has 3 actions"):
        Prefix.of(source, actions=4)


def test_a_prefix_follows_one_walk_of_a_forked_episode() -> None:
    env = EnvFactory(Walk)
    (task,) = tasks_of(env, 1)
    (source,) = rollout(AGENT, env, [task])
    from dataclasses import replace

    other = Turn(role="assistant", content="run", parent=1)
    forked = replace(source, turns=(*source.turns, other))
    prefix = Prefix.of(forked, actions=1, leaf=-1)
    assert [t.content for t in prefix.turns] == [*(t.content for t in source.turns[:2]), "run"]
    (fork,) = rollout(AGENT, env, [task], prefix=[prefix])
    assert fork.turns[3].content == "at 1 after run"


def test_a_replay_that_diverges_is_an_error_of_the_environment() -> None:
    class Drifting(Walk):
        made = 0

        def reset(self, task: Task) -> str:
            Drifting.made += 1
            self.drift = Drifting.made
            return super().reset(task)

        def step(self, action: Action) -> Step:
            step = super().step(action)
            return Step(observation=f"{step.observation} {self.drift if self.at == 2 else ''}", terminated=step.terminated)

    env = EnvFactory(Drifting)
    (task,) = tasks_of(env, 1)
    (source,) = rollout(AGENT, env, [task])
    rollout(AGENT, env, [task], prefix=[Prefix.of(source, actions=1)])
    Walk.closed.clear()
    with pytest.raises(EnvError, match=r"replay diverged: .*after action 2: recorded 'user: at 2 after go 1', now 'user: at 2 after go 3'"):
        rollout(AGENT, env, [task], prefix=[Prefix.of(source, actions=2)])
    assert Walk.closed == {task.id: 1}
    strange = chain([Turn(role="user", content="start elsewhere"), Turn(role="assistant", content="go")])
    with pytest.raises(EnvError, match=r"replay diverged: .*at reset"):
        rollout(AGENT, env, [task], prefix=[strange])
    longer = EnvFactory(Walk, {"goal": 5})
    (source,) = rollout(AGENT, longer, tasks_of(longer, 1))
    with pytest.raises(EnvError, match="ended after action 3, but 4 were recorded"):
        rollout(AGENT, EnvFactory(Walk, {"goal": 3}), tasks_of(longer, 1), prefix=[Prefix.of(source, actions=4)])


def test_an_environment_that_cannot_replay_is_refused() -> None:
    class Live(Walk):
        name = "live"
        replayable = False

    env = EnvFactory(Live)
    (task,) = tasks_of(env, 1)
    (source,) = rollout(AGENT, env, [task])
    with pytest.raises(CannotReplay, match=r"environment 'live' cannot replay .*replayable = False"):
        rollout(AGENT, env, [task], prefix=[Prefix.of(source, actions=1)])
    assert rollout(AGENT, env, [task], prefix=[None])[0].ok
    with pytest.raises(ConfigError, match="2 entries for 1 tasks"):
        rollout(AGENT, env, [task], prefix=[None, None])
    with pytest.raises(ConfigError, match="not among the tasks: other"):
        rollout(AGENT, env, [task], prefix={"other": Prefix(turns=())})


# -- interruption --------------------------------------------------------------------------------------------------------


def test_cancelling_closes_environments_and_keeps_what_is_finished() -> None:
    class Endless(Walk):
        def step(self, action: Action) -> Step:
            if int(self.task.id.rsplit("/")[-1]) >= 5:
                self.goal = 10**9
            time.sleep(0.001)
            return super().step(action)

        max_turns = 10**9

    env = EnvFactory(Endless)
    sink = Sink()

    async def main() -> None:
        task = asyncio.create_task(arollout(AGENT, env, tasks_of(env, 50), limits=Limits(in_flight=12), run=sink))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert sorted(e.task.id for e in sink.saved) == [f"endless/train/{i}" for i in range(5)]
    assert set(Walk.closed.values()) == {1}
    assert len(Walk.closed) == 17


_INTERRUPTED = """
import json, sys, time
from pathlib import Path
from whet.agents import Agent
from whet.envs.base import Env, EnvFactory, Step
from whet.policies.scripted import ScriptedPolicy
from whet.rollout import rollout

out = Path(sys.argv[1])

class Hall(Env):
    max_turns = 10**9
    def reset(self, task):
        self.k = int(task.id.rsplit("/")[-1])
        return "go"
    def step(self, action):
        if self.k == 7 and HANG:
            print("ready", flush=True)
            time.sleep(60)
        elif self.k == 7:
            print("ready", flush=True)
            time.sleep(0.01)
        return Step(terminated=self.k < 5)
    def close(self):
        with (out / "closed").open("a") as file:
            file.write(f"{self.k}\\n")

class Sink:
    def save_episodes(self, episodes, tag):
        (out / "saved").write_text(json.dumps([e.id for e in episodes]))
    def spend(self, cost): pass

HANG = sys.argv[2] == "hang"
env = EnvFactory(Hall)
try:
    rollout(Agent(policy=ScriptedPolicy(lambda request, rng: "go")), env, env.tasks("train", 10), run=Sink())
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""


@pytest.mark.parametrize("mode", ["busy", "hang"])
def test_ctrl_c_keeps_what_is_finished_and_the_process_ends(tmp_path: Path, mode: str) -> None:
    command = [sys.executable, "-c", _INTERRUPTED, str(tmp_path), mode]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        began = time.perf_counter()
        out, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert time.perf_counter() - began < 5
    assert out.endswith("interrupted\n")
    assert errors == ""
    if mode == "busy":
        assert json.loads((tmp_path / "saved").read_text()) == [f"hall/train/{i}#0" for i in range(5)]
    assert sorted(map(int, (tmp_path / "closed").read_text().split())) == list(range(10))


def test_a_thread_that_hangs_does_not_keep_the_process(tmp_path: Path) -> None:
    script = (
        "import time\nfrom whet.agents import Agent\nfrom whet.envs.base import Env, EnvFactory\n"
        "from whet.policies.scripted import ScriptedPolicy\nfrom whet.rollout import rollout, Limits\n"
        "class Stuck(Env):\n    def reset(self, task):\n        time.sleep(60)\n"
        "env = EnvFactory(Stuck)\n"
        "rollout(Agent(policy=ScriptedPolicy(lambda r, g: '')), env, env.tasks('train', 3), limits=Limits(reset_s=0.1))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert "EnvError" in done.stderr
    assert "Limits.reset_s" in done.stderr


def test_a_run_that_cannot_be_written_ends_the_rollout() -> None:
    from whet.errors import StorageError

    class Full(Sink):
        def save_episodes(self, episodes: Any, tag: str) -> None:
            raise StorageError("no space left on device")

    env = EnvFactory(Walk)
    with pytest.raises(StorageError, match="no space"):
        rollout(AGENT, env, tasks_of(env, 500), limits=Limits(in_flight=100), run=Full())
    assert set(Walk.closed.values()) == {1}


def test_the_bar_shows_what_matters(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    env = EnvFactory(Walk)
    monkeypatch.setenv("COLUMNS", "120")
    rollout(AGENT, env, tasks_of(env, 30))
    assert capsys.readouterr().err == "", "nothing is shown off a terminal"
    monkeypatch.setenv("FORCE_COLOR", "1")
    rollout(AGENT, env, tasks_of(env, 30), progress=True, tag="scouting")
    shown = capsys.readouterr().err
    assert "scouting" in shown
    assert "30/30" in shown
    assert "success 100%" in shown
