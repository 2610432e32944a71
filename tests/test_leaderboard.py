"""Leaderboards make no stage twice, and their tables say what the results do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from whet import presets
from whet.evals import Comparison, Evaluation
from whet.userfile import load_file

BOARD = load_file(str(Path(__file__).parents[1] / "scripts" / "leaderboard.py"))


def made(place: Path, status: str = "done") -> None:
    place.mkdir(parents=True)
    (place / "status").write_text(status)
    (place / "weights").write_text(place.name)


def test_recipes_are_the_same_where_settings_are() -> None:
    one = {"env": "search", "": {"train_tasks": 8}, "sft": {"lr": 1e-3}, "eto": {"lr": 1e-4}, "nat": {"lr": 1}}
    other = {**one, "eto": {"lr": 1e-5}}
    assert BOARD.same("sft", one, other)
    assert not BOARD.same("sft+eto", one, other)
    assert not BOARD.same("sft", one, {**other, "env": "babyai"})
    assert not BOARD.same("sft", one, {**other, "": {"train_tasks": 9}})
    assert BOARD.same("sft+nat:lr=2", one, other)


def test_finished_stages_are_taken_over(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    for stage in ("seed0/sft", "seed0/sft+eto", "seed1/sft", "seed2/sft"):
        made(source / stage)
    made(source / "seed1/sft+eto", "interrupted")
    made(out / "seed1/sft", "running")
    BOARD.take_over(source, out, ["sft+eto"], seeds=2)
    assert sorted(str(path.relative_to(out)) for path in out.glob("seed*/*")) == ["seed0/sft", "seed0/sft+eto", "seed1/sft"]
    assert (out / "seed0/sft+eto/weights").read_text() == "sft+eto"
    assert (out / "seed1/sft/status").read_text() == "running", "what is there stays"
    BOARD.take_over(tmp_path / "nothing", out, ["sft"], seeds=2)


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in presets.FAMILIES if (BOARD.ROOT / "results" / f"{family}.md").exists()])
def test_committed_tables_are_what_committed_results_give(family: str) -> None:
    assert BOARD.table(family) == (BOARD.ROOT / "results" / f"{family}.md").read_text()


def test_a_claim_is_held_against_its_baseline_and_against_eto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def attempts(recipe: str, solved: tuple[int, ...]) -> tuple[Evaluation]:
        rewards, successes = tuple((each / 2,) for each in solved), tuple((bool(each),) for each in solved)
        about = {"name": recipe, "env": "search", "split": "dev", "policy": recipe, "tasks": tuple("abcd")}
        return (Evaluation(rewards=rewards, successes=successes, **about),)

    found = {"sft": (1, 0, 0, 0), "sft+eto": (1, 1, 1, 0), "sft+dmpo": (1, 1, 0, 0)}
    evaluations = {recipe: attempts(recipe, solved) for recipe, solved in found.items()}
    record = Comparison(evaluations=evaluations, baselines={"sft+eto": "sft", "sft+dmpo": "sft"}).to_json()
    path = tmp_path / "results" / "preference" / "dmpo@search.json"
    path.parent.mkdir(parents=True)
    made = {"date": "today", "machine": "here", "claim": "sft+dmpo"}
    greedy = {recipe: [each.to_json() for each in attempts(recipe, (1, 1, 1, recipe == "sft+dmpo"))] for recipe in found}
    path.write_text(json.dumps(record | {"made": made, "greedy": greedy}))
    monkeypatch.setattr(BOARD, "ROOT", tmp_path)
    for metric, scale in (("success", 100), ("reward", 50)):
        monkeypatch.setitem(presets.FAMILIES["preference"]["dmpo@search"], "metric", metric)
        row = next(line for line in BOARD.table("preference").splitlines() if line.startswith("| dmpo"))
        shown = [float(cell.split()[0]) for cell in row.split(" | ")[5:10]]  # ours, the other's, difference, against ETO, greedy
        assert shown == [scale * 0.5, scale * 0.25, scale * 0.25, scale * -0.25, scale * 0.25], metric
        assert (" reward |" in row) == (metric == "reward")
