"""What docs/data.md shows works as it stands there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from commandline import done
from test_data_filters import some_episodes
from test_data_import import chat, write_lines
from whet.data import formats
from whet.runs import EpisodeStore, Run

DOCS = Path(__file__).parents[1] / "docs" / "data.md"
TEXT = DOCS.read_text()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL), ids=["filters", "mixing"])
def test_python(block: str) -> None:
    run = Run.scratch()
    names = {"episodes": some_episodes(), "run": run}
    exec(block, names)
    if "kept" in names:
        (event,) = run.events("filter")
        assert event["before"]["n"] == 60


@pytest.mark.slow
def test_commands(tmp_path: Path) -> None:
    """Those of the first block, in their order."""
    with Run.create(tmp_path / "runs" / "first", {"seed": 0}, quiet=True) as run:
        run.save_episodes(some_episodes(), "t")
    write_lines(tmp_path / "shop.jsonl", [chat(i) for i in range(20)])
    (tmp_path / "chats.json").write_text(json.dumps([chat(i) for i in range(5)]))
    general = EpisodeStore(tmp_path / "general.db")
    general.save(some_episodes(), "g")
    general.close()
    block = TEXT.split("\n\n    ", 1)[1].split("\n\n")[0]
    commands = [shlex.split(re.split(r"\s{3,}", line.strip())[0]) for line in block.splitlines()]
    assert {argv[2] for argv in commands} == {"import", "stats", "show", "filter", "audit", "pairs", "mix", "export"}
    for argv in commands:
        assert argv[:2] == ["whet", "data"]
        done(*argv[1:], cwd=tmp_path)
    assert (tmp_path / "train.jsonl").stat().st_size > 0


def test_every_format_is_in_the_table() -> None:
    assert set(re.findall(r"^\| `([a-z][a-z-]*)` \|", TEXT, re.MULTILINE)) == set(formats.names())
