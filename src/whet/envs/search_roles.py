"""What scripted speakers say about Search. Each is a reader who goes by the question and the pages in what it is shown.

    judge               rates by the share of steps that a careful reader would have taken, and by whether the answer follows
    positive, critic    debate a response; when they are free, they weigh what the other said
    advisor             passes on the suggestion that the debate found plausible
    editor              does what the first suggestion says that it can do
    reconstructor       writes the query that finds the first page
    locator             marks the documents between tags, and copies the lines that the question asks for
    module:NAME         what a module of AMOR's should say (`agents.modules`); feedback says whether one did
    partner             holds some of the pages, says what follows from them and from what it was told, and answers once it can

They stand in for models, and like models they err: the critic suggests something else, and either debater weighs wrongly, in
one of five cases (`ERRS`); a judge that sees no difference names what it was shown first.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from whet.envs.base import Action
from whet.policies.chat import read_calls
from whet.policies.forms import PREFERENCE, YES_NO, form_of, quoted
from whet.transcript import line, read_transcript
from whet.types import ToolCall, Turn

if TYPE_CHECKING:
    from whet.envs.search import Search

ERRS = 0.2
_CALL = re.compile(r"(?P<thought>.*?) ?(?P<call>(?P<name>search|answer|calculate)\((?P<key>\w+)='(?P<value>[^']*)'\))$")
_NUMBERED = re.compile(r"\[(?P<number>\d+)\] (?P<person>\w+)$")
_INSTEAD = "Instead: "
_PLAUSIBLE, _NOT = "Plausible: ", "Not plausible: "
_RIGHT = "the response says what follows from the pages."


def speak(env: Search, role: str, turns: Sequence[Turn], rng: random.Random) -> str | Action | None:
    """What the script of a role answers; None for a role or a question that it does not know."""
    prompt = turns[0].content
    if role == "judge":
        return _judge(env, prompt)
    if role == "advisor":
        return _advice(quoted(prompt, "discussion"))
    if role == "editor":
        return _edited(quoted(prompt, "suggestions"), _response(prompt))
    if role == "reconstructor":
        return " ".join([env.question.path[0], *env.question.relations])
    if role == "locator":
        return _marks(env, quoted(turns[-1].content, "retrieval"))
    if role.startswith("module:"):
        return _module(env, role.removeprefix("module:"), turns[-1].content)
    if role == "feedback":
        return _feedback(env, prompt)
    if role == "partner":
        return _partner(env, turns)
    if role not in ("positive", "critic"):
        return None
    right = _next(env, read_transcript(quoted(prompt, "conversation")))
    if role == "positive":
        review = quoted(turns[-1].content, "review")
        return _weighed(_instead(review) == right, _instead(review), rng) if review else f"It is right: {_RIGHT}"
    fits = line(_response(prompt)) == right
    if len(turns) > 1:
        return _weighed(fits, _RIGHT, rng)
    other = f"search(query={rng.choice(list(env.question.pages))!r})"
    return f"It gets nowhere. {_INSTEAD}{other if fits or rng.random() < ERRS else right}"


def _marks(env: Search, retrieval: str) -> str:
    """A line for each numbered document: whether it is a page that the question needs, with what it says there."""
    question = env.question
    asked = {(question.sum_of[0], "age"), (question.sum_of[1], "age")} if question.sum_of else set()
    asked |= {(question.path[0 if question.sum_of else i], relation) for i, relation in enumerate(question.relations)}
    marks: dict[str, list[str]] = {}
    person = number = ""
    for text in retrieval.splitlines():
        if head := _NUMBERED.match(text):
            person, number = head["person"], head["number"]
            marks[number] = []
        elif (person, text.partition(" ")[0]) in asked:
            marks[number].append(text)
    return "\n".join(f"[{number}] {'[Relevant] ' + lines[0] if lines else '[Irrelevant]'}" for number, lines in marks.items())


def _module(env: Search, module: str, told: str) -> str | Action | None:
    """What a module says by the rules, when it is told this; None for questions that add numbers up."""
    question, lines = env.question, told.splitlines()[:-1]
    if question.sum_of:
        return None
    if module == "decompose":
        i = len([fact for fact in lines[1:] if fact != "nothing"])
        return f"[Next] {question.path[i]} {question.relations[i]}" if i < len(question.relations) else "[Finish]"
    if module == "complete":
        return _answering(f"{question.relations[-1]} {question.answer}", question.answer)
    (person, _, relation), page = lines[0].partition(" "), lines[2:]
    if module == "judge":
        return "[Relevant]" if page[:1] == [person] else "[Irrelevant]"
    facts = [line for line in page[1:] if line.partition(" ")[0] == relation]
    return f"[Answerable] {facts[0]}" if facts else "[Unanswerable]"


def _feedback(env: Search, prompt: str) -> str | None:
    """Whether a module said the right thing when it was told something: yes or no."""
    module, told, said = (quoted(prompt, tag) for tag in ("module", "told", "said"))
    right = _module(env, module, told)
    if isinstance(right, Action):
        return YES_NO.write(float(f"answer(text={env.question.answer!r})" in said))
    return None if right is None else YES_NO.write(float(said == right))


def _partner(env: Search, turns: Sequence[Turn]) -> str | Action:
    """Follows the question as far as its own pages and what was said lead; in JSON or in sentences where it is asked to."""
    first = next(i for i, turn in enumerate(turns) if turn.role == "user")
    *pages, rest = turns[first].content.split("\n\n")
    own, heard = {page.partition("\n")[0] for page in pages}, [rest, *(turn.content for turn in turns[first + 1 :])]
    path, relations = env.question.path, env.question.relations
    told = [any(relation in text and value in text for text in heard) for relation, value in zip(relations, path[1:], strict=True)]
    ahead = next((i for i, known in enumerate(told) if not known and path[i] not in own), len(told))
    if ahead == len(told):
        return _answering(f"{relations[-1]} {path[-1]}", path[-1])
    new = [(relations[i], path[i + 1]) for i in range(ahead) if not told[i]]
    return _said(new, path[ahead], "json" if "JSON" in rest else "sentences" if "sentences" in rest else "words")


def _answering(thought: str, answer: str) -> Action:
    return Action(text=thought, tool_calls=(ToolCall(name="answer", arguments={"text": answer}, id="call_0"),))


def _said(facts: Sequence[tuple[str, str]], missing: str, style: str) -> str:
    """Facts, or else whose page is missing, in one of three ways."""
    if style == "json":
        return json.dumps(dict(facts) or {"page": missing, "found": False})
    if style == "words":
        return ", ".join(f"{relation} {value}" for relation, value in facts) or f"no {missing}"
    if not facts:
        return f"I have no page of {missing} here, and so I can not say more. Please look at your pages, and tell me what you find."
    said = " and ".join(f"the {relation} is {value}" for relation, value in facts)
    return f"On the pages that I have here I find that {said}. Please look at your pages, and tell me what you find."


def _weighed(plausible: bool, point: str, rng: random.Random) -> str:
    return f"{_PLAUSIBLE if plausible != (rng.random() < ERRS) else _NOT}{point}"


def _instead(said: str) -> str:
    """The step that a speech suggests."""
    return said.partition(_INSTEAD)[2].splitlines()[0] if _INSTEAD in said else ""


def _advice(discussion: str) -> str:
    """The step that was suggested, if the other reviewer found it plausible."""
    step = _instead(discussion)
    return f"{_INSTEAD}{step}" if step and f"{_PLAUSIBLE}{step}" in discussion else "Leave the response as it is."


def _response(prompt: str) -> Turn:
    content, calls = read_calls(quoted(prompt, "response"))
    return Turn(role="assistant", content=content, tool_calls=calls)


def _edited(suggestions: str, response: Turn) -> Action:
    found = _CALL.match(_instead(suggestions))
    if found is None:
        return Action(text=response.content, tool_calls=response.tool_calls)
    return Action(text=found["thought"], tool_calls=(ToolCall(name=found["name"], arguments={found["key"]: found["value"]}),))


def _next(env: Search, log: Sequence[Turn]) -> str:
    """What a careful reader of this log would do next, as a line of it."""
    seen = [turn.content.splitlines() for turn in log if turn.role == "tool" and turn.content]
    action = env.after([lines[0] for lines in seen if len(lines) > 1], [lines[0] for lines in seen if len(lines) == 1])
    return line(Turn(role="assistant", content=action.text, tool_calls=action.tool_calls))


def _worth(right: str, said: str) -> float:
    """Of a step: 1 for the right one, a little less without its thought, little for a detour, nothing for a wrong answer."""
    ours, theirs = _CALL.match(right), _CALL.match(said)
    if said == right or ours is None or theirs is None:
        return float(said == right)
    return 0.8 if theirs["call"] == ours["call"] else 0.0 if theirs["name"] == "answer" else 0.2


def grade(env: Search, log: Sequence[Turn]) -> tuple[float, bool]:
    """The mean worth of a log's steps, in [0, 1], and whether it ends with the answer that follows from its pages."""
    at = [i for i, turn in enumerate(log) if turn.trained]
    worth = [_worth(_next(env, log[:i]), log[i].content) for i in at]
    return (fmean(worth), worth[-1] >= 0.8 and "answer(" in log[at[-1]].content) if worth else (0.0, False)


def _judge(env: Search, prompt: str) -> str | None:
    form = form_of(prompt)
    if form is PREFERENCE:
        start = quoted(prompt, "conversation")
        a, b = (grade(env, read_transcript(f"{start}\n{quoted(prompt, side)}"))[0] for side in "AB")
        return form.write(float(a >= b))
    share, answered = grade(env, read_transcript(quoted(prompt, "episode")))
    return form.write(share if answered else min(share, 0.4)) if form else None
