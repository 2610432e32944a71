"""A policy that is shown one step of a workflow at a time (Self-Talk's structured prompting, arXiv:2401.05033)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from whet.policies.base import Policy
from whet.policies.workflow import Desk, Workflow
from whet.types import Turn

REQUEST = "Which part of the workflow holds now, after the last answer? Repeat that part alone."


@dataclass(frozen=True)
class Structured(Workflow):
    """In each turn the guide names the part of the workflow that holds now, and the speaker sees that part in place of it all.

    The workflow is taken to stand before the last paragraph of the first observation, which is what the client says first.
    """

    speaker: Policy
    guide: Policy

    async def act(self, desk: Desk) -> Turn:
        node = await desk.ask("guide", (*desk.turns, Turn(role="user", content=REQUEST)))
        return await desk.ask("speaker", narrowed(desk.turns, node.content), tools=desk.tools)


def narrowed(turns: tuple[Turn, ...], node: str) -> tuple[Turn, ...]:
    """The conversation with `node` in the place of the workflow that it begins with."""
    first = next(i for i, turn in enumerate(turns) if turn.role == "user")
    *_, said = turns[first].content.split("\n\n")
    return (*turns[:first], replace(turns[first], content=f"{node}\n\n{said}"), *turns[first + 1 :])
