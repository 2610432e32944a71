"""What the embedded model can do, and that methods do to it what their papers say. Effects over seeds are `make demo`'s."""

from statistics import fmean

import pytest

from whet import Agent, Data, Run, evaluate, load_env, load_policy
from whet.methods.reflexion import ReflexionConfig, reflexion
from whet.methods.sft import SFTConfig, sft
from whet.rollout import rollout

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def env():
    return load_env("search:hops=1-3")


@pytest.fixture(scope="module")
def base():
    return Agent(load_policy("base"))


def test_the_base_is_bad_at_search_and_a_few_expert_episodes_help(env, base):
    dev = env.tasks("dev", 128)
    before = evaluate(base, env, dev, repeats=2).success
    assert before.high < 0.30
    experts = [e for e in rollout(Agent(load_policy("expert")), env, env.tasks("train", 16)) if e.success]
    assert len(experts) == 16
    cloned = sft(base, Data(experts=tuple(experts)), env=env, run=Run.scratch(), cfg=SFTConfig(epochs=4, lr=5e-4, batch_size=8))
    after = evaluate(cloned, env, dev, repeats=2).success
    assert after.low > before.high


def test_reflections_help_more_than_as_many_retries(env, base):
    tasks = env.tasks("train", 96)
    solved = {}
    for name, reflector in (("reflected", None), ("retried", lambda episode: None)):
        run, curve = Run.scratch(), []
        run.log = lambda step, curve=curve, **metrics: curve.append(metrics["success"])
        cfg = ReflexionConfig(trials=3, reflector="environment")
        reflexion(base, Data(train=tasks), env=env, run=run, cfg=cfg, reflector=reflector)
        assert curve == sorted(curve)
        solved[name] = curve[-1]
    assert solved["reflected"] > solved["retried"] + 0.3


def test_a_hint_in_the_context_is_followed(env, base):
    tasks = list(env.tasks("dev", 96))
    notes = {}
    for task in tasks:
        world = env()
        world.reset(task)
        path = zip(world.question.relations, world.question.path[1:])
        notes[task.id] = (", ".join(f"{relation} {person}" for relation, person in path) + ".",)
    plain, hinted = (rollout(agent, env, tasks, seed=1) for agent in (base, base.replace(memory=notes)))
    assert fmean(e.success for e in hinted) > fmean(e.success for e in plain) + 0.4
