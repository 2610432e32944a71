"""What every method of the registry keeps, and each method's own mechanism against cases made by hand.

The model is tiny and random and the environments are made so that this suffices: what is tested is what a method does
with episodes, not whether a model gets better (tests with the embedded model do that).
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from helpers import small_talk, spied, tiny_policy
from whet import learn, methods
from whet.agents import Agent
from whet.cli import main
from whet.config import configure
from whet.envs import Action, Env, Step
from whet.envs.base import EnvFactory
from whet.errors import CannotReplay, ConfigError, SplitError
from whet.evals import evaluate
from whet.methods.reflexion import PROMPT, reflexion
from whet.methods.rejection_sampling import successes
from whet.policies import ScriptedPolicy, load_policy
from whet.policies.base import Request
from whet.policies.forms import quoted
from whet.policies.workflow import Workflow
from whet.rollout import rollout
from whet.runs import Run
from whet.tools.function import tool
from whet.types import Data, Episode, Example, Group, Pair, Stop, Task, ToolCall, Turn, chain

METHODS = methods.names()
SHOWN = [pytest.param(name, marks=[pytest.mark.slow] if name == "nlrl" else []) for name in METHODS]
"""NLRL's value model must first learn to write estimates, token by token."""
CHEAP: dict[str, dict[str, Any]] = {
    "sft": {"epochs": 3, "lr": 1e-2, "batch_size": 4},
    "rejection_sampling": {"iterations": 3, "samples": 4, "keep": 2, "epochs": 1, "lr": 1e-2, "batch_size": 8},
    "eto": {"iterations": 3, "samples": 2, "explore_temperature": 1.0, "lr": (3e-3,), "beta": (0.1,), "epochs": 1},
    "grpo": {"steps": 3, "tasks_per_step": 3, "group_size": 4, "lr": 1e-2},
    "envisions": {"iterations": 3, "samples": 2, "lr": 1e-2, "batch_size": 8},
    "reflexion": {"trials": 3, "reflector": "environment"},
    "coevol": {"teacher": "random", "epochs": 3, "lr": 1e-2, "batch_size": 4},
    "agent_tuning": {"epochs": 3, "lr": 1e-2, "batch_size": 4, "held_out": 2},
    "agent_ohana": {"sources": ("expert", "self"), "judge": "script:rater", "epochs": 3, "lr": 1e-2, "batch_size": 4},
    "fireact": {"teacher": "expert", "epochs": 3, "lr": 1e-2, "batch_size": 4},
    "nat": {"teachers": ("expert@0.5",), "epochs": 3, "lr": 1e-2, "batch_size": 4},
    "atm": {"rounds": 2, "fabrications": 2, "steps": 2, "lr": 1e-2, "init_lr": 1e-2, "dpo_lr": 1e-2, "max_tokens": 4, "probes": 3},
    "nlrl": {"iterations": 3, "continuations": 2, "samples": 2, "epochs": 12, "lr": 2e-2, "batch_size": 2, "max_tokens": 64},
    "ste": {"explorer": "self", "judge": "script:yes", "sessions": 2, "trials": 2, "epochs": 3, "lr": 1e-2, "batch_size": 4},
    "lumos": {"epochs": 3, "lr": 1e-2, "batch_size": 4},
    "swift_sage": {"epochs": 3, "lr": 1e-2, "batch_size": 4},
    "self_talk": {"guide": "script:yes", "demonstrations": 2, "iterations": 3, "min_subgoals": 0, "lr": 1e-2, "batch_size": 4},
    "llm_tmbr": {"ways.branches": 2, "ways.patience": 1, "epochs": 3, "lr": 1e-2, "batch_size": 4},
    "dmpo": {"iterations": 3, "samples": 2, "explore_temperature": 1.0, "lr": 3e-3, "epochs": 1},
    "ipr": {"iterations": 3, "completions": 2, "lr": 3e-3, "epochs": 1, "least": 0.0},
    "step_agent": {"iterations": 3, "samples": 2, "lr": 3e-3, "batch_size": 8},
    "reft": {"epochs": 3, "tasks_per_step": 6, "lr": 1e-2, "ppo.batch_size": 6},
    "re_rest": {"iterations": 3, "samples": 2, "keep": 2, "epochs": 1, "lr": 1e-2, "batch_size": 8},
    "agile": {"imitation": 0, "epochs": 3, "sessions_per_step": 6, "lr": 1e-2, "ppo.batch_size": 6},
    "agent_evol": {"iterations": 3, "samples": 2, "keep": 2, "explore_temperature": 1.0, "lr": 1e-2, "batch_size": 8},
    "optima": {
        "iterations": 3,
        "samples": 3,
        "threshold": -9.0,
        "least_value": -9.0,
        "least_gap": 0.05,
        "tree.expansions": 2,
        "lr": 1e-2,
        "dpo_lr": 1e-2,
        "batch_size": 4,
    },
    "amor": {"rounds": 2, "lr": 1e-2, "adapt_lr": 1e-2, "batch_size": 4, "epochs": 1, "adapt_epochs": 1},
    "retrospex": {
        "epochs": 2,
        "lr": 1e-2,
        "batch_size": 4,
        "lora": None,
        "critic.steps": 2,
        "critic.batch_size": 4,
        "report": 1,
        "act.k": 2,
    },
    "smart": {f"{stage}.{key}": value for stage in ("short", "long") for key, value in (("epochs", 3), ("lr", 1e-2), ("batch_size", 4))},
}
"""Options with which each method takes three steps within a second. A new method adds its own here."""


class Say(Env):
    """Two turns. Saying `yes` twice is right; of anything else, about half is, which way nobody can know."""

    max_turns = 2
    max_tokens = 6
    splits: ClassVar[set[str]] = set()
    """Of all tasks that were ever begun."""

    def reset(self, task: Task) -> str:
        Say.splits.add(task.split)
        self.said: list[str] = []
        self.shown = tuple(task.data.get("documents", (f"{task.id} likes yes.", f"{task.id} is far.")))
        return "\n\n".join([*self.shown, f"Say something about {task.id}."])

    def documents(self) -> tuple[str, ...]:
        return self.shown

    def step(self, action: Action) -> Step:
        self.said.append(action.text)
        if len(self.said) < 2:
            return Step(observation="Go on.")
        info = {"workflow": ["yes", "yes"]}
        good = self.said == ["yes", "yes"] or sum("".join(self.said).encode()) % 2 == 0
        return Step(reward=float(good), success=good, terminated=True, info=info)

    def pose(self, task: Task, query: str) -> Task:
        return dataclasses.replace(task, data={"query": query})

    def expert(self, rng: Any) -> Action:
        return Action(text="yes")

    def random_action(self, rng: Any) -> Action:
        return Action(text=rng.choice(["yes", "no"]))

    def reflect(self, turns: tuple[Turn, ...]) -> str:
        return f"{len(turns)} turns did not help."

    def role(self, role: str, turns: tuple[Turn, ...], rng: Any) -> str | None:
        """An editor says the opposite, a judge is for `yes`, a contrarian against it; a rater likes everything; others say their role."""
        prompt, better = turns[-1].content, "no" if role == "contrarian" else "yes"
        if role == "editor":
            return "no" if quoted(prompt, "response") == "yes" else "yes"
        if role in ("aggregator", "improver"):
            return '{"final_evaluation": "good"}' if role == "aggregator" else '{"thought": "it is best.", "best_move": 1}'
        if role in ("judge", "contrarian"):
            a, b = (quoted(prompt, side).endswith(better) for side in "AB")
            return "tie" if a == b else "A" if a else "B"
        if role == "reconstructor":
            return "likes"
        if role == "locator":
            return "\n".join(f"[{i}] [Irrelevant]" for i in range(1, 1 + prompt.count("\n[")))
        return "5" if role == "rater" else role


class Tell(Say):
    """The same by calls of a tool."""

    max_tokens = 12

    def reset(self, task: Task) -> str:
        self.asked = Say.reset(self, task)
        return self.asked

    @tool
    def say(self, word: str) -> str:
        """Say a word."""
        step = Say.step(self, Action(text=word))
        return self.finish(reward=step.reward) if step.terminated else str(step.observation)

    def step(self, action: Action) -> Any:
        return Env.step(self, action)

    def expert(self, rng: Any) -> Action:
        return Action(tool_calls=(ToolCall(name="say", arguments={"word": "yes"}, id="call_0"),))

    def role(self, role: str, turns: tuple[Turn, ...], rng: Any) -> Any:
        """A planner counts the words, a sage says two of them; the world wants two of an actor."""
        said = sum(turn.trained for turn in turns)
        scripts: dict[str, Any] = {
            "planner": f"next: word {said + 1}",
            "sage": "say(word='yes')\nsay(word='yes')",
            "question": self.asked,
            "actor": self.expert(rng),
            "environment": "Go on." if said < 2 else "done",
            "module:decompose": "[Finish]" if "yes" in turns[-1].content else "[Next] likes",
            "module:judge": "[Relevant]",
            "module:extract": "[Answerable] likes yes",
            "module:complete": self.expert(rng),
            "feedback": "yes" if rng.random() < 0.7 else "no",
        }
        return scripts.get(role) or super().role(role, turns, rng)


SAY = EnvFactory(Say)
BY_CALLS = {"lumos", "swift_sage", "llm_tmbr", "amor"}
"""Methods whose agents think in the text of a turn and act by calls."""


def env_of(name: str) -> EnvFactory:
    """Where the contract of a method is tested."""
    return EnvFactory(Tell) if name in BY_CALLS else SAY


def agent() -> Agent[Any]:
    """Made anew, so that nothing is shared between two runs that are compared."""
    return Agent(tiny_policy(seed=1), instructions="Be brief.", memory={"": ("It is a game.",)})


def make_data(env: EnvFactory = SAY, n: int = 6) -> Data:
    experts = rollout(Agent(load_policy("expert")), env, env.tasks("train", n), tag="experts")
    return Data(train=env.tasks("train", n), dev=env.tasks("dev", 2), experts=tuple(e for e in experts if e.success), general=small_talk())


def improve(name: str, run: Run, given: Agent[Any] | None = None, **options: Any) -> Agent[Any]:
    method = methods.get(name)
    cfg: Any = configure(method.config, CHEAP[name] | options)
    env = env_of(name)
    better: Agent[Any] = method.function(given or agent(), make_data(env), env=env, run=run, cfg=cfg)
    return better


def contents(agent: Agent[Any]) -> dict[str, Any]:
    """All that makes an agent, its weights bit by bit."""
    parts = agent.policy.parts if isinstance(agent.policy, Workflow) else {"": agent.policy}
    local = {part: policy for part, policy in parts.items() if hasattr(policy, "weights")}
    weights = {(part, name): tensor.numpy().tobytes() for part, policy in local.items() for name, tensor in policy.weights.items()}
    return {"weights": weights, "instructions": agent.instructions, "memory": dict(agent.memory), "sampling": agent.sampling}


def logged(run: Run) -> list[tuple[str, int, dict[str, Any]]]:
    return [(e["phase"], e["step"], e["metrics"]) for e in run.events("log")]


# -- the contract of every method ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHOWN)
def test_it_describes_itself(name: str) -> None:
    method = methods.get(name)
    assert method.title
    assert method.paper.startswith("arXiv:")
    assert method.needs
    assert set(method.needs) <= {"train", "dev", "experts", "general", "replay"}
    assert method.config() == method.config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(method.config(), dataclasses.fields(method.config)[0].name, 1)
    assert name in CHEAP, f"give {name} cheap options in tests/test_methods.py, so that its contract is tested"


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_the_same_seed_gives_the_same_agent_and_the_given_one_is_untouched(name: str) -> None:
    given, runs = agent(), [Run.scratch(seed) for seed in (0, 0, 1)]
    before = contents(given)
    one, same, other = (contents(improve(name, run, given if i == 0 else None)) for i, run in enumerate(runs))
    assert contents(given) == before
    assert one != before
    assert one == same
    assert logged(runs[0]) == logged(runs[1])
    assert logged(runs[0]) != logged(runs[2])
    assert one != other
    seeds, others = ([e.seed for e in run.load_episodes()] for run in (runs[0], runs[2]))
    assert len(set(seeds)) == len(seeds), "no two episodes draw the same"
    assert set(seeds).isdisjoint(others)


class _Cut(Run):
    """Is interrupted at the end of its second step, before that is committed."""

    def log(self, step: int, **metrics: Any) -> None:
        super().log(step, **metrics)
        if step == 1:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_it_resumes_where_it_was_interrupted(name: str, tmp_path: Path) -> None:
    with Run.create(tmp_path / "whole", {"seed": 0}, quiet=True) as run:
        whole = contents(improve(name, run))
    with pytest.raises(KeyboardInterrupt), _Cut.create(tmp_path / "cut", {"seed": 0}, quiet=True) as run:
        improve(name, run)
    assert Run.open(tmp_path / "cut").status == "interrupted"
    assert [step for _, step, _ in logged(Run.open(tmp_path / "cut"))] == [0, 1]
    with Run.create(tmp_path / "cut", {"seed": 0}, resume=True, quiet=True) as run:
        assert contents(improve(name, run)) == whole
    one, other = Run.open(tmp_path / "whole"), Run.open(tmp_path / "cut")
    assert logged(other) == logged(one)
    assert [e.id for e in other.load_episodes()] == [e.id for e in one.load_episodes()]
    assert dataclasses.replace(other.cost, seconds=0) == dataclasses.replace(one.cost, seconds=0)


@pytest.mark.parametrize("name", SHOWN)
def test_it_logs_each_step_with_the_standard_keys(name: str) -> None:
    run = Run.scratch()
    before = contents(agent())
    better = improve(name, run)
    phases, _, metrics = zip(*logged(run))
    assert all(phase.startswith(name) for phase in phases)  # those that train modules have a phase for each
    assert [(phase, step) for phase, step, _ in logged(run)] == [(phase, step) for phase in dict.fromkeys(phases) for step in range(3)]
    for values in metrics:
        assert all(math.isfinite(value) for value in values.values())
        if contents(better)["weights"] != before["weights"]:
            assert {"loss", "grad_norm"} <= set(values)
            assert values["skipped"] == 0
        if run.cost.episodes:
            assert 0 <= values["success"] <= 1
    spent = [e["spent"].get("episodes", 0) for e in run.events("log")]
    assert spent == sorted(spent)
    assert spent[-1] == run.cost.episodes == len(list(run.load_episodes()))


@pytest.mark.parametrize("name", SHOWN)
def test_it_never_sees_a_test_task(name: str) -> None:
    Say.splits.clear()
    run = Run.scratch()
    improve(name, run)
    assert Say.splits <= {"train", "dev"}
    assert {e.task.split for e in run.load_episodes()} <= {"train", "dev"}


@pytest.mark.parametrize("part", ["train", "dev", "experts"])
def test_data_refuses_test_tasks(part: str) -> None:
    tasks = SAY.tasks("test", 1)
    given = tuple(evaluated(tasks)) if part == "experts" else tasks
    with pytest.raises(SplitError, match=rf"task 'say/test/0' of split 'test' was put into Data\.{part}"):
        Data(**{part: given})


def evaluated(tasks: tuple[Task, ...]) -> list[Episode]:
    run = Run.scratch()
    evaluate(Agent(load_policy("expert")), SAY, tasks, run=run)
    return list(run.load_episodes())


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_it_stops_when_the_budget_is_spent(name: str) -> None:
    run = Run.scratch()
    improve(name, run)
    first = next(run.events("log"))["spent"].get("episodes", 0)
    limited = Run.scratch(budget=max(first, 1))
    better = improve(name, limited)
    assert limited.cost.episodes == first
    # one that has all its episodes before its first step may go on learning from them
    assert len(logged(limited)) == 1 or run.cost.episodes == first
    assert better.policy.version


@pytest.mark.parametrize("name", SHOWN)
def test_it_refuses_to_work_without_what_it_needs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    nothing = ("--train-tasks", "0", "--dev-tasks", "0", "--expert-episodes", "0")
    assert main(["run", name, "--env", f"{__file__}:Say", "--model", "random", *nothing, "--out", "r", "--quiet"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    first = methods.get(name).needs[0]
    what = "expert episodes" if first == "experts" else f"{first} tasks"
    assert line.startswith(f"error: method {name!r} needs {what}, and Data.{first} is empty. Give it some")
    assert not list(Run.open("r").load_episodes())


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_the_better_agent_can_be_evaluated(name: str) -> None:
    env = env_of(name)
    evaluation = evaluate(improve(name, Run.scratch()), env, env.tasks("test", 4))
    assert evaluation.n_errors == 0


# -- what learners are given -----------------------------------------------------------------------------------------------


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """The batches that a method's learner is given."""
    return spied(monkeypatch)


def runs_of(mask: np.ndarray) -> int:
    """Stretches of masked-in tokens."""
    return int(mask[0]) + int(np.count_nonzero(mask[1:] & ~mask[:-1]))


# -- supervised fine-tuning ------------------------------------------------------------------------------------------------


def test_sft_learns_to_act_as_the_expert_does() -> None:
    run = Run.scratch()
    better = improve("sft", run, epochs=25)
    evaluation = evaluate(better.replace(sampling=better.sampling.at(0.0)), SAY, SAY.tasks("test", 4), run=run)
    assert {turn.content for e in run.load_episodes("eval/eval") for turn in e.turns if turn.trained} == {"yes"}
    assert evaluation.success.mean == 1.0
    losses = [metrics["loss"] for _, _, metrics in logged(run)]
    assert losses[-1] < 0.1 * losses[0]


def test_sft_trains_on_the_experts_actions_only(given: list[list[Example]]) -> None:
    run = Run.scratch()
    improve("sft", run, epochs=2)
    assert [len(batch) for batch in given] == [4, 2, 4, 2]
    tokenizer = tiny_policy().tokenizer
    for row in (row for batch in given for row in batch):
        assert tokenizer.decode(row.tokens[row.mask]) == "yes<|im_end|>" * 2
        assert set(row.weights[row.mask]) == {1.0}
    learning_rates = [metrics["lr"] for _, _, metrics in logged(run)]
    assert learning_rates[-1] < learning_rates[0] < CHEAP["sft"]["lr"]  # a cosine to zero


# -- rejection sampling ----------------------------------------------------------------------------------------------------

TASK = Task(id="say/train/0", env="say", split="train")


def attempt(id: str, *said: int, success: bool = True, stop: Stop = Stop.TERMINATED) -> Episode:
    turns = [turn for token in said for turn in (Turn(role="user", tokens=(1,)), Turn(role="assistant", tokens=(token,)))]
    return Episode(id=id, task=TASK, turns=chain(turns), stop=stop, reward=float(success), success=success)


def test_successes_are_different_capped_and_in_order() -> None:
    group = Group(
        task=TASK,
        episodes=(
            attempt("lost", 5, 6, success=False),
            attempt("a", 5, 6),
            attempt("broken", 8, 9, stop=Stop.ERROR),
            attempt("a again", 5, 6),
            attempt("b", 6, 5),
            attempt("cut off", 7, stop=Stop.TRUNCATED),
            attempt("c", 5),
        ),
    )
    assert [e.id for e in successes(group, 10)] == ["a", "b", "cut off", "c"]
    assert [e.id for e in successes(group, 2)] == ["a", "b"]
    assert successes(group, 0) == []
    assert successes(Group(task=TASK, episodes=()), 3) == []


class Lucky(Say):
    """Right whatever is said, for as long as luck lasts."""

    luck: ClassVar[int] = 0

    def step(self, action: Action) -> Step:
        Lucky.luck -= 1
        return Step(reward=float(self.luck >= 0), success=self.luck >= 0, terminated=True)


def lucky(luck: int, **options: Any) -> tuple[dict[str, Any], Run]:
    """Rejection sampling where the first `luck` episodes succeed."""
    Lucky.luck = luck
    env, run, method = EnvFactory(Lucky), Run.scratch(), methods.get("rejection_sampling")
    cfg: Any = configure(method.config, CHEAP["rejection_sampling"] | options)
    return contents(method.function(agent(), Data(train=env.tasks("train", 2)), env=env, run=run, cfg=cfg)), run


def test_rejection_sampling_restarts_from_the_given_policy_or_goes_on() -> None:
    untrained, (once, _) = contents(agent()), lucky(8, iterations=1)
    again, run = lucky(8, iterations=2, restart=True)
    further, _ = lucky(8, iterations=2, restart=False)
    assert once["weights"] != untrained["weights"]
    assert again["weights"] == untrained["weights"], "nothing was kept in the second iteration, and it begins anew"
    assert further["weights"] == once["weights"]
    assert [(m["success"], m["kept"]) for _, _, m in logged(run)] == [(1.0, 4), (0.0, 0)]


def test_rejection_sampling_trains_on_what_succeeded(given: list[list[Example]]) -> None:
    run = Run.scratch()
    improve("rejection_sampling", run, iterations=1, batch_size=100)
    found: dict[str, list[Episode]] = {}
    for episode in run.load_episodes("iteration0"):
        found.setdefault(episode.task.id, []).append(episode)
    expected = [e.id for group in found.values() for e in successes(Group(task=group[0].task, episodes=tuple(group)), 2)]
    assert sorted(row.origin for batch in given for row in batch) == sorted(expected)
    assert 0 < len(expected) < 24


# -- ETO ---------------------------------------------------------------------------------------------------------------------


class Ranked(Env):
    """The expert's `yes` is worth 0.5, anything else what the task says; it ends at once, or only when turns run out."""

    max_turns = 6
    max_tokens = 4

    def reset(self, task: Task) -> str:
        self.task = task
        return "Say something."

    def step(self, action: Action) -> Step:
        if action.text == "yes":
            return Step(reward=0.5, terminated=True, success=True)
        if self.task.data["long"]:
            return Step(observation="Go on.")
        return Step(reward=self.task.data["own"], terminated=True)

    def expert(self, rng: Any) -> Action:
        return Action(text="yes")


def ranked(own: dict[str, float], *, long: bool = False, **options: Any) -> tuple[Run, Agent[Any]]:
    """ETO on tasks whose own episodes are worth this much."""
    env = EnvFactory(Ranked)
    tasks = [Task(id=name, env="ranked", split="train", data={"own": worth, "long": long}) for name, worth in own.items()]
    experts = tuple(rollout(Agent(load_policy("expert")), env, tasks, tag="experts"))
    run, method = Run.scratch(), methods.get("eto")
    cfg: Any = configure(method.config, CHEAP["eto"] | options)
    return run, method.function(agent(), Data(experts=experts), env=env, run=run, cfg=cfg)


def test_eto_prefers_whoever_was_better_and_drops_ties(given: list[list[Pair]]) -> None:
    run, _ = ranked({"worse": 0.0, "tie": 0.5, "better": 1.0}, iterations=1, samples=1, explore_temperature=0.0)
    ((one, other),) = [sorted(batch, key=lambda pair: pair.origin) for batch in given]
    assert (one.origin, one.chosen.origin, one.rejected.origin) == ("better", "iteration0/better#0", "experts/better#0")
    assert (other.origin, other.chosen.origin, other.rejected.origin) == ("worse", "experts/worse#0", "iteration0/worse#0")
    assert (one.margin, other.margin) == (0.5, 0.5)
    assert {e.tags["temperature"] for e in run.load_episodes("iteration0")} == {0.0}
    assert logged(run)[0][2]["pairs"] == 2


def test_eto_without_a_difference_learns_nothing() -> None:
    run, better = ranked({"a": 0.5, "b": 0.5})
    assert contents(better)["weights"] == contents(agent())["weights"]
    assert [metrics["pairs"] for _, _, metrics in logged(run)] == [0, 0, 0]


@pytest.mark.parametrize(("extra", "turns"), [(2, 3), (0, 1), (None, 6)])
def test_eto_cuts_long_losers(given: list[list[Pair]], extra: int | None, turns: int) -> None:
    ranked({"a": 0.0, "b": 0.0}, long=True, max_extra_turns=extra, iterations=1, samples=1)
    assert [runs_of(pair.rejected.mask) for batch in given for pair in batch] == [turns, turns]
    assert [runs_of(pair.chosen.mask) for batch in given for pair in batch] == [1, 1]


def test_eto_by_self_play_holds_its_best_against_its_worst(given: list[list[Pair]]) -> None:
    class Longer(Say):
        """The longer the first answer, the better; one task is worth the same whatever is said."""

        max_turns = 1

        def step(self, action: Action) -> Step:
            return Step(reward=len(action.text) / 10 if not self.said_of.endswith("/0") else 0.5, terminated=True)

        def reset(self, task: Task) -> str:
            self.said_of = task.id
            return Say.reset(self, task)

    env, run, method = EnvFactory(Longer), Run.scratch(), methods.get("eto")
    cfg: Any = configure(method.config, CHEAP["eto"] | {"self_play": True, "samples": 4, "iterations": 1})
    tasks = env.tasks("train", 3)
    method.function(agent(), Data(train=tasks), env=env, run=run, cfg=cfg)
    worth = {e.id: e.reward for e in run.load_episodes()}
    pairs = [pair for batch in given for pair in batch]
    assert sorted(pair.origin for pair in pairs) == [task.id for task in tasks[1:]]
    for pair in pairs:
        of_task = [reward for name, reward in worth.items() if f"/{pair.origin}#" in name]
        assert len(of_task) == 4
        assert (worth[pair.chosen.origin], worth[pair.rejected.origin]) == (max(of_task), min(of_task))
    with pytest.raises(ConfigError, match="samples"):
        method.config(self_play=True)


def test_eto_takes_the_policy_that_explored_as_the_reference(given: list[list[Pair]]) -> None:
    ranked({"a": 0.0, "b": 0.0}, lr=(1e-2,), samples=1)
    own = [pair.rejected for batch in given for pair in batch]
    assert len(own) == 6
    for row in own:  # what was sampled, and what the reference gives the same tokens
        assert row.logprobs is not None
        assert row.reference is not None
        np.testing.assert_allclose(row.reference[row.mask], row.logprobs[row.mask], atol=1e-4)
    experts = [pair.chosen for batch in given for pair in sorted(batch, key=lambda pair: pair.origin)][::2]
    first, second, third = (row.reference[row.mask].sum() for row in experts if row.reference is not None)
    assert len({float(first), float(second), float(third)}) == 3, "the reference moves on with the policy"


def test_eto_goes_through_its_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    betas, dpo = [], learn.dpo

    def spy(*, beta: float, nll: float) -> Any:
        betas.append((beta, nll))
        return dpo(beta=beta, nll=nll)

    monkeypatch.setattr(learn, "dpo", spy)
    run, _ = ranked({"a": 0.0, "b": 1.0}, lr=(1e-2, 5e-3), beta=(0.1, 0.5), nll=0.2, iterations=4)
    assert betas == [(0.1, 0.2), (0.5, 0.2), (0.5, 0.2), (0.5, 0.2)]
    assert [metrics["lr"] for _, _, metrics in logged(run)] == [1e-2, 5e-3, 5e-3, 5e-3]


# -- GRPO --------------------------------------------------------------------------------------------------------------------


class Same(Say):
    """Every episode is worth the same."""

    def step(self, action: Action) -> Step:
        return Step(reward=0.7, terminated=True)


class Fragile(Say):
    """Breaks under some of what is said."""

    def step(self, action: Action) -> Step:
        if sum(action.text.encode()) % 5 == 0:
            raise RuntimeError("this cannot be said")
        return super().step(action)


def grpo(env: EnvFactory, **options: Any) -> tuple[Run, Agent[Any]]:
    run, method = Run.scratch(), methods.get("grpo")
    cfg: Any = configure(method.config, CHEAP["grpo"] | options)
    return run, method.function(agent(), Data(train=env.tasks("train", 6)), env=env, run=run, cfg=cfg)


def test_groups_of_equal_rewards_have_no_gradient() -> None:
    run, better = grpo(EnvFactory(Same), kl=0.0)
    assert contents(better)["weights"] == contents(agent())["weights"]
    assert [(m["reward"], m["grad_norm"]) for _, _, m in logged(run)] == [(pytest.approx(0.7), 0.0)] * 3


def by_hand(episodes: list[Episode]) -> dict[str, float]:
    """Advantages as the paper has them, failed episodes left out."""
    groups: dict[str, list[Episode]] = {}
    for episode in episodes:
        if episode.stop is not Stop.ERROR:
            groups.setdefault(episode.task.id, []).append(episode)
    found = {}
    for group in groups.values():
        rewards = [episode.reward for episode in group]
        spread = statistics.stdev(rewards) if len(rewards) > 1 else 0.0
        for episode in group:
            found[episode.id] = (episode.reward - statistics.mean(rewards)) / (spread + 1e-4) if spread else 0.0
    return found


@pytest.mark.parametrize("env", [Say, Fragile])
def test_advantages_weigh_every_action_of_an_episode(env: type[Env], given: list[list[Example]]) -> None:
    run, _ = grpo(EnvFactory(env), steps=1, tasks_per_step=6, group_size=8)
    episodes = list(run.load_episodes("step0"))
    expected = by_hand(episodes)
    (batch,) = given
    assert {row.origin for row in batch} == set(expected)
    assert (len(expected) < len(episodes)) == (env is Fragile)
    assert len({round(a, 3) for a in expected.values()}) > 2
    turns = {episode.id: episode.turns for episode in episodes}
    for row in batch:
        np.testing.assert_allclose(row.weights, np.where(row.mask, expected[row.origin], 0.0), rtol=1e-6)
        walk = turns[row.origin]
        last = max(i for i, turn in enumerate(walk) if turn.role == "assistant")
        assert row.tokens.tolist() == [token for turn in walk[: last + 1] for token in turn.tokens]
        assert row.mask.tolist() == [turn.role == "assistant" for turn in walk[: last + 1] for _ in turn.tokens]
        assert runs_of(row.mask) == 2
    assert logged(run)[0][2]["reward"] == pytest.approx(statistics.mean(e.reward for e in episodes if e.ok))


def test_grpo_stays_near_the_given_policy_and_repeats_inner_steps(given: list[list[Example]]) -> None:
    run, _ = grpo(SAY, inner_steps=2, kl=0.04)
    assert [batch[0].origin.split("/")[0] for batch in given] == ["step0", "step0", "step1", "step1", "step2", "step2"]
    assert all(metrics["kl"] > 0 for _, _, metrics in logged(run))  # of the second inner step
    given.clear()
    run, _ = grpo(SAY, kl=0.04)
    first, *later = [metrics["kl"] for _, _, metrics in logged(run)]
    assert first == pytest.approx(0, abs=1e-6)
    assert min(later) > 1e-3, "it is measured from the given policy, not from the newest"
    assert logged(run)[0][2]["ratio"] == pytest.approx(1, abs=1e-4)


def test_every_task_comes_up_once_per_epoch(given: list[list[Example]]) -> None:
    run, _ = grpo(SAY, steps=4, tasks_per_step=3)
    tasks = [{e.task.id for e in run.load_episodes(f"step{step}")} for step in range(4)]
    assert len(tasks[0] | tasks[1]) == len(tasks[2] | tasks[3]) == 6
    assert tasks[0] != tasks[2] or tasks[1] != tasks[3]


# -- Reflexion ---------------------------------------------------------------------------------------------------------------


class Guess(Env):
    """One turn: the task's word must be said. One of the tasks breaks."""

    max_turns = 1

    def reset(self, task: Task) -> str:
        self.word = task.data["word"]
        return f"Guess the word of {task.id}."

    def step(self, action: Action) -> Step:
        if self.word == "broken":
            raise RuntimeError("out of order")
        return Step(reward=float(action.text == self.word), success=action.text == self.word, terminated=True)

    def reflect(self, turns: tuple[Turn, ...]) -> str | None:
        return f"{turns[-1].content} was wrong" if turns[-1].content == "red" else None


GUESS = EnvFactory(Guess)
WORDS = {"easy": "red", "hinted": "blue", "hard": "octarine", "out": "broken"}
TASKS = tuple(Task(id=name, env="guess", split="train", data={"word": word}) for name, word in WORDS.items())


def guesser(request: Request, rng: Any) -> str:
    """Says red, or blue once that was hinted at; when it is asked outside of an episode, it reflects."""
    if request.env is None:
        return "Try blue."
    return "blue" if "Hint: say blue" in request.turns[-1].content else "red"


def reflect(by: Any = None, *, memory: dict[str, tuple[str, ...]] | None = None, **options: Any) -> tuple[Run, Agent[Any]]:
    run = Run.scratch()
    cfg: Any = configure(methods.get("reflexion").config, {"trials": 3, **options})
    given = Agent(ScriptedPolicy(guesser), memory=memory or {})
    return run, reflexion(given, Data(train=TASKS), env=GUESS, run=run, cfg=cfg, reflector=by)


def attempted(run: Run, trials: int) -> list[list[str]]:
    return [[e.task.id for e in run.load_episodes(f"trial{trial}")] for trial in range(trials)]


def test_only_what_failed_is_tried_again_and_the_memory_reaches_the_next_prompt() -> None:
    seen: list[str] = []

    def reflector(episode: Episode) -> str:
        seen.append(episode.id)
        return "say blue"

    run, better = reflect(reflector)
    unsolved = ["hard", "out"]
    assert attempted(run, 3) == [["easy", "hinted", *unsolved], ["hinted", *unsolved], unsolved]
    assert seen == ["trial0/hinted#0", "trial0/hard#0", "trial1/hard#0", "trial2/hard#0"], "solved and broken ones are not reflected on"
    prompts = {e.id: e.turns[0].content for e in run.load_episodes() if e.ok}
    assert prompts["trial0/hinted#0"] == "Guess the word of hinted."
    assert prompts["trial1/hinted#0"] == "Hint: say blue\nGuess the word of hinted."
    assert better.memory == {"hinted": ("say blue",), "hard": ("say blue",) * 3}
    assert [m["success"] for _, _, m in logged(run)] == [0.25, 0.5, 0.5]
    assert [m["reflections"] for _, _, m in logged(run)] == [2, 1, 1]


def test_the_last_three_reflections_are_kept_behind_what_the_agent_knew() -> None:
    count = iter(range(100))

    def reflector(episode: Episode) -> str:
        return f"note {next(count)}" if episode.task.id == "hard" else ""

    _, better = reflect(reflector, memory={"": ("It is a game.",), "hard": ("It is a colour.",)}, trials=6)
    assert better.memory == {"": ("It is a game.",), "hard": ("It is a colour.", "note 3", "note 4", "note 5")}


def _asked(asked: list[str]) -> ScriptedPolicy:
    def answer(request: Request, rng: Any) -> str:
        (turn,) = request.turns
        asked.append(turn.content)
        return "say blue"

    return ScriptedPolicy(answer)


def test_a_policy_reflects_when_it_is_shown_the_log() -> None:
    asked: list[str] = []
    _, better = reflect(_asked(asked), trials=1)
    assert asked == [f"user: Guess the word of {name}.\nassistant: red\n\n{PROMPT}" for name in ("hinted", "hard")]
    assert better.memory == {"hinted": ("say blue",), "hard": ("say blue",)}


@pytest.mark.parametrize(
    ("options", "notes", "scripted"),
    [
        ({"reflector": "policy"}, "Try blue.", "script"),
        ({"reflector": "environment"}, "red was wrong", "environment"),
    ],
)
def test_the_config_names_the_reflector_and_the_run_says_whether_it_was_a_script(
    options: dict[str, Any], notes: str, scripted: str
) -> None:
    run, better = reflect(**options, trials=1)
    assert better.memory == {"hinted": (notes,), "hard": (notes,)}
    assert [event["scripted"] for event in run.events("reflector")] == [scripted]


def test_a_function_that_reflects_is_named_in_the_run() -> None:
    def my_reflector(episode: Episode) -> str | None:
        return None

    run, better = reflect(my_reflector, trials=1)
    assert better.memory == {}
    assert [event["scripted"] for event in run.events("reflector")] == ["my_reflector"]


class Forgetful(Tell):
    """Never twice the same."""

    replayable = False


@pytest.mark.parametrize("name", [name for name in METHODS if "replay" in methods.get(name).needs])
def test_step_level_methods_refuse_by_name_what_cannot_replay(name: str) -> None:
    env, run = EnvFactory(Forgetful), Run.scratch()
    cfg: Any = configure(methods.get(name).config, CHEAP[name])
    with pytest.raises(CannotReplay, match=f"{name} begins episodes in the midst of others, and environment 'forgetful' cannot replay"):
        methods.get(name).function(agent(), make_data(env), env=env, run=run, cfg=cfg)
    assert not list(run.load_episodes()), "it is refused before any work"
    assert not list(run.events("roles"))


# -- refusals ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in METHODS if name != "reflexion"])
def test_methods_that_change_weights_refuse_policies_that_have_none(name: str) -> None:
    with pytest.raises(ConfigError, match=r"policy 'script' .*use local weights"):
        improve(name, Run.scratch(), Agent(ScriptedPolicy(guesser)))


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("grpo", "group_size", 1),
        ("grpo", "steps", 0),
        ("grpo", "tasks_per_step", 0),
        ("eto", "lr", ()),
        ("eto", "samples", 0),
        ("rejection_sampling", "iterations", 0),
        ("rejection_sampling", "sample_temperature", -1.0),
        ("sft", "batch_size", 0),
        ("reflexion", "trials", 0),
    ],
)
def test_a_value_that_could_teach_nothing_is_refused_by_its_name(name: str, option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option):
        methods.get(name).config(**{option: value})


@pytest.mark.parametrize("name", list(METHODS))
def test_called_from_python_a_method_says_what_it_needs(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} needs"):
        methods.get(name).function(Agent(ScriptedPolicy(guesser)), Data(), env=None, run=Run.scratch(), cfg=methods.get(name).config())
