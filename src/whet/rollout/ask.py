"""Questions to a policy that belong to no episode: reflections, judgements, summaries."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from whet.errors import ContextFull
from whet.policies.base import Policy, Request, Sampling
from whet.rollout.runner import run_sync
from whet.seeding import derive_seed
from whet.types import Turn


def ask(policy: Policy, prompts: Sequence[Sequence[Turn]], *, sampling: Sampling = Sampling(), seed: int = 0) -> list[Turn | None]:
    """The policy's answer to each prompt, all asked at once; None for a prompt that is longer than its context.

    Raises PolicyError where an answer cannot be had for another reason.
    """

    async def answer(i: int, prompt: Sequence[Turn]) -> Turn | None:
        session = f"ask/{seed}/{i}"
        turns = policy.observe((), tuple(prompt), ())
        limit = sampling.max_tokens or 256
        request = Request(turns=turns, sampling=sampling, max_tokens=limit, seed=derive_seed(seed, i), session=session)
        try:
            return await policy.generate(request)
        except ContextFull:
            return None
        finally:
            policy.release(session)

    async def everything() -> list[Turn | None]:
        return list(await asyncio.gather(*(answer(i, prompt) for i, prompt in enumerate(prompts))))

    return run_sync(everything())
