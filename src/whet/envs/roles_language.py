"""Scripts of the two roles of natural language reinforcement learning: they read what they are shown, and nothing else.

    aggregator    how many of the ways in which it went on ended well, and what that makes of the action
    improver      the first of the moves whose evaluation is best

Neither looks into the environment: what they say follows from the words of the prompt.
"""

from __future__ import annotations

import re

from whet.policies.forms import quoted
from whet.policies.language import Choice, Evaluation, read_evaluation

WORTH = {"good": 1.0, "even": 0.5, "bad": 0.0}
_SHARE = re.compile(r"\b(\d+) of (\d+)\b")
_END = re.compile(r"^(outcome|evaluation): (.*)$", re.MULTILINE)
_MOVE = re.compile(r"^(\d+)\. .*?^evaluation: ([^\n]*)$", re.MULTILINE | re.DOTALL)


def speak(role: str, prompt: str) -> str | None:
    """What the script of a role answers; None for other roles."""
    if role == "aggregator":
        return str(aggregated(quoted(prompt, "continuations")))
    return str(chosen(quoted(prompt, "moves"))) if role == "improver" else None


def worth(evaluation: str) -> float:
    """The number that an evaluation stands for: the share that it names, or else its verdict's; a half for words unknown here."""
    found = read_evaluation(evaluation)
    if found is None:
        return 0.5
    share = _SHARE.search(found.thought)
    return int(share[1]) / int(share[2]) if share and int(share[2]) else WORTH.get(found.verdict, 0.5)


def aggregated(continuations: str) -> Evaluation:
    """What several continuations make of an action, each of which ends with its outcome or its own evaluation."""
    ends = [float(said == "success") if kind == "outcome" else worth(said) for kind, said in _END.findall(continuations)]
    well = round(sum(ends))
    share = well / max(1, len(ends))
    verdict = "good" if share > 2 / 3 else "bad" if share < 1 / 3 else "even"
    return Evaluation(f"{well} of {len(ends)} end well.", verdict)


def chosen(moves: str) -> Choice:
    """The first of the best moves, by their evaluations alone."""
    values = {int(number): worth(evaluation) for number, evaluation in _MOVE.findall(moves)}
    best = max(values, key=lambda number: (values[number], -number), default=1)
    return Choice(f"move {best} has the best evaluation.", best)
