"""Questions whose answers have a form: the words that ask for it, and how an answer is read, whoever gave it.

A judge (a model, an endpoint or a script) is asked in words that end with `Form.ask`. Its answer must stand alone at the
beginning of the first line; what follows a punctuation mark or stands on later lines is its explanation. Anything else is
unreadable, and is never guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_BEFORE = r"[\s*_`\"'(\[#]*(?:(?:answer|rating|score|verdict|better)\s*(?::|is\b)[\s*_`\"'(\[]*)?"
_BEHIND = r"[*_`\"')\]]*[^\S\n]*(?:$|\n|[:;,.!(—–-](?!\d))"


@dataclass(frozen=True)
class Form:
    """A form of answers, each of which stands for a number."""

    name: str
    ask: str
    """The sentence that asks for it, at the end of a prompt."""
    pattern: str
    """Of what may be written; its first group is given to `value`."""
    value: Callable[[str], float | None]
    """The number that a written answer stands for; None for one that the form does not have."""
    write: Callable[[float], str]
    """The answer that stands for a number in [0, 1]; scripts answer by it."""

    def read(self, text: str) -> float | None:
        """The number that an answer stands for; None for an answer that cannot be read."""
        found = re.match(_BEFORE + self.pattern + _BEHIND, _THOUGHT.sub("", text).strip(), re.IGNORECASE)
        return None if found is None else self.value(found[1].lower())


def _rated(written: str) -> float | None:
    return float(written) if 0 <= float(written) <= 5 else None


RATING = Form(
    "rating",
    "Answer with a number from 0 (worst) to 5 (best), alone on the first line; below it you may say why.",
    r"(\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*5\b)?",
    _rated,
    lambda share: str(round(5 * share)),
)
"""A number from 0 to 5."""
YES_NO = Form(
    "yes or no",
    "Answer yes or no, alone on the first line; below it you may say why.",
    r"(yes|no)\b",
    lambda written: float(written == "yes"),
    lambda share: "yes" if share >= 0.5 else "no",
)
"""1 for yes, 0 for no."""
PREFERENCE = Form(
    "preference",
    "Answer A, B or tie, alone on the first line; below it you may say why.",
    r"(a|b|tie)\b",
    lambda written: {"a": 1.0, "b": 0.0, "tie": 0.5}[written],
    lambda share: "A" if share > 0.5 else "B" if share < 0.5 else "tie",
)
"""1 where A is preferred, 0 where B is, 0.5 for a tie."""
FORMS = (RATING, YES_NO, PREFERENCE)


def form_of(prompt: str) -> Form | None:
    """The form that a prompt asks for; None where it asks for none of these."""
    return next((form for form in FORMS if prompt.rstrip().endswith(form.ask)), None)


def quote(tag: str, text: str) -> str:
    """A text between tags, as it stands in a prompt."""
    return f"<{tag}>\n{text}\n</{tag}>"


def quoted(prompt: str, tag: str) -> str:
    """The text that a prompt holds between these tags; empty where it has none."""
    begin, end = prompt.find(f"<{tag}>\n"), prompt.rfind(f"\n</{tag}>")
    return prompt[begin + len(tag) + 3 : end] if 0 <= begin < end else ""
