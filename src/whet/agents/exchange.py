"""Two agents that each hold half of the information, and talk until one of them acts (OPTIMA's information exchange, arXiv:2410.08115).

    first agent     its half of the documents, the question          ->  says something to the second
    second agent    the other half, the question, what was said      ->  says something to the first, ... or calls a tool

Turns of an episode are theirs in turn. Each sees its own documents, what it said itself and what it was told: so both views can be
written again from the conversation alone, for acting and for training. What an environment answers to a message without a call is
shown to nobody. Documents are the paragraphs that stand before the last one of the first observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from whet.agents.four_roles import parted
from whet.agents.plan_ground import ordered
from whet.policies.base import Policy
from whet.policies.workflow import Desk, Workflow
from whet.transcript import line
from whet.types import Episode, Turn, chain


@dataclass(frozen=True)
class Exchange(Workflow):
    """The two policies may be one. `style` asks both to speak in a certain way."""

    first: Policy
    second: Policy
    style: str = ""

    async def act(self, desk: Desk) -> Turn:
        side = sum(turn.trained for turn in desk.turns) % 2
        return await desk.ask(("first", "second")[side], view(desk.turns, side, self.style), tools=desk.tools)


def view(turns: Sequence[Turn], side: int, style: str = "") -> tuple[Turn, ...]:
    """The conversation as the first agent (side 0) or the second one sees it."""
    opening = list(takewhile(lambda turn: not turn.trained, turns))
    documents, (*before, question) = parted(opening)
    middle = (len(documents) + 1) // 2
    own = documents[middle:] if side else documents[:middle]
    told = [*before, replace(question, content="\n\n".join([*own, "\n".join(filter(None, [question.content, style]))]))]
    for i, turn in enumerate(turn for turn in turns if turn.trained):
        told = [*told, turn] if i % 2 == side else ordered(told, line(turn))
    return chain(told)


def viewed(episode: Episode, side: int) -> Episode:
    """An episode of both agents as one of them lived it; without an action where it never spoke."""
    return replace(episode, turns=view(episode.turns, side))
