"""Judges: a policy rates episodes, says whether they meet criteria, or prefers one of two. Any policy can judge.

    verdicts = rate(episodes, load_policy("openai:MODEL@URL"), env=env)
    kept = [e for e, verdict in zip(episodes, verdicts) if verdict.score is not None and verdict.score >= 4]

Each question shows the episode as text and ends with the form of the answer (`policies.forms`). Answers are read in the same
way whether a model wrote them or an environment's script (`script:judge`). An answer that cannot be read, or a question that
does not fit the judge's context, gives no score: `score` is None, `reason` says why, and `tally` counts them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from whet.envs.base import EnvFactory
from whet.errors import ConfigError
from whet.policies.ask import ask
from whet.policies.base import Policy, Sampling
from whet.policies.forms import PREFERENCE, RATING, YES_NO, Form, quote
from whet.transcript import transcript
from whet.types import Cost, Episode, Task, Turn

_log = logging.getLogger("whet.rewards")
RUBRIC = "Rate how well the assistant did what it was asked to do: 0 for nothing of it, 5 for all of it without a needless step."
CRITERIA = ("Did the assistant do what it was asked to do?", "Does all that the assistant says follow from what it was shown?")
SELF_CHECK = "You are the assistant. Did you do what you were asked to do?"
COMPARE = "Which of two ways of going on does better what the assistant was asked to do? Do not go by the order of the two."
SAMPLING = Sampling(temperature=0.0, max_tokens=256)
"""Judges answer greedily."""
_SHOWN = 80
"""Characters of an answer in a reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a judge said about an episode."""

    score: float | None
    """None where the judge gave no answer that can be read."""
    reason: str
    cost: Cost = Cost()


@dataclass(frozen=True, kw_only=True, slots=True)
class Preference:
    """What a judge said about two episodes, asked twice with their positions swapped.

    All three are 1 where the first episode of the pair is preferred, 0 where the second is, 0.5 for a tie, and None where the
    answer could not be read. `score` is the mean of the other two and needs both: a judge that goes by the position
    contradicts itself, which makes a tie.
    """

    score: float | None
    first: float | None
    """With the pair's first episode shown as A."""
    swapped: float | None
    """With it shown as B."""
    reason: str
    cost: Cost = Cost()


def rate(
    episodes: Sequence[Episode],
    judge: Policy,
    *,
    env: EnvFactory,
    rubric: str = RUBRIC,
    seed: int = 0,
    sampling: Sampling = SAMPLING,
) -> list[Verdict]:
    """Ratings from 0 to 5. Of an episode with forks the last walk is judged, as everywhere here. Raises what `ask` raises."""
    questions = [f"{rubric}\n\n{quote('episode', _text(episode))}" for episode in episodes]
    return _judge(judge, questions, RATING, [e.task for e in episodes], env, seed, sampling)


def criteria(
    episodes: Sequence[Episode],
    judge: Policy,
    *,
    env: EnvFactory,
    questions: Sequence[str] = CRITERIA,
    seed: int = 0,
    sampling: Sampling = SAMPLING,
) -> list[Verdict]:
    """The share of yes/no questions about an episode that the judge answers with yes, each asked by itself.

    One unreadable answer leaves the episode without a score. Raises ConfigError without a question, and what `ask` raises.
    """
    if not questions:
        raise ConfigError("criteria got no questions; expected at least one that can be answered with yes or no")
    asked = [f"{question}\n\n{quote('episode', _text(episode))}" for episode in episodes for question in questions]
    tasks = [episode.task for episode in episodes for _ in questions]
    found, k = _judge(judge, asked, YES_NO, tasks, env, seed, sampling), len(questions)
    return [_together(found[i * k : (i + 1) * k]) for i in range(len(episodes))]


def self_check(
    episodes: Sequence[Episode],
    policy: Policy,
    *,
    env: EnvFactory,
    question: str = SELF_CHECK,
    seed: int = 0,
    sampling: Sampling = SAMPLING,
) -> list[Verdict]:
    """Whether the policy that acted finds that it did what it should: 1 for yes, 0 for no. Raises what `ask` raises."""
    return criteria(episodes, policy, env=env, questions=(question,), seed=seed, sampling=sampling)


def prefer(
    pairs: Sequence[tuple[Episode, Episode]],
    judge: Policy,
    *,
    env: EnvFactory,
    rubric: str = COMPARE,
    seed: int = 0,
    sampling: Sampling = SAMPLING,
) -> list[Preference]:
    """Which of two episodes of one task is better, asked twice with swapped positions. What both begin with is shown once.

    Raises ConfigError for a pair of episodes of different tasks, and what `ask` raises.
    """
    for one, other in pairs:
        if one.task.id != other.task.id:
            raise ConfigError(f"a judge compares two episodes of one task, not of {one.task.id!r} and {other.task.id!r}")
    shown = [_sides(*pair) for pair in pairs]
    asked = [_compared(rubric, start, a, b) for start, a, b in shown] + [_compared(rubric, start, b, a) for start, a, b in shown]
    answers = _judge(judge, asked, PREFERENCE, [one.task for one, _ in pairs] * 2, env, seed, sampling)
    return [_both(first, swapped) for first, swapped in zip(answers[: len(pairs)], answers[len(pairs) :], strict=True)]


def tally(judged: Sequence[Verdict | Preference]) -> dict[str, float]:
    """What there is to log: `judged`, how many of them `unreadable`, and `judge_score`, the mean of the others."""
    scores = [verdict.score for verdict in judged if verdict.score is not None]
    counts = {"judged": float(len(judged)), "unreadable": float(len(judged) - len(scores))}
    return counts | ({"judge_score": fmean(scores)} if scores else {})


def _judge(
    judge: Policy, questions: Sequence[str], form: Form, tasks: Sequence[Task], env: EnvFactory, seed: int, sampling: Sampling
) -> list[Verdict]:
    prompts = [(Turn(role="user", content=f"{question}\n\n{form.ask}"),) for question in questions]
    verdicts = [_read(answer, form) for answer in ask(judge, prompts, sampling=sampling, seed=seed, env=env, tasks=tasks)]
    lost = [verdict.reason for verdict in verdicts if verdict.score is None]
    if lost:
        _log.warning("judge %r: %d of %d answers give no %s. The first: %s", judge.version, len(lost), len(verdicts), form.name, lost[0])
    return verdicts


def _read(answer: Turn | None, form: Form) -> Verdict:
    if answer is None:
        return Verdict(score=None, reason="longer than the judge's context")
    score, text = form.read(answer.content), " ".join(answer.content.split())
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return Verdict(score=score, reason=shown if score is not None else f"unreadable: {shown!r}", cost=answer.cost)


def _together(parts: Sequence[Verdict]) -> Verdict:
    """The verdicts on one episode as one."""
    scores = [part.score for part in parts if part.score is not None]
    whole = fmean(scores) if len(scores) == len(parts) else None
    return Verdict(score=whole, reason="; ".join(part.reason for part in parts), cost=sum((part.cost for part in parts), Cost()))


def _both(first: Verdict, swapped: Verdict) -> Preference:
    turned = None if swapped.score is None else 1.0 - swapped.score
    return Preference(
        score=None if first.score is None or turned is None else (first.score + turned) / 2,
        first=first.score,
        swapped=turned,
        reason=f"{first.reason}; swapped: {swapped.reason}",
        cost=first.cost + swapped.cost,
    )


def _text(episode: Episode) -> str:
    walks = episode.walks()
    return transcript(walks[-1]) if walks else ""


def _sides(one: Episode, other: Episode) -> tuple[str, str, str]:
    """What two episodes begin with alike, and how each goes on."""
    a, b = (episode.walks()[-1] if episode.turns else () for episode in (one, other))
    same = next((i for i, (x, y) in enumerate(zip(a, b)) if _said(x) != _said(y)), min(len(a), len(b)))
    return transcript(a[:same]), transcript(a[same:]), transcript(b[same:])


def _said(turn: Turn) -> tuple[str, str, tuple[tuple[str, Mapping[str, object]], ...]]:
    return turn.role, turn.content, tuple((call.name, call.arguments) for call in turn.tool_calls)


def _compared(rubric: str, start: str, a: str, b: str) -> str:
    return "\n\n".join([rubric, quote("conversation", start), quote("A", a), quote("B", b)])
