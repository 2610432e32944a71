"""AMOR: where the machine goes, what its modules are asked, whose weights are shared, and what feedback skips."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from helpers import spied, tiny_policy
from whet import learn
from whet.agents import Agent
from whet.agents.modules import MODULES, Modules, steps
from whet.envs.base import Action, Env, EnvFactory
from whet.errors import ConfigError
from whet.learn.experts import OWN
from whet.methods.amor import AMORConfig, amor
from whet.policies import RolePolicy, ScriptedPolicy, load_policy
from whet.policies.base import Request
from whet.rollout import rollout
from whet.rollout.modules import by_module, outcome_feedback, process_feedback
from whet.runs import Run
from whet.tools.function import tool
from whet.types import Data, Episode, Pair, Task, ToolCall, Turn

HOW: dict[str, Any] = {"top": 3, "queries": 6}
PAGES = "Ida\nboss Leo\ncat Tom\ndog Rex\n\nLeo\nboss Eva\n\nEva\ncat Ida"


class Office(Env):
    """Who is the boss of Ida's boss? Two pages say so."""

    instructions = "Answer."
    max_turns = 2
    max_tokens = 24

    def reset(self, task: Task) -> str:
        return f"{PAGES}\n\nWho is Ida's boss's boss?"

    @tool
    def answer(self, name: str) -> str:
        """Say who it is."""
        return self.finish(reward=float(name == "Eva"))

    def expert(self, rng: random.Random) -> Action:
        return answering("Eva")

    def role(self, role: str, turns: tuple[Turn, ...], rng: random.Random) -> str | Action | None:
        if role == "feedback":
            told, said = turns[0].content, turns[0].content.rpartition("<said>\n")[2].partition("\n</said>")[0]
            return "no" if said in ("[Irrelevant]", "[Answerable] boss Ida") or "'Ida'" in said or "hm" in told else "yes"
        return correct(role.removeprefix("module:"), turns[-1].content)


def answering(name: str) -> Action:
    return Action(text=f"boss {name}", tool_calls=(ToolCall(name="answer", arguments={"name": name}, id="call_0"),))


def correct(module: str, told: str) -> str | Action:
    """What each module should say."""
    lines = told.splitlines()
    if module == "decompose":
        return ["[Next] Ida boss", "[Next] Leo boss", "[Finish]"][len(lines) - 2]
    if module == "complete":
        return answering("Eva")
    query, page = lines[0].split(), lines[2:-1]
    if module == "judge":
        return "[Relevant]" if page[0] == query[0] else "[Irrelevant]"
    return f"[Answerable] {page[1]}"


OFFICE = EnvFactory(Office)
TASKS = OFFICE.tasks("train", 3)
POLICY = tiny_policy()
TEACHERS = {module: RolePolicy(f"module:{module}") for module in MODULES}
PATH = [
    ("decompose", "[Next] Ida boss"),
    ("judge", "[Relevant]"),
    ("extract", "[Answerable] boss Leo"),
    ("decompose", "[Next] Leo boss"),
    ("judge", "[Relevant]"),
    ("extract", "[Answerable] boss Eva"),
    ("decompose", "[Finish]"),
    ("complete", "boss Eva"),
]


class Speakers:
    """The four modules, some of which say something else than they should; they write down what they are told."""

    def __init__(self, **instead: str | Action) -> None:
        self.told: list[tuple[str, str]] = []
        self.instead = instead
        self.machine = Modules(**{module: ScriptedPolicy(self.speaking(module)) for module in MODULES}, **HOW)

    def speaking(self, module: str) -> Any:
        def speak(request: Request, rng: random.Random) -> str | Action:
            self.told.append((module, request.turns[-1].content))
            assert [t.name for t in request.tools] == (["answer"] if module == "complete" else [])
            return self.instead.get(module) or correct(module, request.turns[-1].content)

        return speak

    def play(self) -> Episode:
        (episode,) = rollout(Agent(self.machine), OFFICE, TASKS[:1])
        return episode


def said(episode: Episode) -> list[tuple[str, str]]:
    return [(step.ask.module, step.answer.content) for step in steps(episode, **HOW)]


def test_the_machine_goes_from_module_to_module() -> None:
    speakers = Speakers()
    episode = speakers.play()
    assert episode.success
    assert said(episode) == PATH
    question, ida = "Who is Ida's boss's boss?", "Ida\nboss Leo\ncat Tom\ndog Rex"
    assert speakers.told[:4] == [
        ("decompose", f"{question}\n<Decompose>"),
        ("judge", f"Ida boss\n\n{ida}\n<Judge>"),
        ("extract", f"Ida boss\n\n{ida}\n<Extract>"),
        ("decompose", f"{question}\nboss Leo\n<Decompose>"),
    ]
    assert speakers.told[-1] == ("complete", f"{question}\nboss Leo\nboss Eva\n<Complete>")


@pytest.mark.parametrize(
    ("instead", "modules"),
    [
        ({"judge": "[Irrelevant]"}, ["decompose", "judge", "judge", "judge", "decompose"]),
        ({"extract": "[Unanswerable]"}, ["decompose", "judge", "extract", "judge", "judge", "decompose"]),
        ({"judge": "who knows"}, ["decompose", "judge", "judge", "judge", "decompose"]),
        ({"decompose": "hm"}, ["decompose", "complete"]),
    ],
)
def test_branches(instead: dict[str, str], modules: list[str]) -> None:
    speakers = Speakers(**instead)
    speakers.play()
    assert [module for module, _ in speakers.told][: len(modules)] == modules


def test_what_was_not_found_is_said_and_queries_are_bounded() -> None:
    speakers = Speakers(judge="[Irrelevant]", decompose="[Next] Ida boss")
    episode = speakers.play()
    asked = [told for module, told in speakers.told if module == "decompose"]
    assert len(asked) == HOW["queries"]
    assert asked[1] == "Who is Ida's boss's boss?\nnothing\n<Decompose>"
    assert said(episode)[-1][0] == "complete"


def test_all_that_was_asked_can_be_written_again_from_the_conversation() -> None:
    speakers = Speakers(complete="I do not know")
    episode = speakers.play()
    assert episode.n_actions == 2, "the second turn asks everything again, without what modules said in the first"
    assert [(step.ask.module, step.ask.turns[-1].content) for step in steps(episode, **HOW)] == speakers.told


def wrong(**instead: str | Action) -> Episode:
    return Speakers(**instead).play()


@pytest.mark.parametrize(
    ("instead", "right"),
    [
        ({}, [True] * 8),
        ({"complete": answering("Ida")}, [True] * 7 + [False]),
        ({"judge": "[Irrelevant]"}, [True, False]),
        ({"extract": "[Answerable] boss Ida"}, [True, True, False]),
    ],
)
def test_what_follows_a_wrong_step_is_skipped(instead: dict[str, Any], right: list[bool]) -> None:
    asked: list[str] = []

    def judge(request: Request, rng: random.Random) -> str:
        asked.append(request.turns[0].content)
        assert request.env is not None
        answer = request.env.role("feedback", request.turns, rng)
        assert isinstance(answer, str)
        return answer

    samples, _ = process_feedback([wrong(**instead)], ScriptedPolicy(judge), OFFICE, **HOW)
    assert [sample.right for sample in samples] == right
    assert len(asked) == len(right), "nobody is asked about what is skipped"


def test_an_unreadable_verdict_ends_an_episode_s_feedback_without_a_label() -> None:
    samples, _ = process_feedback(
        [wrong()], ScriptedPolicy(lambda r, _: "maybe" if "<module>\nextract" in r.turns[0].content else "yes"), OFFICE, **HOW
    )
    assert [(s.step.ask.module, s.right) for s in samples] == [("decompose", True), ("judge", True)]


def test_outcome_feedback_blames_every_step() -> None:
    good, bad = wrong(), wrong(complete=answering("Ida"))
    assert [s.right for s in outcome_feedback([good], **HOW)] == [True] * 8
    assert {s.right for s in outcome_feedback([bad], **HOW)} == {False}


def test_rows_are_what_a_module_said_behind_what_it_was_told() -> None:
    samples, _ = process_feedback([wrong(complete=answering("Ida"))], load_policy("script:feedback"), OFFICE, **HOW)
    rows = by_module(samples, POLICY, OFFICE)
    assert {module: labels for module, (_, labels) in rows.items()} == {
        "decompose": [True] * 3,
        "judge": [True] * 2,
        "extract": [True] * 2,
        "complete": [False],
    }
    row, decode = rows["extract"][0][1], POLICY.tokenizer.decode
    assert decode(row.tokens[row.mask]) == "[Answerable] boss Eva<|im_end|>"
    assert "Leo boss\n\nLeo\nboss Eva\n<Extract>" in decode(row.tokens[~row.mask])
    last = rows["complete"][0][0]
    assert '"arguments": {"name": "Ida"}' in decode(last.tokens[last.mask])
    assert "answer" in decode(last.tokens[~last.mask]), "it alone is shown the tools"
    assert "<tools>" not in decode(row.tokens[~row.mask])


# -- an expert for each module -----------------------------------------------------------------------------------------------


def batches_of(module: str) -> list[Any]:
    rows = by_module(outcome_feedback([wrong()], **HOW), POLICY, OFFICE)
    return [rows[module][0]]


def test_a_module_changes_its_own_mlps_and_what_all_share() -> None:
    experts = learn.Experts(POLICY, MODULES, lr=1e-2)
    experts.optimise({"judge": batches_of("judge")}, learn.nll(), seed=0)
    policies = experts.policies()
    for name, before in POLICY.weights.items():
        changed = {module: not np.array_equal(before, policy.weights[name]) for module, policy in policies.items()}
        if OWN in name:
            assert changed == {"decompose": False, "judge": True, "extract": False, "complete": False}, name
        else:
            assert len(set(changed.values())) == 1, name
            assert all(np.array_equal(policies["judge"].weights[name], policy.weights[name]) for policy in policies.values())
    assert any(OWN not in name and not np.array_equal(w, policies["extract"].weights[name]) for name, w in POLICY.weights.items())


def test_they_stay_shared_when_they_are_restarted_and_restored(tmp_path: Any) -> None:
    experts = learn.Experts(POLICY, MODULES, lr=1e-2)
    experts.optimise({"judge": batches_of("judge"), "decompose": batches_of("decompose")}, learn.nll(), seed=0)
    experts.save_state(tmp_path)
    other = learn.Experts(POLICY, MODULES, lr=1e-2)
    other.load_state(tmp_path)
    for these in (experts, other):
        these.restart(1e-2)
        these.optimise({"extract": batches_of("extract")}, learn.nll(), seed=1)
    for module, policy in experts.policies().items():
        assert all(np.array_equal(w, other.policies()[module].weights[name]) for name, w in policy.weights.items())
        shared = {name: w for name, w in policy.weights.items() if OWN not in name}
        assert all(np.array_equal(w, experts.policies()["judge"].weights[name]) for name, w in shared.items())


def test_without_experts_all_modules_are_one_model() -> None:
    experts = learn.Experts(POLICY, MODULES, lr=1e-2, own=False)
    experts.optimise({"judge": batches_of("judge")}, learn.nll(), seed=0)
    one, *others = experts.policies().values()
    assert all(np.array_equal(w, other.weights[name]) for other in others for name, w in one.weights.items())


def test_a_model_without_mlps_of_that_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"has no weights with '\.mlp\.' in their names"):
        learn.Experts(tiny_policy("opt", word_embed_proj_dim=32, ffn_dim=48), MODULES, lr=1e-2)


# -- the method ------------------------------------------------------------------------------------------------------------------


def train(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[list[list[Any]], Run]:
    given, run = spied(monkeypatch), Run.scratch()
    golds = tuple(rollout(Agent(load_policy("expert")), OFFICE, TASKS[:2]))
    cfg = AMORConfig(**{"epochs": 1, "adapt_epochs": 1, "batch_size": 64, "lr": 1e-2, "adapt_lr": 1e-2, **options})
    amor(Agent(POLICY), Data(train=TASKS, experts=golds), env=OFFICE, run=run, cfg=cfg)
    return given, run


def told(rows: Sequence[Any]) -> set[str]:
    """Which modules' rows these are."""
    texts = [POLICY.tokenizer.decode(getattr(row, "chosen", row).tokens) for row in rows]
    return {re.findall(r"<(Decompose|Judge|Extract|Complete)>", text)[-1] for text in texts}


def test_each_module_warms_up_on_what_it_says_in_solutions(monkeypatch: pytest.MonkeyPatch) -> None:
    given, run = train(monkeypatch, rounds=0)
    assert sorted(len(rows) for rows in given) == [2, 4, 4, 6]
    assert sorted(module for rows in given for module in told(rows)) == ["Complete", "Decompose", "Extract", "Judge"]
    (roles,) = run.events("roles")
    assert len(roles["scripted"]) == 4, "no feedback is asked for"


def test_a_round_learns_from_feedback_by_kto(monkeypatch: pytest.MonkeyPatch) -> None:
    given, run = train(monkeypatch, rounds=1, samples=2)
    pairs = [rows for rows in given if isinstance(rows[0], Pair)]
    assert pairs
    weights = {float(pair.chosen.weights[pair.chosen.mask][0]) for rows in pairs for pair in rows}
    assert weights <= {1.0, -1.0}
    assert all(pair.chosen.reference is not None for rows in pairs for pair in rows)
    assert all(len(told(rows)) == 1 for rows in pairs), "a batch is of one module, by whose expert it goes"
    (_, log) = run.events("log")
    assert "right/decompose" in log["metrics"]
    assert "kl" in log["metrics"]
