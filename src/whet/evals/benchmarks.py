"""A benchmark's own scores: its categories, and its authors' sums over them, each with an interval.

Which categories there are and how they are weighted is said by the environment (`whet.envs.benchmark.Benchmark`). A sum is given
only where every task of every category in it was run: what a benchmark's own program prints after a partial run, with
whatever is missing counted as zero, is no score of that benchmark.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.envs.benchmark import Benchmark
from whet.errors import ConfigError
from whet.evals.evaluation import Evaluation
from whet.evals.statistics import t_quantile
from whet.types import Score, Task

if TYPE_CHECKING:
    from rich.table import Table

    from whet.envs.base import EnvFactory


@dataclass(frozen=True, kw_only=True)
class Line:
    """A category or a group with its score."""

    name: str
    score: Score | None
    """Of a category, over the tasks that were run; of a group, None unless it is complete."""
    n: int
    """Tasks that were run and did not fail."""
    size: int
    """Tasks that the benchmark has there."""
    group: bool = False
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Category that is not complete -> what is missing of it."""
    pass_k: tuple[float, ...] = ()
    """Chance that k attempts at a task all succeed, for k = 1, 2, ...; empty where the benchmark does not report it."""

    @property
    def complete(self) -> bool:
        return not self.missing


@dataclass(frozen=True, kw_only=True)
class Report:
    """An evaluation in the benchmark's terms. Made by `score_benchmark`."""

    benchmark: Benchmark
    title: str
    lines: tuple[Line, ...]
    """Categories that were run, in the benchmark's order, then the groups."""
    floor: float | None
    """The headline with what is missing counted as zero; None where it is complete or there is none."""

    @property
    def headline(self) -> Line | None:
        """The benchmark's one number, if it has one and everything in it was run."""
        return next((line for line in self.lines if line.name == self.benchmark.headline and line.complete), None)

    def notes(self) -> list[str]:
        """What a reader must know about the scores."""
        name = self.benchmark.headline
        told = list(self.benchmark.notes)
        line = next((line for line in self.lines if line.name == name and not line.complete), None)
        if line is not None:
            needed = self.benchmark.categories(name)
            partly = [f"{category} ({what})" for category, what in line.missing.items() if " of " in what]
            told.append(
                f"No {name} score: of its {len(needed)} categories {len(needed) - len(line.missing)} were run completely"
                + (f", and in part {', '.join(partly)}." if partly else ".")
            )
        if self.floor:
            told.append(
                f"With what is missing counted as zero, as the benchmark's own program does, the sum is {100 * self.floor:.1f}%; "
                f"that is not its {name} score."
            )
        return told

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Headings and rows as text. Groups that are not complete are left out."""
        shown = [line for line in self.lines if line.score is not None]
        ks = max((len(line.pass_k) for line in shown), default=0)
        head = [self.benchmark.name, "mean reward" if self.benchmark.reward else "accuracy", "95% interval", "tasks"]
        rows = []
        for line in shown:
            assert line.score is not None
            tasks = f"{line.n}" if line.n == line.size else f"{line.n} of {line.size}"
            interval = f"[{_number(line.score.low, self.benchmark.reward)}, {_number(line.score.high, self.benchmark.reward)}]"
            row = [line.name, _number(line.score.mean, self.benchmark.reward), interval, tasks]
            rows.append(row + [f"{100 * p:.1f}" for p in line.pass_k] + [""] * (ks - len(line.pass_k)))
        return head + [f"pass^{k}" for k in range(1, ks + 1)], rows

    def table(self) -> Table:
        """For `rich.print`; what else must be said stands in `notes`."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        head, rows = self.cells()
        table = Table(title=self.title, header_style="bold", box=SIMPLE_HEAD, padding=0)
        for number, name in enumerate(head):
            table.add_column(name, justify="right" if number else "left", overflow="fold")
        groups = {line.name for line in self.lines if line.group}
        for number, cells in enumerate(rows):
            last = number + 1 < len(rows) and cells[0] not in groups and rows[number + 1][0] in groups
            table.add_row(*cells, end_section=last)
        return table

    def markdown(self) -> str:
        head, rows = self.cells()
        lines = [head, ["---"] * len(head), *rows]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n\n" + " ".join([f"{self.title}.", *self.notes()]) + "\n"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        headline = self.headline
        return {
            "benchmark": self.benchmark.name,
            "title": self.title,
            "headline": None if headline is None else {"name": headline.name, "score": dataclasses.asdict(headline)["score"]},
            "missing_as_zero": self.floor,
            "notes": self.notes(),
            "lines": [dataclasses.asdict(line) | {"missing": dict(line.missing)} for line in self.lines],
        }


def benchmark_of(env: EnvFactory) -> Benchmark | None:
    """The benchmark that an environment plays, if it plays one (its class then has a method `benchmark`)."""
    if not callable(getattr(env.cls, "benchmark", None)):
        return None
    found = env().benchmark()  # type: ignore[attr-defined]
    if not isinstance(found, Benchmark):
        raise ConfigError(
            f"benchmark() of environment {env.name!r} returned a {type(found).__name__}; expected whet.envs.benchmark.Benchmark"
        )
    return found


def score_benchmark(benchmark: Benchmark, tasks: Sequence[Task], evaluation: Evaluation, *, level: float = 0.95) -> Report:
    """An evaluation of `tasks` in the benchmark's terms.

    Raises ConfigError where the evaluation is of other tasks, or a task names no category of the benchmark (`data["category"]`).
    """
    if tuple(task.id for task in tasks) != evaluation.tasks:
        raise ConfigError(
            f"the evaluation is of {len(evaluation.tasks)} tasks that are not the {len(tasks)} given; pass those it was made of"
        )
    rows: dict[str, list[int]] = {}
    for number, task in enumerate(tasks):
        category = task.data.get("category")
        if not isinstance(category, str) or category not in benchmark.sizes:
            known = ", ".join(benchmark.sizes)
            raise ConfigError(f"task {task.id!r} has the category {category!r}; expected one of {benchmark.name!r}: {known}")
        rows.setdefault(category, []).append(number)
    per_task = evaluation.per_task("reward" if benchmark.reward else "success")
    values = {name: per_task[rows[name]][~np.isnan(per_task[rows[name]])] for name in benchmark.sizes if name in rows}
    missing = {name: _missing(benchmark, name, values.get(name)) for name in benchmark.sizes}
    missing = {name: why for name, why in missing.items() if why}

    def line(name: str, group: bool) -> Line:
        shares = benchmark.categories(name)
        lacking = {category: missing[category] for category in shares if category in missing}
        parts = [(share, values[category]) for category, share in shares.items() if category in values and len(values[category])]
        given = bool(parts) and not (group and lacking)
        chosen = [number for category in shares for number in rows.get(category, ())]
        return Line(
            name=name,
            score=_score(parts, benchmark.reward, evaluation, level) if given else None,
            n=sum(len(values[category]) for category in shares if category in values),
            size=sum(benchmark.sizes[category] for category in shares),
            group=group,
            missing=lacking,
            pass_k=_pass_k(evaluation, chosen) if benchmark.pass_k and given and not group else (),
        )

    lines = [line(name, False) for name in benchmark.sizes if name in values] + [line(group.name, True) for group in benchmark.groups]
    floor = None
    if benchmark.headline and any(category in missing for category in benchmark.categories(benchmark.headline)):
        shares = benchmark.categories(benchmark.headline)
        floor = sum(share * float(values[name].mean()) for name, share in shares.items() if name not in missing)
    title = f"{evaluation.env}: {len(tasks)} {evaluation.split} tasks, {evaluation.policy}"
    return Report(benchmark=benchmark, title=title, lines=tuple(lines), floor=floor)


def _missing(benchmark: Benchmark, name: str, values: np.ndarray | None) -> str:
    """What is missing of a category; empty where nothing is."""
    if name in benchmark.unavailable:
        return "not run here"
    if values is None:
        return "not run"
    return "" if len(values) >= benchmark.sizes[name] else f"{len(values)} of {benchmark.sizes[name]}"


def _score(parts: Sequence[tuple[float, np.ndarray]], reward: bool, evaluation: Evaluation, level: float) -> Score:
    low, high = stratified_interval(parts, level=level, proportion=not reward)
    mean = sum(share * float(values.mean()) for share, values in parts) / sum(share for share, _ in parts)
    n = sum(len(values) for _, values in parts)
    return Score(mean=mean, low=low, high=high, n=n, seeds=1, level=level, cost=evaluation.cost)


def stratified_interval(parts: Sequence[tuple[float, np.ndarray]], *, level: float = 0.95, proportion: bool = True) -> tuple[float, float]:
    """An interval for a weighted mean of categories' means. `parts` are (weight, values of the category's tasks [n]).

    The categories are fixed and their tasks a sample, so squared errors add up with squared weights. Of proportions it is
    Wilson's interval with the effective number of trials, as in `statistics.proportion_interval`, with which it agrees for
    a single category. With several, that number is at most 1 / sum(weight^2 / n), what the weights leave of the tasks: a
    category where every task came out the same has no spread to be counted, but its mean is not certain. Of other values it
    is Student's. (0, 1), or infinite, where a category has fewer than two tasks.
    """
    if any(len(values) < 2 for _, values in parts):
        return (0.0, 1.0) if proportion else (-math.inf, math.inf)
    total = sum(weight for weight, _ in parts)
    shares = [(weight / total, np.asarray(values, float)) for weight, values in parts]
    mean = sum(share * float(x.mean()) for share, x in shares)
    square = sum(share**2 * float(x.var(ddof=1)) / len(x) for share, x in shares)
    t = t_quantile((1 + level) / 2, sum(len(x) - 1 for _, x in shares))
    if not proportion:
        return mean - t * math.sqrt(square), mean + t * math.sqrt(square)
    spread = mean * (1 - mean)
    most = 1 / sum(share**2 / len(x) for share, x in shares)
    trials = spread / square if square > 0 and spread > 0 else most
    if len(shares) > 1:
        trials = min(trials, most)
    centre = (mean + t * t / (2 * trials)) / (1 + t * t / trials)
    half = t / (1 + t * t / trials) * math.sqrt(max(spread, 0.0) / trials + t * t / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def pass_hat(successes: Sequence[Sequence[bool]], k: int) -> np.ndarray:
    """pass^k of each task with at least k attempts, float64 [tasks]: the chance that k of its attempts, drawn without
    replacement, all succeeded, C(c, k) / C(n, k) for c successes in n attempts (Yao et al. 2024, arXiv:2406.12045)."""
    if k < 1:
        raise ConfigError(f"k is {k}; expected at least 1 attempt")
    return np.array([math.comb(sum(found), k) / math.comb(len(found), k) for found in successes if len(found) >= k], float)


def _pass_k(evaluation: Evaluation, rows: Sequence[int]) -> tuple[float, ...]:
    """pass^1 to pass^n, for n attempts at each task; up to the fewest attempts that any task has."""
    successes = [evaluation.successes[number] for number in rows if evaluation.successes[number]]
    most = min(map(len, successes), default=0)
    return tuple(float(pass_hat(successes, k).mean()) for k in range(1, most + 1))


def _number(value: float, reward: bool) -> str:
    return f"{value:.3f}" if reward else f"{100 * value:.1f}"
