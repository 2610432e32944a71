"""A planner divides the task, an actor works on each subtask in turn, and a judge sends it back where that fails (arXiv:2403.19962).

Branches are tried in a copy of the environment that is put where the episode has got to (`envs.again`): if the judge does not find
the subtask done, the copy is thrown away, which is the way back to the earlier state, and the next branch begins there. The
branch that is kept becomes the episode's own, call by call, out of a buffer (`agents.buffer`). Plans and outcomes stand in the
text of the turns, so everything can be read from the conversation. Steps in copies are counted in the cost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from whet.agents.buffer import acted, buffered, from_buffer, head_of, planning, steps_in, valid
from whet.agents.plan_ground import ordered
from whet.config import at_least
from whet.envs.again import again, take
from whet.envs.base import Env
from whet.policies.base import Policy, Sampling
from whet.policies.forms import YES_NO, quote
from whet.policies.workflow import Desk, Workflow
from whet.transcript import transcript
from whet.types import Cost, Turn

DIVIDE = "Divide what is left to do into at most {k} subtasks, in their order, each alone on a line, with nothing before or behind them."
REACHED = "Is this subtask done: {subtask}?"
PLAN, DONE, GIVEN_UP = "plan:", "done: ", "given up: "


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One way of working on a subtask, in a copy of the environment."""

    steps: tuple[Turn, ...]
    """Its calls that a tool took, each with its thought."""
    done: bool
    """By the judge."""
    over: bool = False
    """Whether the episode ended with it."""
    last: Turn
    """The last turn of the actor's."""


@dataclass(frozen=True, kw_only=True)
class Ways:
    """How a task is divided, and how far one goes before one goes back."""

    subtasks: int = 3
    """Of a plan, at most: the paper's k."""
    branches: int = 3
    """Ways that are tried at a subtask; then the last that did not end the episode is kept, and what is left is planned anew."""
    patience: int = 5
    """Turns within which a branch has to get there."""
    temperature: float = 1.0
    """Of all branches but the first, at least."""
    told: bool = True
    """Tell the actor which subtask it is at."""

    def __post_init__(self) -> None:
        at_least(self, 1, "subtasks", "branches", "patience")
        at_least(self, 0, "temperature")


@dataclass(frozen=True, kw_only=True)
class Branching(Ways, Workflow):
    """Decompose, judge, and go back. The judge sees the whole episode as text, a scripted one the environment at its beginning."""

    planner: Policy
    judge: Policy
    worker: Policy

    async def act(self, desk: Desk) -> Turn:
        if left := buffered(desk.turns, desk.tools):
            return from_buffer(left[0])
        plan = remaining(desk.turns)
        head = [] if plan else [PLAN]
        if not plan:
            plan = await self._divide(desk)
            head += [f"- {subtask}" for subtask in plan]
        branch = await self._branches(desk, plan[0])
        if not branch.steps:
            return branch.last
        return planning("\n".join([*head, f"{DONE if branch.done else GIVEN_UP}{plan[0]}"]), branch.steps)

    async def _divide(self, desk: Desk) -> list[str]:
        request = Turn(role="user", content=DIVIDE.format(k=self.subtasks))
        answer = await desk.ask("planner", (*acted(desk.turns), request), sampling=Sampling(temperature=0.0), max_tokens=256)
        lines = [line.strip().lstrip("-* ").strip() for line in answer.content.splitlines()]
        return [line for line in lines if line][: self.subtasks] or ["what is left to do"]

    async def _branches(self, desk: Desk, subtask: str) -> Branch:
        """The first that the judge finds done; otherwise the last, of those that did not end the episode if there are any."""
        tried = []
        async with again(desk.request.env, ()) as beginning:
            reached = partial(self._reached, desk, subtask, beginning)
            for n in range(self.branches):
                tried.append(await self._branch(desk, subtask, n, reached))
                if tried[-1].done:
                    return tried[-1]
        return next((branch for branch in reversed(tried) if branch.steps and not branch.over), tried[-1])

    async def _branch(self, desk: Desk, subtask: str, n: int, reached: Callable[[Sequence[Turn]], Awaitable[bool]]) -> Branch:
        sampling = desk.request.sampling
        sampling = sampling.at(max(sampling.temperature, self.temperature)) if n else sampling
        turns, steps, over = acted(desk.turns), list[Turn](), False
        told = tuple(ordered(turns, f"Subtask: {subtask}")) if self.told else turns
        async with again(desk.request.env, desk.turns) as copy:
            for _ in range(self.patience):
                turn = await desk.ask("worker", told, tools=copy.tools, sampling=sampling, env=copy)
                step, seen = await take(copy, turn)
                desk.spent += Cost(env_steps=1)
                turns, told = (*turns, turn, *seen), (*told, turn, *seen)
                over = step.terminated or step.truncated
                if valid(turn, desk.tools):
                    steps += steps_in(turn, desk.tools)
                    if await reached(turns):
                        return Branch(steps=tuple(steps), done=True, over=over, last=turn)
                if over:
                    break
        return Branch(steps=tuple(steps), done=False, over=over, last=turn)

    async def _reached(self, desk: Desk, subtask: str, beginning: Env, turns: Sequence[Turn]) -> bool:
        question = f"{REACHED.format(subtask=subtask)}\n\n{quote('episode', transcript(turns))}\n\n{YES_NO.ask}"
        asked = (Turn(role="user", content=question),)
        answer = await desk.ask("judge", asked, sampling=Sampling(temperature=0.0), max_tokens=256, env=beginning)
        return YES_NO.read(answer.content) == 1.0


def remaining(turns: Sequence[Turn]) -> list[str]:
    """The subtasks of the last plan that are still to be worked on; none behind one that was given up."""
    plan: list[str] = []
    for head in (head_of(turn) for turn in turns if turn.trained):
        if head.startswith(PLAN):
            plan = [line.removeprefix("- ") for line in head.splitlines()[1:-1]]
        if head:
            plan = plan[1:] if head.splitlines()[-1].startswith(DONE) else []
    return plan
