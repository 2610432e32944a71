"""What is kept of episodes, and why the rest was dropped.

    kept, audit = filters.select(episodes, filters.success(), filters.max_turns(20), filters.deduplicate())
    run.event("filter", **audit.summary())

A filter looks at a page of episodes at a time and says of each why it is to be dropped. Filters are applied in their order,
each to what the one before it kept, and hold nothing back, so that a stream may be longer than memory; only those that
compare episodes with one another remember something of each. Test tasks are refused: what is filtered is to be learned from.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from whet.data.audit import Audit
from whet.data.duplicates import Near, runs, words
from whet.data.provenance import outcome_of, tools_of
from whet.data.rows import HasChat, render, to_examples
from whet.errors import ConfigError, SplitError
from whet.runs.codec import to_json
from whet.types import Episode, Example, Task, Turn

if TYPE_CHECKING:
    from whet.envs.base import EnvFactory

Check = Callable[[Sequence[Episode]], Sequence[str | None]]
"""Of each episode the reason to drop it (`kind`, or `kind: detail`), or None."""
PAGE = 64


@dataclass(frozen=True)
class Filter:
    """A name for the audit, and what makes a check that has seen nothing yet."""

    name: str
    start: Callable[[], Check]


class Verdict(Protocol):
    """A judge's opinion of an episode; a score of None says that it could not form one."""

    @property
    def score(self) -> float | None: ...
    @property
    def reason(self) -> str: ...


Judge = Callable[[list[Episode]], Sequence[Verdict]]
"""Gives a verdict on each episode, in their order."""


def apply(
    episodes: Iterable[Episode], filters: Sequence[Filter], *, page: int = PAGE, allow_test: bool = False
) -> tuple[Iterator[Episode], Audit]:
    """The episodes that all filters keep, and the audit, which is complete when they have been read to their end.

    Filters see `page` episodes at a time, which is what a judge is asked about at once. Reading raises SplitError for a
    test task, unless `allow_test`.
    """
    if page < 1:
        raise ConfigError(f"page is {page}; expected 1 or more")
    audit = Audit.of([one.name for one in filters])
    return _passed(iter(episodes), [one.start() for one in filters], audit, page, allow_test), audit


def select(episodes: Iterable[Episode], *filters: Filter, page: int = PAGE) -> tuple[list[Episode], Audit]:
    """As `apply`, for episodes in memory: what was kept, and the complete audit."""
    kept, audit = apply(episodes, filters, page=page)
    return list(kept), audit


def _passed(episodes: Iterator[Episode], checks: Sequence[Check], audit: Audit, page: int, allow_test: bool) -> Iterator[Episode]:
    while left := list(itertools.islice(episodes, page)):
        for episode in left:
            if episode.task.split == "test" and not allow_test:
                raise SplitError(
                    f"episode {episode.id!r} is of the test task {episode.task.id!r}, and what filters keep is learned from; "
                    "leave out test tasks (on the command line: --split train)"
                )
            audit.before.add(episode)
        for step, check in enumerate(checks):
            reasons = check(left)
            if len(reasons) != len(left):
                raise ConfigError(
                    f"filter {audit.steps[step].name!r} gave {len(reasons)} answers about {len(left)} episodes; expected one for each"
                )
            for episode, reason in zip(left, reasons):
                if reason is None:
                    audit.steps[step].after.add(episode)
                else:
                    audit.drop(step, episode, reason)
            left = [episode for episode, reason in zip(left, reasons) if reason is None]
        yield from left


# -- outcome -------------------------------------------------------------------------------------------------------------


def rule(name: str, check: Callable[[Episode], str | None]) -> Filter:
    """A filter by a function of one episode that gives the reason to drop it, or None."""
    return Filter(name, lambda: lambda episodes: [check(episode) for episode in episodes])


def success() -> Filter:
    """Keeps what the environment counted as a success."""

    def check(episode: Episode) -> str | None:
        outcome = outcome_of(episode)
        return None if outcome == "success" else {"failure": "no success", "unknown": "outcome unknown", "error": "error"}[outcome]

    return rule("success", check)


def min_reward(least: float) -> Filter:
    """Keeps episodes with at least this reward. Raises ConfigError for NaN."""
    if math.isnan(least):
        raise ConfigError(f"least is {least}; expected a number")

    def check(episode: Episode) -> str | None:
        if outcome_of(episode) in ("unknown", "error") and not (episode.ok and episode.reward):
            return "outcome unknown" if episode.ok else "error"
        return None if episode.reward >= least else f"reward below {least:g}"

    return rule(f"min_reward({least:g})", check)


# -- rules ---------------------------------------------------------------------------------------------------------------


def readable() -> Filter:
    """Keeps episodes in which every answer says or calls something, and calls are readable and of tools that were offered."""

    def check(episode: Episode) -> str | None:
        offered = {tool.name for tool in tools_of(episode)}
        said = [turn for turn in episode.turns if turn.trained]
        if not said:
            return "no answer"
        for turn in said:
            if not turn.content.strip() and not turn.tool_calls:
                return "empty answer"
            for call in turn.tool_calls:
                if call.error is not None:
                    return f"unreadable tool call: {call.error}"
                if offered and call.name not in offered:
                    return f"call of a tool that was not offered: {call.name}"
        return None

    return rule("readable", check)


def _length(name: str, measure: Callable[[Episode], int], limit: int, *, least: bool) -> Filter:
    if limit < 0:
        raise ConfigError(f"{name} is {limit}; expected 0 or more")
    what = name.partition("_")[2]
    reason = f"fewer {what} than {limit:,}" if least else f"more {what} than {limit:,}"
    return rule(f"{name}({limit})", lambda e: None if (measure(e) >= limit if least else measure(e) <= limit) else reason)


def max_turns(n: int) -> Filter:
    """Keeps episodes with at most this many turns of the assistant."""
    return _length("max_turns", lambda e: e.n_actions, n, least=False)


def min_turns(n: int) -> Filter:
    """Keeps episodes with at least this many turns of the assistant."""
    return _length("min_turns", lambda e: e.n_actions, n, least=True)


def max_characters(n: int) -> Filter:
    """Keeps episodes whose turns have at most this many characters, calls included."""
    return _length("max_characters", lambda e: sum(len(_said(turn)) for turn in e.turns), n, least=False)


def max_tokens(n: int, policy: HasChat | None = None) -> Filter:
    """Keeps episodes whose longest walk has at most this many tokens.

    Turns without tokens are rendered with the policy's chat format. Without a policy, an episode that has no tokens raises
    ConfigError.
    """

    def measure(episode: Episode) -> int:
        if policy is not None:
            return max((sum(len(ids) for _, ids in render(w, policy.chat, tools=tools_of(episode))) for w in episode.walks()), default=0)
        if not any(turn.tokens for turn in episode.turns) and episode.n_actions:
            raise ConfigError(f"episode {episode.id!r} is text without tokens; give max_tokens a policy to count them by (--model)")
        return max((sum(len(turn.tokens) for turn in walk) for walk in episode.walks()), default=0)

    return _length("max_tokens", measure, n, least=False)


# -- duplicates and overlap ----------------------------------------------------------------------------------------------


def deduplicate(near: float | None = None) -> Filter:
    """Keeps the first of episodes with the same conversation; with `near`, of those at least that similar.

    Similarity is the Jaccard index of runs of five words (see `whet.data.duplicates`), over everything but system prompts;
    it is in (0, 1]. Remembers 0.1 kB of each kept episode, with `near` 1.5 kB. Raises ConfigError for another `near`.
    """
    if near is not None and not 0 < near <= 1:
        raise ConfigError(f"near is {near!r}; expected a similarity in (0, 1], such as 0.8")

    def start() -> Check:
        seen: dict[bytes, None] = {}
        like = Near(near) if near is not None else None

        def reason(episode: Episode) -> str | None:
            key = hashlib.blake2b(to_json([(t.role, _said(t), t.parent) for t in episode.turns]).encode(), digest_size=16).digest()
            if key in seen:
                return "duplicate"
            if like is not None and like.add("\n".join(_said(t) for t in episode.turns if t.role != "system")) is not None:
                return f"similar by {near:g} or more"
            seen[key] = None
            return None

        return lambda episodes: [reason(episode) for episode in episodes]

    return Filter("deduplicate" if near is None else f"deduplicate(near={near:g})", start)


def no_overlap(held_out: Iterable[Task | Episode | str], *, n: int = 13, env: EnvFactory | None = None, shortest: int = 5) -> Filter:
    """Drops episodes that share a run of `n` words with a held-out task (13-grams as for GPT-3, arXiv:2005.14165, appendix C).

    A held-out text is a string; what an episode shows before the first answer, without the system prompt; or what a task's
    environment shows at its beginning, which needs `env`. One with fewer than `n` words counts whole, down to `shortest`
    words, below which it is passed over. Raises ConfigError for a task without `env`, or where no text is long enough.
    """
    if n < 1 or shortest < 1:
        raise ConfigError(f"n is {n} and shortest is {shortest}; expected 1 or more")
    grams: dict[int, set[int]] = {}
    for text in _texts(held_out, env):
        found = words(text)
        if len(found) >= min(n, shortest):
            grams.setdefault(min(n, len(found)), set()).update(runs(found, n).tolist())
    if not grams:
        raise ConfigError(f"no held-out text has {min(n, shortest)} words or more, so nothing could overlap with one")

    def check(episode: Episode) -> str | None:
        # a word that no text has keeps runs from going on from one turn to the next
        found = [word for turn in episode.turns for word in (*words(_said(turn)), "")]
        for width, known in grams.items():
            own = runs(found, width).tolist() if len(found) >= width else []
            if not known.isdisjoint(own):
                at = next(i for i, gram in enumerate(own) if gram in known)
                return f"overlaps a held-out task: {' '.join(found[at : at + width])}"
        return None

    return rule(f"no_overlap(n={n})", check)


def _texts(held_out: Iterable[Task | Episode | str], env: EnvFactory | None) -> Iterator[str]:
    for one in held_out:
        if isinstance(one, str):
            yield one
        elif isinstance(one, Episode):
            begin = itertools.takewhile(lambda turn: not turn.trained, one.turns)
            yield "\n".join(turn.content for turn in begin if turn.role != "system")
        elif env is None:
            raise ConfigError(f"what task {one.id!r} shows is known to its environment alone; give no_overlap `env`, or texts")
        else:
            yield first_sight(one, env)


def first_sight(task: Task, env: EnvFactory) -> str:
    """What an environment shows at the beginning of a task, its system prompt left out."""
    from whet.policies.loop import run_sync

    async def look() -> str:
        made = env.of(task)()
        try:
            seen = made.reset(task)
            turns = await seen if inspect.isawaitable(seen) else seen
            return turns if isinstance(turns, str) else "\n".join(turn.content for turn in turns if turn.role != "system")
        finally:
            close: Callable[[], Any] = made.close
            if inspect.isawaitable(closing := close()):
                await closing

    return run_sync(look())


# -- by a model ----------------------------------------------------------------------------------------------------------


def perplexity(
    policy: Any,
    score: Callable[[Sequence[Example], Any], Sequence[Example]],
    *,
    at_most: float = math.inf,
    at_least: float = 0.0,
) -> Filter:
    """Keeps episodes whose actions have a perplexity between the two bounds under a policy with local weights.

    `score(rows, policy)` fills in the rows' reference log-probs: `whet.learn.with_reference`. The perplexity is
    exp(-mean log-prob) over the action tokens of all walks. Raises ConfigError for bounds that nothing can meet.
    """
    if not at_least <= at_most or at_most <= 0:
        raise ConfigError(f"at_least is {at_least} and at_most is {at_most}; expected 0 <= at_least <= at_most")

    def check(episodes: Sequence[Episode]) -> list[str | None]:
        made = [to_examples(episode, policy, tools=tools_of(episode)) for episode in episodes]
        scored = iter(score([row for rows in made for row in rows], policy))
        return [_judge_perplexity([next(scored) for _ in rows], at_least, at_most) for rows in made]

    return Filter(f"perplexity({policy.version}, {at_least:g} to {at_most:g})", lambda: check)


def _judge_perplexity(rows: Sequence[Example], at_least: float, at_most: float) -> str | None:
    if not rows:
        return "no answer"
    logprobs = np.concatenate([row.reference[row.mask] for row in rows if row.reference is not None])
    found = float(np.exp(-logprobs.astype(np.float64).mean()))
    if found > at_most:
        return f"perplexity above {at_most:g}: {found:.4g}"
    return f"perplexity below {at_least:g}: {found:.4g}" if found < at_least else None


def judged(judge: Judge, *, at_least: float, name: str = "judged") -> Filter:
    """Keeps episodes that a judge gives at least this score; one that it cannot judge is dropped, too."""

    def check(episodes: Sequence[Episode]) -> list[str | None]:
        verdicts = judge(list(episodes))
        return [_opinion(verdict, at_least) for verdict in verdicts]

    return Filter(f"{name}(at_least={at_least:g})", lambda: check)


def _opinion(verdict: Verdict, at_least: float) -> str | None:
    if verdict.score is None or math.isnan(verdict.score):
        return f"not judged: {verdict.reason}"
    return None if verdict.score >= at_least else f"judged below {at_least:g}: {verdict.score:g}, {verdict.reason}"


def _said(turn: Turn) -> str:
    """What a turn says and calls."""
    if not turn.tool_calls:
        return turn.content
    calls = [[call.name, _plain(call.arguments)] for call in turn.tool_calls]
    return f"{turn.content}\n{to_json(calls)}"


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: arguments[key] for key in sorted(arguments)}
