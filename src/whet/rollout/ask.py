"""Questions to a policy that belong to no episode: reflections, judgements, summaries."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from whet.policies.base import Policy, Request, Sampling
from whet.rollout.runner import run_sync
from whet.seeding import derive_seed
from whet.types import Turn


def ask(policy: Policy, prompts: Sequence[Sequence[Turn]], *, sampling: Sampling = Sampling(), seed: int = 0) -> list[Turn]:
    """The policy's answer to each prompt, all asked at once. Raises PolicyError where one cannot be had."""

    async def answer(i: int, prompt: Sequence[Turn]) -> Turn:
        session = f"ask/{seed}/{i}"
        turns = policy.observe((), tuple(prompt), ())
        limit = sampling.max_tokens or 256
        request = Request(turns=turns, sampling=sampling, max_tokens=limit, seed=derive_seed(seed, i), session=session)
        try:
            return await policy.generate(request)
        finally:
            policy.release(session)

    async def everything() -> list[Turn]:
        return list(await asyncio.gather(*(answer(i, prompt) for i, prompt in enumerate(prompts))))

    return run_sync(everything())
