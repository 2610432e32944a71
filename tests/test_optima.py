"""OPTIMA: what each agent sees, what a conversation is worth, how trees grow, and what is learned from them."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from helpers import spied, tiny_policy
from whet import learn
from whet.agents import Agent
from whet.agents.exchange import Exchange, view, viewed
from whet.data.pairs import siblings
from whet.envs.base import Action, Env, EnvFactory
from whet.errors import CannotReplay, ConfigError
from whet.learn.conversations import Ranking
from whet.methods.optima import OptimaConfig, optima
from whet.policies import ScriptedPolicy, load_policy
from whet.policies.base import Request
from whet.rewards.talk import CLEAR, talk_rewards
from whet.rollout import rollout
from whet.rollout.exchange import both_rows, said_pairs, talks
from whet.rollout.trees import Growth, chosen, distance, grow
from whet.runs import Run
from whet.tools.function import tool
from whet.types import Data, Episode, Pair, Task, ToolCall, Turn


class Safe(Env):
    """Two notes hold a digit each, and a safe is opened by both. In one note of each task stands the first digit."""

    instructions = "Open it."
    max_turns = 4
    max_tokens = 16

    def reset(self, task: Task) -> str:
        self.code = f"{int(task.id.rpartition('/')[2]) % 10}7"
        return f"first {self.code[0]}\n\nsecond {self.code[1]}\n\nWhich code?"

    @tool
    def open(self, code: str) -> str:
        """Open the safe."""
        return self.finish("open", reward=float(code == self.code))

    def role(self, role: str, turns: tuple[Turn, ...], rng: random.Random) -> str | Action:
        told = " ".join(turn.content for turn in turns)
        if "first" in told and "second" in told:
            return opening(self.code)
        word = "first" if "first" in told else "second"
        digit = self.code[word == "second"]
        return f"What I read on my note is {word} {digit}." if "sentences" in told else f"{word} {digit}"


def opening(code: str) -> Action:
    return Action(text="now", tool_calls=(ToolCall(name="open", arguments={"code": code}, id="call_0"),))


SAFE = EnvFactory(Safe)
TASKS = SAFE.tasks("train", 4)
PARTNER = load_policy("script:partner")
POLICY = tiny_policy()


def said(turns: Sequence[Turn]) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in turns]


def talk(style: str = "") -> Episode:
    (episode,) = rollout(Agent(Exchange(PARTNER, PARTNER, style)), SAFE, TASKS[:1])
    return episode


def test_each_agent_sees_its_half_and_what_it_was_told() -> None:
    asked: list[list[tuple[str, str]]] = []

    def speak(request: Request, rng: random.Random) -> str:
        asked.append(said(request.turns))
        return f"word {len(asked)}"

    speaker = ScriptedPolicy(speak)
    (episode,) = rollout(Agent(Exchange(speaker, speaker, "Be brief.")), SAFE, TASKS[:1])
    first, second = "first 0\n\nWhich code?\nBe brief.", "second 7\n\nWhich code?\nBe brief."
    assert asked == [
        [("system", "Open it."), ("user", first)],
        [("system", "Open it."), ("user", f"{second}\nword 1")],
        [("system", "Open it."), ("user", first), ("assistant", "word 1"), ("user", "word 2")],
        [("system", "Open it."), ("user", f"{second}\nword 1"), ("assistant", "word 2"), ("user", "word 3")],
    ]
    assert [turn.content for turn in episode.turns if turn.trained] == ["word 1", "word 2", "word 3", "word 4"]


def test_agents_are_trained_on_what_they_saw_and_said() -> None:
    episode = talk()
    assert episode.success
    one, other = both_rows(episode, POLICY, SAFE)
    texts = [(POLICY.tokenizer.decode(row.tokens[row.mask]), POLICY.tokenizer.decode(row.tokens[~row.mask])) for row in (one, other)]
    assert texts[0][0] == "first 0<|im_end|>"
    assert "second" not in texts[0][1]
    assert texts[1][0].startswith('now\n<tool_call>\n{"name": "open", "arguments": {"code": "07"}}')
    assert "second 7\n\nWhich code?\nfirst 0<|im_end|>" in texts[1][1]


def test_the_last_call_is_shown_to_the_other_as_text_and_learned_by_nobody_else() -> None:
    turns = view(talk().turns, 0)
    assert said(turns)[-1] == ("user", "now open(code='07')")


def test_the_reward_by_hand_falls_with_tokens_and_with_what_reads_badly() -> None:
    found = talk_rewards([1.0, 1.0, 0.0], [10, 40, 40], [2.0, 2.0, 3.0], tokens_weight=0.5, reading_weight=0.6)
    assert found == pytest.approx([1 - 0.5 * 10 / 40 + 0.3, 1 - 0.5 + 0.3, 0 - 0.5 + 0.2])
    by_tokens = [talk_rewards([1.0, 1.0], [n, 100], [1.0, 1.0])[0] for n in range(0, 101, 10)]
    assert all(more < less for less, more in itertools.pairwise(by_tokens))
    by_reading = [talk_rewards([1.0], [1], [nll])[0] for nll in (0.2, 0.5, 1.0, 4.0)]
    assert by_reading == sorted(by_reading, reverse=True)
    assert talk_rewards([0.0], [0], [0.0], reading_weight=1.0) == [1 / CLEAR]
    with pytest.raises(ConfigError, match="there are 1 rewards, 2 token counts and 1 NLLs"):
        talk_rewards([1.0], [1, 2], [1.0])


def test_conversations_are_ranked_by_their_tokens_and_worst_turn() -> None:
    brief, long = talk(), talk("Speak in full sentences.")
    ranking = Ranking(POLICY, SAFE, tokens_weight=0.5, reading_weight=0.6)
    ((one, other),) = ranking.ranked([[brief, dataclasses.replace(long, id="long")]])
    assert ranking.tokens[brief.id] == sum(int(row.mask.sum()) for row in both_rows(brief, POLICY, SAFE)) < ranking.tokens["long"]
    nlls = [max(learn.worst_turn_nll(both_rows(e, POLICY, SAFE), POLICY)) for e in (brief, long)]
    counts = [ranking.tokens[brief.id], ranking.tokens["long"]]
    assert [one.reward, other.reward] == pytest.approx(talk_rewards([1.0, 1.0], counts, nlls))


def test_the_worst_turn_of_a_row() -> None:
    row = both_rows(rollout(Agent(POLICY), SAFE, TASKS[:1])[0], POLICY, SAFE)[0]
    (scored,) = learn.with_reference([row], POLICY)
    assert scored.reference is not None
    stretches = np.split(np.flatnonzero(row.mask), np.flatnonzero(np.diff(np.flatnonzero(row.mask)) > 1) + 1)
    assert len(stretches) == 2
    assert learn.worst_turn_nll([row], POLICY) == pytest.approx([max(-scored.reference[turn].mean() for turn in stretches)])


@pytest.mark.parametrize(
    ("a", "b", "edits"), [("", "", 0), ("friend Otto", "friend Otto", 0), ("abc", "abd", 1 / 3), ("kitten", "sitting", 3 / 7)]
)
def test_edit_distance(a: str, b: str, edits: float) -> None:
    assert distance(a, b) == distance(b, a) == pytest.approx(edits)


class Talker:
    """Says one of three things, at random, and opens the safe with what it makes of them in its second turn."""

    def __init__(self) -> None:
        self.policy = ScriptedPolicy(self.speak)

    def speak(self, request: Request, rng: random.Random) -> Action | str:
        before = [turn for turn in request.turns if turn.trained]
        if len(before) < 2:
            return rng.choice(["go left now", "go right then", "stay where you are"])
        return opening("07" if before[0].content == "go left now" else "00")


def tree(expansions: int = 4, **options: Any) -> list[list[Episode]]:
    def worth(groups: Sequence[Sequence[Episode]]) -> list[list[float]]:
        return [[episode.reward for episode in group] for group in groups]

    return grow(Agent(Talker().policy), SAFE, TASKS[:3], worth, Growth(expansions=expansions, **options), seed=3)


def test_a_tree_is_gone_on_from_states_of_its_own() -> None:
    for group in tree():
        assert len(group) % 3 == 0
        assert len(group) > 3
        forks = [episode.tags["fork"] for episode in group[3:]]
        known = {episode.id: episode for episode in group}
        for episode, fork in zip(group[3:], forks, strict=True):
            origin = known[fork["episode"]]
            n = fork["actions"]
            assert [t.content for t in episode.turns if t.trained][:n] == [t.content for t in origin.turns if t.trained][:n]
            assert 1 <= n < origin.n_actions


def test_nodes_that_say_nearly_the_same_are_not_expanded_twice() -> None:
    group = tree(expansions=1)[0]
    expanded: list[str] = []
    how, rng = Growth(), random.Random(0)
    values = [episode.reward for episode in group]
    while chosen(group, values, expanded, how, rng):
        pass
    assert all(distance(a, b) >= 0.25 for i, a in enumerate(expanded) for b in expanded[:i])
    assert len(expanded) == len({turn.content for e in group for turn in e.turns[:-2] if turn.trained})


def test_promising_nodes_are_drawn_more_often() -> None:
    group = tree(expansions=1, ways=12)[0]
    values = [20 * episode.reward for episode in group]
    drawn = [chosen(group, values, [], Growth(), random.Random(i)) for i in range(50)]
    first = [next(turn.content for turn in node.turns if turn.trained) for node in drawn if node]
    assert set(first) == {"go left now"}


def test_pairs_hold_the_best_against_the_worst_thing_said_after_the_same_words() -> None:
    def speak(request: Request, rng: random.Random) -> Action | str:
        if not request.turns[-1].content.endswith("Well?"):
            return "Well?"
        return opening(rng.choice(["07", "70"]))

    speaker = ScriptedPolicy(speak)
    episodes = rollout(Agent(Exchange(speaker, speaker)), SAFE, TASKS[:1], n=12, seed=1)
    (contrast,) = siblings(episodes, least=0.2)
    (pair,) = said_pairs([contrast], POLICY, SAFE)
    decode = POLICY.tokenizer.decode
    for row, code in ((pair.chosen, "07"), (pair.rejected, "70")):
        assert decode(row.tokens[row.mask]).partition("\n")[0] == "now"
        assert f'"{code}"' in decode(row.tokens[row.mask])
        read = decode(row.tokens[~row.mask])
        assert read.endswith("second 7\n\nWhich code?\nWell?<|im_end|>\n<|im_start|>assistant\n"), "as the second agent saw it"
    assert pair.margin == 1.0


CHEAP: dict[str, Any] = {"samples": 4, "epochs": 1, "lr": 1e-2, "dpo_lr": 1e-2, "batch_size": 64, "least_value": -9.0, "least_gap": 0.0}


def learned(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[list[list[Any]], Run]:
    given, run = spied(monkeypatch), Run.scratch()
    cfg = OptimaConfig(**{**CHEAP, "threshold": -9.0, "tree": Growth(expansions=2), **options})
    optima(Agent(POLICY), Data(train=TASKS), env=SAFE, run=run, cfg=cfg)
    return given, run


def test_the_first_round_keeps_the_briefest_of_the_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    (rows,), run = learned(monkeypatch, iterations=1, formats=("Speak in full sentences.", "Say it."), reading_weight=0.0)
    texts = [POLICY.tokenizer.decode(row.tokens[row.mask]) for row in rows]
    assert sorted(set(texts) - {t for t in texts if "open" in t}) == [f"first {i}<|im_end|>" for i in range(4)]
    assert len(rows) == 2 * len(TASKS)
    (log,) = run.events("log")
    assert log["metrics"]["success"] == 1.0
    assert len(list(run.load_episodes())) == 4 * len(TASKS), "two of each format"


def test_what_is_not_worth_enough_is_not_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    given, run = learned(monkeypatch, iterations=1, threshold=9.0)
    assert given == []
    (log,) = run.events("log")
    assert log["metrics"]["selected"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "kinds"), [("isft", "SSS"), ("idpo", "SPP"), ("isft-dpo", "SPS")])
def test_the_schedules(monkeypatch: pytest.MonkeyPatch, variant: Any, kinds: str) -> None:
    given, _ = learned(monkeypatch, iterations=3, variant=variant, keep=1.0)
    assert "".join("P" if isinstance(rows[0], Pair) else "S" for rows in given) == kinds


def test_half_of_the_pairs_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = sum(len(rows) for rows in learned(monkeypatch, iterations=2, variant="idpo", keep=1.0)[0][1:])
    given, _ = learned(monkeypatch, iterations=2, variant="idpo", keep=0.5)
    half = [pair for rows in given[1:] for pair in rows]
    assert len(half) == -(-everything // 2)


def test_trees_need_an_environment_that_replays_and_documents() -> None:
    class Once(Safe):
        replayable = False

    env = EnvFactory(Once)
    with pytest.raises(CannotReplay, match="optima begins episodes in the midst of others, and environment 'once' cannot replay"):
        optima(Agent(POLICY), Data(train=env.tasks("train", 1)), env=env, run=Run.scratch())

    class Bare(Safe):
        def reset(self, task: Task) -> str:
            return super().reset(task).rpartition("\n\n")[2]

    env = EnvFactory(Bare)
    with pytest.raises(ConfigError, match="task 'bare/train/0' shows no documents"):
        optima(Agent(POLICY), Data(train=env.tasks("train", 1)), env=env, run=Run.scratch())


def test_several_speakers_talk_about_each_task() -> None:
    speakers = [Exchange(PARTNER, PARTNER, style) for style in ("", "Speak in full sentences.")]
    groups = talks(Agent(PARTNER), speakers, SAFE, TASKS[:2], n=3)
    assert [len(group) for group in groups] == [4, 4]
    assert {episode.task.id for episode in groups[1]} == {TASKS[1].id}
    assert fmean(e.n_actions for group in groups for e in group) == 2
    assert said(viewed(groups[0][2], 0).turns)[2] == ("assistant", "What I read on my note is first 0.")
