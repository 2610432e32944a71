"""An agent is a value: a policy with the instructions and the memory that go into its prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from whet.policies.base import Policy, Sampling
from whet.types import Task, Turn

P_co = TypeVar("P_co", bound=Policy, covariant=True)


@dataclass(frozen=True)
class Agent(Generic[P_co]):
    """A policy and what surrounds it. Never mutated: `replace` gives another agent.

    `memory` maps a task's id to notes about that task; notes under the key `""` go into every prompt.
    """

    policy: P_co
    instructions: str = ""
    """Added to the environment's own."""
    memory: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sampling: Sampling = Sampling()
    suffix: str = ""
    """Added to the first observation, as the control strings of conditional training are."""
    prefix: str = ""
    """Put before the first observation, as other control strings are."""

    def replace(self, **changes: Any) -> Agent[Any]:
        """This agent with other parts, such as `agent.replace(policy=...)`."""
        return dataclasses.replace(self, **changes)

    def prompt(self, task: Task, instructions: str, observation: str | tuple[Turn, ...]) -> tuple[Turn, ...]:
        """The turns that open an episode: a system turn, then the notes of the memory with the first observation."""
        system = "\n\n".join(part for part in (instructions, self.instructions) if part)
        first = (Turn(role="user", content=observation),) if isinstance(observation, str) else observation
        first = controlled(first, self.suffix, self.prefix)
        notes = (*self.memory.get("", ()), *self.memory.get(task.id, ()))
        return ((Turn(role="system", content=system),) if system else ()) + with_notes(first, notes)


def with_notes(opening: tuple[Turn, ...], notes: Sequence[str]) -> tuple[Turn, ...]:
    """The turns that open an episode with these notes before the first observation, as an agent's memory puts them there."""
    if not notes:
        return opening
    hints = "\n".join(f"Hint: {note}" for note in notes)
    head = next((i for i, turn in enumerate(opening) if turn.role == "user"), None)
    if head is None:
        return (Turn(role="user", content=hints), *opening)
    told = dataclasses.replace(opening[head], content=f"{hints}\n{opening[head].content}", tokens=())
    return (*opening[:head], told, *opening[head + 1 :])


def without_notes(opening: tuple[Turn, ...], beginning: str) -> tuple[Turn, ...]:
    """The opening without those notes that begin so, each of which is a line: what `with_notes` put there is taken out again."""
    taken = f"Hint: {beginning}"
    lines = ((turn, turn.content.split("\n")) for turn in opening)
    kept = ((turn, "\n".join(line for line in text if not line.startswith(taken))) for turn, text in lines)
    return tuple(turn if content == turn.content else dataclasses.replace(turn, content=content, tokens=()) for turn, content in kept)


def controlled(turns: tuple[Turn, ...], suffix: str, prefix: str = "") -> tuple[Turn, ...]:
    """The turns of an opening with control strings on lines of their own, behind and before the last one's content."""
    if not (suffix or prefix):
        return turns
    content = "\n".join(part for part in (prefix, turns[-1].content, suffix) if part)
    return (*turns[:-1], dataclasses.replace(turns[-1], content=content, tokens=()))
