"""What an agent would be shown node by node (`agents.structured`), as rows to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from whet.agents.structured import REQUEST, narrowed
from whet.data import to_examples
from whet.data.rows import HasChat
from whet.envs.base import EnvFactory
from whet.policies.ask import ask
from whet.policies.base import Policy
from whet.types import Episode, Example, Turn, chain


def prompted_rows(episodes: Sequence[Episode], guide: Policy, policy: HasChat, *, env: EnvFactory, seed: int = 0) -> list[Example]:
    """A row for each assistant turn, behind the conversation as a `Structured` agent sees it at that turn.

    The guide is asked which node holds there, and the row's mask is true on that turn alone. A turn for which the guide gives
    no answer is left out. Raises what `ask` raises.
    """
    begun = [(e, i) for e in episodes for i, turn in enumerate(e.turns) if turn.trained]
    prompts = [(*e.turns[:i], Turn(role="user", content=REQUEST)) for e, i in begun]
    nodes = ask(guide, prompts, seed=seed, env=env, tasks=[e.task for e, _ in begun])
    rows: list[Example] = []
    for (episode, i), node in zip(begun, nodes, strict=True):
        if node is not None:
            seen: Any = chain((*narrowed(episode.turns[:i], node.content), episode.turns[i]))
            rows += map(last_turn, to_examples(replace(episode, turns=seen), policy, tools=env.of(episode.task).tools))
    return rows


def last_turn(row: Example) -> Example:
    """The row with its mask true on the last assistant turn alone."""
    before = np.flatnonzero(~row.mask[: np.flatnonzero(row.mask)[-1]])
    mask = row.mask.copy()
    mask[: before[-1] + 1 if before.size else 0] = False
    return replace(row, mask=mask)
