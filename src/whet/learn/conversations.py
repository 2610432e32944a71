"""What conversations are worth by OPTIMA's reward (`rewards.talk`), read by the base model as the agents saw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from whet.envs.base import EnvFactory
from whet.learn.training import worst_turn_nll
from whet.policies.local import LocalPolicy
from whet.rewards.talk import talk_rewards
from whet.rollout.exchange import both_rows
from whet.types import Episode


class Ranking:
    """Called with the conversations of each task, it says what each is worth; none is read twice."""

    def __init__(self, base: LocalPolicy, env: EnvFactory, *, tokens_weight: float, reading_weight: float) -> None:
        self._base, self._env = base, env
        self._tokens_weight, self._reading_weight = tokens_weight, reading_weight
        self.tokens: dict[str, int] = {}
        """Of each episode, by its id: what both agents said, in tokens of the base model."""
        self._nll: dict[str, float] = {}

    def __call__(self, groups: Sequence[Sequence[Episode]]) -> list[list[float]]:
        self._read([episode for group in groups for episode in group if episode.id not in self.tokens])
        return [
            talk_rewards(
                [episode.reward for episode in group],
                [self.tokens[episode.id] for episode in group],
                [self._nll[episode.id] for episode in group],
                tokens_weight=self._tokens_weight,
                reading_weight=self._reading_weight,
            )
            for group in groups
        ]

    def ranked(self, groups: Sequence[Sequence[Episode]]) -> list[list[Episode]]:
        """The conversations, each with what it is worth as its reward."""
        each = zip(groups, self(groups), strict=True)
        return [[replace(episode, reward=value) for episode, value in zip(group, values, strict=True)] for group, values in each]

    def _read(self, episodes: Sequence[Episode]) -> None:
        rows = [(episode.id, row) for episode in episodes for row in both_rows(episode, self._base, self._env)]
        for (name, row), nll in zip(rows, worst_turn_nll([row for _, row in rows], self._base).tolist(), strict=True):
            self.tokens[name] = self.tokens.get(name, 0) + int(row.mask.sum())
            self._nll[name] = max(self._nll.get(name, 0.0), nll)
