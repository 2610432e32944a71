"""SMART: what each role is asked and answers, what the trajectories hold, and that what was retrieved is read and never learned."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from helpers import spied, tiny_policy
from whet.agents import Agent
from whet.agents.four_roles import FourRoles, generator_piece, marked, parted, responded, retrieved, said, to_generator
from whet.envs.base import Action, Env, EnvFactory
from whet.errors import ConfigError
from whet.methods.smart import SMARTConfig, Stage, smart
from whet.policies import ScriptedPolicy, load_policy
from whet.policies.base import Request
from whet.rollout import rollout
from whet.rollout.four_roles import annotate, pieces, role_rows, whole
from whet.runs import Run
from whet.tools.function import tool
from whet.types import Data, Task, ToolCall, Turn

DOCUMENTS = ("Oslo\nriver Alna\nmayor Ida", "Bern\nriver Aare\nmayor Eva", "Rome\nriver Tiber\nmayor Leo", "Kiel\ncoast Baltic")
QUESTION = (Turn(role="system", content="Answer."), Turn(role="user", content="Which river does Bern have?"))


class Atlas(Env):
    """A question about a city, below the pages of an atlas."""

    instructions = "Answer."
    max_turns = 2
    max_tokens = 32

    def reset(self, task: Task) -> str:
        self.city, self.river = (("Bern", "Aare"), ("Oslo", "Alna"), ("Rome", "Tiber"))[int(task.id.rpartition("/")[2]) % 3]
        return "\n\n".join([*DOCUMENTS, f"Which river does {self.city} have?"])

    @tool
    def answer(self, river: str) -> str:
        """Say it."""
        return self.finish(reward=float(river == self.river))

    def expert(self, rng: Any) -> Action:
        return act(self.river)

    def role(self, role: str, turns: tuple[Turn, ...], rng: Any) -> str:
        if role == "reconstructor":
            return f"{self.city}\nriver"
        if role == "liar":
            return "[1] [Relevant] river Rhine\n[2] [Irrelevant]\n[3] [Irrelevant]"
        return f"[1] [Relevant] river {self.river}\n[2] [Irrelevant]\n[3] [Irrelevant]"


def act(river: str) -> Action:
    return Action(text=f"river {river}", tool_calls=(ToolCall(name="answer", arguments={"river": river}, id="call_0"),))


ATLAS = EnvFactory(Atlas)
GOLDS = rollout(Agent(load_policy("expert")), ATLAS, ATLAS.tasks("train", 6))
TEACHERS = {"reconstructor": load_policy("script:reconstructor"), "locator": load_policy("script:locator")}
NOTES, _ = annotate(GOLDS, TEACHERS, ATLAS, top=3)
POLICY = tiny_policy()


def contents(turns: Any) -> list[str]:
    return [turn.content for turn in turns]


def test_documents_are_the_paragraphs_before_the_question() -> None:
    opening = (Turn(role="system", content="Answer."), Turn(role="user", content="\n\n".join([*DOCUMENTS, "Which river does Bern have?"])))
    later = (Turn(role="assistant", content="?"), Turn(role="user", content="Go on.\n\nPlease."))
    documents, question = parted((*opening, *later))
    assert documents == DOCUMENTS
    assert contents(question) == ["Answer.", "Which river does Bern have?", "?", "Go on.\n\nPlease."]


def test_the_retriever_ranks_by_all_queries_and_gives_three_at_most() -> None:
    assert retrieved(DOCUMENTS, "Bern\nriver") == (DOCUMENTS[1], DOCUMENTS[0], DOCUMENTS[2])
    assert retrieved(DOCUMENTS, "Baltic Leo Bern river", top=2) == (DOCUMENTS[1], DOCUMENTS[2])
    assert retrieved(DOCUMENTS, "Paris") == retrieved((), "Bern") == ()


@pytest.mark.parametrize(
    ("marks", "spans"),
    [
        ("[1] [Relevant] river Aare\n[2] [Irrelevant]", ["river Aare", None]),
        ("[1] [Irrelevant]\n[2] [Irrelevant]", [None, None]),
        ("[1] [Relevant] river Alna\n[2] [Irrelevant]", None),  # stands in the other document
        ("[1] [Relevant]\n[2] [Irrelevant]", None),
        ("[1] [Relevant] river Aare", None),
        ("[2] [Irrelevant]\n[1] [Irrelevant]", None),
        ("It is the first.\n[1] [Irrelevant]\n[2] [Irrelevant]", None),
        ("", None),
    ],
)
def test_facts_must_stand_in_their_document_word_for_word(marks: str, spans: list[str | None] | None) -> None:
    assert marked(marks, (DOCUMENTS[1], DOCUMENTS[0])) == spans


def test_no_marks_are_right_where_nothing_was_retrieved() -> None:
    assert marked("", ()) == []


def test_a_whole_trajectory_and_its_loss() -> None:
    """The hand-made case: everything that a role says is learned, and no token of what was retrieved."""
    (trajectory,) = whole(GOLDS[:1], NOTES, 3)
    assert contents(trajectory.episode.turns) == [
        "Answer.",
        "Which river does Bern have?\n<Reconstructor>",
        "Bern\nriver </eor>",
        f"<retrieval>\n[1] {DOCUMENTS[1]}\n[2] {DOCUMENTS[0]}\n[3] {DOCUMENTS[2]}\n</retrieval>\n<Locator>",
        "[1] [Relevant] river Aare\n[2] [Irrelevant]\n[3] [Irrelevant] </eol>",
        "<Generator>",
        "river Aare [Cite] 1 </eog>",
    ]
    (row,) = role_rows([trajectory], trajectory.roles, POLICY, ATLAS)
    decode = POLICY.tokenizer.decode
    learned = decode(row.tokens[row.mask])
    call = '\n<tool_call>\n{"name": "answer", "arguments": {"river": "Aare"}}\n</tool_call>'
    assert learned.replace("<|im_end|>", "|") == (
        f"Bern\nriver </eor>|[1] [Relevant] river Aare\n[2] [Irrelevant]\n[3] [Irrelevant] </eol>|river Aare [Cite] 1 </eog>{call}|"
    )
    read = decode(row.tokens[~row.mask])
    assert "mayor Eva" in read
    assert "</retrieval>" in read
    assert not row.weights[~row.mask].any()


def test_pieces_are_of_one_role_each() -> None:
    found = pieces(GOLDS[:3], NOTES, 3)
    assert [t.roles for t in found] == [("reconstructor",), ("locator",), ("generator",)]
    asked = [t.episode.turns[-2].content for t in found]
    assert asked[0] == "Which river does Bern have?\n<Reconstructor>"
    assert asked[1].startswith("Which river does Oslo have?\n<retrieval>\n[1] Oslo")
    assert asked[2] == "Which river does Rome have?\nriver Tiber\n<Generator>"
    assert [t.episode.turns[-1].content for t in found][2] == "river Tiber [Cite] 1 </eog>"


def test_without_a_relevant_fact_the_response_follows_from_the_question_alone() -> None:
    nothing = {id: [queries, "[1] [Irrelevant]\n[2] [Irrelevant]\n[3] [Irrelevant]"] for id, (queries, _) in NOTES.items()}
    located, response = whole(GOLDS[:1], nothing, 3)
    assert (located.roles, response.roles) == (("reconstructor", "locator"), ("generator",))
    assert contents(response.episode.turns) == ["Answer.", "Which river does Bern have?\n<Generator>", "river Aare </eog>"]


def test_what_a_teacher_made_up_is_left_out() -> None:
    notes, _ = annotate(GOLDS, TEACHERS | {"locator": load_policy("script:liar")}, ATLAS, top=3)
    assert whole(GOLDS, notes, 3) == pieces(GOLDS, notes, 3) == []
    with pytest.raises(ConfigError, match="none of the 6 annotations keeps the rules"):
        smart(Agent(POLICY), Data(experts=tuple(GOLDS)), env=ATLAS, run=Run.scratch(), cfg=SMARTConfig(teacher="script:liar"))


class Model:
    """Plays all roles by what it is asked, and writes down what that was."""

    def __init__(self, marks: str) -> None:
        self.asked: list[list[str]] = []

        def speak(request: Request, rng: random.Random) -> Action | str:
            told = contents(request.turns)
            self.asked.append(told)
            if told[-1].endswith("<Reconstructor>"):
                return "Bern\nriver </eor> and more"
            if told[-1].endswith("<Locator>"):
                return marks
            return Action(text="river Aare [Cite] 1 </eog>", tool_calls=act("Aare").tool_calls)

        self.policy = ScriptedPolicy(speak)


def acting(marks: str) -> tuple[Any, Model]:
    model = Model(marks)
    (episode,) = rollout(Agent(FourRoles(model.policy, model.policy, model.policy)), ATLAS, ATLAS.tasks("train", 1))
    return episode, model


def test_with_a_relevant_fact_the_generator_goes_on_as_it_was_trained() -> None:
    episode, model = acting("[1] [Relevant] river Aare\n[2] [Irrelevant]\n[3] [Irrelevant] </eol>")
    (trajectory,) = whole(GOLDS[:1], NOTES, 3)
    turns = trajectory.episode.turns
    assert model.asked == [contents(turns[:at]) for at, turn in enumerate(turns) if turn.trained]
    assert episode.success
    assert [turn.content for turn in episode.turns if turn.trained] == ["river Aare [Cite] 1"]


def test_without_one_it_is_asked_the_question_alone() -> None:
    _, model = acting("[1] [Irrelevant]\n[2] [Irrelevant]\n[3] [Irrelevant] </eol>")
    assert model.asked[-1] == ["Answer.", "Which river does Bern have?\n<Generator>"] == contents(generator_piece(QUESTION, ""))


def test_what_is_said_without_a_call_stands_without_citations() -> None:
    speaker = ScriptedPolicy(lambda request, rng: "Aare [Cite] 1 </eog>")
    (episode,) = rollout(Agent(FourRoles(speaker, speaker, speaker)), ATLAS, ATLAS.tasks("train", 1))
    assert [turn.content for turn in episode.turns if turn.trained] == ["Aare", "Aare"]


def test_a_response_cites_the_documents_of_its_facts() -> None:
    spans = ["river Aare", None, "mayor Leo"]
    assert responded(Turn(role="assistant", content="Aare"), spans).content == "Aare [Cite] 1 3 </eog>"
    assert said("locator", "").content == "</eol>"
    assert to_generator(QUESTION, "q", (), "")[-1].content == "<Generator>"


def train(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[list[str], Run, Agent[Any]]:
    given, run, stage = spied(monkeypatch), Run.scratch(), Stage(epochs=1, lr=1e-2, batch_size=8, lora=None)
    cfg = SMARTConfig(**{"short": stage, "long": stage, "long_share": 0.5, **options})
    tuned = smart(Agent(POLICY), Data(experts=tuple(GOLDS)), env=ATLAS, run=run, cfg=cfg)
    ends = ("</eor>", "</eol>", "</eog>")
    texts = [POLICY.tokenizer.decode(np.concatenate([row.tokens[row.mask] for row in rows])) for rows in given]
    return ["".join(str(text.count(end)) for end in ends) for text in texts], run, tuned


def test_short_trajectories_come_first_and_long_ones_of_other_golds_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, run, tuned = train(monkeypatch)
    assert counts == ["111", "333"]
    assert [e["phase"] for e in run.events("log")] == ["smart_short", "smart_long"]
    assert len({id(part) for part in tuned.policy.parts.values()}) == 1, "one model plays all roles"
    (roles,) = run.events("roles")
    assert roles["scripted"] == {"reconstructor": "script:reconstructor", "locator": "script:locator"}


def test_separate_agents_learn_one_role_each(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, run, tuned = train(monkeypatch, separate=True)
    assert counts == ["100", "300", "010", "030", "001", "003"]
    assert [e["phase"] for e in run.events("log")][:2] == ["smart_reconstructor_short", "smart_reconstructor_long"]
    assert len({id(part) for part in tuned.policy.parts.values()}) == 3


def test_a_stage_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(monkeypatch, short=Stage(epochs=0, lora=None))[0] == ["333"]
    with pytest.raises(ConfigError, match=r"short\.epochs and long\.epochs are both 0"):
        SMARTConfig(short=Stage(epochs=0), long=Stage(epochs=0))
    with pytest.raises(ConfigError, match="long_share is 0"):
        SMARTConfig(long_share=0)


def test_an_environment_without_documents_is_refused() -> None:
    class Bare(Atlas):
        def reset(self, task: Task) -> str:
            return super().reset(task).rpartition("\n\n")[2]

    env = EnvFactory(Bare)
    golds = rollout(Agent(load_policy("expert")), env, env.tasks("train", 1))
    with pytest.raises(ConfigError, match="task 'bare/train/0' shows no documents; use an environment"):
        smart(Agent(POLICY), Data(experts=tuple(golds)), env=env, run=Run.scratch())
