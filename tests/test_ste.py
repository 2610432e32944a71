"""STE: what each memory shows, that queries stay apart, what is learned from trials, rounds with rehearsal, use in context."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from helpers import spied, tiny_policy
from whet import methods
from whet.agents import Agent, with_notes, without_notes
from whet.agents.recalling import Recalling
from whet.config import configure
from whet.data.mixing import continual
from whet.envs.base import Action, Env, EnvFactory
from whet.envs.registry import load_env
from whet.errors import ConfigError
from whet.policies import ScriptedPolicy
from whet.policies.base import Request
from whet.policies.forms import quoted
from whet.rollout import rollout
from whet.rollout.imagining import TRIED, Exploring, Memory, lessons, reworded, tools_in
from whet.runs import Run
from whet.tools.function import tool
from whet.types import Data, Episode, Example, Stop, Task, ToolCall, Turn, chain


class Phrases(Env):
    """Two tools over words, and a query that names what to call: `say w3` or `spell w3`. Asking for w0 is asking in vain."""

    instructions = "Do it."
    max_turns = 3
    prompts: ClassVar[list[tuple[str, str]]] = []
    """What each role was asked."""

    def reset(self, task: Task) -> str:
        self.query = str(task.data.get("query", "say w9"))
        return f"Please: {self.query}"

    def pose(self, task: Task, query: str) -> Task:
        return replace(task, data={**task.data, "query": query})

    @tool
    def say(self, word: str) -> str:
        """Say a word."""
        return self.finish(f"said {word}", reward=float(self.query == f"say {word}"))

    @tool
    def spell(self, word: str) -> str:
        """Spell a word."""
        return self.finish(" ".join(word), reward=float(self.query == f"spell {word}"))

    def expert(self, rng: random.Random) -> Action:
        name, word = self.query.replace("now ", "").split()
        word = "nothing" if word == "w0" else word
        return Action(text="so", tool_calls=(ToolCall(name=name, arguments={"word": word}, id="call_0"),))

    def role(self, role: str, turns: tuple[Turn, ...], rng: random.Random) -> str | None:
        """Imagines the first of ten queries that it is not shown; without a memory always the same one. A judge tells w0 apart."""
        prompt = turns[-1].content
        Phrases.prompts.append((role, prompt))
        if role == "imagine":
            name = prompt.partition("(")[0]
            return next(f"{name} w{i}" for i in range(10) if f"{name} w{i}" not in prompt)
        if role == "paraphrase":
            return "now " + prompt.splitlines()[-1]
        return ("no" if "w0" in quoted(prompt, "episode") else "yes") if role == "judge" else None


PHRASES = EnvFactory(Phrases)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[list[Example]]:
    """The batches that the learner is given; the scripts have been asked nothing yet."""
    Phrases.prompts.clear()
    return spied(monkeypatch)


def improve(run: Run, env: EnvFactory = PHRASES, policy: Any = None, **options: Any) -> Agent[Any]:
    method = methods.get("ste")
    defaults = {"explorer": "expert", "sessions": 2, "trials": 3, "epochs": 1, "batch_size": 4, "lr": 1e-3}
    cfg: Any = configure(method.config, defaults | options)
    better: Agent[Any] = method.function(Agent(policy or tiny_policy()), Data(train=env.tasks("train", 2)), env=env, run=run, cfg=cfg)
    return better


def queries(run: Run) -> dict[str, list[str]]:
    """What was imagined for each tool, in order."""
    found: dict[str, list[tuple[str, str]]] = {}
    for episode in run.load_episodes():
        data = episode.task.data
        found.setdefault(data["tool"], []).append((episode.task.id.rpartition("/")[2], data["imagined"]))
    return {name: [query for _, query in sorted(tried)] for name, tried in found.items()}


def asked(role: str) -> list[str]:
    return [prompt for who, prompt in Phrases.prompts if who == role]


# -- memories --------------------------------------------------------------------------------------------------------------


def test_the_memories_keep_queries_apart(given: list[list[Example]]) -> None:
    run = Run.scratch()
    improve(run)
    assert queries(run) == {name: [f"{name} w{i}" for i in range(6)] for name in ("say", "spell")}
    run = Run.scratch()
    improve(run, long_memory=False)
    assert queries(run)["say"] == ["say w0", "say w1", "say w2"] * 2, "within a session, the dialogue keeps them apart"
    run = Run.scratch()
    improve(run, short_memory=False)
    assert queries(run)["say"] == [f"say w{i}" for i in range(6)]
    with pytest.raises(ConfigError, match="nothing to learn from"):
        improve(run := Run.scratch(), short_memory=False, long_memory=False)
    assert set(queries(run)["say"]) == {"say w0"}, "what nobody remembers is asked again, and w0 is always in vain"


def test_what_is_shown_of_each_memory(given: list[list[Example]]) -> None:
    improve(Run.scratch())
    first, *_, last = [prompt for prompt in asked("imagine") if prompt.startswith("say(word): Say a word.\n")]
    assert first.endswith("Please: say w9"), "an example, and nothing to remember"
    past, _, session = last.partition("In this session")
    assert [line for line in past.splitlines() if line.startswith("Query: ")] == [
        "Query: say w0 | Solved: No",
        *(f"Query: say w{i} | Solved: Yes" for i in range(1, 5)),
    ]
    said = [line for line in session.splitlines() if line.startswith("user: ")]
    assert said == ["user: Please: say w3", "user: Please: say w4"], "of this session alone"
    assert "tool: said w4" in session
    assert "spell" not in last, "each tool has memories of its own"


def test_the_explorer_is_reminded_of_the_session_and_the_reminder_is_no_part_of_what_is_learned(given: list[list[Example]]) -> None:
    run = Run.scratch()
    improve(run)
    opened = [e.turns[1].content for e in run.load_episodes("explore1.2") if e.task.data["tool"] == "say"]
    assert opened == [
        f"Hint: {TRIED}user: Please: say w3 | assistant: so say(word='w3') | tool: said w3\n"
        f"Hint: {TRIED}user: Please: say w4 | assistant: so say(word='w4') | tool: said w4\n"
        "Please: say w5"
    ]
    assert not [text for text in learned(given) if TRIED in text]
    assert not [prompt for prompt in asked("judge") if TRIED in prompt]


def test_notes_are_taken_out_as_they_were_put_in() -> None:
    opening = (Turn(role="system", content="Do it."), Turn(role="user", content="Please: x"))
    both = with_notes(opening, ("It is a game.", f"{TRIED}a | b"))
    assert without_notes(both, TRIED) == with_notes(opening, ("It is a game.",))
    assert without_notes(opening, TRIED) == opening


def test_a_memory_without_a_tool_and_without_anything() -> None:
    memory = Memory()
    assert memory.prompt(None, "Hello.", Exploring()).endswith("\nHello.")
    assert memory.notes(Exploring()) == ()
    memory = Memory(past=[("q", True)], session=["user: q"])
    assert "Query: q" not in memory.prompt(None, "", Exploring(long=False))
    assert "user: q" not in memory.prompt(None, "", Exploring(short=False))


# -- what is learned -------------------------------------------------------------------------------------------------------


def learned(given: list[list[Example]]) -> Counter[str]:
    tokenizer = tiny_policy().tokenizer
    return Counter(tokenizer.decode(row.tokens) for batch in given for row in batch)


def test_what_the_judge_approves_is_learned_in_several_wordings(given: list[list[Example]]) -> None:
    run = Run.scratch()
    improve(run)
    texts = learned(given)
    assert sum("Please: say w" in text for text in texts) == 5
    assert sum("Please: now say w" in text for text in texts) == 5, "the same words a second time are no other wording"
    assert sum("spell w" in text for text in texts) == 10
    assert not any("w0" in text for text in texts), "was not fulfilled"
    now = next(text for text in texts if "now say w3" in text)
    assert '"arguments": {"word": "w3"}' in now
    (event,) = run.events("filter")
    assert event["filters"][0]["reasons"] == {"judged below 1": 2}
    (roles,) = run.events("roles")
    assert roles["scripted"] == {
        "explorer": "expert",
        "imagine": "script:imagine",
        "check": "script:judge",
        "paraphrase": "script:paraphrase",
        "judge": "script:judge",
    }
    assert len(asked("judge")) == 12 + 3 * 12, "once whether it is fulfilled, and by three criteria"


def trial(name: str, query: str, tool: str = "say") -> Episode:
    turns = [Turn(role="user", content=f"Please: {query}"), Turn(role="assistant", content="so")]
    task = Task(id=name, env="phrases", split="train", data={"imagined": query, "tool": tool})
    return Episode(id=name, task=task, turns=chain(turns), stop=Stop.TERMINATED)


def test_a_tool_has_its_trials_first_and_then_each_in_another_wording() -> None:
    trials = [trial("a", "say a"), trial("b", "say b"), trial("c", "spell c", "spell")]
    others = {"a": ["a1", "a2"], "b": ["b1"], "c": []}

    def texts(most: int) -> dict[str, list[str]]:
        return {name: [e.turns[0].content for e in found] for name, found in lessons(trials, others, most).items()}

    assert texts(9) == {"say": ["Please: say a", "Please: say b", "Please: a1", "Please: b1", "Please: a2"], "spell": ["Please: spell c"]}
    assert texts(3) == {"say": ["Please: say a", "Please: say b", "Please: a1"], "spell": ["Please: spell c"]}
    assert lessons([], {}, 3) == {}
    assert [turn.content for turn in reworded(trials[0], "x").turns] == ["Please: x", "so"]


def test_rounds_rehearse_what_came_before(given: list[list[Example]]) -> None:
    improve(Run.scratch(), rounds=2, rehearse=3, paraphrases=0, batch_size=100, epochs=2)
    assert [len(batch) for batch in given] == [5, 5, 8, 8]
    tools = [Counter(row.origin.split("/")[-2] for row in batch) for batch in given]
    assert tools[0] == {"say": 5}
    assert tools[3] == {"spell": 5, "say": 3}
    assert continual(["ab", "cd"], "xyz", keep=2, seed=1)[0] == ["a", "b"]
    assert Counter(len(set(r) & set("xyz")) for r in continual(["ab", "cd"], "xyz", keep=2, seed=1)) == {0: 1, 2: 1}


# -- in context --------------------------------------------------------------------------------------------------------------


def test_in_context_the_nearest_trials_are_shown() -> None:
    seen: list[str] = []

    def answer(request: Request, rng: random.Random) -> Action:
        seen.append(request.turns[-1].content)
        return Action(text="so", tool_calls=(ToolCall(name="say", arguments={"word": "w3"}, id="call_0"),))

    run = Run.scratch()
    better = improve(run, policy=ScriptedPolicy(answer), use="context", k=2, paraphrases=0)
    assert isinstance(better.policy, Recalling)
    assert len(better.policy.examples) == 10
    assert [event["metrics"]["kept"] for event in run.events("log")] == [10]
    (task,) = PHRASES.tasks("train", 1)
    (episode,) = rollout(better, PHRASES, [Phrases().pose(task, "say w3")])
    assert episode.success
    *_, other, nearest, query = seen[-1].splitlines()
    assert query == "Please: say w3"
    assert nearest == "Hint: user: Please: say w3 | assistant: so say(word='w3') | tool: said w3"
    assert other.startswith("Hint: user: Please: spell w3"), "the next in words that it shares"
    assert episode.turns[1].content == "Please: say w3", "examples are put in for the speaker alone"


# -- errors, and a real environment ------------------------------------------------------------------------------------------


def test_environments_and_tools_that_cannot_be_explored() -> None:
    class Closed(Phrases):
        def pose(self, task: Task, query: str) -> Any:
            return None

    with pytest.raises(ConfigError, match="environment 'closed' takes no queries that others make up; define `pose"):
        improve(Run.scratch(), EnvFactory(Closed))
    with pytest.raises(ConfigError, match=r"there is no tool 'sya' to explore\. Did you mean 'say'"):
        tools_in(PHRASES, PHRASES.tasks("train", 1), ("sya",))
    assert list(tools_in(PHRASES, PHRASES.tasks("train", 2), ("spell",))) == ["spell"]


def test_queries_for_a_catalogue_stay_apart_in_one_world() -> None:
    env = load_env("catalogue:calls=1")
    shares = {}
    for remembered in (True, False):
        run = Run.scratch()
        options = {"tools": ("phone", "sun"), "sessions": 3, "trials": 3, "short_memory": remembered, "long_memory": remembered}
        method = methods.get("ste")
        cfg: Any = configure(method.config, {"explorer": "expert", "epochs": 1, "lr": 1e-3} | options)
        method.function(Agent(tiny_policy()), Data(train=env.tasks("train", 1)), env=env, run=run, cfg=cfg)
        (event,) = run.events("log")
        shares[remembered] = event["metrics"]["distinct"]
        assert event["metrics"]["success"] == 1.0
    assert shares[True] == 1.0
    assert shares[False] < 1.0
