"""Feedback on what modules said (`agents.modules`), module by module, and rows to learn from (AMOR, arXiv:2402.01469)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from typing import NamedTuple

from whet.agents.modules import MODULES, Step, steps
from whet.data import to_examples
from whet.data.rows import HasChat
from whet.envs.base import EnvFactory
from whet.policies.ask import ask
from whet.policies.base import Policy, Sampling
from whet.policies.forms import YES_NO, quote
from whet.seeding import derive_seed
from whet.transcript import line
from whet.types import Cost, Episode, Example, Turn, chain

QUESTION = "An agent works in modules. Below is what one of them was told, and what it said. Is that what it should have said?"


class Sample(NamedTuple):
    """What a module said, and whether that was right."""

    episode: Episode
    step: Step
    right: bool


def process_feedback(
    episodes: Sequence[Episode], judge: Policy, env: EnvFactory, *, top: int, queries: int, seed: int = 0
) -> tuple[list[Sample], Cost]:
    """The judge's verdict on each step of the modules, up to the first of an episode that is wrong or about which nothing can be read.

    What comes behind that is skipped: it was told something wrong, and is neither asked about nor learned from.
    """
    episodes = [episode for episode in episodes if episode.ok]
    taken = [list(steps(episode, top=top, queries=queries)) for episode in episodes]
    live, found, spent = list(range(len(episodes))), list[Sample](), Cost()
    for k in range(max(map(len, taken), default=0)):
        live = [i for i in live if k < len(taken[i])]
        prompts = [(Turn(role="user", content=_asked(taken[i][k])),) for i in live]
        greedy, drawn = Sampling(temperature=0.0), derive_seed(seed, "feedback", k)
        answers = ask(judge, prompts, sampling=greedy, seed=drawn, env=env, tasks=[episodes[i].task for i in live])
        spent += reduce(add, (answer.cost for answer in answers if answer), Cost())
        verdicts = [YES_NO.read(answer.content) if answer else None for answer in answers]
        found += [Sample(episodes[i], taken[i][k], verdict == 1.0) for i, verdict in zip(live, verdicts) if verdict is not None]
        live = [i for i, verdict in zip(live, verdicts) if verdict == 1.0]
    return found, spent


def outcome_feedback(episodes: Sequence[Episode], *, top: int, queries: int) -> list[Sample]:
    """Every step of an episode counts as right where the episode succeeded, and as wrong where it did not."""
    return [Sample(e, step, e.success) for e in episodes if e.ok for step in steps(e, top=top, queries=queries)]


def by_module(samples: Sequence[Sample], policy: HasChat, env: EnvFactory) -> dict[str, tuple[list[Example], list[bool]]]:
    """Of each module the rows of what it said, behind what it was told, and whether each is right; of one that said nothing, none."""
    found: dict[str, tuple[list[Example], list[bool]]] = {module: ([], []) for module in MODULES}
    for episode, (told, answer), right in samples:
        turns = chain([*told.turns, answer])
        tools = env.of(episode.task).tools if told.module == "complete" else ()
        start = sum(turn.trained for turn in told.turns)
        rows = to_examples(replace(episode, turns=turns), policy, tools=tools, start=start)
        found[told.module][0].extend(rows)
        found[told.module][1].extend([right] * len(rows))
    return found


def _asked(step: Step) -> str:
    parts = {"module": step.ask.module, "told": step.ask.turns[-1].content, "said": line(step.answer)}
    return "\n\n".join([QUESTION, *(quote(tag, text) for tag, text in parts.items()), YES_NO.ask])
