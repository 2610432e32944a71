"""Leaderboards make no stage twice."""

from __future__ import annotations

from pathlib import Path

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
