"""AgentTuning, AgentOhana, FireAct and NAT: each one's own mechanism against cases made by hand.

The model is tiny and random: what is tested is what it is given to learn from, and how it is asked afterwards.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from helpers import tiny_policy
from whet import learn, methods
from whet.agents import Agent
from whet.agents.reflecting import NOTE, REQUEST, Reflecting
from whet.cli import main
from whet.cli.common import load_agent
from whet.config import configure
from whet.data.conversion import to_react
from whet.data.general import BUNDLED, general_rows, read_general
from whet.envs.base import Action, Env, EnvFactory
from whet.envs.mixture import Mixture
from whet.envs.registry import load_env
from whet.errors import ConfigError, PolicyError
from whet.methods.nat import CONTROLS, NATConfig, marked, marks
from whet.policies import ScriptedPolicy, load_policy
from whet.policies.base import Request
from whet.rollout import collect, rollout
from whet.runs import Run
from whet.tools.function import tool
from whet.types import Data, Episode, Example, Stop, Task, ToolCall, Turn, chain

TOKENIZER = tiny_policy().tokenizer


class Quiz(Env):
    """What is in the box? Whoever looks knows. Of even tasks the box is open, so that nobody needs to look."""

    instructions = "Answer."
    max_turns = 6
    max_tokens = 8
    asked: ClassVar[list[str]] = []
    """What the rater was shown."""

    def reset(self, task: Task) -> str:
        self.number = int(task.id.rpartition("/")[2])
        self.word, self.looked = f"w{self.number}", False
        return f"What is in it? {self.word}" if self.number % 2 == 0 else "What is in it?"

    @tool
    def look(self) -> str:
        """Look into the box."""
        self.looked = True
        return self.word

    @tool
    def answer(self, word: str) -> str:
        """Say what is in it."""
        return self.finish(reward=float(word == self.word) or 0.5 * self.looked)

    def expert(self, rng: Any) -> Action:
        return act("then answer", "answer", word=self.word) if self.looked else act("look first", "look")

    def random_action(self, rng: Any) -> Action:
        return act("a guess", "answer", word=f"w{rng.randrange(100, 900)}")

    def role(self, role: str, turns: tuple[Turn, ...], rng: Any) -> str | Action | None:
        acted = [turn for turn in turns if turn.trained]
        if role == "rater":
            Quiz.asked.append(turns[0].content)
            return "who knows" if "guess" in turns[0].content else f"{5 - self.number % 3}"
        if role == "teacher:cot":
            open_box = turns[-1].content.startswith("No tool call") or not acted
            return "it is open" if open_box and not acted else act("", "answer", word=self.word if self.number % 2 == 0 else "?")
        if role == "teacher:reflexion" and not acted:
            return act("somewhere", "look")
        if role == "teacher:reflexion":
            return act("I was wrong. then answer", "answer", word=self.word)
        return self.expert(rng) if role == "teacher:react" else None


def act(thought: str, name: str, **arguments: str) -> Action:
    return Action(text=thought, tool_calls=(ToolCall(name=name, arguments=arguments, id="call_0"),))


class Box(Quiz):
    """Another environment of the same kind."""

    instructions = "Say what is in the box."


QUIZ = EnvFactory(Quiz)


class Spy(learn.Learner):
    """A learner that keeps what it was given, batch by batch."""

    given: ClassVar[list[list[Example]]] = []

    def forward_backward(self, rows: Any, loss: Any) -> dict[str, float]:
        self.given.append(list(rows))
        return super().forward_backward(rows, loss)


class Deaf(Spy):
    """Keeps what it was given and learns nothing, for tests that count many batches."""

    def forward_backward(self, rows: Any, loss: Any) -> dict[str, float]:
        self.given.append(list(rows))
        return {"loss": 0.0}

    def optim_step(self) -> dict[str, float]:
        return {"grad_norm": 0.0, "lr": self.lr, "skipped": 0.0}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[Example]]:
    """As `given`, without any learning."""
    Spy.given = []
    monkeypatch.setattr(learn, "Learner", Deaf)
    return Spy.given


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[list[Example]]:
    """The batches that a method's learner is given."""
    Spy.given = []
    monkeypatch.setattr(learn, "Learner", Spy)
    return Spy.given


def improve(
    name: str, run: Run, *, env: EnvFactory = QUIZ, n: int = 6, policy: Any = None, data: Mapping[str, Any] = {}, **options: Any
) -> Agent[Any]:
    method = methods.get(name)
    cfg: Any = configure(method.config, {"epochs": 1, "batch_size": 4, "lr": 1e-3} | options)
    agent = Agent(policy or tiny_policy(seed=1), instructions="Be brief.")
    better: Agent[Any] = method.function(agent, Data(train=env.tasks("train", n), **data), env=env, run=run, cfg=cfg)
    return better


def texts(given: list[list[Example]]) -> dict[str, str]:
    """What each row says, by the id of its episode."""
    return {row.origin: TOKENIZER.decode(row.tokens) for batch in given for row in batch}


def talk(n: int) -> tuple[Episode, ...]:
    """General conversations."""
    return tuple(
        Episode(
            id=f"talk{i}",
            task=Task(id=f"talk{i}", env="general", split="train"),
            turns=chain([Turn(role="user", content=f"Say {i}."), Turn(role="assistant", content=str(i))]),
            stop=Stop.TERMINATED,
        )
        for i in range(n)
    )


# -- AgentTuning -----------------------------------------------------------------------------------------------------------


def test_a_row_is_the_agents_with_probability_eta(drawn: list[list[Example]]) -> None:
    improve("agent_tuning", Run.scratch(), data={"general": talk(40)}, epochs=40, held_out=8, eta=0.2)
    sizes = [len(batch) for batch in drawn]
    assert sizes == [4, 4, 4, 4, 4, 4, 4, 2] * 40, "30 rows an epoch, so that the agent's six come up once, on average"
    rows = [row.origin for batch in drawn for row in batch]
    ours = sum(origin.startswith("teacher/") for origin in rows)
    assert abs(ours - 0.2 * len(rows)) < 3 * math.sqrt(0.2 * 0.8 * len(rows)), "three standard deviations of a binomial"
    counts = Counter(rows)
    assert len([origin for origin in counts if origin.startswith("teacher/")]) == 6
    assert len([origin for origin in counts if origin.startswith("talk")]) == 32, "eight are held out"


def test_what_the_tuning_does_to_other_conversations_is_measured_on_those_it_never_saw(given: list[list[Example]]) -> None:
    run = Run.scratch()
    improve("agent_tuning", run, data={"general": talk(16)}, epochs=3, held_out=8, eta=0.2)
    learned = {row.origin for batch in given for row in batch if row.origin.startswith("talk")}
    assert len(learned) == 8
    held_out = [e for e in talk(16) if e.id not in learned]
    expected = learn.mean_nll(general_rows(held_out, tiny_policy(seed=1)), tiny_policy(seed=1)).mean()
    (event,) = run.events("general")
    assert event["before"] == pytest.approx(expected)
    *_, last = [e["metrics"]["general_loss"] for e in run.events("log")]
    assert last - expected == pytest.approx(event["change"]["mean"])
    assert event["change"]["n"] == 8


def test_without_general_data_it_is_the_ablation(given: list[list[Example]]) -> None:
    improve("agent_tuning", Run.scratch(), data={"general": talk(10)}, eta=1.0, held_out=2)
    assert {row.origin.split("/")[0] for batch in given for row in batch} == {"teacher"}


def test_only_what_was_paid_in_full_is_imitated_and_only_the_actions(given: list[list[Example]]) -> None:
    run = Run.scratch()
    improve("agent_tuning", run, data={"general": talk(4)}, teacher="expert@0.6", samples=4, eta=1.0, held_out=1)
    paid = {e.id: e.reward for e in run.load_episodes("teacher")}
    assert set(paid.values()) == {0.0, 0.5, 1.0}
    learned = texts(given)
    assert {paid[id] for id in learned} == {1.0}
    for batch in given:
        for row in batch:
            assert TOKENIZER.decode(row.tokens[row.mask]).startswith("look first\n<tool_call>")
            assert TOKENIZER.decode(row.tokens).startswith("<|im_start|>system\nAnswer.\n\nBe brief."), "as the tuned agent will be asked"
    (event,) = run.events("filter")
    assert event["filters"][0]["reasons"] == {"reward below 1": sum(reward < 1 for reward in paid.values())}
    (roles,) = run.events("roles")
    assert roles["scripted"] == {"teacher": "expert@0.6"}


def test_several_environments_are_tuned_on_together(given: list[list[Example]]) -> None:
    both = Mixture([QUIZ, EnvFactory(Box)])
    improve("agent_tuning", Run.scratch(), env=both, data={"general": talk(4)}, eta=1.0, held_out=1, epochs=2)
    assert {row.origin.split("/")[1] for batch in given for row in batch} == {"quiz", "box"}


@pytest.mark.parametrize(("options", "message"), [({"eta": 0.0}, "eta is 0.0"), ({"held_out": 4}, "held_out is 4 of 4")])
def test_mixtures_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        improve("agent_tuning", Run.scratch(), data={"general": talk(4)}, **options)


# -- AgentOhana --------------------------------------------------------------------------------------------------------------


def shares(given: list[list[Example]], of: Callable[[str], str]) -> dict[str, float]:
    rows = [of(row.origin) for batch in given for row in batch]
    return {source: n / len(rows) for source, n in Counter(rows).items()}


def actor_of(origin: str) -> str:
    return origin.removeprefix("source ").split("/")[0]


POOL: dict[str, Any] = {"sources": ("expert", "script:teacher:reflexion"), "samples": (1, 9), "judge": "script:rater"}


@pytest.mark.parametrize(("weights", "expected"), [((), (0.5, 0.5)), ((3.0, 1.0), (0.75, 0.25))])
def test_no_source_dominates_whatever_its_size(drawn: list[list[Example]], weights: tuple[float, ...], expected: tuple[float, ...]) -> None:
    improve("agent_ohana", Run.scratch(), **POOL, weights=weights, min_score=0.0, epochs=20)
    found = shares(drawn, actor_of)
    n = sum(map(len, drawn))
    assert n == 20 * 15 * 4, "as many steps an epoch as the pool of 60 has batches"
    for source, share in zip(POOL["sources"], expected):
        assert abs(found[source] - share) < 3 * math.sqrt(share * (1 - share) / n)


def test_the_unbalanced_pool_has_every_trajectory_once_an_epoch(drawn: list[list[Example]]) -> None:
    improve("agent_ohana", Run.scratch(), **POOL, balance=False, min_score=0.0, epochs=2)
    counts = Counter(row.origin for batch in drawn for row in batch)
    assert len(counts) == 60
    assert set(counts.values()) == {2}
    assert shares(drawn, actor_of) == {"expert": 0.1, "script:teacher:reflexion": 0.9}


def test_the_raters_threshold(given: list[list[Example]]) -> None:
    Quiz.asked.clear()
    run = Run.scratch()
    improve("agent_ohana", run, **POOL | {"sources": ("expert", "random"), "samples": (1,)}, balance=False)
    assert sorted(texts(given)) == [f"source expert/quiz/train/{i}#0" for i in (0, 1, 3, 4)], "5, 4, 3, 5, 4, 3: of at least 4"
    (event,) = run.events("filter")
    assert event["filters"][0]["reasons"] == {"judged below 4": 2, "not judged": 6}
    (judged,) = run.events("judge")
    assert (judged["judged"], judged["unreadable"], judged["judge_score"]) == (12, 6, 4)
    assert len(Quiz.asked) == 12
    assert all("look first look()" in shown or "a guess answer(" in shown for shown in Quiz.asked), "it is shown whole trajectories"
    assert set(next(run.events("roles"))["scripted"]) == {"judge", "source expert", "source random"}


def test_an_actors_weight_is_shared_by_its_environments(drawn: list[list[Example]]) -> None:
    both = Mixture([QUIZ, EnvFactory(Box)], (1, 3))
    improve("agent_ohana", Run.scratch(), env=both, n=8, **POOL | {"samples": (1,)}, min_score=0.0, epochs=150)
    found = shares(drawn, lambda origin: origin.split("#")[0].rpartition("/train/")[0])
    assert len(found) == 4
    assert all(abs(share - 0.25) < 0.04 for share in found.values()), found


def test_given_episodes_are_a_source(given: list[list[Example]]) -> None:
    experts = tuple(rollout(Agent(load_policy("expert")), QUIZ, QUIZ.tasks("train", 3), tag="mine"))
    improve("agent_ohana", Run.scratch(), data={"experts": experts}, sources=("given",), judge="script:rater", min_score=0.0)
    assert {origin.split("/")[0] for origin in texts(given)} == {"mine"}


class _Cut(Run):
    """Is interrupted in the first step of the tuning."""

    def log(self, step: int, **metrics: Any) -> None:
        raise KeyboardInterrupt


def test_a_resumed_run_asks_nobody_again(tmp_path: Path) -> None:
    Quiz.asked.clear()
    with pytest.raises(KeyboardInterrupt), _Cut.create(tmp_path / "run", {"seed": 0}, quiet=True) as run:
        improve("agent_ohana", run, **POOL, min_score=0.0)
    assert len(Quiz.asked) == 60
    with Run.create(tmp_path / "run", {"seed": 0}, resume=True, quiet=True) as run:
        improve("agent_ohana", run, **POOL, min_score=0.0)
        assert run.cost.episodes == 60
    assert len(Quiz.asked) == 60


def test_nothing_that_is_good_enough_is_an_error_that_says_so() -> None:
    with pytest.raises(ConfigError, match="nothing to learn from: 0 episodes are left"):
        improve("agent_ohana", Run.scratch(), **POOL | {"sources": ("random",)})


# -- FireAct -----------------------------------------------------------------------------------------------------------------


def assistant(thought: str, *calls: str, tokens: tuple[int, ...] = ()) -> Turn:
    made = tuple(ToolCall(name=name, id="call_0") for name in calls)
    return Turn(role="assistant", content=thought, tool_calls=made, tokens=tokens, logprobs=(-0.5,) * len(tokens))


def user(text: str, role: Any = "user") -> Turn:
    return Turn(role=role, content=text)


def an_episode(*turns: Turn) -> Episode:
    return Episode(id="e", task=Task(id="t", env="quiz", split="train"), turns=chain(turns), stop=Stop.TERMINATED)


def said(episode: Episode) -> list[tuple[str, str, list[str]]]:
    return [(turn.role, turn.content, [call.name for call in turn.tool_calls]) for turn in episode.turns]


def test_a_chain_of_thought_becomes_one_thought_with_the_final_action() -> None:
    talk = an_episode(
        user("Answer.\n\nThink step by step.", "system"),
        user("Who?"),
        assistant("Otto is the friend."),
        user("No tool call found."),
        assistant("Mila is his teacher."),
        user("No tool call found."),
        assistant("So it is Mila.", "answer"),
        user("", "tool"),
    )
    assert said(to_react(talk, told="Think step by step.")) == [
        ("system", "Answer.", []),
        ("user", "Who?", []),
        ("assistant", "Otto is the friend.\nMila is his teacher.\nSo it is Mila.", ["answer"]),
        ("tool", "", []),
    ]


def test_a_reflection_stands_before_the_thought_of_the_next_action() -> None:
    found = to_react(
        an_episode(
            user("Who?"),
            assistant("Otto.", "look", tokens=(5, 6)),
            user("no page", "tool"),
            assistant("That was wrong."),
            user("No tool call found."),
            assistant("Rosa.", "look", tokens=(7,)),
            user("page", "tool"),
            assistant("Hm."),
        )
    )
    assert said(found) == [
        ("user", "Who?", []),
        ("assistant", "Otto.", ["look"]),
        ("tool", "no page", []),
        ("assistant", "That was wrong.\nRosa.", ["look"]),
        ("tool", "page", []),
    ]
    assert [turn.parent for turn in found.turns] == [None, 0, 1, 2, 3]
    assert not any(turn.tokens or turn.logprobs for turn in found.turns), "what was sampled was sampled behind another text"


def test_what_is_in_the_form_already_stays_as_it_is() -> None:
    react = an_episode(user("Answer.", "system"), user("Who?"), assistant("Otto.", "answer", tokens=(5,)))
    assert to_react(react, told="Think.") is react
    spoken = an_episode(user("Where?"), assistant("left"), user("a wall"), assistant("right"))
    assert to_react(spoken) is spoken, "without tools, what is said is the action"
    alone = to_react(an_episode(user("Think.", "system"), user("Who?"), assistant("Otto.", "answer")), told="Think.")
    assert [turn.role for turn in alone.turns] == ["user", "assistant"], "a system prompt of nothing else goes"


def test_successes_of_all_formats_are_learned_from_in_one_form(given: list[list[Example]]) -> None:
    run = Run.scratch()
    improve("fireact", run)
    learned = texts(given)
    by_format = Counter(origin.removeprefix("teacher ").split("/")[0] for origin in learned)
    assert by_format == {"react": 6, "reflexion": 6, "cot": 3}, "whoever only thinks is right where nobody needs to look"
    for origin, text in learned.items():
        assert text.startswith("<|im_start|>system\nAnswer.\n\nBe brief.\n\n# Tools"), "without what the teacher was told"
        assert "No tool call" not in text
        assert text.count("<tool_response>") == (0 if "cot" in origin else 1)
    cot = learned["teacher cot/quiz/train/2#0"]
    assert cot.endswith(
        '<|im_start|>assistant\nit is open\n<tool_call>\n{"name": "answer", "arguments": {"word": "w2"}}\n</tool_call><|im_end|>'
    )
    assert "I was wrong. then answer" in learned["teacher reflexion/quiz/train/1#0"]
    given.clear()
    improve("fireact", Run.scratch(), formats=("react",))
    assert {origin.split("/")[0] for origin in texts(given)} == {"teacher react"}


def test_its_adapters_are_on_queries_and_values() -> None:
    before = tiny_policy(seed=1)
    after = improve("fireact", Run.scratch(), lr=1e-2).policy
    changed = {name.split(".")[-2] for name, w in after.weights.items() if not w.equal(before.weights[name])}
    assert changed == {"q_proj", "v_proj"}
    config = methods.get("fireact").config()
    assert (config.lora.rank, config.lora.alpha) == (8, 16.0)


@pytest.mark.parametrize("spec", ["search:hops=2", "workshop:depth=1"])
def test_scripted_teachers_go_the_ways_that_they_are_named_after(spec: str) -> None:
    env = load_env(spec)
    tasks = env.tasks("train", 24)
    found = {way: rollout(Agent(load_policy(f"script:teacher:{way}")), env, tasks, seed=1) for way in ("react", "cot", "reflexion")}
    assert all(e.success for e in found["react"])
    assert {e.n_actions for e in found["cot"]} == {1}, "a guess, since nothing was looked up"
    assert sum(e.success for e in found["cot"]) < 8
    astray = [e for e in found["reflexion"] if any(t.content == "try this" for t in e.turns)]
    assert 0 < len(astray) < len(found["reflexion"])
    assert {e.n_actions for e in found["reflexion"] if e not in astray} == {e.n_actions for e in found["react"]}
    for episode in astray:
        acted = [turn for turn in episode.turns if turn.trained]
        for turn, then in itertools.pairwise(acted):
            assert (turn.content == "try this") == then.content.startswith("not right, ")
            assert turn.tool_calls
    with pytest.raises(PolicyError, match="no script for the role 'teacher:intuition'"):
        rollout(Agent(load_policy("script:teacher:intuition")), env, tasks[:1])


def test_whoever_has_the_pages_can_answer_in_one_thought() -> None:
    env = load_env("search:hops=2,given=6")
    (episode,) = rollout(Agent(load_policy("script:teacher:cot")), env, env.tasks("train", 1))
    (turn,) = [turn for turn in episode.turns if turn.trained]
    assert episode.success
    assert turn.content.count(",") == 1, "both steps of the chain"


class Model:
    """A teacher without an actor of its own, as a model is, that looks, answers, and notes what it was told."""

    version = "model"

    def __init__(self) -> None:
        self.heard: list[list[str]] = []

    def observe(self, turns: Any, new: Any, tools: Any) -> tuple[Turn, ...]:
        return tuple(new)

    async def generate(self, request: Request) -> Turn:
        self.heard.append([turn.content for turn in request.turns])
        last = request.turns[-1]
        if last.content == REQUEST:
            return Turn(role="assistant", content="I have looked.", finish="stop")
        seen = [turn.content for turn in request.turns if turn.role == "tool"]
        call = ToolCall(name="answer", arguments={"word": seen[0]}) if seen else ToolCall(name="look")
        return Turn(role="assistant", content="hm", tool_calls=(call,), finish="stop")

    def release(self, session: str) -> None: ...


def test_a_model_is_told_how_and_looks_back_in_the_named_rounds(monkeypatch: pytest.MonkeyPatch, given: list[list[Example]]) -> None:
    model = Model()
    monkeypatch.setattr(methods, "load_policy", lambda spec: model)
    improve("fireact", Run.scratch(), n=1, teacher="openai:m@http://localhost/v1", reflect_at=(2,))
    systems = {heard[0] for heard in model.heard}
    assert systems == {f"Answer.\n\nBe brief.\n\n{told}" for told in methods.get("fireact").function.__globals__["FORMATS"].values()}
    learned = texts(given)
    assert set(learned) == {"teacher react/quiz/train/0#0", "teacher reflexion/quiz/train/0#0"}, (
        "the chain of thought was the same as ReAct here"
    )
    assert "assistant\nI have looked. hm\n<tool_call>" in learned["teacher reflexion/quiz/train/0#0"]
    asked = [heard for heard in model.heard if heard[-1] in (REQUEST, NOTE.format(note="I have looked."))]
    assert [heard[-1] for heard in asked] == [REQUEST, NOTE.format(note="I have looked.")]
    assert all("look" not in heard[-2] and heard[-2] == "w0" for heard in asked), "after the first round's observation"


def test_reflecting_changes_nothing_in_other_rounds() -> None:
    model = Model()
    (episode,) = rollout(Agent(Reflecting(model, rounds=(5,))), QUIZ, QUIZ.tasks("train", 1))
    assert [turn.content for turn in episode.turns if turn.trained] == ["hm", "hm"]
    assert len(model.heard) == 2


@pytest.mark.parametrize(("formats", "message"), [((), "formats is"), (("react", "ract"), "Did you mean 'react'")])
def test_formats_that_nobody_knows(formats: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        methods.get("fireact").config(formats=formats)


# -- NAT ---------------------------------------------------------------------------------------------------------------------

MIXED: dict[str, Any] = {"teachers": ("expert", "random"), "temperatures": (1.0,)}


def test_rows_end_their_question_with_the_mark_of_their_outcome_and_the_agent_acts_by_that_of_success(given: list[list[Example]]) -> None:
    run = Run.scratch()
    better = improve("nat", run, **MIXED, epochs=2)
    wrong, right = CONTROLS["sentence"]
    outcomes = {e.id: e.success for tag in ("expert at 1", "random at 1") for e in run.load_episodes(tag)}
    learned = texts(given)
    assert Counter(outcomes[origin] for origin in learned) == {True: 6, False: 6}
    for origin, text in learned.items():
        mark, other = (right, wrong) if outcomes[origin] else (wrong, right)
        assert text.count(f"\n{mark}<|im_end|>\n<|im_start|>assistant\n") == 1, "behind the question"
        assert other not in text
    assert (better.suffix, better.prefix) == (right, "")
    (episode,) = rollout(better, QUIZ, QUIZ.tasks("train", 1))
    prompt = [token for turn in episode.turns[:2] for token in turn.tokens]
    row = next(row for batch in given for row in batch if row.origin == "expert at 1/quiz/train/0#0")
    assert row.tokens[: len(prompt)].tolist() == prompt, "what it acts on is what it was trained on"
    assert not row.mask[: len(prompt)].any()
    assert row.mask[len(prompt)]


@pytest.mark.parametrize("control", ["prefix", "letter", "words"])
def test_other_marks(control: Any, given: list[list[Example]]) -> None:
    better = improve("nat", Run.scratch(), **MIXED, control=control)
    wrong, right = CONTROLS[control]
    for origin, text in texts(given).items():
        mark = right if origin.startswith("expert") else wrong
        question = text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
        assert question.startswith(f"{mark}\nWhat") if control == "prefix" else question.endswith(f"\n{mark}")
    assert (better.prefix if control == "prefix" else better.suffix) == right
    assert (better.suffix if control == "prefix" else better.prefix) == ""


def test_the_inverse_marks_swap_the_sentences_and_it_still_acts_by_that_of_its_successes(given: list[list[Example]]) -> None:
    better = improve("nat", Run.scratch(), **MIXED, control="inverse")
    wrong, right = CONTROLS["sentence"]
    assert better.suffix == wrong
    assert all((wrong if origin.startswith("expert") else right) in text for origin, text in texts(given).items())


def test_without_marks_it_is_naive_and_without_failures_it_is_imitation(given: list[list[Example]]) -> None:
    naive = improve("nat", Run.scratch(), **MIXED, control="none")
    plain = texts(given)
    assert len(plain) == 12
    assert (naive.suffix, naive.prefix) == ("", "")
    assert not any("step by step" in text for text in plain.values())
    given.clear()
    improve("nat", Run.scratch(), **MIXED, control="none", negatives=False)
    assert {origin: plain[origin] for origin in texts(given)} == texts(given)
    assert {origin.split("/")[0] for origin in texts(given)} == {"expert at 1"}


def test_finer_classes_by_reward() -> None:
    cfg = NATConfig(bins=(0.01, 0.4, 1.0))
    assert marks(cfg) == tuple(f"Think step by step, and give an answer of grade {k} of 4." for k in (1, 2, 3, 4))
    for reward, grade in ((0.0, 1), (0.2, 2), (0.4, 3), (0.9, 3), (1.0, 4)):
        episode = Episode(
            id="e",
            task=Task(id="t", env="quiz", split="train"),
            turns=chain([user("What?"), assistant("hm", "look")]),
            stop=Stop.TERMINATED,
            reward=reward,
            success=reward >= 0.9,
        )
        assert marked(episode, cfg).turns[0].content == f"What?\nThink step by step, and give an answer of grade {grade} of 4."
    assert improve("nat", Run.scratch(), **MIXED, bins=(0.4, 1.0)).suffix == "Think step by step, and give an answer of grade 3 of 3."
    for wrong in ({"bins": (1.0, 0.4)}, {"bins": (0.4,), "control": "letter"}, {"teachers": ()}):
        with pytest.raises(ConfigError):
            NATConfig(**wrong)  # type: ignore[arg-type]


def test_duplicates_count_once_and_unreadable_calls_not_at_all(given: list[list[Example]], monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.scratch()
    improve("nat", run, teachers=("expert",), temperatures=(0.2, 0.7), samples=2)
    assert len(texts(given)) == 6
    assert next(run.events("filter"))["filters"][1]["reasons"] == {"duplicate": 18}
    given.clear()

    def garbled(request: Request, rng: Any) -> Action:
        return Action(tool_calls=(ToolCall(name="", error="not JSON", id="call_0"),))

    monkeypatch.setattr(methods, "load_policy", lambda spec: ScriptedPolicy(garbled))
    with pytest.raises(ConfigError, match="nothing to learn from"):
        improve("nat", Run.scratch(), teachers=("m",))


def test_a_model_is_sampled_at_every_temperature() -> None:
    run = Run.scratch()
    policy = tiny_policy(seed=1)
    with pytest.raises(ConfigError, match="nothing to learn from"):  # it babbles
        improve("nat", run, policy=policy, teachers=("self",), temperatures=(0.2, 0.7), samples=3, negatives=False)
    found = {tag: list(run.load_episodes(tag)) for tag in ("self at 0.2", "self at 0.7")}
    assert {tag: {e.tags["temperature"] for e in episodes} for tag, episodes in found.items()} == {
        "self at 0.2": {0.2},
        "self at 0.7": {0.7},
    }
    assert {e.policy for episodes in found.values() for e in episodes} == {policy.version}
    assert [len(episodes) for episodes in found.values()] == [18, 18]


# -- general conversations ---------------------------------------------------------------------------------------------------


def test_the_bundled_conversations_are_small_various_and_readable_by_the_embedded_model() -> None:
    found = read_general("bundled")
    assert 1000 <= len(found) <= 2000
    assert BUNDLED.stat().st_size < 300_000
    assert {e.task.split for e in found} == {"train"}
    assert len({e.task.id for e in found}) == len(found)
    assert any(e.tags.get("schemas") for e in found)
    policy = load_policy("base")
    rows = general_rows(found[:60], policy)
    assert len(rows) == 60
    called = next(i for i, e in enumerate(found) if e.tags.get("schemas"))
    name = found[called].tags["schemas"][0]["function"]["name"]
    assert f"{name}(" in policy.tokenizer.decode(rows[called].tokens), "tools stand in the prompt"  # type: ignore[attr-defined]
    assert learn.mean_nll(rows, policy).mean() < 1.0, "they are of the kind that it learned from"  # type: ignore[arg-type]


def test_they_are_made_again_byte_for_byte(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = Path(__file__).parents[1] / "scripts" / "base" / "general.py"
    subprocess.run([sys.executable, str(script), "--out", str(tmp_path / "g.jsonl.gz")], check=True, capture_output=True)
    assert (tmp_path / "g.jsonl.gz").read_bytes() == BUNDLED.read_bytes()


def test_ones_own_conversations(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    line = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}\n'
    path.write_text(line * 2)
    assert [[t.content for t in e.turns] for e in read_general(path)] == [["Hi", "Ho"]] * 2
    path.write_text(f"{line}not JSON\n")
    with pytest.raises(ConfigError, match=r"mine\.jsonl, line 2 is no general conversation: not JSON"):
        read_general(path)
    path.write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    with pytest.raises(ConfigError, match="no conversation in which an assistant speaks"):
        read_general(path)
    with pytest.raises(ConfigError, match="nowhere"):
        read_general(tmp_path / "nowhere.jsonl")


TINY = ("--train-tasks", "2", "--dev-tasks", "0", "--test-tasks", "2", "--no-baseline", "--quiet")


def test_general_conversations_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["run", "agent_tuning", "--env", "search:hops=1", *TINY, "epochs=1", "batch_size=4", "held_out=1", "--out", "r"]
    line = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}\n'
    Path("talk.jsonl").write_text(line * 3)
    assert main([*argv, "--general", "talk.jsonl"]) == 0
    assert Run.open("r").config["general"] == "talk.jsonl"
    (event,) = Run.open("r").events("general")
    assert event["change"]["n"] == 1
    assert main([*argv, "--resume"]) == 1
    assert "general: was 'talk.jsonl', is 'bundled'" in capsys.readouterr().err, "what a method that needs some gets by default"
    assert main(["run", "sft", "--env", "search:hops=1", *TINY, "--expert-episodes", "2", "epochs=1", "--out", "s"]) == 0
    assert "general" not in Run.open("s").config


def test_the_control_string_is_saved_with_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["run", "nat", "--env", "search:hops=1", *TINY, "epochs=1", 'teachers=["expert"]', "control=prefix", "lora.rank=2", "--out", "r"]
    assert main(argv) == 0
    found = load_agent("r", None)
    assert (found.prefix, found.suffix) == ("[Correct]", "")
    (episode, *_) = Run.open("r").load_episodes("eval/final")
    assert episode.turns[1].content.startswith("[Correct]\nWho is")
    assert Run.open("r").config["cfg"]["lora"]["rank"] == 2


# -- collecting --------------------------------------------------------------------------------------------------------------


def test_episodes_are_collected_once_in_the_life_of_a_run(tmp_path: Path) -> None:
    acted: list[str] = []

    def guess(request: Request, rng: Any) -> Action:
        acted.append("")
        return act("", "answer", word=f"w{rng.randrange(9)}")

    agent, tasks = Agent(ScriptedPolicy(guess)), QUIZ.tasks("train", 12)
    with Run.create(tmp_path / "run", {"seed": 0}, quiet=True) as run:
        first = collect(agent, QUIZ, tasks, n=2, run=run, tag="them")
    with Run.create(tmp_path / "run", {"seed": 0}, resume=True, quiet=True) as run:
        again = collect(agent, QUIZ, tasks, n=2, run=run, tag="them")
        assert run.cost.episodes == 24
        other = collect(agent, QUIZ, tasks, n=2, run=run, tag="others")
    assert again == first
    assert len(acted) == 48
    assert {e.seed for e in first}.isdisjoint(e.seed for e in other), "another tag, another seed"


def test_a_spent_budget_ends_collecting_but_not_what_is_learned_from_it(given: list[list[Example]]) -> None:
    run = Run.scratch(budget=6)
    improve("nat", run, **MIXED, epochs=3)
    assert run.cost.episodes == 6
    assert {origin.split("/")[0] for origin in texts(given)} == {"expert at 1"}
    assert [e["step"] for e in run.events("log")] == [0, 1, 2]
    np.testing.assert_equal(len(given), 3 * 2)
