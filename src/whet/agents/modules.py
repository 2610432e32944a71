"""A finite-state machine of modules that answers by documents, question after question (AMOR, arXiv:2402.01469).

    decompose   question, answers so far   ->  [Next] a query: documents are retrieved, go to judge  |  [Finish]: go to complete
    judge       query, a document          ->  [Relevant]: go to extract  |  [Irrelevant]: the next document
    extract     query, the document        ->  [Answerable] an answer, which is kept: go to decompose  |  [Unanswerable]: the next document
    complete    question, answers          ->  what the agent does

Behind the last document one goes back to decompose, with nothing found. What cannot be read counts as [Finish], [Irrelevant] and
[Unanswerable]. Documents are the paragraphs that stand before the last one of the first observation. A turn's text lists what the
modules said, so that all that they were asked can be written again from the conversation.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from whet.agents.four_roles import parted
from whet.agents.plan_ground import ordered
from whet.policies.base import Policy
from whet.policies.workflow import Desk, Workflow
from whet.tools.bm25 import BM25
from whet.types import Episode, Turn, chain

MODULES = ("decompose", "judge", "extract", "complete")
NEXT, RELEVANT, ANSWERABLE = "[Next]", "[Relevant]", "[Answerable]"
NOTHING = "nothing"
"""What stands for an answer that was not found."""


class Ask(NamedTuple):
    """What a module is asked."""

    module: str
    turns: tuple[Turn, ...]


class Step(NamedTuple):
    """What a module was asked, and what it said."""

    ask: Ask
    answer: Turn


@dataclass(frozen=True)
class Modules(Workflow):
    """The machine. Its modules are policies of their own, which may share weights."""

    decompose: Policy
    judge: Policy
    extract: Policy
    complete: Policy
    top: int = 3
    """Documents that are read for a query."""
    queries: int = 6
    """At most; then it is completed."""

    async def act(self, desk: Desk) -> Turn:
        machine, said = run(desk.turns, top=self.top, queries=self.queries), list[str]()
        asked = next(machine)
        while asked.module != "complete":
            answer = await desk.ask(asked.module, asked.turns)
            said.append(f"{asked.module}: {_line(answer)}")
            asked = machine.send(_line(answer))
        answer = await desk.ask("complete", asked.turns, tools=desk.tools)
        return replace(answer, content="\n".join([*said, f"complete: {answer.content}"]).strip())


def run(turns: Sequence[Turn], *, top: int, queries: int) -> Generator[Ask, str, None]:
    """What is asked in a turn of the agent's, one after the other; each time it wants to be sent what the module said.

    The last is `complete`, whose answer is the turn's own.
    """
    documents, question = _question(turns)
    index, facts = BM25(documents), list[str]()
    for _ in range(queries):
        said = yield Ask("decompose", _asked(question, facts, "decompose"))
        if not said.startswith(NEXT):
            break
        query = said.removeprefix(NEXT).strip()
        found = NOTHING
        for i, _ in index.search(query, top):
            told = (Turn(role="user", content=f"{query}\n\n{documents[i]}"),)
            said = yield Ask("judge", _asked(told, (), "judge"))
            if said.startswith(RELEVANT):
                said = yield Ask("extract", _asked(told, (), "extract"))
                if said.startswith(ANSWERABLE):
                    found = said.removeprefix(ANSWERABLE).strip()
                    break
        facts.append(found)
    yield Ask("complete", _asked(question, facts, "complete"))


def steps(episode: Episode, *, top: int, queries: int) -> Iterator[Step]:
    """All that the modules were asked and said in an episode of theirs, in order."""
    for at, turn in enumerate(episode.turns):
        if not turn.trained:
            continue
        machine, said = run(episode.turns[:at], top=top, queries=queries), iter(turn.content.split("\n"))
        asked = next(machine)
        while asked.module != "complete":
            answer = next(said).removeprefix(f"{asked.module}: ")
            yield Step(asked, Turn(role="assistant", content=answer, finish="stop"))
            asked = machine.send(answer)
        yield Step(asked, replace(turn, content="\n".join(said).removeprefix("complete:").strip()))


def _question(turns: Sequence[Turn]) -> tuple[tuple[str, ...], tuple[Turn, ...]]:
    """The documents, and the conversation without them and without what modules said."""
    documents, question = parted(turns)
    return documents, tuple(replace(turn, content="") if turn.trained else turn for turn in question)


def _asked(told: Sequence[Turn], facts: Sequence[str], module: str) -> tuple[Turn, ...]:
    return chain(ordered(told, "\n".join([*facts, f"<{module.capitalize()}>"])))


def _line(answer: Turn) -> str:
    """What a module says: one line."""
    return " ".join(answer.content.split())
