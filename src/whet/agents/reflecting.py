"""A policy that looks back at its own attempt while it is under way (Reflexion as FireAct's teacher does it, arXiv:2310.05915)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from whet.policies.base import Policy
from whet.policies.workflow import Desk, Workflow
from whet.types import Turn

REQUEST = "Look back at what you did so far. Say in a sentence what went wrong, if anything did, and what you will do next."
NOTE = "You looked back and said: {note}\nNow go on."


@dataclass(frozen=True)
class Reflecting(Workflow):
    """In the rounds that it names, it is first asked to look back; what it says then stands before its thought in that turn."""

    speaker: Policy
    rounds: tuple[int, ...] = (6, 10)
    """Assistant turns, counted from 1."""

    async def act(self, desk: Desk) -> Turn:
        if sum(turn.trained for turn in desk.turns) + 1 not in self.rounds:
            return await desk.ask("speaker", desk.turns, tools=desk.tools)
        note = await desk.ask("speaker", (*desk.turns, Turn(role="user", content=REQUEST)))
        told = Turn(role="user", content=NOTE.format(note=note.content))
        turn = await desk.ask("speaker", (*desk.turns, told), tools=desk.tools)
        return replace(turn, content=" ".join(part for part in (note.content, turn.content) if part))
