"""Speakers over one response: two debaters, an advisor, an editor and a judge, as in CoEvol (arXiv:2406.07054).

    debate    a positive and a critical debater hold positions that they are given, then each weighs what the other said
    advise    the advisor takes at most three suggestions out of the discussion
    edit      the editor writes another response by them
    evolve    all of it and a judge, again and again for as long as the judge prefers the new response

Everybody is asked about all drafts at once. Prompts quote their parts between tags (`policies.forms.quote`), by which an
environment's scripts find them. A draft whose prompt is too long for a speaker is left as it is.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial, reduce
from operator import add
from typing import Any

from whet.agents import Agent
from whet.envs.base import EnvFactory
from whet.policies import load_policy
from whet.policies.ask import ask
from whet.policies.base import Policy, Sampling
from whet.policies.chat import read_calls
from whet.policies.forms import quote
from whet.rewards.judges import Preference, prefer
from whet.rollout.replay import Prefix
from whet.rollout.runner import Recorder, rollout
from whet.seeding import derive_seed
from whet.transcript import line, transcript
from whet.types import Cost, Episode, Stop, Task, Turn, chain

POSITIVE = "You look for what is good. In your opinion the response does what was asked for. Give the reasons why it is right."
CRITIC = "You look for what can be better. In your opinion the response does not do what was asked for. Suggest how to improve it."
WEIGH = "This is what another reviewer says. Weigh how plausible each point is, given the conversation."
ADVISOR = (
    "Two reviewers discuss the response. Take the credible ideas out of what they say and write them as at most 3 suggestions "
    "for a better response, each on a line of its own, with nothing before or behind them."
)
EDITOR = (
    "Write a better response by the suggestions, and pass over those that are beyond you. Write the response alone, and calls of "
    "tools in the form <tool_call>{...}</tool_call>, in which the present response has them."
)
SUGGESTIONS = 3
SAMPLING = Sampling(temperature=0.0, max_tokens=1000)
"""The authors' settings."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Who plays which role."""

    positive: Policy
    critic: Policy
    advisor: Policy
    editor: Policy
    judge: Policy

    @classmethod
    def of(cls, speaker: str, **others: str) -> Panel:
        """One policy by its name in all roles but those that `others` name; `script` is the environment's script of each role."""
        names = {f.name: others.get(f.name) or speaker for f in fields(cls)}
        return cls(**{role: load_policy(f"script:{role}" if name == "script" else name) for role, name in names.items()})


@dataclass(frozen=True, kw_only=True)
class Evolving:
    """How much is evolved, and how speakers are sampled."""

    iterations: int = 3
    """Edits of a response at most."""
    window: int = 3
    """Exchanges in view besides the opening; the last of them is that of the response."""
    turns: int = 16
    """Actions of an episode that are evolved, the first ones."""
    sampling: Sampling = SAMPLING


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A response that may be improved."""

    task: Task
    turns: tuple[Turn, ...]
    """What it responds to."""
    response: Turn


@dataclass(frozen=True, kw_only=True)
class Round:
    """One pass over a draft."""

    suggestions: tuple[str, ...] = ()
    response: Turn | None = None
    """What the editor wrote; None where that cannot be read as a response, or somebody's context was too short."""
    preference: Preference | None = None
    """The judge's, of the new response over the old one; None where the judge was not asked, the new one being none or the same."""

    @property
    def accepted(self) -> bool:
        return self.preference is not None and (self.preference.score or 0.0) > 0.5


@dataclass(frozen=True, kw_only=True)
class Evolved:
    """What became of a draft."""

    response: Turn
    rounds: tuple[Round, ...] = ()
    cost: Cost = Cost()

    @property
    def accepted(self) -> int:
        """How many edits the judge preferred to what was there."""
        return sum(one.accepted for one in self.rounds)


def debate(
    drafts: Sequence[Draft], positive: Policy, critic: Policy, *, env: EnvFactory, seed: int = 0, sampling: Sampling = SAMPLING
) -> list[tuple[Turn, ...] | None]:
    """What is said about each draft: for it and against it, then each debater about the other. None where it did not fit."""
    say = partial(_say, drafts, env=env, sampling=sampling)
    prompts = {POSITIVE: [_opening(POSITIVE, draft) for draft in drafts], CRITIC: [_opening(CRITIC, draft) for draft in drafts]}
    first = say(positive, [(p,) for p in prompts[POSITIVE]], seed=derive_seed(seed, "positive"))
    second = say(critic, [(p,) for p in prompts[CRITIC]], seed=derive_seed(seed, "critic"))
    replies = [
        [(prompt, mine, _weigh(other)) if mine and other else None for prompt, mine, other in zip(*sides, strict=True)]
        for sides in ((prompts[POSITIVE], first, second), (prompts[CRITIC], second, first))
    ]
    third = say(positive, replies[0], seed=derive_seed(seed, "positive", "free"))
    fourth = say(critic, replies[1], seed=derive_seed(seed, "critic", "free"))
    return [(a, b, c, d) if a and b and c and d else None for a, b, c, d in zip(first, second, third, fourth, strict=True)]


def advise(
    drafts: Sequence[Draft],
    discussions: Sequence[Sequence[Turn] | None],
    advisor: Policy,
    *,
    env: EnvFactory,
    seed: int = 0,
    sampling: Sampling = SAMPLING,
) -> list[Turn | None]:
    """At most three suggestions for each draft, each a line of the answer's content."""
    prompts = [
        (_opening(ADVISOR, draft, discussion=_minutes(said)),) if said else None for draft, said in zip(drafts, discussions, strict=True)
    ]
    answers = _say(drafts, advisor, prompts, env=env, seed=seed, sampling=sampling)
    return [answer and replace(answer, content="\n".join(_lines(answer)[:SUGGESTIONS])) for answer in answers]


def edit(
    drafts: Sequence[Draft],
    suggestions: Sequence[Turn | None],
    editor: Policy,
    *,
    env: EnvFactory,
    seed: int = 0,
    sampling: Sampling = SAMPLING,
) -> list[Turn | None]:
    """What the editor writes in place of each response, as it came; see `read_response`."""
    prompts = []
    for draft, advice in zip(drafts, suggestions, strict=True):
        tools = "\n".join(json.dumps(tool.schema()) for tool in env.of(draft.task).tools)
        parts = {"suggestions": advice.content, "tools": tools} if advice else {}
        prompts.append((_opening(EDITOR, draft, **parts),) if advice else None)
    return _say(drafts, editor, prompts, env=env, seed=seed, sampling=sampling)


def evolve(
    drafts: Sequence[Draft], panel: Panel, *, env: EnvFactory, iterations: int = 3, seed: int = 0, sampling: Sampling = SAMPLING
) -> list[Evolved]:
    """Each draft's response after at most `iterations` edits; the first one that the judge does not prefer ends it.

    An edit is preferred where the mean of both positions is above a half (`rewards.judges.prefer`). An unreadable judgement
    ends it, too; the authors' code would go by the one of the two that can be read.
    """
    found = [Evolved(response=draft.response) for draft in drafts]
    live = list(range(len(drafts)))
    for i in range(iterations):
        now = [replace(drafts[k], response=found[k].response) for k in live]
        rounds = _round(now, panel, env, derive_seed(seed, i), sampling) if now else []
        for k, (one, cost) in zip(live, rounds, strict=True):
            response = one.response if one.accepted and one.response else found[k].response
            found[k] = Evolved(response=response, rounds=(*found[k].rounds, one), cost=found[k].cost + cost)
        live = [k for k, (one, _) in zip(live, rounds, strict=True) if one.accepted]
    return found


def evolve_turns(
    episodes: Sequence[Episode],
    teacher: Agent[Any],
    panel: Panel,
    how: Evolving = Evolving(),
    *,
    env: EnvFactory,
    seed: int = 0,
    run: Recorder | None = None,
) -> tuple[list[Episode], list[Evolved]]:
    """The episodes with their actions evolved one after another, and what became of each action.

    Where an edit is accepted, the environment takes it in place of the action, and the teacher goes on from there: so later
    responses answer what the environment shows, as a user's next message would. What the environment pays is never looked at.
    Episodes that go on from edits are saved in `run` under the tags `turn0`, `turn1` and so on. Raises CannotReplay in an
    environment that cannot replay, and what `ask` and `rollout` raise.
    """
    current, everything = list(episodes), []
    for t in range(how.turns):
        at = {i: j for i, episode in enumerate(current) if (j := _action(episode, t)) is not None}
        drafts = [
            Draft(task=current[i].task, turns=recent(current[i].turns[:j], how.window), response=current[i].turns[j]) for i, j in at.items()
        ]
        evolved = evolve(drafts, panel, env=env, iterations=how.iterations, seed=derive_seed(seed, t), sampling=how.sampling)
        everything += evolved
        edited = [(i, one.response) for i, one in zip(at, evolved, strict=True) if one.accepted]
        prefixes = [Prefix(turns=chain([*current[i].turns[: at[i]], response]), origin=current[i].id) for i, response in edited]
        tasks = [current[i].task for i, _ in edited]
        others = rollout(teacher, env, tasks, prefix=prefixes, seed=derive_seed(seed, "teacher", t), run=run, tag=f"turn{t}")
        for (i, _), other in zip(edited, others, strict=True):
            current[i] = other if other.ok else current[i]
    return current, everything


def recent(turns: Sequence[Turn], window: int) -> tuple[Turn, ...]:
    """The opening of a conversation and its last `window` exchanges, of which the last still waits for its response."""
    at = [i for i, turn in enumerate(turns) if turn.trained]
    if len(at) < window:
        return tuple(turns)
    return (*turns[: at[0]], *turns[max(at[-window] + 1, at[0]) :])


def written(response: Turn) -> str:
    """A response as an editor is shown it and writes it: its text, and its calls between tags."""
    calls = [json.dumps({"name": call.name, "arguments": dict(call.arguments)}) for call in response.tool_calls]
    return "\n".join([*filter(None, [response.content]), *(f"<tool_call>{call}</tool_call>" for call in calls)])


def read_response(answer: Turn) -> Turn | None:
    """An editor's answer as a response; None for an empty one and for one with a call that cannot be read."""
    content, calls = (answer.content, answer.tool_calls) if answer.tool_calls else read_calls(answer.content)
    if not (content or calls) or any(call.error for call in calls):
        return None
    return Turn(role="assistant", content=content, tool_calls=calls, finish="stop")


def counts(evolved: Sequence[Evolved]) -> dict[str, float]:
    """What there is to log: drafts, how many of them were edited, edits made and accepted, and what could not be read."""
    rounds = [one for each in evolved for one in each.rounds]
    judged = [one for one in rounds if one.preference]
    unreadable = sum(one.response is None for one in rounds) + sum(one.preference.score is None for one in judged if one.preference)
    found = {"drafts": len(evolved), "improved": sum(each.accepted > 0 for each in evolved), "edits_judged": len(judged)}
    return {name: float(n) for name, n in (found | {"edits_accepted": sum(r.accepted for r in rounds), "unreadable": unreadable}).items()}


def _action(episode: Episode, t: int) -> int | None:
    """Where the episode's t-th action stands among its turns."""
    return next(itertools.islice((j for j, turn in enumerate(episode.turns) if turn.trained), t, None), None)


def _round(drafts: Sequence[Draft], panel: Panel, env: EnvFactory, seed: int, sampling: Sampling) -> list[tuple[Round, Cost]]:
    discussions = debate(drafts, panel.positive, panel.critic, env=env, seed=seed, sampling=sampling)
    advice = advise(drafts, discussions, panel.advisor, env=env, seed=derive_seed(seed, "advisor"), sampling=sampling)
    answers = edit(drafts, advice, panel.editor, env=env, seed=derive_seed(seed, "editor"), sampling=sampling)
    responses = [read_response(answer) if answer else None for answer in answers]
    new = [k for k, response in enumerate(responses) if response and line(response) != line(drafts[k].response)]
    pairs = [(_episode(drafts[k], responses[k]), _episode(drafts[k], drafts[k].response)) for k in new]
    judged = dict(zip(new, prefer(pairs, panel.judge, env=env, seed=derive_seed(seed, "judge"), sampling=sampling), strict=True))
    rounds = []
    for k, said in enumerate(discussions):
        suggestions, preference = advice[k], judged.get(k)
        spent = [turn.cost for turn in (*(said or ()), suggestions, answers[k]) if turn]
        one = Round(suggestions=tuple(_lines(suggestions)) if suggestions else (), response=responses[k], preference=preference)
        rounds.append((one, reduce(add, spent, preference.cost if preference else Cost())))
    return rounds


def _say(
    drafts: Sequence[Draft],
    policy: Policy,
    prompts: Sequence[tuple[Turn, ...] | None],
    *,
    env: EnvFactory,
    seed: int,
    sampling: Sampling,
) -> list[Turn | None]:
    """The answers to those prompts that there are."""
    asked = [(k, prompt) for k, prompt in enumerate(prompts) if prompt]
    tasks = [drafts[k].task for k, _ in asked]
    answers = ask(policy, [prompt for _, prompt in asked], sampling=sampling, seed=seed, env=env, tasks=tasks)
    found = dict(zip((k for k, _ in asked), answers, strict=True))
    return [found.get(k) for k in range(len(prompts))]


def _opening(task: str, draft: Draft, **parts: str) -> Turn:
    shown = {"conversation": transcript(draft.turns), "response": written(draft.response), **parts}
    return Turn(role="user", content="\n\n".join([task, *(quote(tag, text) for tag, text in shown.items() if text)]))


def _weigh(other: Turn) -> Turn:
    return Turn(role="user", content=f"{WEIGH}\n\n{quote('review', other.content)}")


def _minutes(said: Sequence[Turn]) -> str:
    return "\n".join(f"Reviewer {1 + i % 2}: {turn.content}" for i, turn in enumerate(said))


def _lines(answer: Turn) -> list[str]:
    return [text.strip() for text in answer.content.splitlines() if text.strip()]


def _episode(draft: Draft, response: Turn | None) -> Episode:
    """The conversation with this response, for the judge."""
    turns = chain([*draft.turns, response] if response else draft.turns)
    return Episode(id=f"{draft.task.id}/draft", task=draft.task, turns=turns, stop=Stop.TRUNCATED)
