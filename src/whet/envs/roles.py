"""What the scripts of roles (`Env.role`) have in common: the state that a prompt is about, and judging it.

A prompt shows an episode as turns, or as a transcript between tags (`whet.transcript`, `policies.forms.quote`). Its calls are
made again in a twin of the environment, so that a script says what is so, whoever acted and whatever was told.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from whet.envs import roles_language
from whet.envs.base import Action, Env, Step
from whet.policies.forms import PREFERENCE, form_of, quoted
from whet.transcript import calls_in, line, read_transcript
from whet.types import Turn

E = TypeVar("E", bound=Env)
_FAITHFUL = re.compile(r"\b(follows?|faithful|grounded|shown|supported)\b", re.IGNORECASE)
_FITTING = re.compile(r"\b(calls?|tools?|apis?|needless|appropriate)\b", re.IGNORECASE)
AHEAD = 5
"""Actions that a sage plans, as in SwiftSage."""


class Merit(NamedTuple):
    """What there is to say about an episode."""

    score: float
    """In [0, 1], 1 for success without a call in vain."""
    done: bool
    """It does what was asked."""
    faithful: bool = True
    """What it says rests on what it has seen."""
    fitting: bool = True
    """No call failed or was in vain."""


def asked(turns: Sequence[Turn]) -> str:
    """What is asked: the text of the last turn, where the assistant did not write it."""
    return turns[-1].content if turns and not turns[-1].trained else ""


def shown(turns: Sequence[Turn], env: Env) -> list[Action]:
    """The actions of the episode that a prompt shows: those of its assistant turns, or else those of its transcript."""
    made = [Action(text=turn.content, tool_calls=turn.tool_calls) for turn in turns if turn.trained]
    return made or _acted(quoted(asked(turns), "episode") or quoted(asked(turns), "conversation"), env)


def _acted(text: str, env: Env) -> list[Action]:
    said = [turn.content for turn in read_transcript(text) if turn.trained]
    return [Action(text=content, tool_calls=tuple(calls_in(content, env.tools))) for content in said]


def twin(env: E) -> E:
    """Another environment in the same state that goes its own way; nobody counts or records its calls."""
    other = copy.copy(env)
    other.__dict__.pop("_caller", None)
    other.__dict__.update({name: copy.deepcopy(value) for name, value in other.__dict__.items()})
    return other


def after(env: E, actions: Sequence[Action]) -> tuple[E, list[Step]]:
    """A twin of an environment at its beginning, after these actions or those up to the end of the episode; and the steps."""
    other, steps = twin(env), []
    for action in actions:
        step = other.step(action)
        assert isinstance(step, Step)
        steps.append(step)
        if step.terminated or step.truncated:
            break
    return other, steps


def behind(env: E, turns: Sequence[Turn]) -> tuple[E, list[Step]]:
    """As `after`, for the episode that a prompt shows; in the midst of an episode, as it stands, without its steps."""
    return (twin(env), []) if env.begun else after(env, shown(turns, env))


def ahead(env: Env, rng: random.Random, n: int = AHEAD) -> list[Action]:
    """The expert's next actions, at most `n`, each as if those before it had been taken."""
    other, actions = twin(env), list[Action]()
    while len(actions) < n:
        action = other.expert(rng)
        assert action is not None
        actions.append(action)
        step = other.step(action)
        assert isinstance(step, Step)
        if step.terminated:
            break
    return actions


def speak(env: Env, role: str, turns: Sequence[Turn], rng: random.Random) -> str | Action | None:
    """The roles that every world of tools has; None for others.

    sage           a plan: the next actions, each on a line of its own as transcripts write calls (what is said, without a call)
    actor          acts as the expert does behind the actions that are shown
    environment    what comes of the last action shown; `done` or `over` where that ends the episode
    teacher:WAY    acts as a model does that is prompted in one of the ways of `teach`
    aggregator     sums up continuations, and an improver chooses among moves, by what they are shown (`roles_language`)
    """
    if role.startswith("teacher:"):
        return teach(env, role.removeprefix("teacher:"), turns, rng)
    if role == "sage":
        actions = ahead(behind(env, turns)[0], rng)
        return "\n".join(line(Turn(role="assistant", tool_calls=a.tool_calls)) if a.tool_calls else a.text for a in actions)
    if role == "actor":
        return behind(env, turns)[0].expert(rng)
    if role == "environment":
        _, steps = after(env, shown(turns, env))
        if not steps or steps[-1].terminated:
            return "over" if not steps or not steps[-1].success else "done"
        told = steps[-1].observation
        return told if isinstance(told, str) else "\n".join(turn.content for turn in told)
    return roles_language.speak(role, asked(turns))


ASTRAY = 0.25
"""How often a teacher that reflects goes astray first."""
_TRY, _BACK = "try this", "not right,"


def teach(env: Env, way: str, turns: Sequence[Turn], rng: random.Random) -> Action | None:
    """The next action, in the midst of an episode, of a teacher who is prompted in one of FireAct's ways; None for another way.

    react        the expert's
    cot          the expert's, if it is all that is left to do; otherwise nothing has been looked up, and it is a guess
    reflexion    the expert's; but from the second turn on sometimes any other that does not end the episode, after which a
                 reflection stands before the expert's thought
    """
    right = env.expert(rng)
    if right is None or way == "react":
        return right
    if way == "cot":
        return right if _ends(env, right) else _some(env, rng, ending=True)
    if way != "reflexion":
        return None
    acted = [turn for turn in turns if turn.trained]
    if acted and acted[-1].content == _TRY:
        return replace(right, text=f"{_BACK} {right.text}")
    if acted and rng.random() < ASTRAY:
        return replace(_some(env, rng, ending=False), text=_TRY)
    return right


def _some(env: Env, rng: random.Random, *, ending: bool) -> Action:
    """An action that ends the episode, or one that does not; without a call where none of that kind is found."""
    drawn = (env.random_action(rng) for _ in range(200))
    return next((action for action in drawn if action is not None and _ends(env, action) == ending), Action(text="i do not know"))


def _ends(env: Env, action: Action) -> bool:
    step = twin(env).step(action)
    assert isinstance(step, Step)
    return step.terminated


def judged(env: E, turns: Sequence[Turn], merit: Callable[[E, list[Step]], Merit]) -> str | None:
    """What a judge answers, in the form that the prompt asks for; None where it asks for none.

    `merit` is of an environment after the actions that are shown. A question for yes or no is about what it names: whether
    everything follows from what was shown, whether the calls were appropriate, and otherwise whether the thing is done.
    """
    text = asked(turns)
    form = form_of(text)
    if form is None:
        return None
    if form is PREFERENCE:
        start = quoted(text, "conversation")
        a, b = (merit(*after(env, _acted(f"{start}\n{quoted(text, side)}", env))).score for side in "AB")
        return form.write(0.5 + 0.5 * ((a > b) - (a < b)))
    found = merit(*behind(env, turns))
    if form.name == "rating":
        return form.write(found.score)
    question = text.partition("<episode>")[0]
    aspect = found.faithful if _FAITHFUL.search(question) else found.fitting if _FITTING.search(question) else found.done
    return form.write(float(aspect))
