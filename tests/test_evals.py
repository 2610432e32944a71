"""Evals: statistics against known values and against simulation, evaluations of real episodes, paired comparisons."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from whet.agents import Agent
from whet.envs.base import Action, Env, EnvFactory, Step
from whet.errors import CheckpointError, ConfigError
from whet.evals import Comparison, Evaluation, compare, evaluate
from whet.evals.statistics import mean_interval, paired_difference, proportion_interval, t_cdf, t_quantile
from whet.policies.scripted import ScriptedPolicy
from whet.runs import Run
from whet.types import Cost, Task

# -- statistics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "df", "expected"),
    [  # from printed tables of Student's t
        (0.975, 1, 12.7062047362),
        (0.975, 2, 4.30265272991),
        (0.975, 10, 2.22813885196),
        (0.95, 5, 2.01504837333),
        (0.995, 30, 2.74999565357),
        (0.975, 1e7, 1.95996421),
        (0.025, 10, -2.22813885196),
    ],
)
def test_student_quantiles(p: float, df: float, expected: float) -> None:
    assert t_quantile(p, df) == pytest.approx(expected, rel=1e-8)
    assert t_cdf(expected, df) == pytest.approx(p, abs=1e-9)


def test_student_with_one_and_two_degrees_has_closed_forms() -> None:
    for t in (-40.0, -2.0, -0.3, 0.0, 0.7, 5.0, 300.0):
        assert t_cdf(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, abs=1e-13)
        assert t_cdf(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)), abs=1e-13)


@pytest.mark.parametrize(("p", "df"), [(0.0, 5), (1.0, 5), (0.5, 0)])
def test_quantiles_that_do_not_exist_are_refused(p: float, df: float) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        t_quantile(p, df)


def test_mean_interval_by_hand() -> None:
    # mean 2, sd 1, n 3: 2 +- 4.30265 / sqrt(3)
    assert mean_interval([1, 2, 3]) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)


def test_proportion_interval_by_hand() -> None:
    # 8 of 10: squared standard error 0.16/9, so 9 effective trials; t(0.975, 9) = 2.262157, t^2 = 5.117355
    centre = (0.8 + 5.117355 / 18) / (1 + 5.117355 / 9)
    half = 2.262157 / (1 + 5.117355 / 9) * math.sqrt(0.16 / 9 + 5.117355 / (4 * 81))
    assert proportion_interval([1] * 8 + [0] * 2) == pytest.approx((centre - half, centre + half), abs=1e-6)


def test_certain_success_still_has_an_interval() -> None:
    low, high = proportion_interval([1.0] * 256)
    t2 = t_quantile(0.975, 255) ** 2
    assert (low, high) == pytest.approx((256 / (256 + t2), 1.0))
    assert proportion_interval([0.0] * 256) == pytest.approx((0.0, 1 - low))


def test_repeating_tasks_does_not_shrink_what_depends_on_the_task() -> None:
    outcomes = np.array([1.0, 0.0] * 32)
    once = proportion_interval(outcomes)
    copied = proportion_interval(np.stack([outcomes] * 5, 1).mean(1))
    assert copied == pytest.approx(once)


def test_paired_difference_by_hand() -> None:
    # differences 1, 0, 1, 0: mean 0.5, sd 0.57735, se 0.288675, t 1.732051 with 3 degrees of freedom
    d = paired_difference([1, 0, 1, 0], proportion=False)
    assert (d.mean, d.low, d.high) == pytest.approx((0.5, 0.5 - 3.182446 * 0.288675, 0.5 + 3.182446 * 0.288675), abs=1e-5)
    assert d.p == pytest.approx(0.181690, abs=1e-5)
    assert not d.clear
    # of proportions, with +1 and -1 added: mean 2/6, sd of (1, 0, 1, 0, 1, -1) = 0.816497
    padded = paired_difference([1, 0, 1, 0], proportion=True)
    assert padded.mean == 0.5
    assert (padded.low + padded.high) / 2 == pytest.approx(1 / 3)
    assert padded.high - padded.low == pytest.approx(2 * 2.570582 * 0.816497 / math.sqrt(6), abs=1e-5)


def test_agents_that_do_not_differ_are_not_called_different() -> None:
    d = paired_difference([0.0] * 100, proportion=True)
    assert d.low < 0 < d.high
    assert d.p == 1.0
    assert paired_difference([], proportion=True).n == 0


@pytest.mark.parametrize(("shape", "least"), [((1, 1), 0.93), ((9, 0.5), 0.92), ((30, 0.1), 0.92)])
@pytest.mark.parametrize("attempts", [1, 3])
def test_intervals_of_success_cover_the_truth(shape: tuple[float, float], least: float, attempts: int) -> None:
    """Tasks of differing difficulty, Beta(shape), each attempted a few times: 95% intervals hold the mean difficulty."""
    rng = np.random.default_rng(0)
    truth = shape[0] / sum(shape)
    hits = 0
    for _ in range(1000):
        rates = rng.binomial(attempts, rng.beta(*shape, 128)) / attempts
        low, high = proportion_interval(rates)
        hits += low <= truth <= high
    assert least <= hits / 1000 <= 0.99


@pytest.mark.parametrize("shift", [0.0, 0.15])
def test_intervals_of_differences_cover_the_truth_and_p_values_are_uniform(shift: float) -> None:
    rng = np.random.default_rng(1)
    hits, rejected = 0, 0
    for _ in range(1000):
        difficulty = rng.uniform(0.1, 0.8, 128)
        d = paired_difference(rng.binomial(1, difficulty + shift) - rng.binomial(1, difficulty), proportion=True)
        hits += d.low <= shift <= d.high
        rejected += d.p < 0.05
        assert (d.p < 0.05) == d.clear
    assert 0.93 <= hits / 1000 <= 0.98
    assert rejected / 1000 == pytest.approx(0.05, abs=0.025) if shift == 0 else rejected / 1000 > 0.5


# -- evaluations of episodes ---------------------------------------------------------------------------------------------


class Guess(Env):
    """Succeeds when the text is `yes`; the task says whether the environment breaks."""

    def tasks(self, split: str, n: int, start: int = 0) -> list[Task]:
        return [Task(id=f"guess/{split}/{i}", env="guess", split=split, seed=i, data={"broken": i == 1}) for i in range(start, start + n)]

    def reset(self, task: Task) -> str:
        self.task = task
        return f"task {task.seed}"

    def step(self, action: Action) -> Step:
        if self.task.data["broken"]:
            raise OSError("the service is down")
        right = action.text == "yes"
        return Step(reward=0.5 + 0.5 * right, terminated=True, success=right)


ENV = EnvFactory(Guess, spec="guess")


def agent(share: float = 0.5) -> Agent:
    return Agent(ScriptedPolicy(lambda request, rng: "yes" if rng.random() < share else "no"))


def test_evaluate_scores_every_task_and_counts_failures_apart() -> None:
    run = Run.scratch()
    tasks = ENV.tasks("test", 40)
    e = evaluate(agent(1.0), ENV, tasks, repeats=2, run=run, name="final")
    assert e.tasks == tuple(task.id for task in tasks)
    assert e.successes[0] == (True, True)
    assert e.successes[1] == ()
    assert e.n_errors == 2
    assert e.n_episodes == 80
    assert (e.success.mean, e.success.n, e.reward.mean) == (1.0, 39, 1.0)
    assert e.success.low < 1.0
    assert e.split == "test"
    assert e.scripted
    assert e.cost.episodes == 80
    assert len(list(run.load_episodes("eval/final"))) == 80
    assert run.cost.episodes == 0
    assert [event["n_errors"] for event in run.events("evaluation")] == [2]


def test_evaluate_depends_on_the_seed_alone() -> None:
    tasks = [task for task in ENV.tasks("test", 41) if task.seed != 1]
    assert evaluate(agent(), ENV, tasks, seed=1).successes == evaluate(agent(), ENV, tasks, seed=1).successes
    assert evaluate(agent(), ENV, tasks, seed=1).successes != evaluate(agent(), ENV, tasks, seed=2).successes


def test_an_evaluation_comes_back_equal(tmp_path: Path) -> None:
    e = evaluate(agent(), ENV, ENV.tasks("dev", 20), repeats=2)
    e.save(tmp_path / "e.json")
    assert Evaluation.load(tmp_path / "e.json") == e
    (tmp_path / "e.json").write_text('{"format": 9}')
    with pytest.raises(CheckpointError, match=r"e\.json"):
        Evaluation.load(tmp_path / "e.json")


def test_a_resumed_run_does_not_evaluate_again(tmp_path: Path) -> None:
    acted = []

    def act(request: object, rng: object) -> str:
        acted.append(1)
        return "yes"

    def go(resume: bool, fail: bool) -> Evaluation:
        with Run.create(tmp_path / "run", {"seed": 0}, resume=resume, quiet=True) as run:
            tasks = [task for task in ENV.tasks("test", 9) if task.seed != 1]
            before = evaluate(Agent(ScriptedPolicy(act)), ENV, tasks, run=run, name="before")
            if fail:
                raise KeyboardInterrupt
            evaluate(Agent(ScriptedPolicy(act)), ENV, tasks, run=run, name="final")
        return before

    with pytest.raises(KeyboardInterrupt):
        go(resume=False, fail=True)
    assert len(acted) == 8
    again = go(resume=True, fail=False)
    assert len(acted) == 16
    run = Run.open(tmp_path / "run")
    assert set(run.evaluations()) == {"before", "final"}
    assert Evaluation.from_json(run.evaluations()["before"]) == again
    assert [e["name"] for e in run.events("evaluation")] == ["before", "final"]


@pytest.mark.parametrize(("tasks", "repeats"), [((), 1), (ENV.tasks("dev", 1) + ENV.tasks("test", 1), 1), (ENV.tasks("dev", 1), 0)])
def test_evaluate_refuses_what_it_cannot_score(tasks: tuple[Task, ...], repeats: int) -> None:
    with pytest.raises(ConfigError, match="at least one task, all of one split"):
        evaluate(agent(), ENV, tasks, repeats=repeats)


# -- comparisons ---------------------------------------------------------------------------------------------------------


def made(successes: list[list[bool]], *, tasks: tuple[str, ...] = (), errors: int = 0, seed: int = 0) -> Evaluation:
    return Evaluation(
        name="final",
        env="toy",
        split="test",
        policy="p",
        seed=seed,
        tasks=tasks or tuple(f"t{i}" for i in range(len(successes))),
        rewards=tuple(tuple(map(float, s)) for s in successes),
        successes=tuple(tuple(s) for s in successes),
        errors={"step_deadline": errors} if errors else {},
    )


T, F = [True], [False]


def test_compare_by_hand() -> None:
    base = [made([F, F, T, F]), made([F, T, T, F])]
    better = [made([T, F, T, T]), made([T, T, T, F])]
    c = compare({"base": base, "sft": better}, "base", costs={"sft": Cost(episodes=12, sampled_tokens=3400, seconds=5)})
    row = c.rows[1]
    assert (row.success.mean, row.success.n, row.success.seeds) == (0.75, 4, 2)
    assert row.seeds == (0.75, 0.75)
    assert c.rows[0].seeds == (0.25, 0.5)
    assert c.rows[0].sd == pytest.approx(0.25 / math.sqrt(2))
    # by task: (1+1)/2, (0+0)/2, (0+0)/2, (1+0)/2
    assert row.difference == paired_difference([1.0, 0.0, 0.0, 0.5], proportion=True)
    assert row.better_seeds == 2
    assert c.difference("base", "sft").mean == -0.375
    assert c.rows[0].difference is None
    text = c.markdown()
    assert "| sft | 75.0% [" in text
    assert "| +37.5 [" in text
    assert "3.4k" in text


def test_failed_attempts_are_left_out_of_pairs_and_shown() -> None:
    with_failures = [made([[], T, T, T] + [T] * 16, errors=2)]
    c = compare({"base": [made([F] * 20)], "x": with_failures}, "base")
    row = c.rows[1]
    assert (row.success.n, row.difference.n, row.n_errors) == (19, 19, 2)  # type: ignore[union-attr]
    assert "more than 5%" in row.warning
    assert "step_deadline" in c.warnings()[0]
    assert "2/20" in c.markdown()
    assert c.rows[0].warning == ""


def test_only_evaluations_on_the_same_tasks_are_compared() -> None:
    with pytest.raises(ConfigError, match="only on the very same tasks"):
        compare({"a": [made([T, F])], "b": [made([T, F], tasks=("t0", "t9"))]}, "a")
    with pytest.raises(ConfigError, match="the same seeds for all"):
        compare({"a": [made([T, F])], "b": [made([T, F]), made([T, F])]}, "a")
    with pytest.raises(ConfigError, match="Did you mean 'base'"):
        compare({"base": [made([T, F])]}, "bsae")
    with pytest.raises(ConfigError, match="no evaluations"):
        compare({"base": []}, "base")


def test_a_comparison_comes_back_equal(tmp_path: Path) -> None:
    c = compare({"a": [made([T, F])], "b": [made([T, T])]}, {"b": "a"}, costs={"b": Cost(episodes=1)}, notes=["c is left out"])
    (tmp_path / "c.json").write_text(json.dumps(c.to_json(), allow_nan=False))
    assert Comparison.load(tmp_path / "c.json") == c
    assert "c is left out" in c.markdown()


def test_scripted_actors_are_labelled() -> None:
    e = evaluate(agent(), ENV, ENV.tasks("dev", 20), seed=3)
    assert "expert (scripted)" in compare({"expert": [e]}, {}).markdown()
