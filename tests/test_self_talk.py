"""Self-Talk: what the agent is shown of a workflow, how much of it a dialogue got done, which dialogues are learned from."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any, ClassVar

import pytest
from hypothesis import given as over
from hypothesis import strategies as st

from helpers import tiny_policy
from whet import learn, methods
from whet.agents import Agent
from whet.agents.structured import REQUEST, Structured, narrowed
from whet.config import configure
from whet.envs.base import Action, Env, EnvFactory, Step
from whet.envs.registry import load_env
from whet.errors import ConfigError, PolicyError
from whet.methods.self_talk import SelfTalkConfig, chosen
from whet.policies import ScriptedPolicy, load_policy
from whet.policies.base import Request
from whet.rewards.subgoals import rouge_l, subgoals, subgoals_of
from whet.rollout import rollout
from whet.rollout.prompted import prompted_rows
from whet.runs import Run
from whet.types import Data, Episode, Example, Stop, Task, ToolCall, Turn, chain

# -- subgoals ----------------------------------------------------------------------------------------------------------------

WORKFLOW = ["Where do you want to go?", "How many people will come?", "What day suits you?", "bye send(page='ticket')"]


def dialogue(*said: str | Turn, workflow: list[str] | None = WORKFLOW, success: bool = True, id: str = "e") -> Episode:
    turns = [Turn(role="user", content="1 Where? 2 How many? 3 What day?\n\nHello.")]
    for text in said:
        turns += [text if isinstance(text, Turn) else Turn(role="assistant", content=text), Turn(role="user", content="Two.")]
    task = Task(id=id, env="counter", split="train")
    tags = {"info": {"workflow": workflow}} if workflow else {}
    return Episode(id=id, task=task, turns=chain(turns), stop=Stop.TERMINATED, success=success, tags=tags)


def test_rouge_l_of_cases_by_hand() -> None:
    assert rouge_l("the cat sat", "the cat sat") == 1.0
    assert rouge_l("Where do you go", "where do you WANT to go?") == pytest.approx(2 * 4 / (4 + 6))
    assert rouge_l("a b c d", "d c b a") == pytest.approx(2 / 8), "in order"
    assert rouge_l("a x b y c", "a b c") == pytest.approx(6 / 8), "with gaps"
    assert rouge_l("a", "b") == rouge_l("", "a") == rouge_l("a", "?") == 0.0


@over(st.text("ab ", max_size=12), st.text("ab ", max_size=12))
def test_rouge_l_is_symmetric_and_a_share(a: str, b: str) -> None:
    assert rouge_l(a, b) == rouge_l(b, a)
    assert 0 <= rouge_l(a, b) <= 1
    assert (rouge_l(a, b) == 1) == (a.split() == b.split() != [])


def test_the_subgoals_of_a_dialogue_by_hand() -> None:
    sent = Turn(role="assistant", content="bye", tool_calls=(ToolCall(name="send", arguments={"page": "ticket"}),))
    assert subgoals_of(dialogue("So where do you want to go?", "What day suits you?", sent)) == (3, 4)
    assert subgoals_of(dialogue("What day suits you?", "what day suits you", "WHAT DAY SUITS YOU?!")) == (1, 4), "the same one again"
    assert subgoals_of(dialogue("How many?", "day", "I want to go there, how many people would you say")) == (0, 4), "not close enough"
    assert subgoals_of(dialogue()) == (0, 4)
    wrong = Turn(role="assistant", content="bye", tool_calls=(ToolCall(name="send", arguments={"page": "letter"}),))
    assert subgoals_of(dialogue(wrong), threshold=0.8) == (0, 4)
    assert subgoals_of(dialogue(wrong), threshold=0.7) == (1, 4), "three of four words"
    assert subgoals(["a b c"], ["a b x", "a b c", "a b c"]) == 1, "counts for the closest step, the first of equal ones"
    assert subgoals(["a b c"], []) == 0
    with pytest.raises(ConfigError, match="environment 'counter' names no workflow"):
        subgoals_of(dialogue("?", workflow=None))


def test_what_the_metric_says_of_experts_and_of_chance() -> None:
    env = load_env("client:steps=4")
    tasks = env.tasks("train", 20)
    counts = {name: [subgoals_of(e) for e in rollout(Agent(load_policy(name)), env, tasks)] for name in ("expert", "random")}
    assert counts["expert"] == [(5, 5)] * 20
    assert all(done < 5 for done, _ in counts["random"])


# -- filters -----------------------------------------------------------------------------------------------------------------


def test_dialogues_with_enough_done_or_the_best_share() -> None:
    talks = [dialogue(id=str(i)) for i in range(6)]
    counts = [(5, 8), (4, 4), (6, 8), (2, 2), (0, 3), (5, 5)]

    def ids(**options: Any) -> list[str]:
        return [episode.id for episode in chosen(talks, counts, SelfTalkConfig(**options))]

    assert ids() == ["0", "2", "5"], "at least five, as in the paper"
    assert ids(min_subgoals=7) == []
    assert ids(select="best", best=0.5) == ["1", "3", "5"], "by the part of their workflow, of equal ones the first"
    assert ids(select="best") == ["1"], "one at least"


@pytest.mark.parametrize(("option", "value"), [("best", 0.0), ("threshold", 1.5), ("samples", 0), ("min_subgoals", -1)])
def test_options_that_cannot_work(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option):
        SelfTalkConfig(**{option: value})
    assert SelfTalkConfig().lora is not None


# -- structured prompting ------------------------------------------------------------------------------------------------------


class Counter3(Env):
    """Say 1, 2 and 3, as the workflow says; a client answers each."""

    max_turns = 3
    max_tokens = 6
    nodes: ClassVar[list[int]] = []

    def reset(self, task: Task) -> str:
        self.n = 0
        return "Steps: 1 2 3\nAfter each comes the next.\n\nHello."

    def step(self, action: Action) -> Step:
        self.n += action.text == str(self.n + 1)
        self.turns = getattr(self, "turns", 0) + 1
        return Step(observation="Yes.", terminated=self.turns == 3, success=self.n == 3, info={"workflow": ["1", "2", "3"]})

    def role(self, role: str, turns: tuple[Turn, ...], rng: random.Random) -> str | None:
        return f"Step: {self.n + 1}" if role == "node" else None


COUNTER = EnvFactory(Counter3)


def reader(seen: list[tuple[Turn, ...]], wrong: str = "") -> ScriptedPolicy:
    """Says the step that it is shown, or the first; in tasks whose id ends with `wrong`, nothing."""

    def answer(request: Request, rng: random.Random) -> str:
        seen.append(request.turns)
        shown = next(turn.content for turn in request.turns if turn.role == "user")
        return "?" if wrong and rng.random() < 0.5 else shown.split()[1]

    return ScriptedPolicy(answer)


def test_the_agent_sees_the_current_node_alone() -> None:
    seen: list[tuple[Turn, ...]] = []
    agent = Agent(Structured(reader(seen), load_policy("script:node")), instructions="Count.")
    (episode,) = rollout(agent, COUNTER, COUNTER.tasks("train", 1))
    assert episode.success
    assert [turns[1].content for turns in seen] == [f"Step: {i}\n\nHello." for i in (1, 2, 3)]
    assert [turn.content for turn in seen[2][2:]] == ["1", "Yes.", "2", "Yes."], "with the whole conversation"
    assert episode.turns[1].content.startswith("Steps: 1 2 3"), "what is recorded has the whole workflow"
    (plain,) = rollout(Agent(reader(seen)), COUNTER, COUNTER.tasks("train", 1))
    assert not plain.success
    with pytest.raises(PolicyError, match="no script for the role 'elsewhere'"):
        rollout(Agent(Structured(reader(seen), load_policy("script:elsewhere"))), COUNTER, COUNTER.tasks("train", 1))


def test_a_model_may_say_which_node_holds() -> None:
    asked: list[str] = []

    def guide(request: Request, rng: random.Random) -> str:
        asked.append(request.turns[-1].content)
        return f"Step: {sum(turn.trained for turn in request.turns) + 1}"

    agent = Agent(Structured(reader([]), ScriptedPolicy(guide)))
    (episode,) = rollout(agent, COUNTER, COUNTER.tasks("train", 1))
    assert episode.success
    assert asked == [REQUEST] * 3


def test_a_teachers_turns_are_learned_each_behind_its_node() -> None:
    right = ScriptedPolicy(lambda request, rng: str(sum(turn.trained for turn in request.turns) + 1))
    (episode,) = rollout(Agent(right), COUNTER, COUNTER.tasks("train", 1))
    asked: list[tuple[Turn, ...]] = []

    def guide(request: Request, rng: random.Random) -> str:
        asked.append(request.turns)
        return f"Step: {sum(turn.trained for turn in request.turns) + 1}"

    policy = tiny_policy()
    rows = prompted_rows([episode], ScriptedPolicy(guide), policy, env=COUNTER)
    assert [policy.tokenizer.decode(row.tokens[row.mask]) for row in rows] == [f"{i}<|im_end|>" for i in (1, 2, 3)]
    for i, row in enumerate(rows, 1):
        text = policy.tokenizer.decode(row.tokens)
        assert f"user\nStep: {i}\n\nHello.<|im_end|>" in text
        assert "After each" not in text
        assert text.count("assistant\n") == i
    assert [[turn.content for turn in turns if turn.trained] for turns in asked] == [[], ["1"], ["1", "2"]]


def test_what_stands_before_the_last_paragraph_is_replaced() -> None:
    turns = (Turn(role="system", content="s"), Turn(role="user", content="a\n\nb\n\nHello."), Turn(role="assistant", content="x"))
    assert [turn.content for turn in narrowed(turns, "n")] == ["s", "n\n\nHello.", "x"]


# -- the loop ----------------------------------------------------------------------------------------------------------------


class Spy(learn.Learner):
    """A learner that keeps what it was given, batch by batch."""

    given: ClassVar[list[list[Example]]] = []

    def forward_backward(self, rows: Any, loss: Any) -> dict[str, float]:
        self.given.append(list(rows))
        return super().forward_backward(rows, loss)


def test_whole_workflows_are_learned_from_what_nodes_led_to(monkeypatch: pytest.MonkeyPatch) -> None:
    Spy.given, seen = [], list[tuple[Turn, ...]]()
    monkeypatch.setattr(learn, "Learner", Spy)
    monkeypatch.setattr(Spy, "sample", lambda self: reader(seen, wrong="some"))
    method = methods.get("self_talk")
    run = Run.scratch()
    cfg: Any = configure(method.config, {"min_subgoals": 3, "samples": 8, "batch_size": 100, "lr": 1e-3})
    method.function(Agent(tiny_policy()), Data(train=COUNTER.tasks("train", 8)), env=COUNTER, run=run, cfg=cfg)
    talks = list(run.load_episodes("talk0"))
    right = {e.id for e in talks if [turn.content for turn in e.turns if turn.trained] == ["1", "2", "3"]}
    assert 0 < len(right) < len(talks) == 64
    (batch,) = Spy.given
    assert {row.origin for row in batch} == right
    texts = Counter(tiny_policy().tokenizer.decode(row.tokens) for row in batch)
    assert all("Steps: 1 2 3\nAfter each comes the next." in text for text in texts)
    (event,) = run.events("log")
    assert event["metrics"]["kept"] == len(right)
    assert event["metrics"]["kept_success"] == 1.0
    assert event["metrics"]["success"] == len(right) / 64
    (roles,) = run.events("roles")
    assert roles["scripted"] == {"guide": "script:node"}
