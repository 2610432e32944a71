"""Desk: a session of questions that share facts, at a desk with pages, with a colleague who can be asked, and with a notebook.

    Question 1 of 6: Who is Rosa's boss?      ->  search("Rosa")      No page of Rosa.
                                                  advise()            Rosa: boss Joe, friend Otto, cousin Cole, sister Dana
                                                  remember("Rosa: boss Joe, friend Otto, cousin Cole, sister Dana")
    Question 2 of 6: Who is Otto's tailor?    ->  search("Otto")      Otto / tailor Mila / rival Joe
                                                  answer("Mila")
    Note: Rosa: boss Joe, friend Otto, ...    ->  answer("Otto")
    Question 3 of 6: Who is Rosa's friend?

Each question is a context of its own: nothing of the questions before is shown but the notes that share most words with it. An
answer pays 1 or 0. The colleague's advice settles a question for 1 less its cost, and tells more than was asked for; so whoever
asks early and keeps it need not ask again. Names of people are disjoint between train, dev and test, as in Search.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from whet.envs.base import Action, Env, Step
from whet.envs.search import NAMES, call_of, make_question
from whet.envs.search_given import written
from whet.errors import ConfigError
from whet.tools.bm25 import BM25
from whet.tools.function import Tool, tool
from whet.types import Task

MAX_QUESTIONS = 16
TURNS = 4
"""That a question may take on average: search, ask, remember, and one more."""
_NOTES = 2


class Desk(Env):
    """Answer a session of questions, ask a colleague where it pays, and keep what may be of use later.

    Options: `questions` of a session; `people` they are about; `hidden` how many of these have no page, so that only the colleague
    knows them; `facts` that are known of each; `cost` of advice, as a share of what a right answer pays; `advice` and
    `memory` say whether there are a colleague and a notebook.

    The session's reward is the mean over its questions. It is a success where that is no less than par: what is paid for asking once
    about each hidden person (each time, without a notebook; never, without a colleague), and answering everything else.
    """

    instructions = "Answer the question. Search first; what has no page, the colleague knows. Remember what you are told."
    max_turns = TURNS * 6
    max_tokens = 48

    def __init__(
        self,
        questions: int = 6,
        people: int = 3,
        hidden: int = 2,
        facts: int = 4,
        cost: float = 0.3,
        advice: bool = True,
        memory: bool = True,
    ) -> None:
        if not 1 <= questions <= min(MAX_QUESTIONS, people * facts):
            raise ConfigError(f"questions is {questions}; expected 1 to {MAX_QUESTIONS}, at most people * facts = {people * facts}")
        if not 0 <= hidden <= people <= 8 or not 1 <= facts <= 8:
            raise ConfigError(f"people is {people}, hidden {hidden}, facts {facts}; expected hidden <= people <= 8 and facts 1 to 8")
        if not 0 <= cost <= 1:
            raise ConfigError(f"cost is {cost}; expected a share between 0 and 1")
        self._n, self._people, self._hidden, self._facts, self._cost = questions, people, hidden, facts, cost
        self._advice, self._memory = advice, memory
        self.max_turns = TURNS * questions  # type: ignore[misc]

    @property
    def tools(self) -> tuple[Tool, ...]:
        """Those for which there is a colleague, and a notebook."""
        lacking = ({"advise"} if not self._advice else set()) | ({"remember"} if not self._memory else set())
        return tuple(t for t in super().tools if t.name not in lacking)

    def reset(self, task: Task) -> str:
        rng = random.Random(task.seed)
        self.pages = make_question(rng, NAMES[task.split], (1, 1), self._facts, 12, 0.0).pages
        people = rng.sample(list(self.pages), self._people)
        self.hidden = set(people[: self._hidden])
        self.questions = rng.sample([(person, relation) for person in people for relation in self.pages[person]], self._n)
        self.notes: list[str] = []
        self.asked: list[str] = []
        """About whom the colleague was asked."""
        self.right = 0
        self.score = 0.0
        self._at = 0
        self._begin()
        return self._shown()

    def _begin(self) -> None:
        self._found: str | None = None
        self._told = self._over_now = False

    def _shown(self) -> str:
        """The question, behind the notes that share most words with it and how many these are."""
        person, relation = self.questions[self._at]
        text = f"Who is {person}'s {relation}?"
        near = [self.notes[i] for i, _ in BM25(self.notes).search(text, _NOTES)] if self.notes else []
        return "\n".join([*(f"Note: {note}" for note in near), f"Question {self._at + 1} of {self._n}, {len(near)} notes: {text}"])

    def step(self, action: Action) -> Any:
        """As `Env.step`; when a question is settled, the next one is a context of its own."""
        told, asked, right = self._told, len(self.asked), self.right
        step = super().step(action)
        assert isinstance(step, Step)
        reward = ((self.right - right) + (len(self.asked) - asked) * (1 - self._cost)) / self._n
        self.score += reward
        if not (self._over_now or told):  # after advice any one action ends the question
            return replace(step, reward=reward)
        self._at += 1
        self._begin()
        if self._at < self._n:
            return Step(observation=self._shown(), reward=reward, fresh=True)
        self._over = True
        info = {"reason": "closed", "right": self.right, "asked": len(self.asked), "of": self._n, "par": self._par()}
        return Step(reward=reward, terminated=True, success=self.score >= self._par() - 1e-9, info=info)

    def _par(self) -> float:
        """What the questions pay at best."""
        obscure = [person for person, _ in self.questions if person in self.hidden]
        if not self._advice:
            return (self._n - len(obscure)) / self._n
        return (self._n - self._cost * len(set(obscure) if self._memory else obscure)) / self._n

    @tool
    def search(self, query: str) -> str:
        """Read the page of a person."""
        name = query.strip()
        page = self.pages.get(name) if name not in self.hidden else None
        self._found = name
        return written(name, page) if page else f"No page of {name[:40]}."

    @tool
    def advise(self) -> str:
        """Ask the colleague, who knows everybody; it settles the question, and costs something."""
        person, _ = self.questions[self._at]
        if not self._told:
            self.asked.append(person)
        self._told = True
        return self._advised(person)

    @tool
    def remember(self, note: str) -> str:
        """Keep a note for later questions."""
        if note.strip():
            self.notes.append(note.strip())
        return "kept"

    @tool
    def answer(self, text: str) -> str:
        """Give the answer."""
        person, relation = self.questions[self._at]
        if not self._told and not self._over_now:
            self.right += text.strip() == self.pages[person][relation]
        self._over_now = True
        return ""

    def _advised(self, person: str) -> str:
        return f"{person}: {', '.join(f'{relation} {value}' for relation, value in self.pages[person].items())}"

    @property
    def _noted(self) -> bool:
        """Whether what is asked stands in a note."""
        person, relation = self.questions[self._at]
        fact = f"{relation} {self.pages[person][relation]}"
        return any(note.startswith(f"{person}:") and fact in note for note in self.notes)

    def expert(self, rng: random.Random) -> Action:
        """Answers by the notes or the page; asks where there is neither, and keeps all that it is told."""
        person, relation = self.questions[self._at]
        value = self.pages[person][relation]
        if self._told:
            return call_of("", "remember", note=self._advised(person)) if self._memory else call_of("", "answer", text=value)
        if self._noted or (self._found == person and person not in self.hidden):
            return call_of(f"{relation} {value}", "answer", text=value)
        if self._found != person:
            return call_of("", "search", query=person)
        return call_of("", "advise") if self._advice else call_of("", "answer", text="nobody")

    def random_action(self, rng: random.Random) -> Action:
        """Search, ask or answer with somebody."""
        person = rng.choice(list(self.pages))
        draw = rng.random()
        if draw < 0.2 and self._advice:
            return call_of("", "advise")
        return call_of("", "search", query=person) if draw < 0.5 else call_of("", "answer", text=person)
