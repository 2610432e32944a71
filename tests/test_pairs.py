"""Pair builders against cases made by hand."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest

from helpers import tiny_policy
from whet.agents import Agent
from whet.cli import main
from whet.data import Contrast, extremes, outcome, segment, siblings, step, to_pairs, unpaired
from whet.data.pairs import KINDS, contrasts
from whet.data.rows import cut
from whet.envs import Action, Env, Step
from whet.envs.base import EnvFactory
from whet.errors import ConfigError
from whet.policies import load_policy
from whet.rollout import Prefix, rollout
from whet.runs import EpisodeStore
from whet.types import Episode, Example, Stop, Task, Turn, chain

TASK = Task(id="t/train/0", env="t", split="train")
policy = functools.cache(tiny_policy)


def episode(actions: list[int], reward: float, id: str = "", task: Task = TASK) -> Episode:
    """One token for each action, with an observation of one token before each."""
    pairs = [(Turn(role="user", tokens=(i + 1,)), Turn(role="assistant", tokens=(a,))) for i, a in enumerate(actions)]
    turns = chain([turn for pair in pairs for turn in pair])
    return Episode(id=id or f"{actions}", task=task, turns=turns, stop=Stop.TERMINATED, reward=reward)


def learned(contrast: Contrast) -> tuple[list[int], list[int]]:
    """The tokens that a pair is about."""
    pair = contrast.pair(policy())
    return pair.chosen.tokens[pair.chosen.mask].tolist(), pair.rejected.tokens[pair.rejected.mask].tolist()


# -- outcome -----------------------------------------------------------------------------------------------------------------


def test_outcome_prefers_the_higher_reward_and_drops_ties() -> None:
    one, other = episode([100, 101], 1.0, "one"), episode([100, 102, 103], 0.25, "other")
    for found in (outcome(one, other), outcome(other, one)):
        (pair,) = to_pairs(found, policy())
        assert (pair.chosen.origin, pair.rejected.origin, pair.margin, pair.origin, pair.kind) == ("one", "other", 0.75, TASK.id, "outcome")
        assert [row.tokens[row.mask].tolist() for row in (pair.chosen, pair.rejected)] == [[100, 101], [100, 102, 103]]
    assert outcome(one, dataclasses.replace(other, reward=1.0)) == []
    assert outcome(one, other, least=0.75) == []
    (by_label,) = outcome(one, other, worth=(0.0, 0.5), kind="label")
    assert (by_label.better.id, by_label.margin, by_label.kind) == ("other", 0.5, "label")


@pytest.mark.parametrize(("extra", "left"), [(None, 6), (10, 6), (2, 4), (0, 2)])
def test_outcome_cuts_a_loser_that_went_on_too_long(extra: int | None, left: int) -> None:
    (found,) = outcome(episode([100, 101], 1.0), episode([100 + i for i in range(6)], 0.0), max_extra_turns=extra)
    pair = found.pair(policy())
    assert learned(found) == ([100, 101], [100 + i for i in range(left)])
    assert pair.rejected.mask[-1]


def test_a_pair_refuses_what_is_not_one_task_or_not_one_row() -> None:
    with pytest.raises(ConfigError, match="one task"):
        outcome(episode([1], 1.0), episode([1], 0.0, task=dataclasses.replace(TASK, id="other")))
    ask = Turn(role="user", tokens=(1,))
    two = tuple(Turn(role="assistant", tokens=(a,), parent=0) for a in (3, 4))
    forked = Episode(id="forked", task=TASK, turns=(ask, *two), stop=Stop.TERMINATED)
    with pytest.raises(ConfigError, match="exactly one"):
        to_pairs(outcome(episode([1], 1.0), forked), policy())
    assert cut(episode([1, 2, 3], 0.0), 0).turns == ()


def test_actions_weigh_what_the_caller_says() -> None:
    (pair,) = to_pairs(outcome(episode([7, 8], 1.0), episode([9], 0.0)), policy(), weigh=lambda n: [1 / (n + i) for i in range(n)])
    assert pair.chosen.weights[pair.chosen.mask] == pytest.approx([1 / 2, 1 / 3])
    assert pair.rejected.weights[pair.rejected.mask].tolist() == [1.0]
    with pytest.raises(ConfigError, match="2 actions on a walk and got 1 weights"):
        to_pairs(outcome(episode([7, 8], 1.0), episode([9], 0.0)), policy(), weigh=lambda n: [1.0])


# -- extremes ----------------------------------------------------------------------------------------------------------------


def test_extremes_by_reward_and_by_anything_else() -> None:
    several = [episode([i], reward, f"e{i}") for i, reward in enumerate([0.5, 0.0, 1.0, 0.2])]
    (found,) = extremes(several)
    assert (found.better.id, found.worse.id, found.margin) == ("e2", "e1", 1.0)
    (found,) = extremes(several, [3.0, 9.0, 4.0, 2.5], kind="perplexity")
    assert (found.better.id, found.worse.id, found.margin, found.kind) == ("e1", "e3", 6.5, "perplexity")
    assert extremes(several, [1.0] * 4) == extremes(several[:1]) == extremes([]) == []
    with pytest.raises(ConfigError, match="4 episodes and 2 values"):
        extremes(several, [1.0, 2.0])


# -- step and segment --------------------------------------------------------------------------------------------------------


def test_a_step_pair_is_about_what_follows_the_shared_actions() -> None:
    good, bad = episode([5, 6, 7, 8], 1.0), episode([5, 6, 9], 0.0)
    (suffix,) = step(good, bad, 2)
    assert learned(suffix) == ([7, 8], [9])
    (single,) = step(good, bad, 2, length=1)
    assert learned(single) == ([7], [9])
    chosen, rejected = suffix.pair(policy()).chosen, suffix.pair(policy()).rejected
    assert chosen.tokens[:5].tolist() == rejected.tokens[:5].tolist() == [1, 5, 2, 6, 3]
    assert step(good, bad, 3) == [], "the other has nothing left to compare"


@pytest.mark.parametrize(("worth", "n"), [((0.8, 0.5), 1), ((0.5, 0.8), 0), ((0.8, 0.795), 0)])
def test_a_step_pair_must_hold_by_the_steps_worth_as_well(worth: tuple[float, float], n: int) -> None:
    assert len(step(episode([5, 6], 1.0), episode([5, 7], 0.0), 1, worth=worth, least=0.01)) == n


def test_a_step_pair_without_the_same_beginning_is_refused() -> None:
    (found,) = step(episode([5, 6, 7], 1.0), episode([4, 6, 8], 0.0), 2)
    with pytest.raises(ConfigError, match="token for token"):
        found.pair(policy())


def test_a_segment_has_as_many_actions_of_both() -> None:
    (found,) = segment(episode([5, 6, 7, 8, 9], 1.0), episode([5, 10, 11], 0.0), 1)
    assert learned(found) == ([6, 7], [10, 11])
    assert found.kind == "segment"


# -- siblings ----------------------------------------------------------------------------------------------------------------


def test_siblings_are_worth_the_mean_of_what_became_of_them() -> None:
    # From the start 1 is worth (1 + 0 + 0.2) / 3 and 2 is worth 0.1; behind 1, action 3 is worth 0.5 and 4 is worth 0.2.
    tree = [episode([1, 3, 5], 1.0), episode([1, 3, 6], 0.0), episode([1, 4], 0.2), episode([2], 0.1)]
    first, second, third = siblings(tree)
    assert (learned(first), first.margin) == (([1], [2]), pytest.approx(0.3))
    assert first.better.reward == 1.0, "shown by its best episode"
    assert (learned(second), second.margin) == (([3], [4]), pytest.approx(0.3))
    assert (learned(third), third.margin) == (([5], [6]), 1.0)
    assert [c.start for c in siblings(tree, least=0.5)] == [2]
    assert [c.start for c in siblings(tree, at_least=0.45)] == [1, 2]
    by_length = siblings(tree, lambda e: -float(e.n_actions))
    assert learned(by_length[0]) == ([2], [1])


# -- what is in a store ------------------------------------------------------------------------------------------------------


class Walk(Env):
    """Say `on` twice; anything else ends it."""

    max_turns = 2

    def reset(self, task: Task) -> str:
        self.gone = 0
        return "Go."

    def step(self, action: Action) -> Step:
        self.gone += action.text == "on"
        over = self.gone == 2 or action.text != "on"
        return Step(observation="" if over else "Further.", reward=self.gone / 2, terminated=over, success=self.gone == 2)

    def expert(self, rng: object) -> Action:
        return Action(text="on")


@pytest.fixture(scope="module")
def stored() -> list[Episode]:
    """The expert's episode, one of another actor, and one that left the expert's after its first action."""
    env = EnvFactory(Walk)
    (task,) = env.tasks("train", 1)
    (expert,) = rollout(Agent(load_policy("expert")), env, [task], tag="experts")
    talker = dataclasses.replace(expert, id="own", tags={"actor": "self"}, reward=0.0, success=False)
    talker = dataclasses.replace(talker, turns=chain([expert.turns[0], Turn(role="assistant", content="off")]))
    turns = chain([*expert.turns[:3], Turn(role="assistant", content="stop")])
    fork = {"actor": "self", "fork": {"episode": expert.id, "actions": 1}}
    left = dataclasses.replace(expert, id="left", tags=fork, reward=0.5, success=False, turns=turns)
    assert Prefix.of(expert, actions=1).turns == expert.turns[:3]
    return [expert, talker, left]


def test_every_builder_finds_its_pairs_among_stored_episodes(stored: list[Episode]) -> None:
    found = {kind: [(c.better.id, c.worse.id, c.start, c.stop) for c in contrasts(stored, [kind])] for kind in KINDS}
    expert = stored[0].id
    assert found["outcome"] == [(expert, "own", 0, None), (expert, "left", 0, None)]
    assert found["extremes"] == [(expert, "own", 0, None)]
    assert found["step"] == [(expert, "left", 1, None)]
    assert found["segment"] == [(expert, "left", 1, 2)]
    assert found["siblings"] == [(expert, "own", 0, 1), (expert, "left", 1, 2)]
    with pytest.raises(ConfigError, match="Did you mean 'step'"):
        contrasts(stored, ["steps"])


def shown(stored: list[Episode], place: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    if not (place / "s.db").exists():
        store = EpisodeStore(place / "s.db")
        store.save(stored, "t")
        store.close()
    assert main(["data", "pairs", str(place / "s.db"), "--width", "60", *options]) == 0
    return capsys.readouterr().out


def test_the_command_shows_them_side_by_side(stored: list[Episode], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(stored, tmp_path, capsys, "--kind", "step")
    assert text.splitlines()[:8] == [
        "== step: walk/train/0, margin 1",
        "   chosen   experts/walk/train/0#0 (expert, reward 1.5)",
        "   rejected left (self, reward 0.5, from action 2 of experts/walk/train/0#0)",
        "user: Go.",
        "assistant: on",
        "user: Further.",
        "assistant: on                | assistant: stop",
        "",
    ]
    text = shown(stored, tmp_path, capsys)
    assert "outcome          2 pairs, margin 1.25 on average, 1 to 1.5" in text
    assert "unpaired         3 episodes, 1 of them good by themselves" in text


def test_the_command_goes_by_labels_and_judges(stored: list[Episode], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels.jsonl").write_text("\n".join(json.dumps({"id": e.id, "worth": i}) for i, e in enumerate(stored[:2])))
    text = shown(stored, tmp_path, capsys, "--kind", "extremes", "--labels", str(tmp_path / "labels.jsonl"))
    assert "chosen   own (self, reward 1)" in text
    assert "rejected experts/walk/train/0#0 (expert, reward 0)" in text
    judge = "class V:\n    def __init__(self, s): self.score, self.reason = s, ''\n"
    judge += "def short(episodes):\n    return [V(-len(e.turns[1].content)) for e in episodes]"
    (tmp_path / "judge.py").write_text(judge)
    text = shown(stored, tmp_path, capsys, "--kind", "extremes", "--judge", f"{tmp_path / 'judge.py'}:short")
    assert "margin 1\n" in text
    (tmp_path / "labels.jsonl").write_text("{}")
    assert main(["data", "pairs", str(tmp_path / "s.db"), "--labels", str(tmp_path / "labels.jsonl")]) == 1
    assert "holds no labels" in capsys.readouterr().err


# -- unpaired ----------------------------------------------------------------------------------------------------------------


def row(prompt: list[int], answer: list[int], origin: str = "") -> Example:
    mask = np.array([False] * len(prompt) + [True] * len(answer))
    return Example(tokens=np.array(prompt + answer), mask=mask, weights=mask.astype(np.float32), origin=origin)


def test_unpaired_rows_stand_beside_another_prompts_answer() -> None:
    rows = [row([1, 2], [10], "a"), row([1, 2], [11, 12], "b"), row([3], [13], "c")]
    pairs = unpaired(rows, [True, False, True], desirable=1.5, undesirable=0.5)
    assert [pair.chosen.weights.tolist() for pair in pairs] == [[0, 0, 1.5], [0, 0, -0.5, -0.5], [0, 1.5]]
    assert [pair.margin for pair in pairs] == [1.5, -0.5, 1.5]
    # rows 0 and 1 share a prompt, so that both take row 2's answer; row 2 takes row 1's
    assert [pair.rejected.tokens.tolist() for pair in pairs] == [[1, 2, 13], [1, 2, 13], [3, 11, 12]]
    assert [pair.rejected.mask.tolist() for pair in pairs] == [[False, False, True], [False, False, True], [False, True, True]]
    assert not any(pair.rejected.weights.any() for pair in pairs)
    assert [(pair.origin, pair.rejected.origin) for pair in pairs] == [("a", "a with c"), ("b", "b with c"), ("c", "c with b")]


def test_unpaired_rows_of_one_prompt_take_the_answer_before() -> None:
    pairs = unpaired([row([1], [10]), row([1], [11])], [True, True])
    assert [pair.rejected.tokens.tolist() for pair in pairs] == [[1, 11], [1, 10]]


def test_unpaired_keeps_observations_between_actions() -> None:
    other = row([3], [13, 14, 15])
    other.mask[2] = False  # an observation
    pair = unpaired([row([1, 2], [10]), other], [True, False])[0]
    assert pair.rejected.tokens.tolist() == [1, 2, 13, 14, 15]
    assert pair.rejected.mask.tolist() == [False, False, True, False, True]


@pytest.mark.parametrize(
    ("good", "options", "message"), [([True], {}, "2 rows and 1 labels"), ([True] * 2, {"desirable": -1.0}, "is -1.0")]
)
def test_unpaired_refuses(good: list[bool], options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        unpaired([row([1], [2]), row([3], [4])], good, **options)
