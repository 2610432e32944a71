"""Search: multi-hop questions over a small knowledge base that is different in every task.

    Who is Rosa's friend's teacher?      ->  search("Rosa")   Rosa / boss Joe / friend Otto / cousin Cole
                                             search("Otto")   Otto / teacher Mila / sister Dana / rival Joe
                                             answer("Mila")

Names of people are disjoint between train, dev and test; relations are shared. Every page lists other relations as
distractors, and other people's pages exist to get lost in. Some questions need arithmetic, for which there is a tool. With
`given`, documents stand before the question and nothing need be searched for: reading what a retriever found, some of which
may lie.
"""

from __future__ import annotations

import ast
import operator
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from whet.envs import roles
from whet.envs.base import Action, Env, Step, ToolError
from whet.envs.search_given import documents, written
from whet.envs.search_roles import speak
from whet.errors import ConfigError
from whet.seeding import derive_seed
from whet.tools.function import Tool, tool
from whet.types import SPLITS, Split, Task, ToolCall, Turn

RELATIONS = ("friend", "boss", "teacher", "cousin", "sister", "brother", "neighbour", "doctor", "partner", "rival", "guard", "tailor")
NAMES_PER_SPLIT = 96


def _names() -> dict[Split, tuple[str, ...]]:
    onsets, vowels = "bdfgklmnprstvz", "aeiou"
    everyone = [(a + b + c + d).capitalize() for a in onsets for b in vowels for c in onsets for d in vowels]
    everyone.sort(key=lambda name: derive_seed("person", name))
    return {split: tuple(everyone[i * NAMES_PER_SPLIT : (i + 1) * NAMES_PER_SPLIT]) for i, split in enumerate(SPLITS)}


NAMES = _names()
"""Who may occur in which split: three disjoint sets of names."""


@dataclass(frozen=True)
class Question:
    """A question with the knowledge base it is asked over. `path` is who is met on the way, the start first."""

    text: str
    pages: dict[str, dict[str, str]]
    """Person -> relation (or `age`) -> value."""
    path: tuple[str, ...]
    relations: tuple[str, ...]
    answer: str
    sum_of: tuple[str, str] | None = None
    """The two people whose ages are added, where the question needs that."""


class Search(Env):
    """Answer a question about people by looking up their pages, one after the other.

    Options: `hops` is how many relations a question follows, such as `2` or `1-3`; `facts` how many relations stand
    on a page (all but one are distractors); `people` how many pages exist; `arithmetic` the share of questions that
    add two ages; `reward` is `exact` (1 for the right answer) or `graded` (half of it for the right pages read).
    `given` is how many pages stand in the prompt, so that there is no search; `copies` in how many of them each page
    stands that the question needs; `lies` how many more documents contradict those pages, in dev and test tasks alone.
    """

    instructions = "Answer the question. Search one person at a time."
    max_turns = 8
    max_tokens = 32

    def __init__(
        self,
        hops: str = "1-3",
        facts: int = 4,
        people: int = 12,
        arithmetic: float = 0.0,
        reward: Literal["exact", "graded"] = "exact",
        given: int = 0,
        copies: int = 1,
        lies: int = 0,
    ) -> None:
        low, _, high = str(hops).partition("-")
        if not (low.isdigit() and (high or low).isdigit() and 1 <= int(low) <= int(high or low) <= 4):
            raise ConfigError(f"hops is {hops!r}; expected a number from 1 to 4 or a range such as '1-3'")
        if not 1 <= facts <= len(RELATIONS):
            raise ConfigError(f"facts is {facts}; expected 1 to {len(RELATIONS)} relations on a page")
        if not max(6, facts + 1) <= people <= NAMES_PER_SPLIT:
            raise ConfigError(
                f"people is {people}; expected {max(6, facts + 1)} to {NAMES_PER_SPLIT} (everybody on a page of {facts} is another)"
            )
        if not 0 <= arithmetic <= 1:
            raise ConfigError(f"arithmetic is {arithmetic}; expected a share between 0 and 1")
        self._hops = (int(low), int(high or low))
        if copies < 1 or lies < 0 or given < 0 or (given == 0 and (copies, lies) != (1, 0)):
            raise ConfigError(f"given is {given}, copies {copies} and lies {lies}; expected copies >= 1 and lies >= 0, with given >= 1")
        longest = max(self._hops[1], 3 if arithmetic else 0)
        least, most = longest * copies, longest * (copies - 1) + people
        if given and not least <= given <= most:
            raise ConfigError(f"given is {given}; expected {least} to {most}: {longest} of {people} pages are needed, {copies} times each")
        self._given, self._copies, self._lies = given, copies, lies
        self._shown: tuple[str, ...] = ()
        if given:
            self.instructions = "Answer the question by the documents."  # type: ignore[misc]
        self._facts, self._people, self._arithmetic, self._graded = facts, people, arithmetic, reward == "graded"
        self._read: list[str] = []
        self._answered = ""
        self._calculated: str | None = None

    @property
    def tools(self) -> tuple[Tool, ...]:
        """`calculate` is offered only where questions may need it, and `search` where pages are not given."""
        needless = ({"calculate"} if not self._arithmetic else set()) | ({"search"} if self._given else set())
        return tuple(t for t in super().tools if t.name not in needless)

    def reset(self, task: Task) -> str:
        rng = random.Random(task.seed)
        self.question = make_question(rng, NAMES[task.split], self._hops, self._facts, self._people, self._arithmetic)
        if self._given:
            lies = self._lies if task.split != "train" else 0
            own = documents(rng, self.question.pages, self._needed(), self._given, self._copies, lies)
            self._shown = tuple(task.data.get("documents", own))
        return "\n\n".join([*self._shown, self.question.text])

    def documents(self) -> tuple[str, ...]:
        """The pages in the prompt; none unless some are given."""
        return self._shown

    def step(self, action: Action) -> Any:
        """As `Env.step`, with what a grader wants to know in `info`."""
        step = super().step(action)
        assert isinstance(step, Step)
        if not step.terminated:
            return step
        info = {"reason": "answered", "answer": self._answered, "gold": self.question.answer}
        return Step(
            observation=step.observation, reward=step.reward, terminated=True, success=step.success, truncated=step.truncated, info=info
        )

    @tool
    def search(self, query: str) -> str:
        """Read the page of a person."""
        page = self.question.pages.get(query.strip())
        if page is None:
            return f"No page of {query.strip()[:40]}."
        self._read.append(query.strip())
        return written(query.strip(), page)

    @tool
    def calculate(self, expression: str) -> str:
        """Add, subtract or multiply numbers."""
        try:
            self._calculated = str(_calculate(expression))
        except (ValueError, SyntaxError) as error:
            raise ToolError(str(error)) from None
        return self._calculated

    @tool
    def answer(self, text: str) -> str:
        """Give the final answer."""
        self._answered = text.strip()
        right = self._answered == self.question.answer
        partial = 0.5 * len(self._progress(self._read)) / len(self._needed()) if self._graded and not self._given else 0.0
        return self.finish("", reward=1.0 if right else partial, success=right)

    def _needed(self) -> list[str]:
        """Pages that must be read, in an order that works."""
        question = self.question
        return [*question.path[:-1], *question.sum_of] if question.sum_of else list(question.path[:-1])

    def _progress(self, read: Collection[str]) -> list[str]:
        """The needed pages among those read, up to the first that is not."""
        done = []
        for person in self._needed():
            if person not in read:
                break
            done.append(person)
        return done

    def expert(self, rng: random.Random) -> Action:
        """The next step of the shortest way to the answer, with a thought that names the relation and the person."""
        return self.after(self._read, [] if self._calculated is None else [self._calculated])

    def after(self, read: Collection[str], calculated: Collection[str]) -> Action:
        """The expert's next step once these pages have been read and these results calculated."""
        question, done = self.question, self._progress(read)
        needed = self._needed()
        if self._given:
            done = needed
        if len(done) < len(needed):
            person = needed[len(done)]
            return call_of(self._thought(len(done)), "search", query=person)
        if question.sum_of and question.answer not in calculated:
            ages = [question.pages[person]["age"] for person in question.sum_of]
            return call_of(f"age {ages[0]}, age {ages[1]}", "calculate", expression=" + ".join(ages))
        chain = range(1 if self._given else len(done), len(done) + 1)
        thought = ", ".join(self._thought(i) for i in chain) if not question.sum_of else ""
        return call_of(thought, "answer", text=question.answer)

    def _thought(self, i: int) -> str:
        question = self.question
        if i == 0:
            return ""
        if question.sum_of:
            relation = question.relations[i - 1] if i <= len(question.relations) else ""
            return f"{relation} {question.sum_of[i - 1]}" if i <= 2 else ""
        return f"{question.relations[i - 1]} {question.path[i]}"

    def random_action(self, rng: random.Random) -> Action:
        """Search or answer with somebody."""
        person = rng.choice(list(self.question.pages))
        search = rng.random() < 0.7 and not self._given
        return call_of("", "search", query=person) if search else call_of("", "answer", text=person)

    def role(self, role: str, turns: tuple[Turn, ...], rng: random.Random) -> str | Action | None:
        """Judges, debates and edits responses by the pages in what it is shown (`search_roles`), and teaches (`roles.teach`)."""
        return speak(self, role, turns, rng) or roles.speak(self, role, turns, rng)

    def reflect(self, turns: tuple[Turn, ...]) -> str | None:
        """What the pages in the log already tell about the question, as a plan for the next attempt.

        Made from the question and the pages that the attempt read, never from the answer; None where pages are given.
        """
        if self._given:
            return None
        pages = {}
        for turn in turns:
            head, *lines = turn.content.splitlines() or [""]
            if turn.role == "tool" and lines:
                pages[head] = dict(line.split(" ", 1) for line in lines if " " in line)
        at = self.question.path[0]
        plan: list[str] = []
        if self.question.sum_of:
            return f"search {at} first."
        for relation in self.question.relations:
            if relation not in pages.get(at, {}):
                return " ".join([f"search {at} first." if not plan else f"{', '.join(plan)}, then {relation}."])
            at = pages[at][relation]
            plan.append(f"{relation} {at}")
        return f"{', '.join(plan)}."


def make_question(
    rng: random.Random,
    names: Sequence[str],
    hops: tuple[int, int],
    facts: int,
    people: int,
    arithmetic: float,
    kinds: Sequence[str] = RELATIONS,
) -> Question:
    """A knowledge base of `people` pages with `facts` relations each, and a question whose path never repeats a person."""
    cast = rng.sample(names, people)
    sums = rng.random() < arithmetic
    n_hops = 2 if sums else rng.randint(*hops)
    relations = tuple(rng.sample(kinds, n_hops))
    path = tuple(rng.sample(cast, n_hops + 1))
    pages: dict[str, dict[str, str]] = {}
    for person in cast:
        forced: dict[str, str] = {}
        if sums and person == path[0]:
            forced = dict(zip(relations, path[1:]))
        elif not sums and person in path[:-1]:
            i = path.index(person)
            forced = {relations[i]: path[i + 1]}
        free = [r for r in kinds if r not in forced]
        others = [p for p in cast if p != person and p not in forced.values()]
        n_free = max(0, facts - len(forced))
        drawn = forced | dict(zip(rng.sample(free, n_free), rng.sample(others, n_free)))
        order = rng.sample(list(drawn), len(drawn))
        pages[person] = {relation: drawn[relation] for relation in order} | ({"age": str(rng.randint(10, 99))} if arithmetic else {})
    if sums:
        first, second = path[1], path[2]
        text = f"What is the age of {path[0]}'s {relations[0]} plus the age of {path[0]}'s {relations[1]}?"
        total = str(int(pages[first]["age"]) + int(pages[second]["age"]))
        return Question(text, pages, (path[0], total), relations, total, sum_of=(first, second))
    text = f"Who is {path[0]}'s {chr(39).join(f'{r}' if i == 0 else f's {r}' for i, r in enumerate(relations))}?"
    return Question(text, pages, path, relations, path[-1])


def call_of(thought: str, name: str, **arguments: str) -> Action:
    """An action that is one tool call, with a thought before it."""
    return Action(text=thought, tool_calls=(ToolCall(name=name, arguments=arguments, id="call_0"),))


_OPERATORS: dict[type, Callable[[int, int], int]] = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def _calculate(expression: str) -> int:
    """The value of sums, differences and products of whole numbers. Raises ValueError for anything else."""

    def value(node: ast.AST) -> int:
        if isinstance(node, ast.Expression):
            return value(node.body)
        if isinstance(node, ast.Constant) and type(node.value) is int and abs(node.value) < 10**9:
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise ValueError(f"cannot calculate {expression[:60]!r}; expected whole numbers with + - *")

    if len(expression) > 200:
        raise ValueError("the expression is longer than 200 characters")
    return value(ast.parse(expression.strip(), mode="eval"))
