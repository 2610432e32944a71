"""Implicit Q-learning on logged episodes (arXiv:2110.06169): a critic of texts, made from successes and failures without acting.

    V:  L = mean |tau - 1(u < 0)| u^2,   u = Q_target(s, a) - V(s)             the expectile of what was done in s
    Q:  L = mean (r + gamma (1 - done) V(s') - Q(s, a))^2
    Q_target <- (1 - alpha) Q_target + alpha Q

States and actions are texts, read by recurrent encoders (as in DRRN, arXiv:1511.04636) over the tokens of a tokenizer that is given.
Only actions that were taken are ever asked about, so nothing is believed of what nobody tried.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whet.errors import CheckpointError, ConfigError
from whet.learn.iql import IQL, Transition, action_of, state_of
from whet.seeding import derive_seed
from whet.types import Turn

_FILE, _WEIGHTS, _STATE = "critic.json", "critic.pt", "iql.pt"


def expectile_loss(u: Tensor, tau: float) -> Tensor:
    """mean |tau - 1(u < 0)| u^2 of errors `u` [B]; least where the tau-expectile is predicted."""
    return ((u < 0).float().sub(tau).abs() * u.square()).mean()


class _Reader(nn.Module):
    """int64 [B, T] padded tokens, int64 [B] lengths -> float32 [B, hidden]"""

    def __init__(self, vocabulary: int, cfg: IQL) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, cfg.embedding)
        self.recurrent = nn.GRU(cfg.embedding, cfg.hidden, batch_first=True)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        states, _ = self.recurrent(self.embedding(tokens))
        last: Tensor = states[torch.arange(len(tokens)), lengths - 1]
        return last


class _Value(nn.Module):
    """A number for each tuple of texts, each read by a reader of its own."""

    def __init__(self, vocabulary: int, cfg: IQL, texts: int) -> None:
        super().__init__()
        self.readers = nn.ModuleList(_Reader(vocabulary, cfg) for _ in range(texts))
        self.head = nn.Sequential(nn.Linear(texts * cfg.hidden, cfg.hidden), nn.ReLU(), nn.Linear(cfg.hidden, 1))

    def forward(self, *texts: tuple[Tensor, Tensor]) -> Tensor:
        read = [reader(*text) for reader, text in zip(self.readers, texts, strict=True)]
        return self.head(torch.cat(read, -1))[:, 0]  # type: ignore[no-any-return]


class Critic:
    """Q(s, a) and V(s) of texts. `CriticLearner` makes it; it is saved with whatever acts by it."""

    def __init__(self, tokenizer: Any, cfg: IQL, *, seed: int = 0) -> None:
        self.tokenizer, self.cfg = tokenizer, cfg
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.q, self.v = _Value(len(tokenizer), cfg, 2), _Value(len(tokenizer), cfg, 1)
        self._read: dict[str, list[int]] = {}

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """int64 [B, T] and [B]: the last tokens of each text, padded, and how many they are (at least 1)."""
        rows = [self._ids(text) for text in texts]
        padded = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        return padded, torch.tensor([len(row) for row in rows])

    def _ids(self, text: str) -> list[int]:
        if text not in self._read:
            ids = self.tokenizer.encode(text, add_special_tokens=False)[-self.cfg.longest :]
            self._read[text] = ids or [0]
        return self._read[text]

    @torch.no_grad()
    def advantages(self, turns: Sequence[Turn], actions: Sequence[Turn]) -> list[float]:
        """Q - V of each of these actions after this conversation."""
        state = state_of(turns, self.cfg.window)
        found = self.q(self.tokens([state] * len(actions)), self.tokens([action_of(a) for a in actions])) - self.v(self.tokens([state]))
        self._read.clear()
        return [float(value) for value in found]

    def state(self) -> dict[str, Any]:
        """The weights."""
        return {"q": self.q.state_dict(), "v": self.v.state_dict()}

    def take(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.q.load_state_dict(state["q"])
        self.v.load_state_dict(state["v"])

    def save(self, directory: str | Path) -> None:
        """Write it into a directory. Raises OSError where that cannot be done."""
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(path)
        (path / _FILE).write_text(json.dumps(asdict(self.cfg)))
        torch.save(self.state(), path / _WEIGHTS)

    @classmethod
    def load(cls, directory: str | Path) -> Critic:
        """What `save` wrote. Raises CheckpointError where it cannot be read."""
        from transformers import AutoTokenizer

        path = Path(directory)
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
            critic = cls(tokenizer, IQL(**json.loads((path / _FILE).read_text())))
            critic.take(torch.load(path / _WEIGHTS, weights_only=True))
        except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
            raise CheckpointError(f"{path} cannot be read as a critic: {error!r}") from error
        return critic


class CriticLearner:
    """Owns a critic's weights. A run saves and restores it like a learner."""

    def __init__(self, tokenizer: Any, cfg: IQL = IQL(), *, seed: int = 0) -> None:
        self.cfg = cfg
        self.critic = Critic(tokenizer, cfg, seed=seed)
        self.target = copy.deepcopy(self.critic.q).requires_grad_(False)
        self._weights = [*self.critic.q.parameters(), *self.critic.v.parameters()]
        self._optimizer = torch.optim.Adam(self._weights, lr=cfg.lr)

    def step(self, batch: Sequence[Transition]) -> dict[str, float]:
        """One step on both losses, after which the target follows."""
        critic, cfg = self.critic, self.cfg
        states, actions, after = (critic.tokens([getattr(t, name) for t in batch]) for name in ("state", "action", "following"))
        reward, done = (torch.tensor([float(getattr(t, name)) for t in batch]) for name in ("reward", "done"))
        value = critic.v(states)
        with torch.no_grad():
            goal = reward + cfg.gamma * (1 - done) * critic.v(after)
            known = self.target(states, actions)
        v_loss = expectile_loss(known - value, cfg.tau)
        q_loss = F.mse_loss(critic.q(states, actions), goal)
        self._optimizer.zero_grad()
        (v_loss + q_loss).backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self._weights, math.inf)
        self._optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(self.target.parameters(), critic.q.parameters(), strict=True):
                mine.lerp_(theirs, cfg.alpha)
        figures = {"loss": v_loss + q_loss, "v_loss": v_loss, "q_loss": q_loss, "value": value.mean(), "grad_norm": norm}
        return {name: float(figure.detach()) for name, figure in figures.items()} | {"skipped": 0.0}

    def train(self, memory: Sequence[Transition], steps: int, *, seed: int) -> dict[str, float]:
        """`steps` steps on batches drawn from the memory; the means of what they log. Raises ConfigError for an empty memory."""
        if not memory:
            raise ConfigError("the memory holds no step to learn from; log some episodes, or give expert episodes")
        rng = random.Random(derive_seed("iql", seed))
        logged = [self.step(rng.choices(memory, k=self.cfg.batch_size)) for _ in range(steps)]
        return {name: fmean(each[name] for each in logged) for name in logged[0]}

    def sample(self) -> Critic:
        """A critic with a copy of the present weights."""
        critic = Critic(self.critic.tokenizer, self.cfg)
        critic.take(copy.deepcopy(self.critic.state()))
        return critic

    def save_state(self, directory: str | Path) -> None:
        """All that training goes on from."""
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        state = {"critic": self.critic.state(), "target": self.target.state_dict(), "optimizer": self._optimizer.state_dict()}
        torch.save(state, path / _STATE)

    def load_state(self, directory: str | Path) -> None:
        """What `save_state` wrote. Raises CheckpointError where it cannot be read."""
        try:
            state = torch.load(Path(directory) / _STATE, weights_only=True)
            self.critic.take(state["critic"])
            self.target.load_state_dict(state["target"])
            self._optimizer.load_state_dict(state["optimizer"])
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{directory} cannot be resumed from: {error}") from error
