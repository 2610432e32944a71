"""What filters keep, what they say of the rest, and what an audit makes of it."""

from __future__ import annotations

import json
import math
import random
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commandline import done, message, whet
from helpers import tiny_policy
from whet.data import audit, filters
from whet.data.duplicates import Near, runs, signature, words
from whet.data.filters import Filter
from whet.data.rows import to_examples
from whet.envs import load_env
from whet.errors import ConfigError, SplitError
from whet.learn import with_reference
from whet.runs import EpisodeStore, Run
from whet.types import Episode, Split, Stop, Task, ToolCall, Turn, chain

Opinion = namedtuple("Opinion", "score reason")


def episode(
    name: str,
    *answers: str | ToolCall,
    asked: str = "do it",
    split: Split = "train",
    env: str = "shop",
    success: bool = True,
    reward: float | None = None,
    **fields: Any,
) -> Episode:
    turns = [Turn(role="user", content=asked)]
    for answer in answers or ("done",):
        said = {"tool_calls": (answer,)} if isinstance(answer, ToolCall) else {"content": answer}
        turns.append(Turn(role="assistant", finish="stop", **said))
    fields.setdefault("stop", Stop.TERMINATED)
    reward = float(success) if reward is None else reward
    task = Task(id=name, env=env, split=split)
    return Episode(id=name, task=task, turns=chain(turns), success=success, reward=reward, **fields)


def reasons(some: Filter, *episodes: Episode) -> list[str | None]:
    return list(some.start()(episodes))


# -- single filters ------------------------------------------------------------------------------------------------------


def test_by_outcome() -> None:
    good, bad = episode("good"), episode("bad", success=False, reward=0.4)
    unknown = episode("unknown", success=False, tags={"outcome": "unknown"})
    failed = episode("failed", success=False, stop=Stop.ERROR)
    assert reasons(filters.success(), good, bad, unknown, failed) == [None, "no success", "outcome unknown", "error"]
    assert reasons(filters.min_reward(0.5), good, bad, unknown, failed) == [None, "reward below 0.5", "outcome unknown", "error"]
    assert reasons(filters.min_reward(0.4), bad) == [None]
    assert reasons(filters.min_reward(-1), unknown, failed) == ["outcome unknown", "error"], "an unknown outcome is no reward of zero"
    with pytest.raises(ConfigError, match="least is nan"):
        filters.min_reward(math.nan)


def test_by_format() -> None:
    offered = {"schemas": [{"type": "function", "function": {"name": "buy"}}]}
    found = reasons(
        filters.readable(),
        episode("a", ToolCall(name="buy"), "thanks", tags=offered),
        episode("b", ToolCall(name="sell"), tags=offered),
        episode("c", ToolCall(name="sell")),
        episode("d", ToolCall(name="", error="not valid JSON: line 1")),
        episode("e", " \n"),
        replace(episode("f"), turns=(Turn(role="user", content="x"),)),
    )
    assert found == [
        None,
        "call of a tool that was not offered: sell",
        None,
        "unreadable tool call: not valid JSON: line 1",
        "empty answer",
        "no answer",
    ]


def test_by_length() -> None:
    short, long = episode("short", "a"), episode("long", "a" * 50, "b", "c")
    assert reasons(filters.max_turns(2), short, long) == [None, "more turns than 2"]
    assert reasons(filters.min_turns(2), short, long) == ["fewer turns than 2", None]
    assert reasons(filters.max_characters(20), short, long) == [None, "more characters than 20"]
    with pytest.raises(ConfigError, match="max_turns is -1"):
        filters.max_turns(-1)


def test_tokens_are_those_of_the_longest_walk_or_are_rendered() -> None:
    a, b = Turn(role="user", tokens=(1, 2)), Turn(role="assistant", tokens=(3,), parent=0)
    forked = replace(episode("x"), turns=(a, b, replace(b, tokens=(3, 4, 5))))
    assert reasons(filters.max_tokens(5), forked) == [None]
    assert reasons(filters.max_tokens(4), forked) == ["more tokens than 4"]
    with pytest.raises(ConfigError, match="is text without tokens; give max_tokens a policy"):
        reasons(filters.max_tokens(5), episode("text"))
    policy = tiny_policy()
    n = len(to_examples(episode("text"), policy)[0].tokens)
    assert reasons(filters.max_tokens(n, policy), episode("text")) == [None]
    assert reasons(filters.max_tokens(n - 1, policy), episode("text")) == [f"more tokens than {n - 1}"]


# -- duplicates ----------------------------------------------------------------------------------------------------------


def test_equal_conversations_are_kept_once_whoever_they_are_from() -> None:
    call = ToolCall(name="buy", arguments={"a": 1, "b": 2}, id="x")
    same = ToolCall(name="buy", arguments={"b": 2, "a": 1}, id="y")
    found = reasons(filters.deduplicate(), episode("a", call), episode("b", same, env="other"), episode("c", replace(call, name="sell")))
    assert found == [None, "duplicate", None]
    check = filters.deduplicate()
    assert [reasons(check, episode("a")) for _ in range(2)] == [[None], [None]], "each use begins anew"


def jaccard(a: str, b: str) -> float:
    one, other = (set(zip(*[words(text)[i:] for i in range(5)])) for text in (a, b))
    return len(one & other) / len(one | other)


def changed(rng: random.Random, text: str, n: int) -> str:
    found = text.split()
    for _ in range(n):
        found[rng.randrange(len(found))] = f"z{rng.randrange(9999)}"
    return " ".join(found)


def test_near_duplicates_are_found_and_others_are_not() -> None:
    rng = random.Random(0)
    vocabulary = [f"w{i}" for i in range(500)]
    texts = [" ".join(rng.choices(vocabulary, k=200)) for _ in range(300)]
    near = Near(0.8)
    assert all(near.add(text) is None for text in texts)
    close = [(i, changed(rng, texts[i], 2)) for i in range(100)]
    assert min(jaccard(texts[i], text) for i, text in close) > 0.9
    assert sum(near.add(text) == i for i, text in close) >= 99
    far = [(i, changed(rng, texts[i], 40)) for i in range(100, 200)]
    assert max(jaccard(texts[i], text) for i, text in far) < 0.6
    assert all(near.add(text) is None for _, text in far)


def test_the_estimate_of_similarity_has_the_error_that_is_said() -> None:
    rng = random.Random(1)
    vocabulary = [f"w{i}" for i in range(500)]
    errors = []
    for i in range(300):
        text = " ".join(rng.choices(vocabulary, k=150))
        other = changed(rng, text, i % 40)
        errors.append(float((signature(text) == signature(other)).mean()) - jaccard(text, other))
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 0.05


def test_near_counts_what_exact_does_and_looks_past_system_prompts() -> None:
    system = Turn(role="system", content=" ".join(f"rule {i}" for i in range(300)))

    def prompted(name: str, answer: str) -> Episode:
        one = episode(name, answer)
        return replace(one, turns=chain((system, *one.turns)))

    long = " ".join(f"step{i}" for i in range(100))
    found = reasons(
        filters.deduplicate(near=0.8), prompted("a", long), prompted("b", long), prompted("c", f"{long} end"), prompted("d", long[::-1])
    )
    assert found == [None, "duplicate", "similar by 0.8 or more", None]
    with pytest.raises(ConfigError, match=r"near is 1\.5"):
        filters.deduplicate(near=1.5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("abcdefg"), max_size=20), st.lists(st.sampled_from("abcdefg"), max_size=20), st.integers(1, 6))
def test_runs_are_equal_where_words_are(a: list[str], b: list[str], width: int) -> None:
    ours = set(runs(a, width).tolist()) & set(runs(b, width).tolist())
    n = [min(width, len(x)) for x in (a, b)]
    grams = [{tuple(x[i : i + k]) for i in range(len(x) - k + 1)} if k else set() for x, k in zip((a, b), n)]
    assert len(ours) == len(grams[0] & grams[1])


# -- overlap with held-out tasks -----------------------------------------------------------------------------------------


def test_a_run_of_words_of_a_held_out_task_is_found_wherever_it_stands() -> None:
    secret = "who was the teacher of the boss of the friend of Rosa in the old town"
    check = filters.no_overlap([secret, "too short"], n=13)
    found = reasons(
        check,
        episode("a", asked=f"Please tell: {secret.upper()}?!"),
        episode("b", f"first, {secret}"),
        episode("c", ToolCall(name="search", arguments={"q": secret})),
        episode("d", asked=" ".join(secret.split()[:12])),
        episode("e", "too short"),
        episode("f", " ".join(secret.split()[:8]), " ".join(secret.split()[8:])),
    )
    assert [bool(reason) for reason in found] == [True, True, True, False, False, False]
    assert found[0] == "overlaps a held-out task: who was the teacher of the boss of the friend of rosa in"
    shorter = filters.no_overlap(["what is seven times nine today"], n=13)
    assert reasons(shorter, episode("a", asked="So what is seven times nine, today?"), episode("b", asked="what is seven times")) == [
        "overlaps a held-out task: what is seven times nine today",
        None,
    ]
    with pytest.raises(ConfigError, match="no held-out text has 5 words or more"):
        filters.no_overlap(["too short"])


def test_tasks_show_what_their_environment_shows() -> None:
    env = load_env("search:hops=2")
    tasks = env.tasks("test", 3)
    check = filters.no_overlap(tasks, n=5, env=env)
    made = env.of(tasks[1])()
    seen = made.reset(tasks[1])
    text = seen if isinstance(seen, str) else seen[-1].content
    held_out = episode("held out", asked=text)
    assert reasons(check, held_out)[0] is not None
    assert reasons(check, episode("other", asked="nothing of the kind"))[0] is None
    assert reasons(filters.no_overlap([replace(held_out, id="t")], n=5), held_out)[0] is not None
    with pytest.raises(ConfigError, match="known to its environment alone; give no_overlap `env`"):
        filters.no_overlap(tasks)


# -- by a model ----------------------------------------------------------------------------------------------------------


def test_perplexity_is_that_of_the_actions() -> None:
    import torch

    policy = tiny_policy()
    one = episode("a", "Otto", "Mila")
    (row,) = to_examples(one, policy)
    with torch.no_grad():
        logprobs = policy.module()(torch.tensor(row.tokens)[None]).logits[0].log_softmax(-1)
    own = [float(logprobs[t - 1, token]) for t, token in enumerate(row.tokens) if row.mask[t]]
    by_hand = math.exp(-sum(own) / len(own))
    below = filters.perplexity(policy, with_reference, at_most=by_hand * 0.999)
    (reason,) = reasons(below, one)
    assert reason is not None
    assert reason.startswith("perplexity above ")
    assert float(reason.rpartition(" ")[2]) == pytest.approx(by_hand, rel=1e-3)
    silent = replace(one, turns=one.turns[:1])
    assert reasons(filters.perplexity(policy, with_reference, at_most=by_hand * 1.001), silent, one) == ["no answer", None]
    assert reasons(filters.perplexity(policy, with_reference, at_least=by_hand * 1.001), one)[0] is not None
    with pytest.raises(ConfigError, match="at_least is 3 and at_most is 2"):
        filters.perplexity(policy, with_reference, at_least=3, at_most=2)


def test_a_judge_is_asked_a_page_at_a_time() -> None:
    asked: list[list[str]] = []

    def judge(episodes: list[Episode]) -> list[Opinion]:
        asked.append([e.id for e in episodes])
        scores = {"a": Opinion(5, "fine"), "b": Opinion(2, "rude: and slow"), "c": Opinion(None, "no number in the answer")}
        return [scores.get(e.id, Opinion(4, "ok")) for e in episodes]

    some = [episode(name) for name in "abcde"]
    kept, account = filters.apply(some, [filters.judged(judge, at_least=4)], page=2)
    assert [e.id for e in kept] == ["a", "d", "e"]
    assert asked == [["a", "b"], ["c", "d"], ["e"]]
    assert account.steps[0].reasons == {"judged below 4": 1, "not judged": 1}
    assert [drop.reason for drop in account.drops] == ["judged below 4: 2, rude: and slow", "not judged: no number in the answer"]
    short = filters.judged(lambda episodes: [], at_least=1)
    with pytest.raises(ConfigError, match="gave 0 answers about 5 episodes"):
        filters.select(some, short)


# -- several filters, and their audit ------------------------------------------------------------------------------------


def some_episodes() -> list[Episode]:
    made = [episode(f"e{i}", *["x"] * (i % 5 + 1), asked=f"task {i // 2}", env=f"env{i % 2}", success=i % 3 > 0) for i in range(60)]
    return [replace(e, tags={"actor": "expert" if i % 4 else "self", "source": f"file{i % 2}"}) for i, e in enumerate(made)]


def test_the_audit_adds_up() -> None:
    kept, account = filters.select(some_episodes(), filters.success(), filters.max_turns(3), filters.deduplicate(), page=7)
    assert account.before.n == 60
    left = 60
    for number, step in enumerate(account.steps):
        assert step.dropped == sum(drop.filter == number for drop in account.drops)
        left -= step.dropped
        assert step.after.n == left == sum(step.after.counts["env"].values())
    assert len(kept) == left
    dropped = {drop.episode for drop in account.drops}
    assert len(dropped) == len(account.drops) == 60 - left
    assert dropped | {e.id for e in kept} == {e.id for e in some_episodes()}
    assert account.before.counts["outcome"] == {"success": 40, "failure": 20}
    assert account.after.counts["outcome"] == {"success": left}
    assert account.before.shares("actor") == {"expert": 0.75, "self": 0.25}
    by_hand = [e for e in some_episodes() if e.success and e.n_actions <= 3]
    assert account.steps[1].after.counts["source"] == {s: sum(e.tags["source"] == s for e in by_hand) for s in ("file0", "file1")}
    run = Run.scratch()
    run.event("filter", **account.summary())
    (event,) = run.events("filter")
    assert [(f["name"], f["kept"]) for f in event["filters"]] == [(s.name, s.after.n) for s in account.steps]
    assert audit.Audit.from_json(account.summary()).summary() == account.summary()


def test_filters_pass_on_while_they_read() -> None:
    read = []

    def stream() -> Any:
        for e in some_episodes():
            read.append(e.id)
            yield e

    kept, account = filters.apply(stream(), [filters.success()], page=4)
    assert read == []
    next(kept)
    assert len(read) == 4
    assert account.before.n == 4
    list(kept)
    assert account.before.n == 60
    assert filters.select([])[1].summary()["before"]["n"] == 0


def test_test_tasks_are_refused() -> None:
    some = [episode("a"), episode("b", split="test")]
    with pytest.raises(SplitError, match="episode 'b' is of the test task 'b'"):
        filters.select(some, filters.success())
    kept, _ = filters.apply(some, [filters.success()], allow_test=True)
    assert len(list(kept)) == 2


# -- on the command line -------------------------------------------------------------------------------------------------

_JUDGE = """
from types import SimpleNamespace as Verdict

def strict(episodes):
    return [Verdict(score=len(e.turns), reason="turns") for e in episodes]
"""


@pytest.mark.slow
def test_a_store_is_filtered_into_another_with_its_audit(tmp_path: Path) -> None:
    store = EpisodeStore(tmp_path / "x.db")
    store.save([*some_episodes(), episode("t", split="test"), episode("d", split="dev")], "all")
    store.close()
    (tmp_path / "judge.py").write_text(_JUDGE)
    argv = ("--success", "--max-turns", "4", "--judge", "judge.py:strict", "--least", "3", "--distinct")
    result = whet("data", "filter", "x.db", "--out", "y.db", *argv, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "note: 1 episodes of test tasks are left out (--split)" in result.stderr
    judge = filters.judged(lambda some: [Opinion(len(e.turns), "turns") for e in some], at_least=3)
    kept, account = filters.select(some_episodes(), filters.success(), filters.max_turns(4), judge, filters.deduplicate())
    found = EpisodeStore(tmp_path / "y.db", read_only=True)
    assert list(found.load()) == kept
    assert found.count("file0") == sum(e.tags["source"] == "file0" for e in kept)
    ((number, about, saved),) = audit.load(found)
    assert about == {"store": "x.db", "split": "train", "left_out": {"test": 1, "dev": 1}}
    assert [step.reasons for step in saved.steps] == [step.reasons for step in account.steps]
    assert [tuple(drop) for drop in found.drops(number)] == [tuple(drop) for drop in account.drops]
    shown = done("data", "audit", "y.db", "--dropped", cwd=tmp_path)
    assert f"60 episodes, of which {len(kept)} were kept" in shown
    assert "share by actor" in shown
    assert "success\te0\tno success" in shown.splitlines()
    told = message(whet("data", "filter", "x.db", "--out", "y.db", "--success", cwd=tmp_path))
    assert "y.db exists already" in told
    assert "holds no audit" in message(whet("data", "audit", "x.db", cwd=tmp_path))


@pytest.mark.slow
def test_filters_that_lack_something_say_so(tmp_path: Path) -> None:
    store = EpisodeStore(tmp_path / "x.db")
    store.save(some_episodes(), "all")
    store.close()
    for argv, why in [
        ((), "no filter was given"),
        (("--judge", "judge.py:strict"), "--judge needs --least"),
        (("--judge", "judge.py:strict", "--least", "1"), "no such file: judge.py"),
        (("--max-perplexity", "3"), "--max-perplexity needs --model"),
        (("--max-tokens", "3"), "give max_tokens a policy to count them by (--model)"),
        (("--no-overlap", "serch"), "serch"),
    ]:
        assert why in message(whet("data", "filter", "x.db", "--out", "y.db", *argv, cwd=tmp_path)), argv
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "y"))) == []


def test_episodes_that_overlap_with_an_environments_test_tasks_are_dropped(tmp_path: Path) -> None:
    env = load_env("search:hops=2")
    task = env.tasks("test", 1)[0]
    seen = env.of(task)().reset(task)
    leaked = episode("leaked", asked=seen if isinstance(seen, str) else seen[-1].content)
    store = EpisodeStore(tmp_path / "x.db")
    store.save([leaked, episode("clean", asked="nothing of the kind")], "all")
    store.close()
    done("data", "filter", "x.db", "--out", "y.db", "--no-overlap", "search:hops=2", "--ngram", "5", "--held-out", "4", cwd=tmp_path)
    assert [e.id for e in EpisodeStore(tmp_path / "y.db", read_only=True).load()] == ["clean"]


def test_json_of_a_summary_is_complete(tmp_path: Path) -> None:
    store = EpisodeStore(tmp_path / "x.db")
    store.save(some_episodes(), "all")
    store.close()
    counted = json.loads(done("data", "stats", "x.db", "--json", cwd=tmp_path))
    assert counted["source"] == {"file0": 30, "file1": 30}
    assert counted["lengths"]["answers"] == {"mean": 3.0, "min": 1.0, "median": 3.0, "95%": 5.0, "max": 5.0}
    assert counted["reward"] == {"failure": 0.0, "success": 1.0}
