"""A policy that is shown the examples nearest to what it is asked (in-context use of STE's trials, arXiv:2403.04746)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from whet.agents import with_notes
from whet.policies.base import Policy
from whet.policies.workflow import Desk, Workflow
from whet.tools.bm25 import BM25
from whet.types import Turn


@dataclass(frozen=True)
class Recalling(Workflow):
    """Shows the speaker, before what it is asked, the `k` examples whose queries share most words with it, the nearest last."""

    speaker: Policy
    examples: tuple[tuple[str, str], ...]
    """Queries, and how each was dealt with."""
    k: int = 8

    async def act(self, desk: Desk) -> Turn:
        asked = next((turn.content for turn in desk.turns if turn.role == "user"), "")
        nearest = [self.examples[i][1] for i, _ in self._index.search(asked, self.k)]
        return await desk.ask("speaker", with_notes(desk.turns, nearest[::-1]), tools=desk.tools)

    @cached_property
    def _index(self) -> BM25:
        return BM25([query for query, _ in self.examples])
