"""Questions to a policy that belong to no episode under way: reflections, judgements, plans, summaries."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

from whet.errors import ConfigError, ContextFull
from whet.policies.base import Policy, Request, Sampling
from whet.policies.loop import run_sync
from whet.seeding import derive_seed
from whet.tools.function import Tool
from whet.types import Task, Turn

if TYPE_CHECKING:
    from whet.envs.base import Env, EnvFactory


def ask(
    policy: Policy,
    prompts: Sequence[Sequence[Turn]],
    *,
    sampling: Sampling = Sampling(),
    seed: int = 0,
    tools: Sequence[Tool] = (),
    env: EnvFactory | None = None,
    tasks: Sequence[Task] | None = None,
) -> list[Turn | None]:
    """The policy's answer to each prompt, all asked at once; None for a prompt that is longer than its context.

    `env` and `tasks`, one for each prompt, are what the prompts are about. A scripted policy (one with an `actor`) is shown
    the environment at that task; a model never is. Raises PolicyError where an answer cannot be had for another reason.
    """
    if tasks is not None and len(tasks) != len(prompts):
        raise ConfigError(f"there are {len(tasks)} tasks for {len(prompts)} prompts; expected one for each")
    scripted = hasattr(policy, "actor") and env is not None and tasks is not None

    async def answer(i: int, prompt: Sequence[Turn]) -> Turn | None:
        session = f"ask/{seed}/{i}"
        turns = policy.observe((), tuple(prompt), tuple(tools))
        world = (await begin(env, tasks[i]))[0] if scripted and env is not None and tasks is not None else None
        request = Request(
            turns=turns,
            tools=tuple(tools),
            sampling=sampling,
            max_tokens=sampling.max_tokens or 256,
            seed=derive_seed(seed, i),
            session=session,
            env=world,
        )
        try:
            return await policy.generate(request)
        except ContextFull:
            return None
        finally:
            policy.release(session)
            if world is not None:
                await end(world)

    async def everything() -> list[Turn | None]:
        return list(await asyncio.gather(*(answer(i, prompt) for i, prompt in enumerate(prompts))))

    return run_sync(everything())


async def begin(env: EnvFactory, task: Task) -> tuple[Env, str | tuple[Turn, ...]]:
    """The task's environment at its beginning, and what it shows there. The caller closes it."""
    world = env.of(task)()
    seen = world.reset(task)
    return world, await seen if inspect.isawaitable(seen) else seen


async def end(world: Env) -> None:
    """Close an environment."""
    if inspect.isawaitable(closing := world.close()):  # type: ignore[func-returns-value]
        await closing
