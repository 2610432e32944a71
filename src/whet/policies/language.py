"""Values in words: evaluations and choices as JSON, in which models and scripts write them and from which they are read.

{"thought": "4 of 5 went well.", "final_evaluation": "good"}      what an action is worth, and why
{"thought": "move 2: 4 of 5 went well.", "best_move": 2}          which action is best, and why
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

VERDICT, BEST = "final_evaluation", "best_move"
_OBJECT = re.compile(r"\{.*\}", re.DOTALL)


class Evaluation(NamedTuple):
    """What an action is worth, in words."""

    thought: str
    verdict: str

    def __str__(self) -> str:
        return json.dumps({"thought": self.thought, VERDICT: self.verdict})


class Choice(NamedTuple):
    """The best of several actions, counted from 1, and why."""

    thought: str
    best: int

    def __str__(self) -> str:
        return json.dumps({"thought": self.thought, BEST: self.best})


def read_evaluation(text: str) -> Evaluation | None:
    """The evaluation in an answer; None where it cannot be read. What stands before and behind the object does not count."""
    found = _read(text)
    verdict, thought = found.get(VERDICT), found.get("thought", "")
    return Evaluation(thought, verdict.strip()) if isinstance(verdict, str) and verdict.strip() and isinstance(thought, str) else None


def read_choice(text: str, n: int) -> Choice | None:
    """The choice among `n` actions in an answer; None where it cannot be read, or names none of them."""
    found = _read(text)
    best, thought = str(found.get(BEST, "")), found.get("thought", "")
    if not (best.isdecimal() and 1 <= int(best) <= n and isinstance(thought, str)):
        return None
    return Choice(thought, int(best))


def _read(text: str) -> dict[str, Any]:
    match = _OBJECT.search(text)
    try:
        found = json.loads(match[0]) if match else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
