"""What is drawn of several sources: shares within their intervals, every row as often as the others, the same again from a seed."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commandline import message, whet
from test_data_filters import episode
from whet.data.mixing import draw, mixed, rehearsal, weighted
from whet.errors import ConfigError
from whet.runs import EpisodeStore
from whet.types import Stop


def flat(batches: Any) -> list[Any]:
    return [row for batch in batches for row in batch]


def within(k: int, n: int, p: float) -> bool:
    """Whether k of n is what a probability of p gives: within 4.4 standard deviations, which one in 100,000 draws is not."""
    return abs(k - n * p) <= 4.42 * math.sqrt(n * p * (1 - p)) + 1e-9


@settings(max_examples=60, deadline=None)
@given(st.floats(0.05, 0.95), st.integers(0, 2**32), st.integers(50, 400))
def test_eta_is_the_share_of_the_agents_rows(eta: float, seed: int, n: int) -> None:
    agent, general = [("a", i) for i in range(n)], [("g", i) for i in range(2 * n)]
    rows = flat(mixed(agent, general, 16, eta=eta, seed=seed))
    assert len(rows) == round(n / eta)
    assert within(sum(kind == "a" for kind, _ in rows), len(rows), eta)


def test_agenttunings_mixture() -> None:
    """eta = 0.2, over many seeds: the mean share, and the spread of a binomial variable."""
    shares = []
    for seed in range(200):
        rows = flat(mixed(["a"] * 40, ["g"] * 1000, 8, eta=0.2, seed=seed))
        assert len(rows) == 200
        shares.append(rows.count("a") / 200)
    assert within(round(sum(shares) * 200), 200 * 200, 0.2)
    spread = math.sqrt(sum((s - 0.2) ** 2 for s in shares) / 200)
    assert spread == pytest.approx(math.sqrt(0.2 * 0.8 / 200), rel=0.2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 99), st.integers(0, 200), st.data())
def test_rows_of_a_source_take_turns(sizes: list[int], seed: int, n: int, data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(0.1, 5), min_size=len(sizes), max_size=len(sizes)))
    found = list(draw(sizes, weights, n=n, seed=seed))
    assert len(found) == n
    for source, size in enumerate(sizes):
        rows = [row for of, row in found if of == source]
        times = Counter(rows)
        assert set(times) <= set(range(size))
        if rows:
            assert max(times.values()) - min(times[row] for row in range(size)) <= 1
    start = data.draw(st.integers(0, n))
    assert list(draw(sizes, weights, n=n - start, seed=seed, start=start)) == found[start:], "it can be taken up anywhere"


def test_batches_can_be_taken_up_anywhere() -> None:
    options: dict[str, Any] = {"eta": 0.3, "epochs": 3, "seed": 5}
    whole = list(mixed(range(20), range(100, 150), 7, **options))
    assert [len(batch) for batch in whole[:-1]] == [7] * (len(whole) - 1)
    for start in (0, 1, 5, len(whole), len(whole) + 3):
        assert list(mixed(range(20), range(100, 150), 7, **options, start=start)) == whole[start:]
    assert list(mixed(range(20), range(100, 150), 7, **{**options, "seed": 6})) != whole


def test_no_source_dominates_unless_it_is_told_to() -> None:
    sources = {"small": ["s"] * 30, "large": ["l"] * 3000}
    rows = flat(weighted(sources, 8, draws=2000, seed=1))
    assert within(rows.count("s"), 2000, 0.5)
    rows = flat(weighted(sources, 8, weights={"small": 1, "large": 3}, draws=2000, seed=1))
    assert within(rows.count("s"), 2000, 0.25)
    assert flat(weighted(sources, 8, weights={"small": 1, "large": 0}, draws=50, seed=1)) == ["s"] * 50


def test_ranks_draw_by_themselves() -> None:
    sources = {"a": [("a", i) for i in range(50)], "b": [("b", i) for i in range(50)]}
    of_rank = [flat(weighted(sources, 8, draws=400, seed=3, rank=rank)) for rank in range(4)]
    assert all(flat(weighted(sources, 8, draws=400, seed=3, rank=rank)) == of_rank[rank] for rank in range(4))
    for i in range(4):
        for j in range(i):
            same = sum(x == y for x, y in zip(of_rank[i], of_rank[j]))
            assert within(same, 400, 0.5 / 50), "as often as chance has it"


def test_rehearsal_keeps_all_that_is_new_and_some_of_what_was() -> None:
    new, tools, general = [("n", i) for i in range(10)], [("t", i) for i in range(100)], [("g", i) for i in range(5)]
    rows = rehearsal(new, tools, general, keep=20, seed=4)
    assert rows[:10] == new
    assert len(rows) == 10 + 20 + 5
    assert len(set(rows)) == len(rows)
    assert rows == rehearsal(new, tools, general, keep=20, seed=4)
    assert rows != rehearsal(new, tools, general, keep=20, seed=5)
    assert rehearsal(new, tools, keep=0) == new


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: mixed([1], [2], 0), "batch size is 0"),
        (lambda: mixed([1], [2], 1, eta=1.5), "eta is 1.5"),
        (lambda: list(mixed([], [2], 1)), "source 0 has the weight 0.2 and no rows"),
        (lambda: draw([1, 1], [1], n=1), "2 sources and 1 weights"),
        (lambda: draw([1, 1], [0, 0], n=1), "expected numbers of at least 0, not all 0"),
        (lambda: draw([1], [math.nan], n=1), "expected numbers of at least 0"),
        (lambda: weighted({"a": [1]}, 1, weights={"b": 1}), "there are weights for b; expected one for each of a"),
        (lambda: rehearsal([1], [2], keep=-1), "keep is -1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(make: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        make()


def test_mixtures_with_one_source_only() -> None:
    assert sorted(flat(mixed([1, 2, 3], [], 2, eta=1.0))) == [1, 2, 3]
    assert sorted(flat(mixed([], [1, 2, 3], 2, eta=0.0))) == [1, 2, 3]


# -- stores --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    for name, n in (("agent", 40), ("general", 300)):
        store = EpisodeStore(tmp_path / f"{name}.db")
        made = [episode(f"{name}{i}", asked=str(i)) for i in range(n)]
        store.save([*made, episode("test", split="test"), episode("failed", stop=Stop.ERROR)], "t")
        store.close()
    return tmp_path


def test_stores_are_mixed_into_a_new_one(stores: Path) -> None:
    shown = []
    for out in ("one.db", "two.db"):
        result = whet("data", "mix", "agent.db", "general.db", "--eta", "0.2", "--out", out, "--seed", "7", cwd=stores)
        assert result.returncode == 0, result.stderr
        shown.append(result.stdout)
    ids = [[e.id for e in EpisodeStore(stores / out, read_only=True).load()] for out in ("one.db", "two.db")]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 200, "what 40 episodes at 0.2 are enough for"
    assert not {"test", "failed"} & set(ids[0])
    agents = sum(name.startswith("agent") for name in ids[0])
    assert within(agents, 200, 0.2)
    assert shown[0].splitlines()[0] == f"agent.db: {agents} drawn ({agents / 200:.1%}) of 40 train episodes, {agents / 40:.2f} passes"
    tags = {tag.tag: tag.n for tag in EpisodeStore(stores / "one.db", read_only=True).tags()}
    assert tags == {"agent.db": agents, "general.db": 200 - agents}


def test_weights_of_stores(stores: Path) -> None:
    result = whet("data", "mix", "agent.db=3", "general.db", "--out", "x.db", "-n", "400", cwd=stores)
    assert result.returncode == 0, result.stderr
    times = Counter(e.id for e in EpisodeStore(stores / "x.db", read_only=True).load())
    agents = {name: n for name, n in times.items() if name.startswith("agent")}
    assert within(sum(agents.values()), 400, 0.75)
    assert max(agents.values()) - min(agents.values()) <= 1
    for argv, why in [
        (("agent.db=x", "general.db"), "expected STORE=WEIGHT"),
        (("agent.db=2", "general.db", "--eta", "0.2"), "two stores without weights"),
        (("agent.db=-1", "general.db"), "expected numbers of at least 0"),
    ]:
        assert why in message(whet("data", "mix", *argv, "--out", "y.db", cwd=stores))
