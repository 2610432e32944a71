"""Files in stores: what is read, what is not and why, what a kill leaves, and what comes out again."""

from __future__ import annotations

import gzip
import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trajectories
from commandline import done, message, start, until, whet
from test_data_formats import CHAT, ROLLED
from whet.agents import Agent
from whet.cli.bar import Bar
from whet.data import records
from whet.data.exporting import export
from whet.data.formats import Origin
from whet.data.importing import import_file, imports
from whet.data.provenance import facts, outcome_of, tools_of
from whet.data.records import Place, open_source
from whet.data.stores import Stored
from whet.envs import load_env
from whet.errors import CheckpointError, ConfigError, SplitError, StorageError
from whet.policies import load_policy
from whet.rollout import rollout
from whet.runs import EpisodeStore, Run
from whet.types import Episode, Stop, Task, Turn


def chat(i: int, answer: str = "yes") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"is {i} a number?"}, {"role": "assistant", "content": answer}]}


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# -- records in files ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(trajectories.values, max_size=6), st.sampled_from([None, 0, 2]), st.integers(1, 40), st.booleans())
def test_a_list_is_split_wherever_chunks_end(tmp_path_factory: Any, rows: list[Any], indent: int | None, chunk: int, bom: bool) -> None:
    path = tmp_path_factory.mktemp("x") / "x.json"
    path.write_text(
        ("\ufeff" if bom else "") + json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8", errors="surrogatepass"
    )
    before, records._CHUNK = records._CHUNK, chunk
    try:
        items = list(open_source(path).read(Place()))
        assert [(item.record, item.error) for item in items] == [(row, None) for row in rows]
        for number, item in enumerate(items, 1):
            rest = list(open_source(path).read(item.after))
            assert [other.record for other in rest] == rows[number:]
            assert item.after.number == number
            assert [other.line for other in rest] == [other.line for other in items[number:]]
    finally:
        records._CHUNK = before


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('[{"a": 1},\n {"a": oops},\n {"b": 2}]', [(1, {"a": 1}, ""), (2, None, "not JSON (line 2, column 7)"), (3, {"b": 2}, "")]),
        ('[{"a": 1},\n {"b": 2', [(1, {"a": 1}, ""), (2, None, "no end before the end of the file")]),
        ('[{"a": 1},\n', [(1, {"a": 1}, ""), (2, None, "the list has no end")]),
        ('\n{"a":\n 1}\n', [(2, {"a": 1}, "")]),
        ("[]", []),
        ("  \n", []),
    ],
)
def test_damage_in_a_list_costs_what_is_damaged(tmp_path: Path, text: str, found: list[Any]) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    items = list(open_source(path).read(Place()))
    assert [(item.line, item.record) for item in items] == [(line, record) for line, record, _ in found]
    for item, (_, _, why) in zip(items, found):
        assert why in (item.error or "")


def test_lines_keep_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST", 64)
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"b": "\xff"}\n[' + b" " * 200 + b']\n{"c": 3}\n{"d')
    items = list(open_source(path).read(Place()))
    assert [(item.line, item.record, item.again) for item in items] == [
        (1, {"a": 1}, False),
        (4, None, False),
        (5, None, False),
        (6, {"c": 3}, False),
        (7, None, True),
    ]
    assert items[1].error == "not UTF-8 (byte 7 of the record)"
    assert items[2].error == "the line has 203 bytes; at most 64 are read as one record"
    assert [item.line for item in open_source(path).read(items[2].after)] == [6, 7]


def test_what_cannot_be_read_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("")
    (tmp_path / "x.parquet").write_text("no")
    (tmp_path / "x.db").write_text("no store, and longer than a page of SQLite" * 100)
    (tmp_path / "d").mkdir()
    for name, error, why in [
        ("none.jsonl", ConfigError, "there is no"),
        ("x.txt", ConfigError, "suffix '.txt'; expected .jsonl"),
        ("x.parquet", ConfigError, "cannot be read as Parquet"),
        ("x.db", CheckpointError, "cannot be opened as an episode store"),
        ("d", ConfigError, "neither a run nor a data set"),
    ]:
        with pytest.raises(error, match=why):
            open_source(tmp_path / name)


# -- imports -------------------------------------------------------------------------------------------------------------


def test_malformed_records_are_reported_with_file_and_line_and_the_rest_continues(tmp_path: Path) -> None:
    rows = [json.dumps(chat(i)) for i in range(6)]
    rows[1:1] = ['{"messages": 5}']
    rows[3:3] = ["{oops"]
    rows[5:5] = [json.dumps({"messages": [{"role": "robot", "content": "\x1b[31m"}]})]
    (tmp_path / "bad.jsonl").write_text("\n".join(rows))
    result = whet("data", "import", "x.db", "bad.jsonl", cwd=tmp_path)
    assert result.returncode == 3
    assert result.stderr.splitlines() == [
        "bad.jsonl, line 2: messages is 5 (int); expected a list of messages",
        "bad.jsonl, line 4: not JSON (line 4, column 2): Expecting property name enclosed in double quotes: '{oops\\n'",
        "bad.jsonl, line 6: messages[0].role is 'robot'; expected one of system, developer, user, assistant, tool, function",
    ]
    assert result.stdout == "bad.jsonl: 6 episodes imported, 3 malformed records left out [openai]\n"
    store = EpisodeStore(tmp_path / "x.db", read_only=True)
    assert [e.turns[0].content for e in store.load()] == [f"is {i} a number?" for i in range(6)]
    assert [e.id for e in store.load()] == [f"bad.jsonl#{n}" for n in (1, 3, 5, 7, 8, 9)]
    (report,) = imports(store)
    assert (report.bad, [line for line, _ in report.reasons]) == (3, [2, 4, 6])
    again = whet("data", "import", "x.db", "bad.jsonl", cwd=tmp_path)
    assert again.returncode == 3, "the file is as bad as it was"
    assert again.stdout == "bad.jsonl: 6 episodes imported (6 of them by an earlier import), 3 malformed records left out [openai]\n"
    assert len(list(store.load())) == 6


def test_many_malformed_records_are_not_all_printed(tmp_path: Path) -> None:
    write_lines(tmp_path / "bad.jsonl", [chat(0), *[{"messages": i} for i in range(300)]])
    result = whet("data", "import", "x.db", "bad.jsonl", cwd=tmp_path)
    assert len(result.stderr.splitlines()) == 21
    assert "280 more malformed records" in result.stderr


@pytest.mark.slow
def test_a_kill_in_the_middle_of_an_import_loses_and_doubles_nothing(tmp_path: Path) -> None:
    n = 12_000
    rows: list[Any] = [chat(i, "x" * 200) for i in range(n)]
    rows[n // 2] = {"messages": "bad"}
    write_lines(tmp_path / "x.jsonl", rows)
    store, kills, last = tmp_path / "x.db", 0, 0

    def position() -> int:
        try:
            reader = EpisodeStore(store, read_only=True)
        except (CheckpointError, StorageError):  # it is only being made
            return 0
        try:
            return reader.position
        finally:
            reader.close()

    for share in (0.1, 0.5, 0.8):
        process = start("data", "import", "x.db", "x.jsonl", cwd=tmp_path)
        until(lambda share=share: position() > share * n, f"{share:.0%} of the import", process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += process.returncode == -signal.SIGKILL
        reader = EpisodeStore(store, read_only=True)
        found = [e.tags["record"] for e in reader.load()]
        (report,) = imports(reader)
        assert found == [i + 1 for i in range(report.place.number) if i != n // 2], "what is there is a beginning of the file"
        assert len(found) == report.episodes > last
        last = len(found)
        reader.close()
    assert kills == 3
    result = whet("data", "import", "x.db", "x.jsonl", cwd=tmp_path)
    assert result.returncode == 3, result.stderr
    assert f"{n - 1:,} episodes imported ({last:,} of them by an earlier import), 1 malformed" in result.stdout
    assert [e.tags["record"] for e in EpisodeStore(store, read_only=True).load()] == [i + 1 for i in range(n) if i != n // 2]


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    write_lines(tmp_path / "x.jsonl", [chat(i, "x" * 500) for i in range(20_000)])
    process = start("data", "import", "x.db", "x.jsonl", cwd=tmp_path)
    until(lambda: (tmp_path / "x.db").exists() and (tmp_path / "x.db").stat().st_size > 0, "the store", process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines() == ["error: interrupted. What was imported is intact. Go on with: whet data import x.db x.jsonl"]
    assert "20,000 episodes imported" in done("data", "import", "x.db", "x.jsonl", cwd=tmp_path)
    assert [e.tags["record"] for e in EpisodeStore(tmp_path / "x.db", read_only=True).load()] == list(range(1, 20_001))


_LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
from whet.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


def _limited(cwd: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """`whet` in a process whose files may not grow beyond 400 kB: what a full disk or a quota looks like."""
    return subprocess.run([sys.executable, "-c", _LIMITED, *argv], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_full_disk_ends_an_import_in_one_message_and_loses_nothing(tmp_path: Path) -> None:
    rows = [chat(i, os.urandom(400).hex()) for i in range(2000)]
    write_lines(tmp_path / "x.jsonl", rows)
    told = message(_limited(tmp_path, "data", "import", "x.db", "x.jsonl"))
    assert "x.db could not be written" in told
    assert "give the same command again: it goes on from there" in told
    before = len(list(EpisodeStore(tmp_path / "x.db", read_only=True).load()))
    assert 0 < before < 2000
    assert f"2,000 episodes imported ({before:,} of them" in done("data", "import", "x.db", "x.jsonl", cwd=tmp_path)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    told = message(_limited(tmp_path, "data", "export", "x.db", "out.jsonl", "--to", "openai"))
    assert "cannot write out.jsonl" in told
    told = message(_limited(tmp_path, "data", "mix", "x.db", "--out", "out.db"))
    assert "cannot write" in told
    assert not [path.name for path in tmp_path.iterdir() if "out" in path.name], "half a file would be taken for a whole one"


def test_a_file_that_grew_is_gone_on_with_and_another_one_is_refused(tmp_path: Path) -> None:
    path, store = tmp_path / "x.jsonl", EpisodeStore(tmp_path / "x.db")
    write_lines(path, [chat(0), chat(1)])
    with open(path, "a") as file:
        file.write(json.dumps(chat(2))[:20])
    torn: list[tuple[int, str]] = []
    report = import_file(store, path, on_bad=lambda line, why: torn.append((line, why)))
    assert (report.episodes, report.bad, report.torn, [line for line, _ in torn]) == (2, 0, 1, [3])
    with open(path, "a") as file:
        file.write(json.dumps(chat(2))[20:] + "\n" + json.dumps(chat(3)) + "\n")
    report = import_file(store, path)
    assert (report.episodes, report.fresh, report.resumed, report.torn) == (4, 2, True, 0)
    assert [e.id for e in store.load()] == [f"x.jsonl#{i}" for i in (1, 2, 3, 4)]
    write_lines(path, [chat(9), chat(1), chat(2), chat(3), chat(4)])
    with pytest.raises(ConfigError, match=r"is not the file that was imported as 'x.jsonl' before.*--source NAME"):
        import_file(store, path)
    report = import_file(store, path, Origin(source="second"))
    assert report.episodes == 5
    assert [t.tag for t in store.tags()] == ["x.jsonl", "second"]


def test_two_imports_of_one_file_at_once_do_not_double_it(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", [chat(i) for i in range(600)])
    store, other = EpisodeStore(tmp_path / "x.db"), EpisodeStore(tmp_path / "x.db")
    meddled = []

    def meddle(source: Any, report: Any) -> None:
        if not meddled:
            meddled.append(import_file(other, path).episodes)

    with pytest.raises(ConfigError, match="is being written by another process"):
        import_file(store, path, on_page=meddle)
    assert [e.tags["record"] for e in store.load()] == list(range(1, 601))


@pytest.mark.slow
def test_unknown_formats_are_named_by_what_they_hold(tmp_path: Path) -> None:
    write_lines(tmp_path / "x.jsonl", [{"question": "?", "answer": "!"}])
    (tmp_path / "y.jsonl").write_text("oops\n")
    told = message(whet("data", "import", "x.db", "x.jsonl", cwd=tmp_path))
    assert told.startswith("x.jsonl, line 1: the record has the keys 'question', 'answer', as in none of the formats adp, atif, openai")
    told = message(whet("data", "import", "x.db", "y.jsonl", cwd=tmp_path))
    assert "None of the first 1 records is readable" in told
    told = message(whet("data", "import", "runs/episodes.db", "x.jsonl", cwd=tmp_path))
    assert "runs are not added to" in told
    result = whet("data", "import", "z.db", "x.jsonl", "--format", "openai", cwd=tmp_path)
    assert result.returncode == 3
    assert "x.jsonl, line 1: there is no 'messages'; expected a list of messages" in result.stderr


def test_gzip_and_a_list_of_openai_messages_come_back_equal(tmp_path: Path) -> None:
    rows = [CHAT, chat(1), {**chat(2), "metadata": {"who": "ü\ud83d"}}]
    with gzip.open(tmp_path / "x.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "y.json").write_text(json.dumps(rows, indent=2))
    done("data", "import", "x.db", "x.jsonl.gz", "y.json", cwd=tmp_path)
    done("data", "export", "x.db", "out.json", "--to", "openai", "--tag", "y.json", cwd=tmp_path)
    done("data", "export", "x.db", "out.jsonl.gz", "--to", "openai", "--tag", "x.jsonl.gz", "--strict", cwd=tmp_path)
    assert json.loads((tmp_path / "out.json").read_text()) == rows
    with gzip.open(tmp_path / "out.jsonl.gz", "rt") as file:
        assert [json.loads(line) for line in file] == rows


def test_anybodys_parquet(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    calling = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
    }
    rows = [chat(i) for i in range(300)]
    rows[1] = {"messages": [{"role": "user", "content": "add"}, calling], "tools": "[]"}
    rows[7] = {"messages": []}
    pq.write_table(pa.Table.from_pylist([rows[1], *rows]), tmp_path / "x.parquet", row_group_size=50)
    result = whet("data", "import", "x.db", "x.parquet", cwd=tmp_path)
    assert result.returncode == 3
    assert result.stderr == "x.parquet, row 9: messages is empty; expected at least one message\n"
    episodes = list(EpisodeStore(tmp_path / "x.db", read_only=True).load())
    assert len(episodes) == 300
    assert episodes[0].turns[1].tool_calls[0].arguments == {"a": 1}
    assert [t.content for t in episodes[-1].turns] == ["is 299 a number?", "yes"]
    source = open_source(tmp_path / "x.parquet")
    items = list(source.read(Place()))
    for at in (0, 49, 50, 51, 301):
        assert [item.line for item in source.read(items[at - 1].after if at else Place())] == list(range(at + 1, 302))


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for place in ("a", "b"):
        with Run.create(tmp_path / place / "sft", {"seed": 0}, quiet=True) as run:
            run.save_episodes([replace(ROLLED, id=place)], "t")
    done("data", "import", "x.db", "a/sft", cwd=tmp_path)
    assert "Give it another name (--source NAME)" in message(whet("data", "import", "x.db", "b/sft", cwd=tmp_path))
    done("data", "import", "x.db", "b/sft", "--source", "b", cwd=tmp_path)
    episodes = list(EpisodeStore(tmp_path / "x.db", read_only=True).load("t"))
    assert [(e.id, e.tags["source"]) for e in episodes] == [("a", "sft"), ("b", "b")]


def test_the_bar_of_a_long_import(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("whet.cli.bar._AFTER", 0.0)
    monkeypatch.setattr("whet.cli.bar._EVERY", 0.0)
    with Bar("import x.jsonl") as bar:
        bar.update(30, 100, "12 episodes")
        bar.note("x.jsonl, line 2: [bold] oops")
        bar.update(60, 100, "24 episodes")
    shown = capsys.readouterr().err
    assert "import x.jsonl" in shown
    assert "60%" in shown
    assert "x.jsonl, line 2: [bold] oops" in shown


# -- rollouts and their provenance ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with train episodes of an expert and of chance, and an evaluation on test tasks."""
    path = tmp_path_factory.mktemp("runs") / "first"
    env = load_env("search:hops=2")
    with Run.create(path, {"seed": 0}, quiet=True) as made:
        for actor, tag in (("expert", "experts"), ("random", "chance")):
            rollout(Agent(load_policy(actor)), env, env.tasks("train", 6), run=made, tag=tag)
        rollout(Agent(load_policy("expert")), env, env.tasks("test", 3), run=made, tag="eval/end", allow_test=True)
    return path


def test_every_episode_says_where_it_is_from(run: Path) -> None:
    episodes = list(Stored.open(run).episodes())
    assert len(episodes) == 15
    for episode in episodes:
        known = facts(episode)
        assert known["source"] == "first"
        assert known["actor"] in ("expert", "random")
        assert known["policy"] == known["actor"]
        assert {"temperature", "prompt", "cost", "outcome", "task"} <= set(known)
        assert known["tools"] == ", ".join(tool.name for tool in load_env("search:hops=2").tools)
        assert tools_of(episode) == load_env("search:hops=2").tools
        assert (outcome_of(episode) == "success") == episode.success


@pytest.mark.slow
def test_a_runs_test_episodes_stay_out_of_what_may_be_trained_on(run: Path, tmp_path: Path) -> None:
    result = whet("data", "export", str(run), "x.jsonl", "--to", "trl", cwd=tmp_path)
    assert result.returncode == 0
    assert "note: 3 episodes of test tasks are left out (--split)" in result.stderr
    assert "12 records of 12 episodes" in result.stdout
    told = message(whet("data", "export", str(run), "y.jsonl", "--to", "trl", "--split", "all", cwd=tmp_path))
    assert "--allow-test" in told
    shown = done("data", "export", str(run), "y.jsonl", "--to", "atif", "--split", "test", "--allow-test", cwd=tmp_path)
    assert "3 records of 3 episodes" in shown
    with pytest.raises(SplitError, match="is of the test task 'search/test/0'"):
        export(Stored.open(run).episodes(), tmp_path / "z.jsonl", "openai")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.jsonl", "y.jsonl"]
    done("data", "import", "all.db", str(run), cwd=tmp_path)
    assert {e.task.split for e in EpisodeStore(tmp_path / "all.db", read_only=True).load("eval/end")} == {"test"}
    assert "3 episodes of test tasks" in whet("data", "filter", "all.db", "--success", "--out", "good.db", cwd=tmp_path).stderr


@pytest.mark.parametrize("kind", ["x.jsonl", "x.parquet", "x.db"])
def test_whets_own_files_hold_everything(run: Path, tmp_path: Path, kind: str) -> None:
    if kind == "x.db":
        done("data", "import", kind, str(run), cwd=tmp_path)
    else:
        pytest.importorskip("pyarrow")
        done("data", "export", str(run), kind, "--to", "whet", "--split", "all", "--allow-test", cwd=tmp_path)
    done("data", "import", "y.db", kind, cwd=tmp_path)
    assert list(EpisodeStore(tmp_path / "y.db", read_only=True).load()) == list(Stored.open(run).episodes())


def test_strict_refuses_what_would_be_lost(run: Path, tmp_path: Path) -> None:
    told = message(whet("data", "export", str(run), "x.jsonl", "--to", "openai", "--strict", cwd=tmp_path))
    assert told.startswith("refused: openai has no place for: ")
    assert "identity (id and task)" in told
    assert "experts/search/train/0#0" in told
    assert not list(tmp_path.iterdir())
    done("data", "export", str(run), "x.jsonl", "--to", "atif", "--strict", cwd=tmp_path)
    result = whet("data", "export", str(run), "y.jsonl", "--to", "openai", "--tag", "experts", cwd=tmp_path)
    assert "note: openai has no place for: " in result.stderr
    assert "outcome (6 episodes)" in result.stderr


def test_episodes_with_forks_or_errors_are_accounted_for(tmp_path: Path) -> None:
    forked = replace(ROLLED, id="f", turns=(Turn(role="user", content="a"), *(Turn(role="assistant", content=c, parent=0) for c in "bc")))
    failed = replace(ROLLED, id="e", stop=Stop.ERROR, error="lost")
    bare = replace(ROLLED, id="n", tags={})
    account = export([ROLLED, forked, failed, bare], tmp_path / "x.jsonl", "openai")
    assert (account.records, account.forked, account.left_out, account.unknown_tools) == (4, 1, {"they failed with an error": 1}, 1)
    assert [line for line in account.lines("openai") if "forks" in line] == ["1 episodes have forks; each of their walks is a record"]
    account = export([ROLLED, forked, failed], tmp_path / "y.jsonl", "adp")
    assert (account.records, account.forked, account.lost) == (3, 0, {})


def test_preferences_take_the_best_and_the_worst_of_each_task(tmp_path: Path) -> None:
    def attempt(task: str, name: str, reward: float, **changes: Any) -> Episode:
        turns = (Turn(role="user", content=f"solve {task}"), Turn(role="assistant", content=name, parent=0, finish="stop"))
        made = Task(id=task, env="e", split="train")
        return Episode(id=name, task=made, turns=turns, stop=Stop.TERMINATED, reward=reward, success=reward == 1, **changes)

    store = EpisodeStore(tmp_path / "x.db")
    first = [attempt("a", "a1", 0.5), attempt("b", "b1", 1.0), attempt("a", "a2", 1.0)]
    store.save([*first, attempt("b", "b2", 1.0), attempt("a", "a3", 0.0), attempt("c", "c1", 1.0)], "t")
    store.close()
    result = whet("data", "export", "x.db", "p.jsonl", "--to", "trl-preference", "--bare", cwd=tmp_path)
    (record,) = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert record == {
        "prompt": [{"role": "user", "content": "solve a"}],
        "chosen": [{"role": "assistant", "content": "a2"}],
        "rejected": [{"role": "assistant", "content": "a3"}],
    }
    assert "3 episodes are left out: no episode of the task is better than another" in result.stderr
    assert "1 episodes are left out: another episode of the task is better or worse" in result.stderr
    done("data", "export", "x.db", "w.jsonl", "--to", "whet", cwd=tmp_path)
    told = message(whet("data", "export", "w.jsonl", "p2.jsonl", "--to", "trl-preference", cwd=tmp_path))
    assert "import it into a store first" in told


@pytest.mark.slow
def test_stats_and_show(run: Path, tmp_path: Path) -> None:
    shown = done("data", "stats", str(run), cwd=tmp_path)
    for line in ("15 episodes", "first", "search", "expert", "random", "train", "test", "tool calls, of which", "cost: 15 episodes"):
        assert line in shown, line
    counted = json.loads(done("data", "stats", str(run), "--json", "--split", "train", cwd=tmp_path))
    assert counted["episodes"] == 12
    assert counted["actor"] == {"expert": 6, "random": 6}
    assert counted["outcome"]["success"] >= 6
    assert counted["cost"]["episodes"] == 12
    shown = done("data", "show", str(run), "experts/search/train/0#0", cwd=tmp_path)
    assert shown.startswith("== experts/search/train/0#0\n   task        search/train/0 (search, train)\n")
    assert "   actor       expert\n" in shown
    assert "-> answer(" in shown
    assert done("data", "show", str(run), "search/train/0", cwd=tmp_path).count("\n== ") == 1, "by the task: both attempts"
    assert done("data", "show", str(run), "-n", "2", "--tag", "chance", cwd=tmp_path).count("== chance/") == 2
    assert "has no episode with the id 'nobody'" in message(whet("data", "show", str(run), "nobody", cwd=tmp_path))


def test_what_could_steer_a_terminal_is_shown_as_text(tmp_path: Path) -> None:
    store = EpisodeStore(tmp_path / "x.db")
    store.save([replace(ROLLED, id="\x1b]0;x\x07", turns=(Turn(role="user", content="\x1b[2J\x9bred\ttab\nline"),))], "t")
    store.close()
    shown = done("data", "show", "x.db", cwd=tmp_path)
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert "\\x1b[2J\\x9bred\ttab\n   line" in shown


# -- the command line ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_usage(tmp_path: Path) -> None:
    assert "whet data ACTION" in done("data", "--help", cwd=tmp_path)
    for action in ("import", "export", "filter", "mix", "stats", "show", "audit"):
        assert f"usage: whet data {action}" in done("data", action, "--help", cwd=tmp_path)
    result = whet("data", "impotr", cwd=tmp_path)
    assert result.returncode == 2
    assert "unknown action 'impotr'. Did you mean 'import'?" in result.stderr
    assert whet("data", cwd=tmp_path).returncode == 2
    for argv, why in [
        (("stats", "none.db"), "there is no none.db"),
        (("export", "none.db", "x.jsonl", "--to", "trl"), "there is no none.db"),
        (("filter", "none.db", "--out", "x.db", "--success"), "there is no none.db"),
        (("import", "x.csv", "y.jsonl"), "x.csv is no store; expected a name such as x.db"),
        (("import", "x.db", "y.jsonl"), "there is no y.jsonl"),
        (("import", "x.db", "a", "b", "--source", "s"), "--source names one file, and 2 were given"),
    ]:
        assert why in message(whet("data", *argv, cwd=tmp_path)), argv
