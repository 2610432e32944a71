"""Four roles, three of them in one model, that answer by documents (SMART, arXiv:2407.09893).

    intent reconstructor    question                    <Reconstructor>  ->  search queries, a line each </eor>
    knowledge retriever     queries                                      ->  <retrieval> the best documents </retrieval>
    fact locator            question and documents      <Locator>        ->  [1] [Relevant] words of it / [2] [Irrelevant] </eol>
    response generator      question and facts          <Generator>      ->  response [Cite] 1 </eog>

A role is called by its head at the end of what the model is asked, and closes with its end mark. A whole trajectory is one
conversation in which the roles follow each other; a piece is a conversation of one role alone. Documents are the paragraphs
that stand before the last one of the first observation. Heads and ends are written as text, so that no vocabulary changes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from whet.agents.plan_ground import ordered
from whet.errors import ConfigError
from whet.policies.base import Policy, Sampling
from whet.policies.forms import quote
from whet.policies.workflow import Desk, Workflow
from whet.tools.bm25 import BM25
from whet.types import Task, Turn, chain

HEADS = {"reconstructor": "<Reconstructor>", "locator": "<Locator>", "generator": "<Generator>"}
ENDS = {"reconstructor": "</eor>", "locator": "</eol>", "generator": "</eog>"}
ROLES = tuple(HEADS)
RELEVANT, IRRELEVANT, CITE = "[Relevant]", "[Irrelevant]", "[Cite]"
TOP = 3
"""Documents that are retrieved: the paper's."""
ROOM = 4
"""Turns' worth of tokens that queries and marks may take each."""
_MARK = re.compile(r"\[(\d+)\] \[(Relevant|Irrelevant)\] ?(.*)")


@dataclass(frozen=True)
class FourRoles(Workflow):
    """The three policies may be one. The generator goes on from a trajectory with a relevant fact, else from the question alone."""

    reconstructor: Policy
    locator: Policy
    generator: Policy
    top: int = TOP

    async def act(self, desk: Desk) -> Turn:
        documents, question = parted(desk.turns)
        queries = await self._ask(desk, "reconstructor", to_reconstructor(question))
        found = retrieved(documents, queries, self.top)
        marks = await self._ask(desk, "locator", to_locator(question, queries, found))
        asked = to_generator(question, queries, found, marks) if RELEVANT in marks else generator_piece(question, "")
        answer = await desk.ask("generator", asked, tools=desk.tools)
        said = bare(answer.content, "generator")
        cited = said if answer.tool_calls else said.partition(CITE)[0].strip()  # what is said to the environment stands alone
        return Turn(role="assistant", content=cited, tool_calls=answer.tool_calls, finish=answer.finish)

    async def _ask(self, desk: Desk, role: str, turns: Sequence[Turn]) -> str:
        greedy = Sampling(temperature=0.0)
        answer = await desk.ask(role, turns, tools=desk.tools, sampling=greedy, max_tokens=ROOM * desk.request.max_tokens)
        return bare(answer.content, role)


def parted(turns: Sequence[Turn]) -> tuple[tuple[str, ...], tuple[Turn, ...]]:
    """The documents in the first observation, and the conversation without them."""
    first = next(i for i, turn in enumerate(turns) if turn.role == "user")
    *documents, question = turns[first].content.split("\n\n")
    return tuple(documents), (*turns[:first], replace(turns[first], content=question, tokens=()), *turns[first + 1 :])


def documented(task: Task, turns: Sequence[Turn]) -> None:
    """Raises ConfigError where a task shows no documents at its beginning."""
    if not parted(turns)[0]:
        raise ConfigError(
            f"task {task.id!r} shows no documents; use an environment whose first observation has some, as paragraphs before the question, "
            "such as search:hops=1,given=12"
        )


def retrieved(documents: Sequence[str], queries: str, top: int = TOP) -> tuple[str, ...]:
    """The documents that rank best for the sum of all queries, by BM25."""
    return tuple(documents[i] for i, _ in BM25(documents).search(queries, top))


def marked(marks: str, found: Sequence[str]) -> list[str | None] | None:
    """Of each document the words that the locator copied, None where it is irrelevant.

    None for marks that break the rules: a line for each document in its order, and what is copied stands there word for word.
    """
    lines = [_MARK.fullmatch(line.strip()) for line in marks.strip().splitlines()]
    read = [(line[1], line[3] if line[2] == "Relevant" else None) for line in lines if line]
    spans = [span for _, span in read]
    faithful = all(span is None or (span.strip() and span in document) for span, document in zip(spans, found, strict=False))
    return spans if len(lines) == len(read) and [n for n, _ in read] == _numbers(found) and faithful else None


def to_reconstructor(question: Sequence[Turn]) -> tuple[Turn, ...]:
    """What the reconstructor is asked."""
    return chain(ordered(question, HEADS["reconstructor"]))


def to_locator(question: Sequence[Turn], queries: str, found: Sequence[str]) -> tuple[Turn, ...]:
    """What the locator is asked behind the reconstructor."""
    return chain([*to_reconstructor(question), said("reconstructor", queries), Turn(role="user", content=_block(found))])


def to_generator(question: Sequence[Turn], queries: str, found: Sequence[str], marks: str) -> tuple[Turn, ...]:
    """What the generator is asked behind the locator."""
    head = Turn(role="user", content=HEADS["generator"])
    return chain([*to_locator(question, queries, found), said("locator", marks), head])


def locator_piece(question: Sequence[Turn], found: Sequence[str]) -> tuple[Turn, ...]:
    """What the locator is asked alone."""
    return chain(ordered(question, _block(found)))


def generator_piece(question: Sequence[Turn], facts: str) -> tuple[Turn, ...]:
    """What the generator is asked alone, with facts or without any."""
    return chain(ordered(question, "\n".join([*filter(None, [facts]), HEADS["generator"]])))


def said(role: str, text: str) -> Turn:
    """What a role answers."""
    return Turn(role="assistant", content=f"{text} {ENDS[role]}".strip(), finish="stop")


def responded(response: Turn, spans: Sequence[str | None]) -> Turn:
    """A response as the generator writes it, with the numbers of the documents that hold its facts."""
    cited = [str(i) for i, span in enumerate(spans, 1) if span is not None]
    text = " ".join(filter(None, [response.content, *([CITE, *cited] if cited else [])]))
    return replace(said("generator", text), tool_calls=response.tool_calls)


def bare(text: str, role: str) -> str:
    """An answer up to its end mark."""
    return text.partition(ENDS[role])[0].strip()


def _block(found: Sequence[str]) -> str:
    numbered = [f"[{i}] {document}" for i, document in enumerate(found, 1)]
    return f"{quote('retrieval', chr(10).join(numbered))}\n{HEADS['locator']}"


def _numbers(found: Sequence[str]) -> list[str]:
    return [str(i) for i in range(1, len(found) + 1)]
