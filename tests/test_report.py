"""Reports: one file that loads nothing, escapes everything, and shows what a reader needs."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from whet.errors import CheckpointError
from whet.evals import Evaluation, compare
from whet.report import write_report
from whet.report.charts import curve_chart, interval_bar
from whet.runs import Run
from whet.types import Cost, Episode, Stop, Task, ToolCall, Turn, chain

_VOID = {"meta", "link", "br", "img", "input", "hr"}


class Checker(HTMLParser):
    """Collects tags, attributes that could load something, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.handle_startendtag(tag, attributes)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        self.loads += [str(value) for name, value in attributes if name in ("src", "href", "action", "data", "xlink:href", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(path: Path) -> str:
    text = path.read_text()
    checker = Checker(text)
    assert checker.loads == []
    assert "script" not in checker.tags
    assert "@import" not in text
    assert not re.search(r"url\(", text)
    assert "prefers-color-scheme: dark" in text
    return text


def episode(i: int, *, success: bool, actor: str = "self", error: str | None = None) -> Episode:
    turns = [
        Turn(role="system", content="Use the tools."),
        Turn(role="user", content="Who? <script>alert(1)</script> https://example.org/x"),
        Turn(
            role="assistant",
            content="thinking",
            tool_calls=(ToolCall(name="search", arguments={"query": "a & b", "n": 2}),),
            tokens=(5, 6, 7),
            logprobs=(-0.5, -0.5, -0.5),
        ),
        Turn(role="tool", name="search", content="y" * 5000),
        Turn(role="assistant", tool_calls=(ToolCall(name="", error="not JSON"),), tokens=(1,), finish="length", reward=0.25),
    ]
    return Episode(
        id=f"e{i}",
        task=Task(id=f"toy/{i}", env="toy", split="train"),
        turns=chain(turns),
        stop=Stop.ERROR if error else Stop.TERMINATED,
        reason="step_deadline" if error else "answered",
        error=error,
        reward=float(success),
        success=success,
        tags={"actor": actor},
    )


def evaluation(successes: list[bool], actor: str = "self") -> Evaluation:
    return Evaluation(
        name="final",
        env="toy",
        split="test",
        policy="p",
        actor=actor,
        tasks=tuple(f"t{i}" for i in range(len(successes))),
        rewards=tuple((float(s),) for s in successes),
        successes=tuple((s,) for s in successes),
    )


def make_run(path: Path, *, final: Evaluation) -> Run:
    with Run.create(path, {"method": "grpo", "env": "toy", "model": "base", "seed": 0, "cfg": {"lr": 0.125}}, quiet=True) as run:
        run.save_episodes([episode(i, success=True, actor="expert") for i in range(9)], "experts")
        for step in run.steps(6, name="step"):
            run.save_episodes([episode(i, success=i == 0, error="TimeoutError: gone" if i == 2 else None) for i in range(3)], "train")
            run.spend(Cost(episodes=3, sampled_tokens=1200))
            run.log(step, success=step / 10, reward=0.5, loss=float("nan") if step == 2 else -step, unheard_of=1.0)
        run.save_evaluation("final", final.to_json())
    return run


def test_a_runs_page_has_what_a_reader_needs(tmp_path: Path) -> None:
    make_run(tmp_path / "run", final=evaluation([True] * 30 + [False] * 10))
    path = write_report(tmp_path / "run")
    assert path == tmp_path / "run/report.html"
    text = check(path)
    for expected in (
        "grpo on toy",
        "75.0%",
        "success by step",
        "loss by step",
        "mean log-prob -0.50",
        "3 tokens",
        "cut off at its token limit",
        "reward +0.25",
        "terminated (answered)",
        "error (step_deadline)",
        "TimeoutError: gone",
        "scripted: expert",
        "search(query=&quot;a &amp; b&quot;, n=2)",
        "unreadable call: not JSON",
        "1,000 characters more",
        "cfg.lr",
        "0.125",
        "packages.numpy",
        "7,200",
    ):
        assert expected in text, expected
    assert "<script>alert" not in text
    assert "unheard_of" not in text
    # of 9 successes of the experts, three are shown; of each outcome of `train`, at most three
    assert text.count("scripted: expert") == 3
    assert text.count(">failure<") == 3


def test_a_comparisons_page_has_the_table_and_bands(tmp_path: Path) -> None:
    results = {"base": [], "grpo": []}
    for seed in range(2):
        for recipe, share in (("base", 10), ("grpo", 36)):
            final = evaluation([i + seed < share for i in range(40)], actor="random" if recipe == "base" else "self")
            make_run(tmp_path / f"seed{seed}" / recipe, final=final)
            results[recipe].append(final)
    comparison = compare(results, "base", costs={"grpo": Cost(episodes=18, sampled_tokens=7200, seconds=3)}, notes=["eto is left out"])
    (tmp_path / "comparison.json").write_text(json.dumps(comparison.to_json()))
    text = check(write_report(tmp_path))
    row = comparison.rows[1]
    assert row.difference is not None
    for expected in (
        "toy: 40 test tasks, 2 seeds",
        f"{row.success.mean:.1%}",
        f"+{100 * row.difference.mean:.1f} <small>[{100 * row.difference.low:.1f}, {100 * row.difference.high:.1f}]",
        "better than base",
        "90% 88%",
        "eto is left out",
        "2 of 2",
        ">scripted<",
        'class="band"',
        "bands go from the lowest to the highest seed",
        "Episodes of grpo, seed0",
    ):
        assert expected in text, expected


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    Run.create(tmp_path / "run", {"seed": 0}, quiet=True).close()
    assert "interrupted" in check(write_report(tmp_path / "run"))


def test_forks_say_where_they_go_on(tmp_path: Path) -> None:
    turns = (Turn(role="user", content="a"), Turn(role="assistant", content="b", parent=0), Turn(role="assistant", content="c", parent=0))
    with Run.create(tmp_path / "run", {"seed": 0}, quiet=True) as run:
        run.save_episodes([Episode(id="e", task=Task(id="t", env="x", split="train"), turns=turns, stop=Stop.TERMINATED)], "train")
    assert "goes on from turn 1" in write_report(tmp_path / "run").read_text()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a run nor a comparison"):
        write_report(tmp_path)
    (tmp_path / "comparison.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as a comparison"):
        write_report(tmp_path)


def test_curves_draw_mean_and_range() -> None:
    drawing = curve_chart("reward", [[0.0, 1.0], [0.5, 1.0]], share=True)
    mean = re.search(r'class="line" points="([^"]*)"', drawing)
    band = re.search(r'class="band" points="([^"]*)"', drawing)
    assert mean is not None
    assert band is not None
    points = [tuple(map(float, point.split(","))) for point in mean[1].split()]
    outline = [tuple(map(float, point.split(","))) for point in band[1].split()]
    # the mean of 0 and 0.5 lies halfway between the ends of the band at the first step
    assert points[0][1] == pytest.approx((outline[0][1] + outline[3][1]) / 2, abs=0.1)
    assert points[1][1] == outline[1][1] == outline[2][1]
    assert "0.25 (0 to 0.5)" in drawing


def test_curves_leave_out_what_is_not_a_number_and_need_something_to_draw() -> None:
    assert curve_chart("loss", [[float("nan"), 2.0, 3.0]], share=False).count("<title>") == 2
    assert curve_chart("loss", [[], [float("nan")]], share=False) == ""
    assert "polyline" in curve_chart("loss", [[1.0]], share=False)


def test_intervals_are_drawn_to_scale() -> None:
    drawing = interval_bar({"mean": 0.5, "low": 0.25, "high": 1.0}, [0.0], width=108)
    assert 'x1="29.0" x2="104.0"' in drawing
    assert '<circle class="dot" cx="54.0"' in drawing
    assert '<circle class="seed" cx="4.0"' in drawing
