"""A benchmark's sums: weights, what is missing, intervals, pass^k; and `whet eval` on a benchmark of one's own."""

import json
import math
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest

from whet.cli import main
from whet.envs import Env, EnvFactory, Step
from whet.envs.benchmark import Benchmark, Group
from whet.errors import ConfigError
from whet.evals import Evaluation
from whet.evals.benchmarks import benchmark_of, pass_hat, score_benchmark, stratified_interval
from whet.evals.statistics import mean_interval, proportion_interval
from whet.types import Task

QUIZ = Benchmark(
    name="Quiz",
    sizes={"easy": 4, "hard": 2, "absent": 2},
    groups=(
        Group(name="written", parts={"easy": 1, "hard": 3}),
        Group(name="by size", parts={"easy": 4, "hard": 2}),
        Group(name="overall", parts={"written": 9, "absent": 1}),
    ),
    headline="overall",
    unavailable={"absent": "it needs a pencil"},
)


def tasks_of(**counts):
    return [
        Task(id=f"quiz/{name}/{i}", env="quiz", split="test", data={"category": name})
        for name, count in counts.items()
        for i in range(count)
    ]


def evaluation_of(tasks, successes, rewards=None):
    successes = tuple(tuple(map(bool, found)) for found in successes)
    rewards = tuple(tuple(map(float, found)) for found in (rewards or successes))
    return Evaluation(
        name="final",
        env="quiz",
        split="test",
        policy="someone",
        repeats=max(map(len, successes)),
        tasks=tuple(task.id for task in tasks),
        successes=successes,
        rewards=rewards,
    )


def test_groups_are_spread_over_their_categories():
    assert QUIZ.categories("easy") == {"easy": 1.0}
    assert QUIZ.categories("written") == {"easy": 0.25, "hard": 0.75}
    assert QUIZ.categories("overall") == pytest.approx({"easy": 0.225, "hard": 0.675, "absent": 0.1})


@pytest.mark.parametrize(
    "changes",
    [
        {"groups": (Group(name="g", parts={"esay": 1}),)},
        {"groups": (Group(name="g", parts={}),)},
        {"groups": (Group(name="easy", parts={"hard": 1}),)},
        {"groups": (Group(name="g", parts={"easy": 0}),)},
        {"groups": (Group(name="a", parts={"b": 1}), Group(name="b", parts={"easy": 1}))},
        {"headline": "everything"},
        {"unavailable": {"oral": "it is loud"}},
    ],
)
def test_rules_that_cannot_be_followed_are_refused(changes):
    with pytest.raises(ConfigError, match="Quiz"):
        replace(QUIZ, **changes)


def test_scores_by_hand():
    tasks = tasks_of(easy=4, hard=2)
    report = score_benchmark(QUIZ, tasks, evaluation_of(tasks, [[1], [1], [1], [0], [1], [0]]))
    lines = {line.name: line for line in report.lines}
    assert [line.name for line in report.lines] == ["easy", "hard", "written", "by size", "overall"]
    assert lines["easy"].score.mean == 0.75
    assert lines["written"].score.mean == pytest.approx(0.25 * 0.75 + 0.75 * 0.5)
    assert lines["by size"].score.mean == pytest.approx(4 / 6)
    assert (lines["written"].n, lines["written"].size) == (6, 6)
    assert lines["overall"].score is None
    assert lines["overall"].missing == {"absent": "not run here"}
    assert report.headline is None
    assert report.floor == pytest.approx(0.9 * (0.25 * 0.75 + 0.75 * 0.5))
    assert any("No overall score: of its 3 categories 2 were run completely" in note for note in report.notes())
    assert any("50.6%; that is not its overall score" in note for note in report.notes())
    head, rows = report.cells()
    assert head == ["Quiz", "accuracy", "95% interval", "tasks"]
    assert [row[0] for row in rows] == ["easy", "hard", "written", "by size"]
    assert "| easy | 75.0 |" in report.markdown()


def test_a_complete_run_has_its_headline():
    whole = replace(QUIZ, unavailable={})
    tasks = tasks_of(easy=4, hard=2, absent=2)
    report = score_benchmark(whole, tasks, evaluation_of(tasks, [[1]] * 4 + [[0]] * 2 + [[1], [0]]))
    assert report.headline.score.mean == pytest.approx(0.225 + 0.1 * 0.5)
    assert report.floor is None
    assert not any("No overall" in note for note in report.notes())
    assert json.loads(json.dumps(report.to_json()))["headline"]["score"]["mean"] == pytest.approx(0.275)


def test_a_category_that_was_run_in_part_has_a_score_but_no_place_in_a_sum():
    tasks = tasks_of(easy=3, hard=2)
    report = score_benchmark(QUIZ, tasks, evaluation_of(tasks, [[1]] * 5))
    lines = {line.name: line for line in report.lines}
    assert (lines["easy"].score.mean, lines["easy"].n, lines["easy"].size) == (1.0, 3, 4)
    assert lines["written"].score is None
    assert lines["written"].missing == {"easy": "3 of 4"}
    assert report.cells()[1][0][3] == "3 of 4"
    assert any("in part easy (3 of 4)" in note for note in report.notes())


def test_episodes_that_failed_to_run_leave_their_category_incomplete():
    tasks = tasks_of(easy=4, hard=2)
    report = score_benchmark(QUIZ, tasks, evaluation_of(tasks, [[1], [], [1], [1], [1], [1]]))
    lines = {line.name: line for line in report.lines}
    assert lines["easy"].score.mean == 1.0
    assert lines["easy"].missing == {"easy": "3 of 4"}
    assert lines["written"].score is None


def test_what_does_not_belong_together_is_refused():
    tasks = tasks_of(easy=2)
    with pytest.raises(ConfigError, match="not the 1 given"):
        score_benchmark(QUIZ, tasks[:1], evaluation_of(tasks, [[1], [1]]))
    strange = [replace(task, data={"category": "oral"}) for task in tasks]
    with pytest.raises(ConfigError, match="has the category 'oral'; expected one of 'Quiz': easy, hard, absent"):
        score_benchmark(QUIZ, strange, evaluation_of(strange, [[1], [1]]))


def test_the_interval_of_one_category_is_the_usual_one():
    rng = np.random.default_rng(0)
    for values in (rng.integers(0, 2, 40).astype(float), np.ones(30), rng.integers(0, 4, 25) / 3):
        assert stratified_interval([(7.0, values)]) == pytest.approx(proportion_interval(values))
        assert stratified_interval([(1.0, values)], proportion=False) == pytest.approx(mean_interval(values))
    assert stratified_interval([(1, np.ones(1)), (1, np.ones(50))]) == (0.0, 1.0)
    # One right answer among 400 tasks beside 200 wrong ones: the 200 have no spread, and are still only 200.
    some = np.r_[1.0, np.zeros(399)]
    assert stratified_interval([(1, some), (9, np.zeros(200))])[1] > 0.01
    assert stratified_interval([(1, np.ones(1))], proportion=False) == (-math.inf, math.inf)


def test_the_interval_covers_a_weighted_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    truth, sizes, weights = (0.9, 0.4, 0.7), (60, 25, 120), (0.2, 0.5, 0.3)
    centre = sum(w * p for w, p in zip(weights, truth))
    hits = 0
    for _ in range(300):
        parts = [(w, (rng.random(n) < p).astype(float)) for w, p, n in zip(weights, truth, sizes)]
        low, high = stratified_interval(parts)
        hits += low <= centre <= high
    assert 0.93 <= hits / 300 <= 0.985


def test_pass_hat_by_hand():
    # C(c, k) / C(n, k): of 4 attempts 3 good ones give 3/4, 3/6, 1/4 and 0.
    attempts = [[True, True, True, False], [True] * 4, [False] * 4]
    assert pass_hat(attempts, 1) == pytest.approx([0.75, 1, 0])
    assert pass_hat(attempts, 2) == pytest.approx([0.5, 1, 0])
    assert pass_hat(attempts, 3) == pytest.approx([0.25, 1, 0])
    assert pass_hat(attempts, 4) == pytest.approx([0, 1, 0])
    assert len(pass_hat([[True], [True, False]], 2)) == 1
    with pytest.raises(ConfigError, match="k is 0"):
        pass_hat(attempts, 0)


def test_pass_k_stands_in_the_table():
    tasks = tasks_of(easy=2)
    found = evaluation_of(tasks, [[1, 1, 0], [1, 1, 1]])
    report = score_benchmark(replace(QUIZ, pass_k=True), tasks, found)
    assert report.lines[0].pass_k == pytest.approx((5 / 6, (1 / 3 + 1) / 2, 0.5))
    head, rows = report.cells()
    assert head[4:] == ["pass^1", "pass^2", "pass^3"]
    assert rows[0][4:] == ["83.3", "66.7", "50.0"]


def test_rewards_may_be_what_is_scored():
    tasks = tasks_of(easy=4, hard=2)
    found = evaluation_of(tasks, [[0]] * 6, rewards=[[0.5], [1.5], [1.0], [1.0], [2.0], [2.0]])
    report = score_benchmark(replace(QUIZ, reward=True), tasks, found)
    assert report.lines[0].score.mean == 1.0
    assert report.cells()[0][1] == "mean reward"
    assert report.cells()[1][2][:2] == ["written", "1.750"]


class Mute(Env):
    """No benchmark."""

    def reset(self, task):
        return "hello"

    def step(self, action):
        return Step(observation="bye", terminated=True)


class Strange(Mute):
    def benchmark(self):
        return {"easy": 4}


def test_only_environments_that_say_so_are_benchmarks():
    assert benchmark_of(EnvFactory(Mute)) is None
    with pytest.raises(ConfigError, match="returned a dict; expected whet"):
        benchmark_of(EnvFactory(Strange))


MINE = """
    from whet.envs import Action, Env, Step
    from whet.envs.benchmark import Benchmark, Group
    from whet.types import Task

    class Sums(Env):
        def __init__(self, largest: int = 3, *, shout: bool = False) -> None:
            self.largest = largest

        def benchmark(self):
            groups = (Group(name="all", parts={"one": 1, "two": 1}),)
            return Benchmark(name="Sums", sizes={"one": 3, "two": 2}, groups=groups, headline="all", temperature=0.0)

        def tasks(self, split, n, start=0):
            kinds = ["one"] * 3 + ["two"] * 2
            made = [Task(id=f"sums/{split}/{i}", env="sums", split=split, seed=i, data={"category": k}) for i, k in enumerate(kinds)]
            return made[start : start + n]

        def reset(self, task):
            self.right = str(task.seed)
            return f"say {task.seed}"

        def step(self, action):
            good = action.text == self.right
            return Step(reward=float(good), terminated=True, success=good)

        def expert(self, rng):
            return Action(text="4" if self.right == "1" else self.right)
"""


def test_eval_runs_all_of_a_benchmark_and_prints_its_sums(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(textwrap.dedent(MINE))
    spec, out = f"{tmp_path}/mine.py:Sums", tmp_path / "out"
    main(["eval", "--env", spec, "--model", "expert", "--quiet", "--out", str(out)])
    shown = capsys.readouterr().out
    assert "5 test tasks" in shown
    assert [line.split()[:2] for line in shown.splitlines() if line.split()[:1] in (["one"], ["two"], ["all"])] == [
        ["one", "66.7"],
        ["two", "100.0"],
        ["all", "83.3"],
    ]
    saved = json.loads((out / "benchmark.json").read_text())
    assert saved["headline"]["score"]["mean"] == pytest.approx(5 / 6)
    assert '"temperature": 0.0' in (out / "config.json").read_text(), "the benchmark's, for the user named none"
    main(["eval", "--env", f"{spec}:4,shout=true", "--model", "expert", "--quiet", "-n", "2"])
    shown = capsys.readouterr().out
    assert "2 of 3" in shown
    assert "No all score: of its 2 categories 0 were run completely, and in part one (2 of 3)." in shown


def test_nothing_of_this_costs_an_import():
    code = "import sys, whet; sys.exit(any(m in sys.modules for m in ('bfcl_eval', 'whet.envs.bfcl', 'whet.evals.benchmarks')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
