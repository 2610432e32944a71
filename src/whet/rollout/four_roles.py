"""Gold episodes as trajectories of SMART's roles (`agents.four_roles`): what a teacher writes for each, and what is learned from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any

from whet.agents.four_roles import (
    ROLES,
    documented,
    generator_piece,
    locator_piece,
    marked,
    parted,
    responded,
    retrieved,
    said,
    to_generator,
    to_locator,
    to_reconstructor,
)
from whet.data import opening, to_examples
from whet.data.rows import HasChat, cut
from whet.envs.base import EnvFactory
from whet.policies.ask import ask
from whet.policies.base import Policy
from whet.types import Cost, Episode, Example, Turn, chain

QUERIES = "Write the search queries that find what is needed to answer this, each on a line of its own, and nothing else."
MARKS = (
    "Say of each document whether it helps to answer, on a line each, in their order: `[1] [Relevant] ...` with the words that help, "
    "copied from the document as they stand there, or `[1] [Irrelevant]`. Write nothing else."
)


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """Roles that follow each other in one conversation, or one of them alone; the assistant's turns are theirs, in order."""

    episode: Episode
    """Its turns are the conversation."""
    roles: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A gold response, with what stands before it."""

    episode: Episode
    at: int

    @property
    def id(self) -> str:
        return f"{self.episode.id}:{self.at}"

    @property
    def parts(self) -> tuple[tuple[str, ...], tuple[Turn, ...]]:
        return parted(self.episode.turns[: self.at])

    def told(self, roles: Sequence[str], *turns: Turn) -> Trajectory:
        return Trajectory(episode=replace(self.episode, turns=chain(turns)), roles=tuple(roles))


def annotate(
    golds: Sequence[Episode], teachers: Mapping[str, Policy], env: EnvFactory, *, top: int, seed: int = 0
) -> tuple[dict[str, list[str]], Cost]:
    """Of each gold response its queries and its marks, as the teachers wrote them; and what that took.

    Where one of them gave no answer its text is empty. Documents are retrieved by the teacher's queries. Raises ConfigError
    where the first task shows no documents.
    """
    places = _places(golds)
    for episode in golds[:1]:
        documented(episode.task, opening(episode))
    queries, spent = _asked(teachers["reconstructor"], [(p, to_reconstructor(p.parts[1]), QUERIES) for p in places], env, seed)
    found = [retrieved(p.parts[0], q, top) for p, q in zip(places, queries, strict=True)]
    prompts = [(p, locator_piece(p.parts[1], f), MARKS) for p, f in zip(places, found, strict=True)]
    marks, more = _asked(teachers["locator"], prompts, env, seed)
    return {p.id: [q, m] for p, q, m in zip(places, queries, marks, strict=True)}, spent + more


def whole(golds: Sequence[Episode], notes: Mapping[str, Sequence[str]], top: int) -> list[Trajectory]:
    """The trajectories of all roles. Without a relevant fact the locator ends one, and the response is a piece of its own."""
    found = []
    for place, question, documents, queries, marks, spans in _readable(golds, notes, top):
        response = responded(place.episode.turns[place.at], spans)
        if any(span is not None for span in spans):
            found.append(place.told(ROLES, *to_generator(question, queries, documents, marks), response))
        else:
            found.append(place.told(ROLES[:2], *to_locator(question, queries, documents), said("locator", marks)))
            found.append(place.told(ROLES[2:], *generator_piece(question, ""), response))
    return found


def pieces(golds: Sequence[Episode], notes: Mapping[str, Sequence[str]], top: int) -> list[Trajectory]:
    """A piece of one role for each gold response, the roles in turn."""
    found = []
    for i, (place, question, documents, queries, marks, spans) in enumerate(_readable(golds, notes, top)):
        role = ROLES[i % len(ROLES)]
        facts = "\n".join(span for span in spans if span is not None)
        asked, answer = {
            "reconstructor": (to_reconstructor(question), said("reconstructor", queries)),
            "locator": (locator_piece(question, documents), said("locator", marks)),
            "generator": (generator_piece(question, facts), responded(place.episode.turns[place.at], spans)),
        }[role]
        found.append(place.told([role], *asked, answer))
    return found


def role_rows(trajectories: Sequence[Trajectory], roles: Sequence[str], policy: HasChat, env: EnvFactory) -> list[Example]:
    """Rows of what these roles say: one for a trajectory of which they are all, otherwise one for each of their turns."""
    rows: list[Example] = []
    for trajectory in trajectories:
        episode, tools = trajectory.episode, env.of(trajectory.episode.task).tools
        first = episode.n_actions - len(trajectory.roles)
        if set(trajectory.roles) <= set(roles):
            rows += to_examples(episode, policy, tools=tools, start=first)
            continue
        for i, role in enumerate(trajectory.roles, first):
            rows += to_examples(cut(episode, i + 1), policy, tools=tools, start=i) if role in roles else []
    return rows


def _places(golds: Sequence[Episode]) -> list[_Place]:
    return [_Place(episode=episode, at=at) for episode in golds for at, turn in enumerate(episode.turns) if turn.trained]


def _asked(teacher: Policy, prompts: Sequence[tuple[_Place, Sequence[Turn], str]], env: EnvFactory, seed: int) -> tuple[list[str], Cost]:
    """The teacher's answers, told in words what to do."""
    told = [(*turns[:-1], replace(turns[-1], content=f"{turns[-1].content}\n{words}")) for _, turns, words in prompts]
    answers = ask(teacher, told, seed=seed, env=env, tasks=[place.episode.task for place, _, _ in prompts])
    texts = [answer.content.strip() if answer else "" for answer in answers]
    return texts, reduce(add, (answer.cost for answer in answers if answer), Cost())


def _readable(golds: Sequence[Episode], notes: Mapping[str, Sequence[str]], top: int) -> Iterator[tuple[_Place, Any, Any, str, str, Any]]:
    """Each gold response whose marks keep the rules: its place, the question, what is retrieved, queries, marks, and what they copy."""
    for place in _places(golds):
        queries, marks = notes[place.id]
        documents, question = place.parts
        found = retrieved(documents, queries, top)
        spans = marked(marks, found)
        if queries and spans is not None:
            yield place, question, found, queries, marks, spans
