"""What preference losses learn from: two episodes side by side, and which of their actions the preference is about.

    outcome     one episode against another of its task: the expert's against one's own
    extremes    the best of several against the worst, by rewards or by anything else: perplexity, labels, a judge's ratings
    step        how two episodes go on from actions that both begin with
    segment     as many actions of each, from the one where the worse episode went wrong
    siblings    the best action in a state against the worst, by what became of them
    unpaired    rows that are good or bad by themselves, each beside a mismatched one (`learn.kto`)

Builders give contrasts, of episodes; `to_pairs` makes rows of them. What an episode is worth is its reward, unless the caller says
otherwise (`worth`): a label, a rating of `rewards.judges.rate`, a preference of `prefer`.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from whet.data.rows import HasChat, actions, cut, to_examples
from whet.errors import ConfigError, did_you_mean
from whet.types import Episode, Example, Pair

if TYPE_CHECKING:
    from whet.envs.base import EnvFactory
    from whet.tools.function import Tool

Weigh = Callable[[int], Sequence[float]]
"""Number of an episode's actions -> what each of them weighs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Contrast:
    """A better and a worse episode of one task. Raises ConfigError for episodes of different tasks."""

    better: Episode
    worse: Episode
    margin: float
    """By how much, in units of what they were compared by."""
    kind: str
    """The builder that found it."""
    start: int = 0
    """The first action that the preference is about; those before it are the same in both."""
    stop: int | None = None
    """The first action that it is not about any more."""

    def __post_init__(self) -> None:
        if self.better.task.id != self.worse.task.id:
            raise ConfigError(f"a pair needs two episodes of one task, not of {self.better.task.id!r} and {self.worse.task.id!r}")

    def pair(self, policy: HasChat, tools: Sequence[Tool] = (), weigh: Weigh | None = None) -> Pair:
        """The two as rows. Raises ConfigError for episodes with forks, and where they do not begin with the same tokens."""
        chosen, rejected = (self._row(episode, policy, tools, weigh) for episode in (self.better, self.worse))
        begin = min(int(np.argmax(row.mask)) for row in (chosen, rejected))
        if self.start and not np.array_equal(chosen.tokens[:begin], rejected.tokens[:begin]):
            raise ConfigError(
                f"episodes {self.better.id!r} and {self.worse.id!r} do not share what comes before their actions {self.start + 1}, token "
                "for token, as a pair of this kind must; begin one from a prefix of the other (rollout(prefix=...))"
            )
        return Pair(chosen=chosen, rejected=rejected, margin=self.margin, origin=self.better.task.id, kind=self.kind)

    def _row(self, episode: Episode, policy: HasChat, tools: Sequence[Tool], weigh: Weigh | None) -> Example:
        weights = weigh(episode.n_actions) if weigh else 1.0
        rows = to_examples(episode, policy, weight=weights, tools=tools, start=self.start, stop=self.stop)
        if len(rows) != 1:
            raise ConfigError(f"episode {episode.id!r} gives {len(rows)} rows; a pair needs exactly one: no forks, some answer")
        return rows[0]


def to_pairs(contrasts: Iterable[Contrast], policy: HasChat, env: EnvFactory | None = None, *, weigh: Weigh | None = None) -> list[Pair]:
    """The contrasts as rows, with the tools of their task's environment. Raises as `Contrast.pair` does."""
    return [c.pair(policy, env.of(c.better.task).tools if env else (), weigh) for c in contrasts]


def outcome(
    one: Episode,
    other: Episode,
    *,
    worth: tuple[float, float] | None = None,
    least: float = 0.0,
    max_extra_turns: int | None = None,
    kind: str = "outcome",
) -> list[Contrast]:
    """The better of two against the other; none where they differ by no more than `least`.

    With `max_extra_turns`, a loser that went on for long is cut to that many assistant turns more than the winner has, so that a
    preference is not decided by length alone.
    """
    a, b = worth or (one.reward, other.reward)
    if abs(a - b) <= least:
        return []
    better, worse = (one, other) if a > b else (other, one)
    if max_extra_turns is not None:
        worse = cut(worse, better.n_actions + max_extra_turns)
    return [Contrast(better=better, worse=worse, margin=abs(a - b), kind=kind)]


def extremes(
    episodes: Sequence[Episode],
    worth: Sequence[float] | None = None,
    *,
    least: float = 0.0,
    max_extra_turns: int | None = None,
    kind: str = "extremes",
) -> list[Contrast]:
    """The best of a task's episodes against its worst; none where they differ by no more than `least`."""
    values = [episode.reward for episode in episodes] if worth is None else list(worth)
    if len(values) != len(episodes):
        raise ConfigError(f"there are {len(episodes)} episodes and {len(values)} values; expected one for each")
    if not episodes:
        return []
    best, worst = max(range(len(values)), key=values.__getitem__), min(range(len(values)), key=values.__getitem__)
    both = values[best], values[worst]
    return outcome(episodes[best], episodes[worst], worth=both, least=least, max_extra_turns=max_extra_turns, kind=kind)


def step(
    one: Episode,
    other: Episode,
    at: int,
    *,
    worth: tuple[float, float] | None = None,
    least: float = 0.0,
    length: int | None = None,
    kind: str = "step",
) -> list[Contrast]:
    """How two episodes go on that share their first `at` actions: to their ends, or for `length` actions; none for a tie.

    The preference must hold by rewards and, where `worth` is given (of the two steps, say), by that as well.
    """
    found = outcome(one, other, least=least, kind=kind)
    if worth is not None:
        found = [c for c in found for w in outcome(one, other, worth=worth, least=least) if w.better is c.better]
    stop = None if length is None else at + length
    return [dataclasses.replace(c, start=at, stop=stop) for c in found if min(one.n_actions, other.n_actions) > at]


def segment(one: Episode, other: Episode, at: int, *, least: float = 0.0) -> list[Contrast]:
    """As `step`, but of each episode equally many actions from `at` on, as SDPO (arXiv 2501.01821) has it.

    There `at` is where a judge saw the worse episode go wrong, and the other was sampled from that state; of equal lengths, what
    DPO cannot normalise cancels.
    """
    return step(one, other, at, length=min(one.n_actions, other.n_actions) - at, least=least, kind="segment")


def siblings(
    episodes: Iterable[Episode],
    worth: Callable[[Episode], float] | None = None,
    *,
    least: float = 0.0,
    at_least: float = -math.inf,
) -> list[Contrast]:
    """In every state from which episodes of a task went on in several ways, the best action against the worst.

    An action is worth the mean of the episodes that took it; the best of them stands for it where it is preferred, the worst where it
    is not. Pairs whose better action is worth less than `at_least`, or that differ by no more than `least`, are left out.
    """
    value = worth or (lambda episode: episode.reward)
    states: dict[tuple[str, tuple[object, ...]], dict[object, list[Episode]]] = defaultdict(lambda: defaultdict(list))
    for episode in episodes:
        taken = actions(episode)
        for k, action in enumerate(taken):
            states[episode.task.id, taken[:k]][action].append(episode)
    found = []
    for (_, before), ways in states.items():
        means = {action: fmean(map(value, each)) for action, each in ways.items()}
        best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        one, other = max(ways[best], key=value), min(ways[worst], key=value)
        if means[best] >= at_least:
            found += [
                dataclasses.replace(c, start=len(before), stop=len(before) + 1)
                for c in outcome(one, other, worth=(means[best], means[worst]), least=least, kind="siblings")
            ]
    return found


KINDS = ("outcome", "extremes", "step", "segment", "siblings")


def contrasts(episodes: Sequence[Episode], kinds: Sequence[str] = KINDS, *, least: float = 0.0) -> list[Contrast]:
    """What these builders find among stored episodes of one task, by their rewards; what failed to run is left out.

    `outcome` holds the expert's episodes (their `actor`) against the others, `step` and `segment` an episode that was begun from another
    one's prefix (its `fork`) against that one. Raises ConfigError for an unknown kind.
    """
    if unknown := set(kinds) - set(KINDS):
        raise ConfigError(f"unknown kind of pair {min(unknown)!r}. {did_you_mean(min(unknown), KINDS)}")
    good = [episode for episode in episodes if episode.ok and episode.n_actions]
    experts = [episode for episode in good if episode.tags.get("actor") == "expert"]
    known, forks = {episode.id: episode for episode in good}, [(e, e.tags["fork"]) for e in good if "fork" in e.tags]
    begun = [(known[fork["episode"]], episode, int(fork["actions"])) for episode, fork in forks if fork["episode"] in known]
    found = {
        "outcome": lambda: [c for a in experts for b in good if b not in experts for c in outcome(a, b, least=least)],
        "extremes": lambda: extremes(good, least=least),
        "step": lambda: [c for one, other, at in begun for c in step(one, other, at, least=least)],
        "segment": lambda: [c for one, other, at in begun for c in segment(one, other, at, least=least)],
        "siblings": lambda: siblings(good, least=least),
    }
    return [c for kind in dict.fromkeys(kinds) for c in found[kind]()]


def unpaired(rows: Sequence[Example], good: Sequence[bool], *, desirable: float = 1.0, undesirable: float = 1.0) -> list[Pair]:
    """Rows that are good or bad by themselves, as `learn.kto` takes them.

    Of each pair `chosen` is the row, its tokens weighing `desirable` or `-undesirable`; `rejected`, of weight 0, is mismatched:
    the row's prompt (all before its first masked-in token) with the answer of the row before it that has another prompt. From
    those the loss takes its zero. Raises ConfigError for another number of labels than rows, and for weights below 0.
    """
    if len(rows) != len(good):
        raise ConfigError(f"there are {len(rows)} rows and {len(good)} labels; expected one for each")
    if desirable < 0 or undesirable < 0:
        raise ConfigError(f"desirable is {desirable} and undesirable is {undesirable}; expected 0 or more")
    begins = [int(np.argmax(row.mask)) for row in rows]
    prompts = [row.tokens[:begin].tobytes() for row, begin in zip(rows, begins, strict=True)]
    pairs = []
    for i, (row, is_good) in enumerate(zip(rows, good, strict=True)):
        others = ((i - k) % len(rows) for k in range(1, len(rows) + 1))
        other = next((j for j in others if prompts[j] != prompts[i]), i - 1)
        weight = desirable if is_good else -undesirable
        mismatched = _joined(row, begins[i], rows[other], begins[other])
        pairs.append(Pair(chosen=_weighing(row, weight), rejected=_weighing(mismatched, 0.0), margin=weight, origin=row.origin))
    return pairs


def _weighing(row: Example, weight: float) -> Example:
    return dataclasses.replace(row, weights=np.where(row.mask, weight, 0.0).astype(np.float32))


def _joined(row: Example, begin: int, other: Example, other_begin: int) -> Example:
    """The first row's prompt with the other's answer; without log-probs, which belonged to other contexts."""
    tokens = np.concatenate([row.tokens[:begin], other.tokens[other_begin:]])
    mask = np.concatenate([row.mask[:begin], other.mask[other_begin:]])
    return Example(tokens=tokens, mask=mask, weights=mask.astype(np.float32), origin=f"{row.origin} with {other.origin}")
