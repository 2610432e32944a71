"""BFCL: the same verdict as the package's own program on every item, gold and corrupted; nothing leaks, nothing is evaluated here."""

import collections
import json
import os
import random

import pytest

from whet import check_env
from whet.agents import Agent
from whet.envs import Action, EnvFactory, load_env
from whet.errors import ConfigError, EnvError, MissingExtra, SplitError
from whet.evals import evaluate
from whet.evals.benchmarks import benchmark_of, score_benchmark
from whet.policies import load_policy
from whet.policies.scripted import ScriptedPolicy
from whet.rollout import rollout
from whet.types import Data, Stop, ToolCall

try:
    from whet.envs.bfcl import BFCL, execution, gold, package
except MissingExtra as error:
    pytest.skip(str(error), allow_module_level=True)

import bfcl_reference as reference
from bfcl_reference import answer, begin, called, needs_sandbox

SIZES = {
    **{"simple_python": 400, "simple_java": 100, "simple_javascript": 50, "multiple": 200, "parallel": 200, "parallel_multiple": 200},
    **{"irrelevance": 240, "live_simple": 258, "live_multiple": 1053, "live_parallel": 16, "live_parallel_multiple": 24},
    **{"live_irrelevance": 884, "live_relevance": 16},
    **dict.fromkeys(("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context"), 200),
}
CEILINGS = {"simple_java": 98, "parallel_multiple": 198, "live_simple": 256, "live_multiple": 1051}
"""Gold answers that the package's own checker accepts, where that is not all of them."""


# -- tasks ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_task_is_a_test_task_and_all_are_there():
    for category, size in SIZES.items():
        tasks = load_env(f"bfcl:{category}").tasks("test", 10_000)
        assert len(tasks) == size == package.size(category)
        assert {task.data["category"] for task in tasks} == {category}
    assert len(load_env("bfcl:all").tasks("test", 10_000)) == sum(SIZES.values()) == 4441
    assert [t.id for t in load_env("bfcl:multiple+parallel").tasks("test", 3, 199)] == [
        "bfcl/multiple_199",
        "bfcl/parallel_0",
        "bfcl/parallel_1",
    ]


@pytest.mark.parametrize("split", ["train", "dev"])
def test_other_splits_and_learning_are_refused(split):
    env = load_env("bfcl:simple_python")
    with pytest.raises(ConfigError, match=f"BFCL has no {split} tasks: it is a benchmark"):
        env.tasks(split, 1)
    tasks = env.tasks("test", 2)
    with pytest.raises(SplitError):
        Data(train=tasks)
    with pytest.raises(SplitError):
        rollout(Agent(load_policy("expert")), env, tasks)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("bfcl:simple_pyton", "Did you mean 'simple_python'"),
        ("bfcl:memory_kv", "not supported: it reads a memory"),
        ("bfcl:web_search_base", "not supported: it asks a paid web search"),
        ("bfcl:format_sensitivity", "does not count"),
        ("bfcl:simple_python,mode=chat", "mode"),
    ],
)
def test_what_there_is_not(spec, told):
    with pytest.raises(ConfigError, match=told):
        load_env(spec)()


def test_nothing_is_written_beside_the_package():
    """Its import makes directories for results there, unless told otherwise."""
    from pathlib import Path

    import bfcl_eval

    site = Path(next(iter(bfcl_eval.__path__))).parent
    assert not [name for name in ("result", "score", ".file_locks") if (site / name).exists()]
    assert "BFCL_PROJECT_ROOT" not in os.environ


# -- what the model sees ---------------------------------------------------------------------------------------------------------


def test_functions_are_tools_without_dots_and_with_json_types():
    env, opening = begin("simple_python", 1)
    assert [(t.role, t.content) for t in opening] == [("user", "Calculate the factorial of 5 using math functions.")]
    (tool,) = env.tools
    assert tool.name == "math_factorial"
    assert tool.parameters["type"] == "object"
    assert tool.parameters["properties"]["number"]["type"] == "integer"
    assert tool.description.endswith("Note that the provided function is in Python 3 syntax.")
    java, _ = begin("simple_java")
    assert {p["type"] for p in java.tools[0].parameters["properties"].values()} == {"string"}


def test_prompting_shows_the_packages_prompt_and_reads_text():
    env, (system, user) = begin("simple_python", 1, mode="prompting")
    assert env.tools == ()
    assert (system.role, user.role) == ("system", "user")
    assert system.content.startswith("You are an expert in composing functions.")
    assert '"name": "math.factorial"' in system.content
    assert answer(env, Action(text="[math.factorial(number=5)]")).success
    env, _ = begin("simple_python", 1, mode="prompting")
    assert not answer(env, Action(text="[math.factorial(number=6)]")).success


def test_an_assistants_words_in_the_question_are_told_by_the_user():
    rows = [id for id, e in package.entries("live_irrelevance").items() if any(m["role"] == "assistant" for m in e["question"][0])]
    assert len(rows) == 8
    for id in rows:
        opening = package.opening(package.prompts("live_irrelevance")[id], "fc")
        assert [m["role"] for m in opening] in (["user"], ["system", "user"])
        assert "assistant: " in opening[-1]["content"]


# -- verdicts --------------------------------------------------------------------------------------------------------------------


def test_verdicts_by_hand():
    for arguments, right in (
        ({"number": 5}, True),
        ({"number": "5"}, False),
        ({"number": 4}, False),
        ({}, False),
        ({"number": 5, "n": 5}, False),
    ):
        env, _ = begin("simple_python", 1)
        step = answer(env, called("math_factorial", **arguments))
        assert (step.success, step.reward, step.terminated) == (right, float(right), True)
    env, _ = begin("simple_python", 1)
    step = answer(env, called("factorial", number=5))
    assert step.info["reason"] == "simple_function_checker:wrong_func_name"
    with pytest.raises(EnvError, match="is over"):
        env.step(called("factorial", number=5))
    env, _ = begin("irrelevance")
    assert answer(env, Action(text="There is no such function.")).success
    env, _ = begin("irrelevance")
    assert answer(env, called(env.tools[0].name)).info["reason"] == "irrelevance_error:decoder_success"


def compare_single_turn(category, every):
    counted = collections.Counter()
    for task in BFCL(category).tasks("test", 10_000)[::every]:
        for what, given in reference.single_turn_answers(category, task.data["entry"]):
            env = BFCL(category)
            env.reset(task)
            step = env.step(Action(text=given) if isinstance(given, str) else Action(tool_calls=tuple(given)))
            expected = reference.single_turn_verdict(category, task.data["entry"], given)
            assert step.success == expected, (task.id, what, step.info)
            counted[what if what == "gold" else "other", expected] += 1
    return counted


@pytest.mark.parametrize("category", package.SINGLE_TURN)
def test_the_same_verdict_as_the_package_on_some_items(category):
    counted = compare_single_turn(category, max(1, SIZES[category] // 8))
    assert counted["other", False] > 10, "corrupted answers must have been refused"
    assert "relevance" in category or counted["gold", True] > 6


@pytest.mark.slow
@pytest.mark.parametrize("category", package.SINGLE_TURN)
def test_the_same_verdict_as_the_package_on_every_item(category):
    counted = compare_single_turn(category, 1)
    if "relevance" not in category:
        assert counted["gold", True] == CEILINGS.get(category, SIZES[category])
        assert counted["gold", True] + counted["gold", False] == SIZES[category]


def executable(turns):
    """Turns of steps of calls as the environment keeps them."""
    steps = [[package.decode_executable(gold.as_calls(calls), "fc") for calls in turn] for turn in turns]
    return [[calls for calls in turn if calls] for turn in steps]


def compare_conversations(category, ids):
    counted = collections.Counter()
    jobs, expected = [], []
    for id in ids:
        for what, turns in reference.conversations(category, id):
            verdict = reference.conversation_verdict(category, id, turns)
            if len(turns) != len(package.answers(category)[id]):
                assert not verdict
                continue  # broken off: the environment gives this verdict without executing anything (see the step limit below)
            jobs.append((package.entries(category)[id], executable(turns), package.answers(category)[id]))
            expected.append((id, what, verdict))
    for (id, what, verdict), found in zip(expected, execution.judge_all(jobs), strict=True):
        assert found["valid"] == verdict, (id, what, found)
        counted[what if what == "gold" else "other", verdict] += 1
    return counted


@pytest.mark.slow
@needs_sandbox
@pytest.mark.parametrize("category", package.MULTI_TURN)
def test_the_same_verdict_as_the_package_on_some_conversations(category):
    counted = compare_conversations(category, list(package.entries(category))[::100])
    assert counted["gold", True] == 2
    assert counted["other", False] > 10
    assert counted["other", True] > 5


@pytest.mark.exhaustive
@pytest.mark.slow
@needs_sandbox
@pytest.mark.parametrize("category", package.MULTI_TURN)
def test_the_same_verdict_as_the_package_on_every_conversation(category):
    ids = list(package.entries(category))
    counted = sum((compare_conversations(category, ids[i : i + 20]) for i in range(0, len(ids), 20)), collections.Counter())
    assert counted["gold", True] == 200
    assert counted["other", False] > 1000


# -- conversations ---------------------------------------------------------------------------------------------------------------


@needs_sandbox
def test_a_conversation_goes_on_as_the_benchmark_says():
    env, (first,) = begin("multi_turn_base")
    assert "final_report.pdf" in first.content
    assert "cp" in {tool.name for tool in env.tools}, "the package gives all of a simulator's functions"
    step = answer(env, called("cd", folder="document"))
    assert [(t.role, t.name, t.call_id) for t in step.observation] == [("tool", "cd", "call_0")]
    assert json.loads(step.observation[0].content) == {"current_working_directory": "document"}
    assert not step.terminated
    step = answer(env, called("pwd"))
    assert json.loads(step.observation[0].content) == {"current_working_directory": "/workspace/document"}, "the state was kept"
    step = answer(env, called("cat", file_name="nothing.txt"))
    assert "No such file" in step.observation[0].content
    step = answer(env, Action(text="Done."))
    (user,) = step.observation
    assert (user.role, user.content) == ("user", package.prompts("multi_turn_base")["multi_turn_base_0"]["question"][1][0]["content"])


@needs_sandbox
def test_a_call_that_cannot_be_read_ends_the_turn():
    env, _ = begin("multi_turn_base")
    broken = Action(tool_calls=(ToolCall(name="pwd", id="a"), ToolCall(name="", id="b", error="not JSON")))
    (user,) = answer(env, broken).observation
    assert user.role == "user"


@needs_sandbox
def test_functions_that_come_along_later():
    env, _ = begin("multi_turn_miss_func")
    assert "sort" not in {tool.name for tool in env.tools}
    for _ in range(3):
        step = answer(env, Action(text="Next."))
    assert "sort" in {tool.name for tool in env.tools}
    assert step.observation.endswith("I have updated some more functions you can choose from. What about now?")
    assert json.loads(step.observation.splitlines()[0])["name"] == "sort"


@pytest.mark.slow
@needs_sandbox
def test_the_step_limit_is_the_benchmarks():
    env, _ = begin("multi_turn_base")
    for _ in range(20):
        step = answer(env, called("pwd"))
        assert (step.truncated, step.terminated) == (False, False)
    step = answer(env, called("pwd"))
    assert (step.truncated, step.success, step.info["reason"]) == (True, False, "multi_turn:force_terminated")


@needs_sandbox
@pytest.mark.parametrize(("category", "mode"), [("multi_turn_base", "prompting"), ("multi_turn_miss_func", "fc")])
def test_the_expert_holds_conversations(category, mode):
    env = EnvFactory(BFCL, {"category": category, "mode": mode}, spec=f"bfcl:{category},mode={mode}")
    found = evaluate(Agent(load_policy("expert")), env, env.tasks("test", 2, 40))
    assert (found.success.mean, found.n_errors) == (1.0, 0)


@needs_sandbox
def test_nothing_is_left_of_another_episode():
    """The package keeps simulators in globals, where a spoilt conversation changes the verdict on the next one of that name."""
    category, id = "multi_turn_base", "multi_turn_base_0"
    right = dict(reference.conversations(category, id))["gold"]
    spoilt = [[[("cd", {"folder": "archive"}), ("mkdir", {"dir_name": "temp"})]], *([] for _ in right[1:])]
    job = [(package.entries(category)[id], executable(turns), package.answers(category)[id]) for turns in (spoilt, right, spoilt, right)]
    assert [verdict["valid"] for verdict in execution.judge_all(job)] == [False, True, False, True]
    one, two = begin(category)[0], begin(category)[0]
    answer(one, called("cd", folder="document"))
    assert json.loads(answer(two, called("pwd")).observation[0].content) == {"current_working_directory": "/workspace"}


@pytest.mark.slow
@needs_sandbox
def test_conversations_share_one_sandbox_and_leave_nothing():
    env = load_env("bfcl:multi_turn_base")
    tasks = env.tasks("test", 20)
    seen = []
    for seed in range(2):
        episodes = rollout(Agent(load_policy("expert")), env, tasks, allow_test=True, seed=seed)
        assert all(episode.success for episode in episodes)
        seen.append((len(os.listdir("/proc/self/fd")), execution._opened.cache_info().misses))
    assert seen[0] == seen[1]
    assert seen[0][1] == 1, "threads that came at the same time opened one sandbox between them"


# -- the contract, and the benchmark's sums -----------------------------------------------------------------------------------------


class Shared(BFCL):
    """The same tasks dealt out as if there were three splits, so that every clause of the contract can be tried."""

    name = "bfcl"

    def tasks(self, split, n, start=0):
        from dataclasses import replace

        first = {"train": 0, "dev": 12, "test": 24}[split]
        return [replace(task, split=split) for task in super().tasks("test", max(0, min(n, 12 - start)), first + start)]


@pytest.mark.parametrize(
    "options",
    [
        {"category": "multiple"},
        {"category": "parallel", "mode": "prompting"},
        pytest.param({"category": "multi_turn_base"}, marks=[pytest.mark.slow, needs_sandbox]),
    ],
)
def test_the_contract(options):
    report = check_env(EnvFactory(Shared, options), tasks=3, processes=False)
    assert report.ok, report
    assert not report.warnings, report
    assert report.expert_success == 1.0


def test_chance_is_at_zero_where_calls_are_asked_for():
    env = load_env("bfcl:simple_python")
    found = evaluate(Agent(load_policy("random")), env, env.tasks("test", 200))
    assert found.success.mean <= 0.02
    bare, _ = begin("multiple")
    drawn = [bare.random_action(random.Random(i)) for i in range(60)]
    assert 0 < sum(not action.tool_calls for action in drawn) < 60


def test_the_sums_are_the_packages(tmp_path):
    """`generate_leaderboard_csv` on made-up accuracies against whet's groups on episodes with these very accuracies."""
    import csv

    run = reference.runner()
    benchmark = benchmark_of(load_env("bfcl:all"))
    rng = random.Random(3)
    right = {name: rng.randrange(size + 1) for name, size in benchmark.sizes.items()}
    table = {"whet": {name: {"accuracy": right[name] / size, "total_count": size} for name, size in benchmark.sizes.items()}}
    run.generate_leaderboard_csv.__globals__["MODEL_CONFIG_MAPPING"] = {"whet": reference.CONFIG}
    run.generate_leaderboard_csv(table, tmp_path)
    (row,) = csv.DictReader((tmp_path / "data_overall.csv").open())
    shares = {group.name: benchmark.categories(group.name) for group in benchmark.groups}
    ours = {name: sum(share * right[c] / benchmark.sizes[c] for c, share in parts.items()) for name, parts in shares.items()}
    columns = {
        "overall": "Overall Acc",
        "non_live": "Non-Live AST Acc",
        "non_live simple": "Non-Live Simple AST",
        "live": "Live Acc",
        "multi_turn": "Multi Turn Acc",
        "web_search": "Web Search Acc",
        "memory": "Memory Acc",
        "irrelevance detection": "Irrelevance Detection",
    }
    assert set(ours) - set(columns) == {"agentic"}
    for name, column in columns.items():
        assert f"{100 * ours[name]:.2f}%" == row[column], (name, column)


def test_a_partial_run_is_never_called_overall():
    env = load_env("bfcl:non_live")
    tasks = env.tasks("test", 10_000)
    right = ScriptedPolicy(lambda request, rng: request.env.expert(rng))
    report = score_benchmark(benchmark_of(env), tasks, evaluate(Agent(right), env, tasks))
    lines = {line.name: line for line in report.lines}
    assert report.headline is None
    assert lines["overall"].score is None
    assert lines["live"].score is None
    assert lines["non_live"].score.mean == pytest.approx((((1 + 0.98 + 1) / 3) + 1 + 1 + 0.99) / 4)
    # 10% for the sum that is complete, and 10% for irrelevance detection, half of which was not run and counts as zero.
    assert report.floor == pytest.approx(0.1 * lines["non_live"].score.mean + 0.1 * 0.5)
    assert any("No overall score: of its 21 categories 7 were run completely" in note for note in report.notes())
    some = score_benchmark(benchmark_of(env), tasks[:500], evaluate(Agent(right), env, tasks[:500]))
    assert {line.name for line in some.lines if line.score is not None} == {"simple_python", "simple_java"}


def test_an_episode_is_kept_with_its_category_and_reason():
    env = load_env("bfcl:simple_python")
    wrong = ScriptedPolicy(lambda request, rng: "I do not know.")
    (episode,) = rollout(Agent(wrong), env, env.tasks("test", 1), allow_test=True)
    assert (episode.stop, episode.success, episode.reason) == (Stop.TERMINATED, False, "ast_decoder:decoder_failed")
    assert episode.tags["info"]["category"] == "simple_python"
