"""What README says is so: its tables are those of committed results, its tree is the source's, its examples run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from whet import methods
from whet.evals import Comparison

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(language: str, containing: str) -> str:
    return next(code for code in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if containing in code)


@pytest.mark.parametrize("name", ["search", "babyai"])
def test_a_table_is_that_of_its_committed_result(name):
    record = ROOT / "results" / f"{name}.json"
    table = Comparison.load(record).markdown().strip()
    assert f"<!-- results/{name}.json -->\n\n{table}\n\n<!-- /" in README, "python scripts/results.py puts the tables into README"
    assert (ROOT / "results" / f"{name}.md").read_text().strip().endswith(table)


def test_figures_on_the_page_about_comparing_are_those_of_the_leaderboards():
    page = (ROOT / "docs" / "comparing.md").read_text()
    tables = "".join((ROOT / "results" / f"{family}.md").read_text() for family in ("finetuning", "preference"))
    intervals = re.findall(r"[+-]?\d+\.\d%? \[[^]]+\]", page)
    assert intervals
    assert [each for each in intervals if each not in tables] == []
    assert tables.count("4.0 points with 256 tasks") == 2
    assert "2.2 points with 512 tasks" in tables


def test_the_tree_names_every_room():
    rooms = {line.split()[0].rstrip("/") for line in block("text", "types.py      Task").splitlines()[1:]}
    there = {p.name for p in (ROOT / "src" / "whet").iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert there <= rooms, "a room is missing from README's tree"
    assert rooms - there <= {"types.py"}


def test_every_method_is_in_the_table():
    assert set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)) == set(methods.names())


def test_the_environment_of_the_readme_keeps_the_contract(tmp_path):
    from whet.envs import check_env

    (tmp_path / "shop.py").write_text(block("python", "class Shop"))
    report = check_env(f"{tmp_path / 'shop.py'}:Shop")
    assert report.ok, report.errors


@pytest.mark.slow
def test_the_python_example_runs(tmp_path):
    code = (
        block("python", "from whet.methods.grpo")
        .replace('"train", 256', '"train", 16')
        .replace('"test", 256', '"test", 32')
        .replace("steps=8", "steps=1")
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert re.match(r"0\.\d+ \[", done.stdout), done.stderr


@pytest.mark.slow
def test_the_command_line_of_the_readme_runs(tmp_path):
    (tmp_path / "shop.py").write_text(block("python", "class Shop"))
    command = [sys.executable, "-m", "whet.cli", "run", "grpo", "--env", "shop.py:Shop", "--train-tasks", "16", "--test-tasks", "16"]
    options = ["steps=2", "tasks_per_step=4", "group_size=4", "lr=5e-4", "kl=0", "--out", "run"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "report:" in done.stdout
