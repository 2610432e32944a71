"""Several environments in one run: `load_env("search:hops=1-2 + babyai:level=GoToLocal + 2*sql")`.

    A + B + C     tasks of each in turn
    2*A + B       two of A for each of B
    mix:A + B     the same with the name that `whet envs` lists

The parts are joined by a plus sign between spaces, so options keep their commas, colons and equals signs. Every episode is
played by its task's own environment: its instructions, tools, limits and way of being called. Tasks keep the ids that
they have without the mixture, so results pair with those of single environments.
"""

from __future__ import annotations

import contextlib
import functools
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from whet.envs.base import Action, Env, EnvFactory
from whet.errors import ConfigError, EnvError, did_you_mean
from whet.tools.function import Tool
from whet.types import SPLITS, Split, Task, Turn

_JOINT = re.compile(r"\s\+\s")
_WEIGHT = re.compile(r"\s*(\d+)\s*\*\s*(.*)", re.DOTALL)


class Mixture(EnvFactory):
    """Tasks of several environments in turn, each episode in its own: `search:hops=1-2 + babyai + 2*sql` (2* is a weight).

    Of n tasks, each part has a share by its weight; where a part's split is finite and used up, the others go on.
    `Task.env` names the part: the environment's name or, where two parts have the same, the part as it was written.
    Their tasks are told apart by the same text before the id where the ids would be equal.
    """

    parts: tuple[EnvFactory, ...]
    weights: tuple[int, ...]

    def __init__(self, parts: Sequence[EnvFactory], weights: Sequence[int] | None = None) -> None:
        """Raises ConfigError for fewer than two parts, two equal parts, and weights that are not one positive whole number each."""
        weights = tuple(weights) if weights is not None else (1,) * len(parts)
        if len(parts) < 2:
            raise ConfigError(f"a mixture has {len(parts)} environments; expected at least two, such as 'search:hops=1 + babyai'")
        if len(weights) != len(parts) or not all(type(w) is int and w > 0 for w in weights):
            raise ConfigError(f"a mixture of {len(parts)} environments has the weights {weights}; expected a whole number above 0 for each")
        labels = _labels(parts)
        shown = [part.spec or part.name for part in parts]
        spec = " + ".join(text if w == 1 else f"{w}*{text}" for text, w in zip(shown, weights)) if all(p.spec for p in parts) else ""
        for name, value in {
            "parts": tuple(parts),
            "weights": weights,
            "_by_label": dict(zip(labels, parts)),
            "_renamed": _renamed(labels, parts),
        }.items():
            object.__setattr__(self, name, value)
        super().__init__(_player(self), {"mixture": self}, spec)

    @classmethod
    def parse(cls, text: str) -> Mixture:
        """The mixture that `text` describes. Raises ConfigError, as `load_env` does for its parts."""
        from whet.envs.registry import load_env

        parts, weights = [], []
        for piece in _JOINT.split(text):
            match = _WEIGHT.fullmatch(piece)
            weight, spec = (int(match[1]), match[2]) if match else (1, piece)
            if not spec.strip():
                raise ConfigError(f"the mixture {text!r} has an empty part; expected environments joined by ' + '")
            if weight < 1:
                raise ConfigError(f"{piece.strip()!r} in the mixture {text!r} has weight {weight}; expected a whole number above 0")
            parts.append(load_env(spec.strip()))
            weights.append(weight)
        return cls(parts, weights)

    @property
    def envs(self) -> tuple[str, ...]:
        return tuple(self._by_label)

    @functools.cached_property
    def tools(self) -> tuple[Tool, ...]:
        """Raises ConfigError: which tools there are depends on the task."""
        raise ConfigError("a mixture has no tools of its own; ask for those of a task's environment, `env.of(task).tools`")

    @property
    def cast(self) -> Mapping[str, str]:
        """Who plays roles in the parts. A role that others play elsewhere is named with its part."""
        played = [(role, label, spec) for label, part in self._by_label.items() for role, spec in part.cast.items()]
        players = {role: {spec for other, _, spec in played if other == role} for role, _, _ in played}
        return {role if len(players[role]) == 1 else f"{role} of {label}": spec for role, label, spec in played}

    def of(self, task: Task) -> EnvFactory:
        """The part that plays this task. Raises ConfigError for a task of none of them."""
        if task.env not in self._by_label:
            raise ConfigError(f"task {task.id!r} is of no environment in this mixture. {did_you_mean(task.env, self._by_label)}")
        return self._by_label[task.env]

    def tasks(self, split: Split, n: int, start: int = 0) -> tuple[Task, ...]:
        """Tasks `start` to `start + n` of the parts' tasks in turn. Raises as `EnvFactory.tasks`."""
        if split not in SPLITS:
            raise ConfigError(f"unknown split {split!r}. {did_you_mean(split, SPLITS)}")
        found: list[tuple[Task, ...]] = [()] * len(self.parts)
        sizes: list[int | None] = [None] * len(self.parts)
        while True:
            order = _turns(self.weights, sizes, start + n)
            wanted = Counter(order)
            short = False
            for i, part in enumerate(self.parts):
                if len(found[i]) < wanted[i]:
                    found[i] = part.tasks(split, wanted[i])
                if len(found[i]) < wanted[i]:
                    sizes[i], short = len(found[i]), True
            if not short:
                break
        seen: Counter[int] = Counter()
        chosen = []
        for place, i in enumerate(order):
            if place >= start:
                chosen.append(self._relabel(i, found[i][seen[i]]))
            seen[i] += 1
        return tuple(chosen)

    def _relabel(self, i: int, task: Task) -> Task:
        label = self.envs[i]
        id = f"{label}/{task.id}" if label in self._renamed else task.id
        return task if (task.env, task.id) == (label, id) else replace(task, env=label, id=id)

    _by_label: dict[str, EnvFactory]
    _renamed: frozenset[str]


def _labels(parts: Sequence[EnvFactory]) -> list[str]:
    """What `Task.env` is for the tasks of each part. Raises ConfigError where two could not be told apart."""
    counts = Counter(part.name for part in parts)
    labels = [part.name if counts[part.name] == 1 else part.spec or part.name for part in parts]
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if twice:
        raise ConfigError(f"the mixture has {twice[0]!r} twice; give it a weight instead (2*{twice[0]}), or other options")
    for part in parts:
        if isinstance(part, Mixture):
            raise ConfigError(f"{part.spec or part.name!r} is a mixture itself; name its environments side by side")
    return labels


def _renamed(labels: Sequence[str], parts: Sequence[EnvFactory]) -> frozenset[str]:
    """The labels of parts of one name that number their tasks alike, whatever their options are."""
    first: dict[str, str] = {}
    renamed = set()
    counts = Counter(part.name for part in parts)
    for label, part in zip(labels, parts):
        if counts[part.name] == 1:
            continue
        for id in _first_ids(part):
            if (other := first.setdefault(id, label)) != label:
                renamed |= {label, other}
    return frozenset(renamed)


def _first_ids(part: EnvFactory) -> set[str]:
    """The id of the first task of each split that the environment has."""
    ids: set[str] = set()
    for split in SPLITS:
        with contextlib.suppress(ConfigError):  # a benchmark that has test tasks only may refuse the others
            ids |= {task.id for task in part.tasks(split, 1)}
    return ids


def _turns(weights: Sequence[int], sizes: Sequence[int | None], n: int) -> list[int]:
    """Whose task is the next, n times: always the part that is furthest behind its share of those that have tasks left."""
    given = [0] * len(weights)
    order: list[int] = []
    while len(order) < n:
        left = [i for i, size in enumerate(sizes) if size is None or given[i] < size]
        if not left:
            break
        # Ends of the parts' tasks on a line of one round: (2 given + 1) / (2 weight) spreads a heavy part over the round.
        i = min(left, key=lambda i: ((2 * given[i] + 1) / (2 * weights[i]), i))
        given[i] += 1
        order.append(i)
    return order


class _Player(Env):
    """An environment that becomes the one of the task that it is reset to; for those who do not ask `Mixture.of`."""

    name = "mix"

    def __init__(self, mixture: Mixture) -> None:
        self._mixture = mixture
        self._inner: Env | None = None

    def tasks(self, split: Split, n: int, start: int = 0) -> list[Task]:
        return list(self._mixture.tasks(split, n, start))

    def reset(self, task: Task) -> Any:
        inner = self._inner = self._mixture.of(task)()
        seen = inner.reset(task)
        # Some environments know their limits only now.
        for name in ("instructions", "max_turns", "max_tokens", "replayable", "inline", "step_timeout", "tool_timeout"):
            setattr(self, name, getattr(inner, name))
        return seen

    def step(self, action: Action) -> Any:
        return self._begun().step(action)

    @property
    def tools(self) -> tuple[Tool, ...]:
        return self._inner.tools if self._inner is not None else ()

    def random_action(self, rng: random.Random) -> Action | None:
        return self._begun().random_action(rng)

    def reflect(self, turns: tuple[Turn, ...]) -> str | None:
        return self._begun().reflect(turns)

    def close(self) -> None:
        if self._inner is not None:
            self._inner.close()

    def _begun(self) -> Env:
        if self._inner is None:
            raise EnvError("this mixture's episode has not begun; call reset(task) first")
        return self._inner


class _Guided(_Player):
    """A player where every part has an expert."""

    def expert(self, rng: random.Random) -> Action | None:
        return self._begun().expert(rng)


def _player(mixture: Mixture) -> type[Env]:
    """The player's class for these parts: what is said of it before a task is known holds for all of them."""
    classes = [part.cls for part in mixture.parts]
    base = _Guided if all(cls.expert is not Env.expert for cls in classes) else _Player
    most = {name: max(getattr(cls, name) for cls in classes) for name in ("max_turns", "max_tokens", "reset_timeout", "step_timeout")}
    told = {"inline": all(cls.inline for cls in classes), "replayable": all(cls.replayable for cls in classes)}
    return type("Mixture", (base,), {"name": "mix", **most, **told})
