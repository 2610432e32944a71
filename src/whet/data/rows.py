"""Episodes to training rows. Tokens that were sampled are taken as they are; only written text is ever tokenised.

A row is a walk of an episode from a root to a leaf. Its mask is true on the tokens of assistant turns and nowhere
else: what a template, an environment or another speaker put in is read by the model and never trained on.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from whet.errors import ConfigError
from whet.seeding import derive_seed
from whet.types import Episode, Example, Turn, chain

if TYPE_CHECKING:
    from whet.envs.base import EnvFactory
    from whet.policies.chat import ChatFormat
    from whet.tools.function import Tool

RowT = TypeVar("RowT")


class HasChat(Protocol):
    """What rows need of a policy: its chat format."""

    @property
    def chat(self) -> ChatFormat: ...


def to_examples(
    episode: Episode,
    policy: HasChat,
    *,
    weight: float | Sequence[float] = 1.0,
    tools: Sequence[Tool] = (),
    start: int = 0,
    stop: int | None = None,
) -> list[Example]:
    """One row for each walk of the episode, every masked-in token weighing `weight`, or what it says for the token's action.

    Of the walk's actions (its assistant turns, from 0), those from `start` on and before `stop` are masked in.

    Turns without tokens (from an expert, an endpoint or an import) are rendered with the policy's chat format, exactly
    as a rollout of that policy would have read them; `tools` are those whose schemas its prompt would have shown.
    `logprobs` are carried over only where all assistant turns of the walk have them, at one temperature; otherwise the
    row has none, and losses that need them refuse it. A walk without an action that is masked in gives no row. Raises ConfigError
    for a policy without a tokenizer, and for another number of weights than the walk has actions.
    """
    if not hasattr(policy, "chat"):
        raise ConfigError(
            f"policy {getattr(policy, 'version', policy)!r} works on text and has no tokenizer, so no training rows can be made for it; "
            "use local weights (a model's directory or hub id)"
        )
    rows = []
    for walk in episode.walks():
        spoken = [turn for turn in walk if turn.trained]
        weights = list(weight) if isinstance(weight, Sequence) else [weight] * len(spoken)
        if len(weights) != len(spoken):
            raise ConfigError(f"episode {episode.id!r} has {len(spoken)} actions on a walk and got {len(weights)} weights")
        learned = [w if start <= i < (len(spoken) if stop is None else stop) else None for i, w in enumerate(weights)]
        rows.append(_to_example(walk, episode.id, policy.chat, learned, tuple(tools)))
    return [row for row in rows if row]


def contexts(episode: Episode, policy: HasChat, *, tools: Sequence[Tool] = ()) -> list[tuple[Example, list[float]]]:
    """The episode's rows in the order of time, each with what its actions were paid; of an episode that did not fork.

    It has several where the environment began a new context (`Step.fresh`). Raises as `to_examples` does.
    """
    paid = [[turn.reward for turn in walk if turn.trained] for walk in episode.walks()]
    return list(zip(to_examples(episode, policy, tools=tools), [rewards for rewards in paid if rewards], strict=True))


def rows_of(episodes: Sequence[Episode], policy: HasChat, env: EnvFactory | None = None) -> list[Example]:
    """`to_examples` of every episode, with the tools of its task's environment; without tools where none is given.

    Raises ConfigError where there is nothing to learn.
    """
    rows = [row for episode in episodes for row in to_examples(episode, policy, tools=env.of(episode.task).tools if env else ())]
    if not rows:
        raise ConfigError(
            f"there is nothing to learn from: {len(episodes)} episodes are left, without an action; see what was dropped, and why"
        )
    return rows


def _to_example(
    walk: Sequence[Turn], origin: str, chat: ChatFormat, learned: Sequence[float | None], tools: tuple[Tool, ...]
) -> Example | None:
    """The walk as a row, whose actions have these weights; None where they are only read."""
    tokens: list[int] = []
    mask: list[bool] = []
    weights: list[float] = []
    logprobs: list[float] = []
    actions = iter(learned)
    for turn, ids in render(walk, chat, tools=tools):
        weight = next(actions) if turn.trained else None
        tokens += ids
        mask += [weight is not None] * len(ids)
        weights += [weight or 0.0] * len(ids)
        logprobs += turn.logprobs if turn.trained and turn.logprobs else [0.0] * len(ids)
    if not any(mask):
        return None
    spoken = [turn for turn in walk if turn.trained]
    temperatures = {turn.temperature or 1.0 for turn in spoken}  # log-probs of a greedy turn are those at temperature 1
    sampled = all(turn.logprobs for turn in spoken) and len(temperatures) == 1
    return Example(
        tokens=np.array(tokens, dtype=np.int64),
        mask=np.array(mask, dtype=np.bool_),
        weights=np.array(weights, dtype=np.float32),
        logprobs=np.array(logprobs, dtype=np.float32) if sampled else None,
        temperature=temperatures.pop() if sampled else 1.0,
        origin=origin,
    )


def turn_ends(row: Example) -> np.ndarray:
    """Where each assistant turn of the row has its last token, int64 [turns]."""
    spoken = np.flatnonzero(row.mask)
    return spoken[np.diff(spoken, append=len(row.mask) + 1) > 1]


def last_action(row: Example) -> Example:
    """The row with nothing but its last assistant turn in the loss: what came before is read alone."""
    ends = turn_ends(row)
    mask = row.mask.copy()
    mask[: ends[-2] + 1 if len(ends) > 1 else 0] = False
    return dataclasses.replace(row, mask=mask, weights=np.where(mask, row.weights, 0.0).astype(np.float32))


def render(walk: Sequence[Turn], chat: ChatFormat, *, tools: Sequence[Tool] = ()) -> list[tuple[Turn, tuple[int, ...]]]:
    """The tokens of each turn of a conversation; those that turns already hold are kept as they are.

    Turns that an environment put in between two assistant turns are read together: where none of them has tokens they
    are rendered together, and the tokens stand with the last of them. What follows the last assistant turn teaches
    nothing and is left out.
    """
    last = max((i for i, turn in enumerate(walk) if turn.trained), default=-1)
    rendered: list[tuple[Turn, tuple[int, ...]]] = []
    for spoken, run in itertools.groupby(walk[: last + 1], key=lambda turn: turn.trained):
        turns = list(run)
        if spoken:
            rendered += [(turn, turn.tokens or chat.answer(turn)) for turn in turns]
        elif any(turn.tokens for turn in turns):
            rendered += [(turn, turn.tokens) for turn in turns]
        elif not rendered:
            rendered.append((turns[-1], chat.open(turns, tools)))
        else:
            before = rendered[-1][1]
            rendered.append((turns[-1], chat.extend(turns, closed=before[-1] == chat.end)))
    return rendered


def cut(episode: Episode, n_actions: int) -> Episode:
    """The episode up to its `n_actions`-th assistant turn; for episodes without forks."""
    at = [i for i, turn in enumerate(episode.turns) if turn.trained]
    if len(at) <= n_actions:
        return episode
    return dataclasses.replace(episode, turns=episode.turns[: at[n_actions - 1] + 1] if n_actions > 0 else ())


def opening(episode: Episode) -> tuple[Turn, ...]:
    """The turns before the first action."""
    return episode.turns[: next((i for i, turn in enumerate(episode.turns) if turn.trained), len(episode.turns))]


def reopened(episode: Episode, turns: Sequence[Turn]) -> Episode:
    """The episode with these turns before its first action, as if its policy had been told something else; without forks.

    The opening is rendered anew for whatever policy the episode becomes a row of; actions keep their tokens but lose their
    log-probs, which belonged to the other prompt.
    """
    told = (dataclasses.replace(turn, tokens=()) for turn in turns)
    rest = (dataclasses.replace(turn, logprobs=()) for turn in episode.turns[len(opening(episode)) :])
    return dataclasses.replace(episode, turns=chain((*told, *rest)))


def actions(episode: Episode) -> tuple[object, ...]:
    """What the policy did, to tell episodes apart by: the tokens of its turns, or their text where they have none."""
    return tuple(turn.tokens or (turn.content, repr(turn.tool_calls)) for turn in episode.turns if turn.trained)


def different(episodes: Iterable[Episode], most: int) -> list[Episode]:
    """The first `most` of the episodes that differ in what the policy did."""
    found: dict[object, Episode] = {}
    for episode in episodes:
        found.setdefault(actions(episode), episode)
    return list(found.values())[:most]


def confidence(episode: Episode) -> float:
    """The length-normalised log-prob of what the policy did: the mean over its sampled tokens; -inf where none were sampled."""
    logprobs = [logprob for turn in episode.turns if turn.trained for logprob in turn.logprobs]
    return sum(logprobs) / len(logprobs) if logprobs else -math.inf


def batches(rows: Sequence[RowT], size: int, *, epochs: int = 1, seed: int = 0) -> Iterator[list[RowT]]:
    """All rows once per epoch, in batches of `size`, shuffled anew each epoch; the last batch may be smaller.

    The order depends on `seed` and the epoch alone, so an interrupted pass can be taken up again anywhere.
    """
    if size < 1:
        raise ConfigError(f"batch size is {size}; expected 1 or more")
    for epoch in range(epochs):
        order = list(range(len(rows)))
        random.Random(derive_seed("batches", seed, epoch)).shuffle(order)
        for start in range(0, len(order), size):
            yield [rows[i] for i in order[start : start + size]]
