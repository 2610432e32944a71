"""How much of a workflow a conversation got done, by comparing what was said with the workflow's steps (Self-Talk, arXiv:2401.05033).

    ROUGE-L(a, b) = 2 P R / (P + R),   P = |LCS| / |a|,   R = |LCS| / |b|,   in words, LCS their longest common subsequence

A step is done where something that the assistant said or called is closest to it and close enough.
"""

from __future__ import annotations

from collections.abc import Sequence

from whet.errors import ConfigError
from whet.tools.bm25 import words
from whet.transcript import line
from whet.types import Episode

THRESHOLD = 0.7


def rouge_l(a: str, b: str) -> float:
    """The F-measure of ROUGE-L (Lin, 2004) of two texts, in [0, 1]; 0 where one has no words."""
    one, other = words(a), words(b)
    row = [0] * (len(other) + 1)
    for word in one:
        before = row[:]
        for j, match in enumerate(other):
            row[j + 1] = before[j] + 1 if word == match else max(row[j], before[j + 1])
    return 2 * row[-1] / (len(one) + len(other)) if one and other else 0.0


def subgoals(said: Sequence[str], workflow: Sequence[str], threshold: float = THRESHOLD) -> int:
    """How many steps of the workflow were done by what was said.

    Each utterance counts for the step that it is closest to, the first of equal ones, if its ROUGE-L is at least `threshold`.
    """
    done = set()
    for text in said:
        scores = [rouge_l(text, step) for step in workflow]
        if scores and max(scores) >= threshold:
            done.add(scores.index(max(scores)))
    return len(done)


def subgoals_of(episode: Episode, threshold: float = THRESHOLD) -> tuple[int, int]:
    """How many steps an episode got done, and how many its workflow has, which the environment names in `info["workflow"]`.

    Raises ConfigError where it names none.
    """
    workflow = episode.tags.get("info", {}).get("workflow")
    if not workflow:
        raise ConfigError(
            f"environment {episode.task.env!r} names no workflow, so that there are no subgoals to count; let its steps give "
            "`info={\"workflow\": [...]}`, what should be said in order, or choose one that does, such as 'client'"
        )
    return subgoals([line(turn) for turn in episode.turns if turn.trained], workflow, threshold), len(workflow)
