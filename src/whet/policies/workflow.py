"""Policies made of policies: a planner and a grounder, a fast and a slow thinker, a finite-state machine of modules.

    @dataclass(frozen=True)
    class PlanGround(Workflow):
        planner: Policy
        grounder: Policy

        async def act(self, desk: Desk) -> Turn:
            plan = await desk.ask("planner", (*desk.turns, Turn(role="user", content="Next subgoal?")))
            return await desk.ask("grounder", (*desk.turns, Turn(role="user", content=plan.content)), tools=desk.tools)

A workflow is a frozen dataclass: its fields that are policies are its parts, the others its options (or something else that it goes
by, such as a critic, with `save(directory)` and a classmethod `load(directory)`). Each turn of an episode it
sees the conversation as text, asks its parts whatever it wants in words of its own, and gives one turn. Everything that it
knows follows from the conversation, so an episode can be replayed and resumed. Its turns have no tokens: parts are trained
on conversations that are written as the workflow would ask them.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.errors import CheckpointError, ConfigError, StorageError
from whet.policies.base import Policy, Request, Sampling
from whet.seeding import derive_seed
from whet.types import Cost, Turn

if TYPE_CHECKING:
    from whet.envs.base import Env
    from whet.tools.function import Tool

FILE = "workflow.json"


@dataclass
class Desk:
    """One turn that is asked of a workflow: the conversation as text, and a way to ask the parts."""

    workflow: Workflow
    request: Request
    turns: tuple[Turn, ...]
    """The conversation, without tokens."""
    asked: list[tuple[str, Turn]] = field(default_factory=list)
    """Who was asked, and what came back."""
    spent: Cost = Cost()
    """What the turn took besides the answers, such as steps in a copy of the environment."""

    @property
    def tools(self) -> tuple[Tool, ...]:
        return self.request.tools

    async def ask(
        self,
        part: str,
        turns: Sequence[Turn],
        *,
        tools: Sequence[Tool] = (),
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        env: Env | None = None,
        tokens: bool = False,
    ) -> Turn:
        """A part's answer to a conversation, as text with its cost. `part` is a field's name.

        With `tokens` the answer keeps its tokens and log-probs, for whoever wants to know how likely it was.
        A part that works on tokens keeps what it has read of the conversation until the episode ends, so one that only grows
        is read once. A scripted part looks into `env`, by default the episode's. Raises what the part's `generate` raises.
        """
        policy: Policy = getattr(self.workflow, part)
        request = replace(
            self.request,
            turns=policy.observe((), tuple(turns), tuple(tools)),
            tools=tuple(tools),
            sampling=sampling or self.request.sampling,
            max_tokens=max_tokens or self.request.max_tokens,
            seed=derive_seed(self.request.seed, part, len(self.asked)),
            session=f"{self.request.session}/{part}",
            env=env or self.request.env,
        )
        answer = await policy.generate(request)
        self.asked.append((part, untokenised(answer)))
        return answer if tokens else untokenised(answer)


class Workflow:
    """A policy made of policies. Subclass it as a frozen dataclass and give it `act`."""

    @property
    def actor(self) -> str:
        """`workflow` where models act; `mixed` where a part is code, which tables then say."""
        models = all(getattr(part, "actor", "self") in ("self", "workflow") for part in self.parts.values())
        return "workflow" if models else "mixed"

    async def act(self, desk: Desk) -> Turn:
        """The next assistant turn, as text."""
        raise NotImplementedError(f"{type(self).__name__} has no act; define `async def act(self, desk) -> Turn`")

    @property
    def parts(self) -> dict[str, Policy]:
        """The fields that are policies."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if isinstance(value, Policy)}

    @property
    def version(self) -> str:
        """The workflow's name with its parts' versions."""
        return f"{type(self).__name__}({', '.join(f'{name}={part.version}' for name, part in self.parts.items())})"

    def observe(self, turns: Sequence[Turn], new: Sequence[Turn], tools: Sequence[Tool]) -> tuple[Turn, ...]:
        return tuple(new)

    async def generate(self, request: Request) -> Turn:
        """What `act` gives, with the cost of everybody who was asked and of what else was spent."""
        desk = Desk(self, request, tuple(untokenised(turn) for turn in request.turns))
        turn = await self.act(desk)
        cost: Cost = reduce(add, (answer.cost for _, answer in desk.asked), desk.spent)
        return replace(untokenised(turn), cost=cost, finish=turn.finish if turn.finish != "none" else "stop")

    def release(self, session: str) -> None:
        for name, part in self.parts.items():
            part.release(f"{session}/{name}")

    def save(self, directory: str | Path) -> None:
        """Write the workflow with its parts: weights beside it, others by name. Raises StorageError, and ConfigError for a part
        that neither has weights nor a name that `load_policy` knows."""
        target = Path(directory)
        record: dict[str, Any] = {"class": _name_of(self), "parts": {}, "aids": {}, "options": {}}
        try:
            target.mkdir(parents=True, exist_ok=True)
            saved: dict[int, str] = {}
            for name, part in self.parts.items():
                if hasattr(part, "save"):
                    if id(part) not in saved:
                        part.save(target / name)
                        saved[id(part)] = f"./{name}"
                    record["parts"][name] = saved[id(part)]
                else:
                    record["parts"][name] = getattr(part, "spec", part.version)
            for f in dataclasses.fields(self):  # type: ignore[arg-type]
                value = getattr(self, f.name)
                if f.name in record["parts"]:
                    continue
                if hasattr(value, "save"):
                    value.save(target / f.name)
                    record["aids"][f.name] = _name_of(value)
                else:
                    record["options"][f.name] = value
            (target / FILE).write_text(json.dumps(record, indent=1))
        except TypeError as error:
            raise ConfigError(f"an option of {type(self).__name__} cannot be written as JSON: {error}") from error
        except OSError as error:
            raise StorageError(f"could not write the workflow {str(target)!r}: {error}; free space or choose another place") from error


def _name_of(value: object) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _named(name: str) -> Any:
    module, _, cls = name.partition(":")
    return getattr(importlib.import_module(module), cls)


def untokenised(turn: Turn) -> Turn:
    """The turn as text alone; its cost stays."""
    return replace(turn, tokens=(), logprobs=(), versions=()) if turn.tokens else turn


def load_workflow(directory: Path) -> Workflow:
    """What `Workflow.save` wrote. Raises CheckpointError where it cannot be read or is no workflow of whet or of an imported module."""
    from whet.policies import load_policy

    path = directory / FILE
    try:
        record = json.loads(path.read_text())
        cls = _named(record["class"])
        if not (isinstance(cls, type) and issubclass(cls, Workflow)):
            raise TypeError(f"{record['class']!r} is no workflow")
        specs = {spec: load_policy(str(directory / spec) if spec.startswith("./") else spec) for spec in set(record["parts"].values())}
        parts = {part: specs[spec] for part, spec in record["parts"].items()}
        aids = {part: _named(name).load(directory / part) for part, name in record.get("aids", {}).items()}
        loaded: Workflow = cls(**parts, **aids, **{key: _plain(value) for key, value in record["options"].items()})
        return loaded
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise CheckpointError(f"{path} cannot be read as a workflow: {error!r}") from error


def _plain(value: Any) -> Any:
    """Lists back as the tuples that frozen dataclasses hold."""
    return tuple(_plain(item) for item in value) if isinstance(value, list) else value
