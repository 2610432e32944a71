"""Values and improvements in words, as in natural language reinforcement learning (arXiv:2411.14251).

    moments      actions that were taken, each with what stood before it
    continued    how it goes on after them: to the end (Monte Carlo), or some actions further (temporal difference)
    aggregate    the aggregator reads several continuations of a moment, and writes what its action is worth
    evaluate     the value model says what an action is worth without any continuation
    propose      the different actions that a policy would take
    improve      the improver reads what each of them is worth, and names the best

Prompts quote their parts between tags (`policies.forms.quote`). What cannot be read is None and never guessed at.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any, NamedTuple

from whet.agents import Agent
from whet.envs.base import EnvFactory
from whet.policies.ask import ask
from whet.policies.base import Policy, Sampling
from whet.policies.forms import quote
from whet.policies.language import Choice, Evaluation, read_choice, read_evaluation
from whet.policies.workflow import untokenised
from whet.rollout.replay import Prefix
from whet.rollout.runner import Recorder, rollout
from whet.seeding import derive_seed
from whet.transcript import line, transcript
from whet.types import Cost, Episode, Stop, Task, Turn, chain

EVALUATE = (
    'Say what the action is worth after this conversation. Answer in JSON: {"thought": "the reasons", "final_evaluation": "the verdict"}.'
)
AGGREGATE = (
    "Below is an action, and some ways in which the conversation went on after it. Sum up what they say about what the action is worth. "
    'Answer in JSON: {"thought": "the reasons", "final_evaluation": "the verdict"}.'
)
IMPROVE = (
    "Below are the actions that could be taken next, each with an evaluation. Do not judge the actions for yourself: only use the "
    'evaluations. Answer in JSON: {"thought": "the reasons", "best_move": its number}.'
)
SAMPLING = Sampling(temperature=0.0, max_tokens=512)
"""How words are sampled, unless the caller says otherwise."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """An action of an episode, with what stood before it."""

    episode: Episode
    at: int
    """Its place among the episode's turns."""

    @property
    def task(self) -> Task:
        return self.episode.task

    @property
    def before(self) -> tuple[Turn, ...]:
        return self.episode.turns[: self.at]

    @property
    def action(self) -> Turn:
        return self.episode.turns[self.at]

    @property
    def last(self) -> bool:
        """Whether the episode ended with it."""
        return not any(turn.trained for turn in self.episode.turns[self.at + 1 :])


class Continuation(NamedTuple):
    """How it went on after a moment: the turns that followed, and either the outcome or an evaluation of where it was left."""

    turns: tuple[Turn, ...]
    end: str


def moments(episodes: Iterable[Episode], n: int, rng: random.Random) -> list[Moment]:
    """At most `n` different actions of each episode, drawn evenly."""
    found = []
    for episode in episodes:
        at = [i for i, turn in enumerate(episode.turns) if turn.trained]
        found += [Moment(episode=episode, at=i) for i in sorted(rng.sample(at, min(n, len(at))))]
    return found


def continued(
    agent: Agent[Any],
    met: Sequence[Moment],
    *,
    env: EnvFactory,
    n: int,
    ahead: int = 0,
    critic: Policy | None = None,
    sampling: Sampling = SAMPLING,
    seed: int = 0,
    run: Recorder | None = None,
    tag: str = "",
) -> list[list[Continuation]]:
    """`n` continuations of each moment by the agent; of one that ended its episode, that end alone.

    With `ahead` = 0 they go to the end, and its outcome is told: a language Monte Carlo estimate. Otherwise they are shown only
    up to that many actions further, and `critic` evaluates what has not ended by then: a language temporal difference
    estimate; what the critic says unreadably is left out. Raises as `rollout` does, CannotReplay among others.
    """
    going = [moment for moment in met if not moment.last]
    prefixes = [Prefix(turns=chain(_upto(moment)), origin=moment.episode.id) for moment in going for _ in range(n)]
    tasks = [moment.task for moment in going for _ in range(n)]
    played = iter(rollout(agent, env, tasks, prefix=prefixes, seed=seed, run=run, tag=tag))
    ways = [[moment.episode] if moment.last else [next(played) for _ in range(n)] for moment in met]
    left = [_left(moment, episode, ahead) for moment, each in zip(met, ways, strict=True) for episode in each if episode.ok]
    going_on = [moment for moment in left if ahead and not moment.last]
    asking: Any = {"env": env, "sampling": sampling, "seed": derive_seed(seed, "ahead"), "run": run}
    said = iter(evaluate(critic, going_on, **asking) if critic else [])
    ends = iter([next(said, None) if ahead and not moment.last else _outcome(moment.episode) for moment in left])
    found: list[list[Continuation]] = []
    places = iter(left)
    for moment, each in zip(met, ways, strict=True):
        known = [(next(places), next(ends)) for episode in each if episode.ok]
        start = len(_upto(moment))
        found.append([Continuation(at.episode.turns[start : _end(at)], _told(end)) for at, end in known if end is not None])
    return found


def aggregate(
    aggregator: Policy,
    met: Sequence[Moment],
    ways: Sequence[Sequence[Continuation]],
    *,
    env: EnvFactory,
    sampling: Sampling = SAMPLING,
    seed: int = 0,
    run: Recorder | None = None,
) -> list[Evaluation | None]:
    """What each moment's action is worth, by its continuations; None for one without any."""
    asked = [i for i, each in enumerate(ways) if each]
    prompts = [_asking(AGGREGATE, met[i], continuations="\n\n".join(map(_shown, ways[i]))) for i in asked]
    answers = _answers(aggregator, prompts, [met[i].task for i in asked], env, sampling, seed, run)
    found = dict(zip(asked, answers, strict=True))
    return [read_evaluation(found[i]) if i in found else None for i in range(len(met))]


def evaluate(
    critic: Policy,
    met: Sequence[Moment],
    *,
    env: EnvFactory,
    sampling: Sampling = SAMPLING,
    seed: int = 0,
    run: Recorder | None = None,
) -> list[Evaluation | None]:
    """What the value model says of each moment's action."""
    prompts = [valued(moment) for moment in met]
    return list(map(read_evaluation, _answers(critic, prompts, [m.task for m in met], env, sampling, seed, run)))


def valued(moment: Moment) -> tuple[Turn, ...]:
    """How the value model is asked about a moment."""
    return _asking(EVALUATE, moment)


def propose(
    agent: Agent[Any], env: EnvFactory, met: Sequence[Moment], *, n: int, top: int, seed: int = 0, run: Recorder | None = None
) -> list[list[Moment]]:
    """In each moment's place, the `top` different actions that the agent takes most often among `n` samples, the most frequent first."""
    found: list[list[Moment]] = [[] for _ in met]
    for factory in dict.fromkeys(env.of(moment.task).name for moment in met):
        here = [i for i, moment in enumerate(met) if env.of(moment.task).name == factory]
        world = env.of(met[here[0]].task)
        prompts = [met[i].before for i in here for _ in range(n)]
        sampling = replace(agent.sampling, max_tokens=agent.sampling.max_tokens or world.cls.max_tokens)
        tasks = [met[i].task for i in here for _ in range(n)]
        answers = ask(agent.policy, prompts, sampling=sampling, seed=derive_seed(seed, factory), tools=world.tools, env=env, tasks=tasks)
        _spend(run, answers)
        for k, i in enumerate(here):
            given = [turn for turn in answers[k * n : (k + 1) * n] if turn]
            first = {line(turn): turn for turn in reversed(given)}
            found[i] = [_instead(met[i], first[said]) for said, _ in Counter(map(line, given)).most_common(top)]
    return found


def improve(
    improver: Policy,
    options: Sequence[Sequence[tuple[Moment, Evaluation]]],
    *,
    env: EnvFactory,
    sampling: Sampling = SAMPLING,
    seed: int = 0,
    run: Recorder | None = None,
) -> list[Choice | None]:
    """The best of each list of actions, by their evaluations alone. None of the lists may be empty."""
    prompts = []
    for moves in options:
        told = [f"{k}. {line(moment.action)}\nevaluation: {value}" for k, (moment, value) in enumerate(moves, 1)]
        parts = {"conversation": transcript(moves[0][0].before), "moves": "\n".join(told)}
        prompts.append((_quoting(IMPROVE, parts),))
    answers = _answers(improver, prompts, [moves[0][0].task for moves in options], env, sampling, seed, run)
    return [read_choice(said, len(moves)) for said, moves in zip(answers, options, strict=True)]


def taken(moment: Moment, reasons: str = "") -> Episode:
    """The episode up to the moment's action, with the reasons for it before what it says."""
    if not reasons:
        return replace(moment.episode, turns=chain(moment.episode.turns[: moment.at + 1]))
    action = untokenised(moment.action)
    told = replace(action, content="\n".join(part for part in (reasons, action.content) if part))
    return replace(moment.episode, turns=chain([*moment.before, told]))


def exchange(id: str, prompt: str, answer: str) -> Episode:
    """A question outside of an episode with its answer, to be learned from."""
    turns = chain([Turn(role="user", content=prompt), Turn(role="assistant", content=answer)])
    return Episode(id=id, task=Task(id=id, env="", split="train"), turns=turns, stop=Stop.TERMINATED)


def _instead(moment: Moment, action: Turn) -> Moment:
    """The moment with another action, of an episode that goes no further."""
    episode = replace(moment.episode, turns=chain([*moment.before, action]))
    return Moment(episode=episode, at=moment.at)


def _upto(moment: Moment) -> tuple[Turn, ...]:
    """The turns up to the moment's action and what was observed after it."""
    turns = moment.episode.turns
    following = (i for i in range(moment.at + 1, len(turns)) if turns[i].trained)
    return turns[: next(following, len(turns))]


def _left(moment: Moment, episode: Episode, ahead: int) -> Moment:
    """Where a continuation is left: `ahead` actions after the moment's, or at its end."""
    at = [i for i, turn in enumerate(episode.turns) if turn.trained and i >= moment.at]
    return Moment(episode=episode, at=at[min(ahead, len(at) - 1)] if ahead else at[-1])


def _end(moment: Moment) -> int:
    return len(moment.episode.turns) if moment.last else moment.at + 1


def _outcome(episode: Episode) -> str:
    return f"outcome: {'success' if episode.success else 'failure'}"


def _told(end: Evaluation | str) -> str:
    return end if isinstance(end, str) else f"evaluation: {end}"


def _shown(way: Continuation) -> str:
    return "\n".join(part for part in (transcript(way.turns), way.end) if part)


def _asking(task: str, moment: Moment, **parts: str) -> tuple[Turn, ...]:
    return (_quoting(task, {"conversation": transcript(moment.before), "action": line(moment.action), **parts}),)


def _quoting(task: str, parts: dict[str, str]) -> Turn:
    return Turn(role="user", content="\n\n".join([task, *(quote(tag, text) for tag, text in parts.items())]))


def _answers(
    policy: Policy,
    prompts: Sequence[tuple[Turn, ...]],
    tasks: Sequence[Task],
    env: EnvFactory,
    sampling: Sampling,
    seed: int,
    run: Recorder | None,
) -> list[str]:
    """What was answered to each prompt; nothing where the policy's context is too short for it."""
    answers = ask(policy, prompts, sampling=sampling, seed=seed, env=env, tasks=tasks)
    _spend(run, answers)
    return [turn.content if turn else "" for turn in answers]


def _spend(run: Recorder | None, answers: Sequence[Turn | None]) -> None:
    if run is not None:
        run.spend(reduce(add, (turn.cost for turn in answers if turn), Cost()))
