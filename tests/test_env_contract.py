"""Every bundled environment keeps the contract, and `check_env` finds each way of breaking it."""

import asyncio
import random
import time
from dataclasses import replace

import pytest

from whet.envs import Action, Env, Report, Step, check_env
from whet.envs.check import CHECKS
from whet.errors import EnvError
from whet.seeding import derive_seed
from whet.tools import tool
from whet.types import Task, ToolCall, Turn

BUNDLED = (
    "search",
    "search:hops=1-4,facts=6,reward=graded",
    "search:arithmetic=0.5",
    "babyai",
    "babyai:level=PutNextLocal,tools=true,graded=true",
    "babyai:level=PickupLoc,thoughts=false,max_turns=40",
    "gymnasium:FrozenLake-v1,is_slippery=false",
    "gymnasium:Taxi-v4,max_turns=30",
    "gymnasium:CartPole-v1",
    "examples/shop.py:Shop",
    "workshop",
    "workshop:depth=4,rules=24,reward=graded",
    "catalogue",
    "catalogue:calls=1-3,descriptions=full,hold=3,reward=graded",
    "catalogue:calls=1-3,retrieval=true",
    "client",
    "client:steps=1-5,reward=graded",
    "desk",
    "desk:questions=4,people=2,hidden=1,memory=false",
)


@pytest.mark.parametrize("spec", BUNDLED)
def test_bundled_environments_keep_the_contract(spec, request, monkeypatch):
    monkeypatch.chdir(request.config.rootpath)
    report = check_env(spec, tasks=6)
    assert report.ok, report
    assert not report.warnings, report
    # Without an expert, chance may not reach an end within the turns that there are.
    spared = set() if report.expert_success is not None else {"expert", "after the end"}
    assert set(report.passed) | spared == set(CHECKS) | spared, report


class Count(Env):
    """A sound environment to break: say the number that was shown, twice."""

    instructions = "Say the number."
    max_turns = 4

    def reset(self, task):
        self.number, self.left = random.Random(task.seed).randint(0, 999), 2
        return f"number {self.number}"

    def step(self, action):
        if not self.left:
            raise EnvError("over")
        if action.text != str(self.number):
            return Step(observation=f"say {self.number}")
        self.left -= 1
        return Step(observation="good", reward=0.5, terminated=not self.left, success=not self.left)

    def expert(self, rng):
        return Action(text=str(self.number))


def problem(cls, check, text, *, warning=False, **options) -> Report:
    """The report on a broken environment, in which `check` must say `text`, and no other check may fail."""
    report = check_env(cls, tasks=4, processes=False, **options)
    found = report.warnings if warning else report.errors
    assert [p.check for p in found] == [check], report
    assert text in str(found[0]), str(found[0])
    assert str(found[0]).startswith(f"{cls.name}: {check}: ")
    assert found[0].fix.endswith(".")
    assert report.ok is warning
    return report


def test_the_sound_one_passes_every_check():
    report = check_env(Count, tasks=4)
    assert report.ok
    assert not report.problems, report
    assert not report.skipped, report
    assert report.expert_success == 1.0
    assert "keeps the contract" in str(report)
    report.raise_errors()


def test_errors_can_be_raised():
    with pytest.raises(EnvError, match="max_turns is 0"):
        check_env(type("Zero", (Count,), {"max_turns": 0}), processes=False).raise_errors()


def test_broken_construction():
    class Broken(Count):
        def __init__(self):
            raise RuntimeError("no database")

    report = problem(Broken, "construction", "__init__ raised RuntimeError: no database (test_env_contract.py line")
    assert report.skipped["replay"] == "construction failed"
    problem(type("Wordy", (Count,), {"max_tokens": "many"}), "construction", "max_tokens is 'many'")
    problem(type("Mute", (Count,), {"instructions": None}), "construction", "instructions is None")
    problem(type("Vague", (Count,), {"replayable": "yes"}), "construction", "replayable is 'yes'")


def tasks_of(change):
    class Broken(Count):
        def tasks(self, split, n, start=0):
            return change(super().tasks(split, n, start), split, n, start)

    return Broken


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t, s, n, i: [replace(x, seed=derive_seed(x.id[-1])) for x in t], "share the seed"),
        (lambda t, s, n, i: [replace(x, id=x.id.replace(s, "all")) for x in t], "share the id 'broken/all/0'"),
        (lambda t, s, n, i: [replace(x, data={"a": {1, 2}}) for x in t], "do not survive JSON"),
        (lambda t, s, n, i: [replace(x, data={"a": (1, 2)}) for x in t], "do not survive JSON"),
        (lambda t, s, n, i: [replace(x, seed=random.getrandbits(60)) for x in t], "returned other tasks when asked again"),
        (lambda t, s, n, i: [replace(x, split="test") for x in t], "has split 'test'"),
        (lambda t, s, n, i: [replace(x, env="other") for x in t], "env 'other'"),
        (lambda t, s, n, i: [replace(x, seed=x.seed + i) for x in t], "start=1"),
        (lambda t, s, n, i: [x.id for x in t], "holds a str"),
        (lambda t, s, n, i: [], "split 'train' has no tasks"),
    ],
)
def test_broken_tasks(change, text):
    report = check_env(tasks_of(change), tasks=4, processes=False)
    assert [p.check for p in report.errors] == ["tasks"] * len(report.errors), report
    assert any(text in p.message for p in report.errors), report


def test_too_many_tasks():
    class Broken(Count):
        def tasks(self, split, n, start=0):
            return super().tasks(split, n + 1, start)

    report = check_env(Broken, tasks=4, processes=False)
    assert "tasks('train', 4) returned 5 tasks" in report.errors[0].message


def test_a_missing_test_split_is_a_warning():
    problem(tasks_of(lambda t, s, n, i: [] if s == "test" else t), "tasks", "split 'test' has no tasks", warning=True)


def test_broken_tools():
    class Nothing(Env):
        def reset(self, task):
            return "hello"

    problem(Nothing, "tools", "there are neither tools nor a step")

    class Untyped(Env):
        def reset(self, task):
            return "hello"

        @tool
        def look(self, where):
            "Look."

    problem(Untyped, "tools", "argument 'where' of tool 'look' has no type")

    class Silent(Env):
        def reset(self, task):
            return "hello"

        @tool
        def look(self) -> str:
            return self.finish("seen", reward=0.0)

    problem(Silent, "tools", "tool 'look' has no description", warning=True)


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        (None, "reset returned NoneType None"),
        ("", "reset returned an empty string"),
        ((), "reset returned no turns"),
        (["hello"], "reset returned list"),
        ((Turn(role="assistant", content="hi"),), "an assistant's turn"),
    ],
)
def test_broken_reset(returned, text):
    problem(type("Broken", (Count,), {"reset": lambda self, task: returned}), "reset", text)


def test_reset_that_raises_or_hangs():
    class Raises(Count):
        def reset(self, task):
            return {}["price"]

    problem(Raises, "reset", "reset raised KeyError: 'price' (test_env_contract.py line")

    class Hangs(Count):
        def reset(self, task):
            time.sleep(2)

    problem(Hangs, "reset", "reset did not answer within 0.2 s", deadline=0.2)

    class Waits(Count):
        async def reset(self, task):
            await asyncio.sleep(2)

    problem(Waits, "reset", "reset did not answer within 0.2 s", deadline=0.2)


def step_of(change):
    class Broken(Count):
        def step(self, action):
            return change(super().step(action))

    return Broken


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: None, "step returned NoneType"),
        (lambda s: ("seen", 0.0, True), "step returned tuple"),
        (lambda s: replace(s, terminated=True, truncated=True), "both terminated and truncated"),
        (lambda s: replace(s, success=True, terminated=False), "reports success, but the episode goes on"),
        (lambda s: replace(s, reward=float("nan")), "the reward is nan"),
        (lambda s: replace(s, reward=True), "the reward is True of type bool"),
        (lambda s: replace(s, terminated=1), "terminated is 1 of type int"),
        (lambda s: replace(s, info={"when": object()}), "info is not JSON"),
        (lambda s: replace(s, observation=["seen"]), "step returned list"),
        (lambda s: replace(s, observation=(Turn(role="tool", tokens=(1,)),)), "an assistant's turn or tokens"),
    ],
)
def test_broken_steps(change, text):
    problem(step_of(change), "step", text)


def test_step_that_raises_on_what_a_model_writes():
    class Broken(Count):
        def step(self, action):
            return super().step(replace(action, text=action.text.split()[0]))

    report = problem(Broken, "bad actions", "step raised IndexError: list index out of range (test_env_contract.py line")
    assert "the action was text ''" in report.errors[0].fix
    assert "must come back as an observation" in report.errors[0].fix


def test_bad_actions_must_neither_pay_nor_be_met_with_silence():
    class Pays(Count):
        def step(self, action):
            return super().step(action) if action.text.isdigit() else Step(observation="?", reward=1.0, terminated=True, success=True)

    report = check_env(Pays, tasks=4, processes=False)
    assert {p.check for p in report.errors} == {"bad actions"}
    assert "a bad action was rewarded with 1 (text '')" in report.errors[0].message

    silent = step_of(lambda s: s if s.observation == "good" else replace(s, observation=""))
    assert "a bad action got an empty observation" in check_env(silent, tasks=4, processes=False).errors[0].message


def test_going_on_after_the_end_is_a_warning():
    class Endless(Count):
        def step(self, action):
            done = action.text == str(self.number)
            return Step(observation=f"say {self.number}", reward=float(done), terminated=done, success=done)

    problem(Endless, "after the end", "step goes on after the end (reward 1", warning=True)


def test_randomness_from_elsewhere():
    class Broken(Count):
        def reset(self, task):
            super().reset(task)
            self.number = random.randint(0, 10**6)
            return f"number {self.number}"

    report = check_env(Broken, tasks=4, processes=False)
    replay = next(p for p in report.errors if p.check == "replay")
    assert "gave another episode: at 0, 'number" in replay.message
    honest = check_env(type("Honest", (Broken,), {"replayable": False}), tasks=4, processes=False)
    assert honest.ok
    assert honest.skipped["replay"] == "replayable is False"


def test_state_on_the_class():
    class Broken(Count):
        def reset(self, task):
            seen = super().reset(task)
            type(self).shared = self.number
            return seen

        def step(self, action):
            self.number = type(self).shared
            return super().step(action)

    problem(Broken, "independence", "two episodes at once disturb each other")


def test_expert_that_fails():
    class Wrong(Count):
        def expert(self, rng):
            return Action(text=str(self.number if self.number % 2 else "?"))

    report = check_env(Wrong, tasks=8, processes=False)
    assert [p.check for p in report.errors] == ["expert"]
    assert "was not done after 4 of 4 turns" in report.errors[0].message
    assert report.expert_success < 0.9
    assert check_env(Wrong, tasks=8, processes=False, expert_success=0.0).ok

    class Text(Count):
        def expert(self, rng):
            return str(self.number)

    problem(Text, "step", "expert or random_action returned a str")


def test_slow_inline_steps_are_a_warning():
    class Slow(Count):
        def step(self, action):
            time.sleep(0.012)
            return super().step(action)

    problem(Slow, "speed", "set inline = False", warning=True)
    assert not check_env(type("Elsewhere", (Slow,), {"inline": False}), tasks=1, processes=False).warnings


@pytest.mark.parametrize(
    ("method", "body", "text"),
    [
        ("tasks", "[replace(t, seed=hash(t.id) % 2**32) for t in Env.tasks(self, split, n, start)]", "lists other tasks"),
        ("reset", "' '.join({'red', 'green', 'blue', 'grey', 'pink', task.id})", "plays another episode"),
    ],
)
def test_what_another_process_sees(tmp_path, method, body, text):
    arguments = {"tasks": "self, split, n, start=0", "reset": "self, task"}[method]
    (tmp_path / "broken.py").write_text(
        "from dataclasses import replace\n"
        "from whet.envs import Env, Step\n"
        "class Broken(Env):\n"
        "    def reset(self, task): return 'hello'\n"
        "    def step(self, action): return Step(observation='bye', truncated=True)\n"
        f"    def {method}({arguments}): return {body}\n"
    )
    report = check_env(f"{tmp_path}/broken.py:Broken", tasks=4)
    assert [p.check for p in report.errors] == ["processes"], report
    assert text in report.errors[0].message


def test_coroutines_are_checked_like_plain_functions():
    class Late(Count):
        async def reset(self, task):
            await asyncio.sleep(0)
            return Count.reset(self, task)

        async def step(self, action):
            await asyncio.sleep(0)
            return Count.step(self, action)

    report = check_env(Late, tasks=4, processes=False)
    assert report.ok, report
    assert "replay" in report.passed


def test_calls_are_made_up_from_schemas_where_there_is_no_expert():
    seen = []

    class Typed(Env):
        def reset(self, task):
            return "hello"

        @tool
        def put(self, item: str, count: int, tags: list[str], where: bool = True) -> str:
            "Put something somewhere."
            seen.append((item, count, tags, where))
            return self.finish("done", reward=0.0) if count > 6 else "more"

    report = check_env(Typed, tasks=4, processes=False)
    assert report.ok, report
    assert len({count for _, count, _, _ in seen}) > 2
    assert any(tags for _, _, tags, _ in seen)


def test_one_object_is_one_episode():
    class Once(Env):
        def reset(self, task):
            return "hello"

        @tool
        def stop(self) -> str:
            "End it."
            return self.finish("over", reward=1.0)

    env = Once()
    env.reset(Task(id="a", env="once", split="train"))
    action = Action(tool_calls=(ToolCall(name="stop"), ToolCall(name="stop")))
    step = env.step(action)
    assert (step.reward, step.terminated, len(step.observation)) == (1.0, True, 1)
    with pytest.raises(EnvError, match="over"):
        env.step(action)
