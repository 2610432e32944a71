"""From a directory to its page."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from whet.errors import CheckpointError
from whet.report import page
from whet.report.charts import Curve, curve_chart, interval_bar
from whet.report.episodes import tag_sections
from whet.runs import Run
from whet.runs.files import recipe_directory, write_atomic
from whet.types import Cost

_METRICS = ("success", "reward", "loss", "grad_norm", "kl", "entropy")
"""Metrics with a chart, in this order; others are in events.jsonl."""
_SHARES = ("success",)


def write_report(directory: str | Path) -> Path:
    """Write `report.html` for a run or a comparison; returns its path.

    Raises CheckpointError where the directory is neither, StorageError where the page cannot be written.
    """
    directory = Path(directory)
    if (directory / "comparison.json").exists():
        text = _comparison_page(directory)
    elif (directory / "config.json").exists():
        text = _run_page(directory)
    else:
        raise CheckpointError(f"{directory} is neither a run nor a comparison: it has no config.json and no comparison.json")
    write_atomic(directory / "report.html", text)
    return directory / "report.html"


def _run_page(directory: Path) -> str:
    run = Run.open(directory)
    try:
        record = json.loads((directory / "config.json").read_text())
        config, made = record["config"], record["whet"]
        kinds = {"done": "good", "failed": "bad", "interrupted": "warn"}
        name = config.get("method", "evaluation")
        subtitle = (
            f"{page.badge(run.status, kinds.get(run.status, ''))} {escape(str(config.get('model', '')))} · begun {escape(made['created'])}"
        )
        sections = [
            page.section("Result", _evaluations(run.evaluations())),
            page.section("Cost of the method", _cost(run.cost)),
            page.section("Learning", charts([curves(run)])),
            page.section("Episodes", tag_sections(run.store) if run.store else ""),
            page.section("Settings", page.facts(config)),
            page.section("Made by", page.facts(made)),
        ]
        return page.page(f"{name} on {config.get('env', '')}", subtitle, sections, _footer(made))
    finally:
        run.close()


def _comparison_page(directory: Path) -> str:
    try:
        record = json.loads((directory / "comparison.json").read_text())
        rows = record["rows"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{directory / 'comparison.json'} cannot be read as a comparison: {error}") from error
    settings = json.loads((directory / "compare.json").read_text()) if (directory / "compare.json").exists() else {}
    runs: dict[str, list[Run]] = {}
    shown = list(dict.fromkeys(row["recipe"] for row in rows))
    recipes = {recipe_directory(recipe): recipe for recipe in shown}
    for path in sorted(directory.glob("seed*/*/config.json")):
        runs.setdefault(recipes.get(path.parent.name, path.parent.name), []).append(Run.open(path.parent))
    try:
        learning, episodes = "", ""
        for recipe in shown + sorted(set(runs) - set(shown)):
            found = runs.get(recipe, [])
            drawn = charts([curves(run) for run in found])
            learning += f"<h3>{escape(recipe)}</h3>{drawn}" if drawn else ""
            first = next((run for run in found if run.store), None)
            if first is not None and first.store is not None and first.path is not None:
                episodes += f"<h2>Episodes of {escape(recipe)}, {escape(first.path.parent.name)}</h2>{tag_sections(first.store)}"
        made = json.loads(next(iter(sorted(directory.glob("seed*/*/config.json")))).read_text())["whet"] if runs else {}
    finally:
        for run in (run for found in runs.values() for run in found):
            run.close()
    warnings = "".join(page.warning(text) for text in record["warnings"] if text not in record["notes"])
    note = f'<p class="note">Faint dots are seeds. {escape(" ".join([record["caption"], *record["notes"]]))}</p>'
    sections = [
        page.section("Result", warnings + _rows(rows, record["level"]) + note),
        page.section("Costs and details", _details(rows)),
        page.section("Learning", _legend(runs) + learning if learning else ""),
        episodes,
        page.section("Settings", page.facts(settings)),
        page.section("Made by", page.facts(made)),
    ]
    return page.page(
        record["title"], "Which way of making the agent better helped, how certain that is, and what it cost", sections, _footer(made)
    )


def _rows(rows: Sequence[Mapping[str, Any]], level: float) -> str:
    cells = []
    for row in rows:
        s, d = row["success"], row["difference"]
        name = f"<small>· {escape(row['part'])} (n={s['n']})</small>" if row.get("part") else f"<b>{escape(row['recipe'])}</b>"
        name += " " + page.badge("scripted", "warn") if row["scripted"] and not row.get("part") else ""
        name += " " + page.badge(f"{row['n_errors']} of {row['n_episodes']} failed", "warn") if row["n_errors"] else ""
        score = f"{s['mean']:.1%} <small>[{100 * s['low']:.1f}, {100 * s['high']:.1f}]</small>"
        seeds = " ".join(f"{v:.0%}" for v in row["seeds"]) if len(row["seeds"]) > 1 else ""
        difference = f"{100 * d['mean']:+.1f} <small>[{100 * d['low']:.1f}, {100 * d['high']:.1f}]</small>" if d else ""
        cells.append([name, interval_bar(s, row["seeds"]), score, f"<small>{seeds}</small>", difference, _verdict(row)])
    head = ["recipe", "", f"success [{level:.0%}]", "each seed", "difference", ""]
    return page.table(head, cells, left=(0, 1, 5))


def _verdict(row: Mapping[str, Any]) -> str:
    d, than = row["difference"], row["baseline"]
    if not d:
        return ""
    if d["low"] <= 0 <= d["high"]:
        return page.badge(f"no clear difference to {than}")
    return page.badge(f"better than {than}", "good") if d["mean"] > 0 else page.badge(f"worse than {than}", "bad")


def _details(rows: Sequence[Mapping[str, Any]]) -> str:
    """The second table: what the agents took, and the figures behind the verdicts."""
    cells = []
    for row in rows:
        d, r, cost = row["difference"], row["reward"], row["cost"]
        costs = [f"{cost['episodes']:,}", f"{cost['sampled_tokens']:,}", f"{cost['seconds']:,.0f}"] if cost else ["", "", ""]
        p = "" if not d else "&lt;0.001" if d["p"] < 0.001 else f"{d['p']:.3f}"
        agree = f"{row['better_seeds']} of {len(row['seeds'])}" if d and len(row["seeds"]) > 1 else ""
        reward = f"{r['mean']:.3f} <small>[{r['low']:.3f}, {r['high']:.3f}]</small>"
        cells.append([f"<small>· {escape(row['part'])}</small>" if row.get("part") else escape(row["recipe"]), *costs, reward, agree, p])
    return page.table(["recipe", "episodes", "tokens sampled", "seconds", "reward", "seeds above baseline", "p"], cells)


def _evaluations(found: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, e in found.items():
        label = f"<b>{escape(name)}</b>" + (" " + page.badge("scripted", "warn") if e.get("scripted") else "")
        rows.append(_evaluation_row(label, e, e))
        rows += [_evaluation_row(f"<small>· {escape(env)}</small>", part, e) for env, part in e.get("parts", {}).items()]
    head = ["evaluation", "", "success [95%]", "reward [95%]", "tasks", "failed"]
    note = "<p class=\"note\">Intervals are clustered by task; Wilson's for success, Student's for reward.</p>"
    return page.table(head, rows, left=(0, 1)) + note if rows else ""


def _evaluation_row(label: str, scores: Mapping[str, Any], e: Mapping[str, Any]) -> list[str]:
    """A row about a whole evaluation `e`, or about one of its environments."""
    failed = page.badge(f"{scores['n_errors']}", "warn") if scores["n_errors"] else "0"
    if "success" not in scores:
        return [label, "", "", "", "", failed]
    s, r = scores["success"], scores["reward"]
    score = f"{s['mean']:.1%} <small>[{100 * s['low']:.1f}, {100 * s['high']:.1f}]</small>"
    attempts = f"{s['n']:,} {escape(e['split'])}" + (f" × {e['repeats']}" if e["repeats"] > 1 else "")
    return [label, interval_bar(s, []), score, f"{r['mean']:.3f} <small>[{r['low']:.3f}, {r['high']:.3f}]</small>", attempts, failed]


def _cost(cost: Cost) -> str:
    if cost == Cost():
        return ""
    names = {"episodes": "episodes", "env_steps": "environment steps", "prompt_tokens": "tokens read", "sampled_tokens": "tokens sampled"}
    head = [*names.values(), "seconds", *(["money"] if cost.money else [])]
    values = [f"{getattr(cost, name):,}" for name in names] + [f"{cost.seconds:,.1f}"] + ([f"{cost.money:,.2f}"] if cost.money else [])
    return page.table(head, [values], left=())


def curves(run: Run) -> dict[tuple[str, str], list[float]]:
    """Of every phase and metric that was logged, the values in the order of the steps; NaN for a step without it."""
    found: dict[tuple[str, str], list[float]] = {}
    steps: Counter[str] = Counter()
    for event in run.events("log"):
        phase = event["phase"]
        for metric, value in event["metrics"].items():
            if _base(metric) in _METRICS and isinstance(value, (int, float)):
                curve = found.setdefault((phase, metric), [])
                curve += [math.nan] * (steps[phase] - len(curve))  # steps that had nothing to say about it
                curve.append(float(value))
        steps[phase] += 1
    return found


def _base(metric: str) -> str:
    """`success` of `success/NAME`, the same for one of several environments."""
    return metric.partition("/")[0]


def charts(runs: Sequence[Mapping[tuple[str, str], Curve]]) -> str:
    """A chart per phase and metric, over all runs together."""
    keys = dict.fromkeys(key for run in runs for key in run)
    phases = list(dict.fromkeys(phase for phase, _ in keys))
    ordered = sorted(keys, key=lambda key: (phases.index(key[0]), _METRICS.index(_base(key[1])), key[1]))
    drawn = [
        curve_chart(f"{metric} by {phase}", [run.get((phase, metric), []) for run in runs], share=_base(metric) in _SHARES)
        for phase, metric in ordered
    ]
    return f'<div class="charts">{"".join(drawn)}</div>' if any(drawn) else ""


def _legend(runs: Mapping[str, Sequence[Run]]) -> str:
    seeds = max((len(found) for found in runs.values()), default=0)
    if seeds < 2:
        return ""
    return f'<p class="note">Lines are means over up to {seeds} seeds; bands go from the lowest to the highest seed.</p>'


def _footer(made: Mapping[str, Any]) -> str:
    return f"Written by whet {escape(str(made.get('version', '')))}. This page is complete in itself: it loads nothing."
