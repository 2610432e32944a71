"""Another copy of an environment, put where a conversation has got to: how one goes back to an earlier state.

The copy is begun at the same task, and the conversation's actions are taken in it again; so this needs an environment that is
replayable. It has calls of its own, which the episode does not count.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from whet.envs.base import Action, Env, Step
from whet.envs.calling import caller_of
from whet.errors import CannotReplay, PolicyError
from whet.types import Turn


@asynccontextmanager
async def again(env: Env | None, turns: Sequence[Turn]) -> AsyncIterator[Env]:
    """A copy of a live environment behind the actions of `turns`; it is closed at the end.

    Raises PolicyError outside of an episode, and CannotReplay for an environment that is not replayable.
    """
    situation = caller_of(env).situation if env is not None else None
    if env is None or situation is None:
        raise PolicyError("going back to an earlier state needs an episode that is under way; act through a rollout")
    if not env.replayable:
        raise CannotReplay(
            f"environment {env.name!r} cannot replay (its class says `replayable = False`), so there is no going back to an earlier "
            "state in it; use a method that goes on from wherever it is"
        )
    copy = situation.factory()
    try:
        await _called(copy, lambda: copy.reset(situation.task))
        for turn in turns:
            if turn.trained:
                await take(copy, turn)
        yield copy
    finally:
        await _called(copy, copy.close)


async def take(env: Env, turn: Turn) -> tuple[Step, tuple[Turn, ...]]:
    """What comes of an assistant turn in this environment: the step, and its observation as turns."""
    step: Step = await _called(env, lambda: env.step(Action(text=turn.content, tool_calls=turn.tool_calls)))
    seen = step.observation
    if isinstance(seen, str):
        return step, (Turn(role="user", content=seen),) if seen else ()
    return step, seen


async def _called(env: Env, function: Callable[[], Any]) -> Any:
    """What a function of an environment gives, a plain or a coroutine's; what may wait does so on a thread."""
    found = function() if env.inline else await asyncio.to_thread(function)
    return await found if inspect.isawaitable(found) else found
