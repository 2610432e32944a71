"""Which agent is better, and is it certain: recipes, each evaluated once per training seed on the same tasks, side by side."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.errors import CheckpointError, ConfigError, did_you_mean
from whet.evals.evaluation import Evaluation, Metric, score
from whet.evals.statistics import Difference, paired_difference
from whet.types import Cost, Score

if TYPE_CHECKING:
    from rich.table import Table

FAILED = 0.05
"""Share of failed episodes in one evaluation from which on the table warns."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One recipe in the table."""

    recipe: str
    part: str = ""
    """The environment that the row is about, of several in the evaluation; empty for the row about all of them."""
    success: Score
    reward: Score
    seeds: tuple[float, ...]
    """Success rate of each training seed."""
    sd: float | None
    """Standard deviation of `seeds`; None for a single one."""
    baseline: str | None
    difference: Difference | None
    """In success, to `baseline`."""
    reward_difference: Difference | None
    better_seeds: int
    """In how many seeds the recipe's success rate is above its baseline's."""
    cost: Cost | None
    """What making the agent took, mean over the seeds."""
    n_errors: int
    n_episodes: int
    scripted: bool = False
    warning: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Recipes x seeds on the same tasks. Made by `compare`.

    A recipe's score is the mean over tasks of the mean over seeds; its interval is clustered by task: it covers the choice
    of tasks, for the agents that were trained. How much training seeds matter is shown beside it, seed by seed.
    Differences are taken within each pair of task and seed, averaged over seeds, and tested over tasks.
    """

    evaluations: Mapping[str, tuple[Evaluation, ...]]
    baselines: Mapping[str, str]
    costs: Mapping[str, Cost] = field(default_factory=dict)
    level: float = 0.95
    notes: tuple[str, ...] = ()
    """What a reader must know besides, such as recipes that could not be finished."""

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """A row for each recipe, followed by one for each environment where the tasks are of several."""
        return tuple(row for recipe in self.evaluations for row in (self._row(recipe), *self._part_rows(recipe)))

    def part(self, env: str) -> Comparison:
        """The comparison on the tasks of one environment alone. Raises ConfigError where there are none."""
        found = {recipe: tuple(e.part(env) for e in evaluations) for recipe, evaluations in self.evaluations.items()}
        return Comparison(evaluations=found, baselines=self.baselines, level=self.level)

    def _part_rows(self, recipe: str) -> list[Row]:
        """Rows of the environments; none for one all of whose episodes failed, which the warnings say."""
        return [dataclasses.replace(self.part(env)._row(recipe), part=env) for env in self._parts() if env not in self._lost(recipe)]

    def _parts(self) -> tuple[str, ...]:
        return next(iter(self.evaluations.values()))[0].parts()

    def _lost(self, recipe: str) -> list[str]:
        return [env for env in self._parts() if not any(any(e.part(env).rewards) for e in self.evaluations[recipe])]

    def matrix(self, recipe: str, metric: Metric = "success") -> np.ndarray:
        """Mean over attempts by task and seed, float64 [tasks, seeds]; NaN where all attempts failed."""
        if recipe not in self.evaluations:
            raise ConfigError(f"no recipe {recipe!r} in this comparison. {did_you_mean(recipe, self.evaluations)}")
        return np.stack([e.per_task(metric) for e in self.evaluations[recipe]], axis=1)

    def score(self, recipe: str, metric: Metric = "success") -> Score:
        """The recipe's score over all seeds."""
        cost = sum((e.cost for e in self.evaluations[recipe]), Cost())
        matrix = self.matrix(recipe, metric)
        return score(_row_means(matrix), metric, level=self.level, seeds=matrix.shape[1], cost=cost)

    def difference(self, recipe: str, baseline: str, metric: Metric = "success") -> Difference:
        """`recipe` minus `baseline`, paired by task and seed, clustered by task."""
        differences = _row_means(self.matrix(recipe, metric) - self.matrix(baseline, metric))
        return paired_difference(differences[~np.isnan(differences)], proportion=metric == "success", level=self.level)

    def _row(self, recipe: str) -> Row:
        evaluations = self.evaluations[recipe]
        seeds = _row_means(self.matrix(recipe).T)
        baseline = self.baselines.get(recipe)
        failed = [e for e in evaluations if e.n_errors > FAILED * e.n_episodes]
        reasons = sorted({reason for e in failed for reason in e.errors})
        return Row(
            recipe=recipe,
            success=self.score(recipe),
            reward=self.score(recipe, "reward"),
            seeds=tuple(map(float, seeds)),
            sd=float(seeds.std(ddof=1)) if len(seeds) > 1 else None,
            baseline=baseline,
            difference=self.difference(recipe, baseline) if baseline else None,
            reward_difference=self.difference(recipe, baseline, "reward") if baseline else None,
            better_seeds=int((seeds > _row_means(self.matrix(baseline).T)).sum()) if baseline else 0,
            cost=self.costs.get(recipe),
            n_errors=sum(e.n_errors for e in evaluations),
            n_episodes=sum(e.n_episodes for e in evaluations),
            scripted=evaluations[0].scripted,
            warning=f"more than {FAILED:.0%} of the episodes of a seed failed ({', '.join(reasons)})" if failed else "",
        )

    # -- output ------------------------------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        first = next(iter(self.evaluations.values()))[0]
        seeds = max(len(e) for e in self.evaluations.values())
        attempts = f", {first.repeats} attempts each" if first.repeats > 1 else ""
        return f"{first.env}: {len(first.tasks)} {first.split} tasks{attempts}, {seeds} seed{'s' if seeds > 1 else ''}"

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Headings, and the rows of the table as text, without empty columns. Differences are in points of success."""
        columns = {
            "recipe": [_label(row) for row in self.rows],
            f"success [{self.level:.0%}]": [_points(row.success) for row in self.rows],
            "seeds": [f"{100 * min(row.seeds):.0f}–{max(row.seeds):.0%}" if len(row.seeds) > 1 else "" for row in self.rows],
            "difference": [_points(row.difference, "+") if row.difference else "" for row in self.rows],
            "versus": [row.baseline or "" for row in self.rows],
            "episodes": [f"{row.cost.episodes:,}" if row.cost else "" for row in self.rows],
            "tokens": [_short(row.cost.sampled_tokens) if row.cost else "" for row in self.rows],
            "seconds": [f"{row.cost.seconds:,.0f}" if row.cost else "" for row in self.rows],
            "failed": [f"{row.n_errors}/{row.n_episodes}" if row.n_errors else "" for row in self.rows],
        }
        kept = {name: column for name, column in columns.items() if any(column)}
        return list(kept), [list(cells) for cells in zip(*kept.values())]

    @property
    def caption(self) -> str:
        """What a reader must know about the columns that the table has."""
        head = self.cells()[0]
        parts = {
            "recipe": "Intervals are clustered by task." + " Rows with a dot are about one environment." * bool(self._parts()),
            "seeds": "'seeds' is the range over training seeds.",
            "difference": "Differences are paired by task and seed.",
            "episodes": "Costs are what making one agent took, with the stages before it.",
            "failed": "Failed episodes are left out of the means.",
        }
        return " ".join(text for name, text in parts.items() if name in head)

    def warnings(self) -> list[str]:
        warned = [f"{row.recipe}{f' in {row.part}' if row.part else ''}: {row.warning}" for row in self.rows if row.warning]
        lost = [f"{recipe} in {env}: every episode failed" for recipe in self.evaluations for env in self._lost(recipe)]
        return warned + lost + list(self.notes)

    def table(self, width: int | None = None) -> Table:
        """For `rich.print`. Where `width` characters are too few, columns are left out, the least important first."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        head, rows = self.cells()
        columns = {name: [row[i] for row in rows] for i, name in enumerate(head)}
        for name in ("seconds", "tokens", "failed", "episodes", "versus", "seeds"):
            if width is None or sum(max(map(len, [key, *cells])) + 1 for key, cells in columns.items()) + 1 <= width:
                break
            columns.pop(name, None)
        caption = "\n".join([self.caption, *self.warnings()])
        table = Table(title=self.title, caption=caption, caption_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=0)
        for name in columns:
            table.add_column(name, justify="left" if name in ("recipe", "versus") else "right", overflow="fold")
        for cells in zip(*columns.values()):
            table.add_row(*cells)
        return table

    def markdown(self) -> str:
        head, rows = self.cells()
        lines = [head, ["---"] * len(head), *rows]
        notes = "".join(f"\n\n> {warning}" for warning in self.warnings())
        return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + f"\n\n{self.title}. {self.caption}{notes}\n"

    def to_json(self) -> dict[str, Any]:
        """Everything: the table's rows, and the evaluations they were made from."""
        return {
            "title": self.title,
            "caption": self.caption,
            "level": self.level,
            "notes": list(self.notes),
            "warnings": self.warnings(),
            "head": self.cells()[0],
            "cells": self.cells()[1],
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "baselines": dict(self.baselines),
            "costs": {recipe: dataclasses.asdict(cost) for recipe, cost in self.costs.items()},
            "evaluations": {recipe: [e.to_json() for e in found] for recipe, found in self.evaluations.items()},
        }

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """A comparison from its JSON. Raises CheckpointError where the file is none."""
        try:
            record = json.loads(Path(path).read_text())
            return cls(
                evaluations={name: tuple(map(Evaluation.from_json, found)) for name, found in record["evaluations"].items()},
                baselines=record["baselines"],
                costs={name: Cost(**cost) for name, cost in record["costs"].items()},
                level=record["level"],
                notes=tuple(record["notes"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read as a comparison: {error}") from error


def compare(
    evaluations: Mapping[str, Sequence[Evaluation]],
    baseline: str | Mapping[str, str],
    *,
    costs: Mapping[str, Cost] | None = None,
    level: float = 0.95,
    notes: Sequence[str] = (),
) -> Comparison:
    """Put recipes side by side. `evaluations` has, for each recipe, one evaluation per seed, in the same order of seeds.

    `baseline` is the recipe that the others are compared with, or one for each recipe. `costs` is what making each
    recipe's agent took (mean over seeds). Raises ConfigError where the evaluations are not of the same tasks, a recipe lacks
    seeds, or a baseline is unknown.
    """
    if not evaluations or not all(evaluations.values()):
        raise ConfigError("compare got no evaluations for some recipe; expected at least one for each")
    first_name, first = next((name, found[0]) for name, found in evaluations.items())
    n_seeds = len(evaluations[first_name])
    for name, found in evaluations.items():
        if len(found) != n_seeds:
            raise ConfigError(f"recipe {name!r} has {len(found)} seeds and {first_name!r} has {n_seeds}; expected the same seeds for all")
        for e in found:
            if (e.env, e.split, e.tasks) != (first.env, first.split, first.tasks):
                raise ConfigError(
                    f"recipe {name!r} was evaluated on {len(e.tasks)} {e.split} tasks of {e.env!r}, and {first_name!r} on "
                    f"{len(first.tasks)} {first.split} tasks of {first.env!r}; they can be compared only on the very same tasks"
                )
    pairs = {name: baseline for name in evaluations if name != baseline} if isinstance(baseline, str) else dict(baseline)
    for name in {*pairs, *pairs.values(), *([baseline] if isinstance(baseline, str) else [])}:
        if name not in evaluations:
            raise ConfigError(f"no recipe {name!r} to compare with. {did_you_mean(name, evaluations)}")
    return Comparison(
        evaluations={name: tuple(found) for name, found in evaluations.items()},
        baselines=pairs,
        costs=dict(costs or {}),
        level=level,
        notes=tuple(notes),
    )


def _row_means(matrix: np.ndarray) -> np.ndarray:
    """Mean of each row over the entries that are not NaN; NaN where all are. [rows, columns] -> [rows]"""
    counted = ~np.isnan(matrix)
    total = np.where(counted, matrix, 0).sum(1)
    means: np.ndarray = np.divide(total, counted.sum(1), out=np.full(len(matrix), np.nan), where=counted.any(1))
    return means


def _label(row: Row) -> str:
    """How a row begins: with the recipe, or with a dot and the environment."""
    return (f"· {row.part} (n={row.success.n})" if row.part else row.recipe + " (scripted)" * row.scripted) + " !" * bool(row.warning)


def _points(value: Score | Difference, sign: str = "") -> str:
    """Such as `93.1% [91.1, 94.7]`, or `+43.2 [38.5, 47.3]` of a difference."""
    unit = "" if sign else "%"
    return f"{100 * value.mean:{sign}.1f}{unit} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def _short(number: int) -> str:
    """Such as 950, 12.3k or 4.56M."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
