"""Continuous batching: which sessions decode together, what of their prompts is computed, and when answers are handed out.

A request joins at the next step, whatever the others are doing, and leaves when it is finished; its session stays in
the cache until `release`, so that the next turn computes only what is new. A new session copies the longest prefix
that another one has in the cache, and waits a step where another one is just about to compute more of it. All of this
is a function of the order in which requests arrive.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Literal

import torch

from whet.errors import ContextFull, PolicyError
from whet.policies.base import Sampling
from whet.policies.engine.base import Decoder, Session
from whet.policies.engine.sampling import mix, sample, uniform
from whet.policies.gate import Gate, current_gate

_BURST = 0.01
"""Seconds before the event loop gets a turn although no request has finished."""
_SHARED = 16
"""Tokens of a common prefix below which copying, or waiting for it, is not worth it."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was sampled for one request."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Literal["stop", "length"]
    prefilled: int
    """Prompt tokens computed for it: neither cached from earlier turns nor copied from another session."""


@dataclass(slots=True)
class Stats:
    """Counts since the engine was made."""

    steps: int = 0
    sampled: int = 0
    prefilled: int = 0
    copied: int = 0
    """Prompt tokens taken over from another session."""
    evicted: int = 0
    """Sessions that lost their place in the cache to others, and were or will be computed again."""


@dataclass(eq=False, slots=True)
class Job:
    """A request on its way."""

    prompt: list[int]
    sampling: Sampling
    max_tokens: int
    stream: int
    key: object
    future: asyncio.Future[Result]
    gate: Gate | None
    session: Session | None = None
    sampled: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    prefilled: int = 0


class Engine:
    """Decodes for many sessions at once over one `Decoder`. Belongs to one event loop at a time.

    Args:
        stops: tokens that end an answer; the one that did is part of it.
        max_sessions: sessions kept in the cache. Beyond that, idle ones are evicted, and requests wait if all are busy.
    """

    def __init__(self, decoder: Decoder, *, stops: frozenset[int], max_sessions: int = 1024) -> None:
        self.decoder = decoder
        self.stops = stops
        self.max_sessions = max_sessions
        self.stats = Stats()
        self._sessions: dict[object, Session] = {}
        self._waiting: deque[Job] = deque()
        self._active: list[Job] = []
        self._gates: Counter[Gate] = Counter()
        self._pump: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Future[None] | None = None

    async def generate(self, prompt: Sequence[int], sampling: Sampling, *, max_tokens: int, seed: int, session: str = "") -> Result:
        """The answer to `prompt` (all tokens of the conversation).

        Under the key `session` the conversation stays cached until `release`; the empty key keeps nothing. Raises
        ContextFull where the prompt leaves no room for an answer, PolicyError where decoding fails.
        """
        job = self._submit(prompt, sampling, max_tokens, seed, session)
        try:
            return await job.future
        except asyncio.CancelledError:
            self._cancel(job)
            raise

    def release(self, session: str) -> None:
        """Forget a session, and give up what is being generated for it."""
        for job in [j for j in (*self._waiting, *self._active) if j.key == session]:
            job.future.cancel()
            self._cancel(job)
        if found := self._sessions.pop(session, None):
            self.decoder.drop(found)
        self._rest()
        self._awake()

    def _submit(self, prompt: Sequence[int], sampling: Sampling, max_tokens: int, seed: int, session: str) -> Job:
        if not prompt:
            raise PolicyError("the conversation has no tokens; put its turns through observe() before generate()")
        if len(prompt) >= self.decoder.context:
            raise ContextFull(f"the conversation has {len(prompt)} tokens and the model's context holds {self.decoder.context}")
        if not 0 <= min(prompt) <= max(prompt) < self.decoder.vocab_size:
            raise PolicyError(f"token ids {min(prompt)} to {max(prompt)} do not fit a vocabulary of {self.decoder.vocab_size}")
        self._bind(asyncio.get_running_loop())
        job = Job(
            prompt=list(prompt),
            sampling=sampling,
            max_tokens=max_tokens,
            stream=mix(seed & 0xFFFFFFFFFFFFFFFF),
            key=session or object(),
            future=asyncio.get_running_loop().create_future(),
            gate=current_gate.get(),
        )
        self._waiting.append(job)
        if job.gate is not None:
            self._gates[job.gate] += 1
        if self._pump is None:
            self._pump = asyncio.get_running_loop().create_task(self._run())
        self._awake()
        return job

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is loop:
            return
        if self._loop is not None and self._pump is not None:
            if self._loop.is_running():
                raise PolicyError("this policy is generating in another event loop; one policy can serve one loop at a time")
            self._forget(healthy=True)  # an earlier loop was stopped in the middle; nobody waits for its requests any more
        self._loop = loop

    async def _run(self) -> None:
        """Decode until nothing is asked for; runs as a task beside the episodes."""
        try:
            while self._waiting or self._active:
                while any(gate.blocked() for gate in self._gates):
                    await self._news()
                until = time.monotonic() + _BURST
                while (self._waiting or self._active) and not self._step() and time.monotonic() < until:
                    pass
                await asyncio.sleep(0)
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._pump = None

    async def _news(self) -> None:
        """Sleep until a request comes or goes, which is when gates open, or else for a millisecond."""
        loop = asyncio.get_running_loop()
        self._wake = loop.create_future()
        timer = loop.call_later(0.001, self._awake)
        await self._wake
        timer.cancel()

    def _awake(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _fail(self, error: BaseException) -> None:
        for job in (*self._waiting, *self._active):
            if not job.future.done() and not job.future.get_loop().is_closed():
                if isinstance(error, PolicyError):
                    job.future.set_exception(error)
                elif isinstance(error, Exception):
                    wrapped = PolicyError(f"the decode engine failed: {type(error).__name__}: {error}")
                    wrapped.__cause__ = error
                    job.future.set_exception(wrapped)
                else:
                    job.future.cancel()
        self._forget(healthy=False)

    def _forget(self, *, healthy: bool) -> None:
        for session in self._sessions.values():
            self.decoder.drop(session)
        self._sessions.clear()
        self._waiting.clear()
        self._active.clear()
        self._gates.clear()
        self._pump = self._wake = None
        self.decoder.close(healthy=healthy)

    def _rest(self) -> None:
        if not self._sessions and not self._waiting:
            self.decoder.close()

    @torch.inference_mode()
    def _step(self) -> bool:
        """Admit, compute one token for every active job, hand out what is finished. Says whether anything finished."""
        self._admit()
        batch, counts = self._plan()
        logits = self.decoder.forward([_session(job) for job in batch], counts)
        self.stats.steps += 1
        for job in batch:
            _session(job).used = self.stats.steps
        ready = [i for i, job in enumerate(batch) if _session(job).length == len(_session(job).tokens)]
        if len(ready) < len(batch):  # others have more of their prompt to take in
            batch, logits = [batch[i] for i in ready], logits[ready]
        if not batch:
            return False
        uniforms = [uniform(job.stream, len(job.sampled)) for job in batch]
        drawn, drawn_logprobs = sample(logits, [job.sampling for job in batch], uniforms)
        tokens, logprobs = drawn.tolist(), drawn_logprobs.tolist()
        if not math.isfinite(math.fsum(logprobs)):
            raise PolicyError("the model's logits are not finite; its weights have diverged or are damaged")
        self.stats.sampled += len(batch)
        finished = False
        for job, token, logprob in zip(batch, tokens, logprobs, strict=True):
            job.sampled.append(token)
            job.logprobs.append(logprob)
            session = _session(job)
            session.tokens.append(token)
            if token in self.stops:
                self._finish(job, "stop")
                finished = True
            elif len(job.sampled) >= job.max_tokens or len(session.tokens) >= self.decoder.context:
                self._finish(job, "length")
                finished = True
        return finished

    def _finish(self, job: Job, finish: Literal["stop", "length"]) -> None:
        self._detach(job)
        if not isinstance(job.key, str):
            self.decoder.drop(self._sessions.pop(job.key))
            self._rest()
        if not job.future.done():
            job.future.set_result(Result(tuple(job.sampled), tuple(job.logprobs), finish, job.prefilled))

    def _cancel(self, job: Job) -> None:
        if job in self._waiting:
            self._waiting.remove(job)
            self._ungate(job)
        elif job in self._active:
            session = _session(job)
            self._detach(job)
            if isinstance(job.key, str):
                self.decoder.truncate(session, session.length)  # what it was still to compute will not come
            else:
                self.decoder.drop(self._sessions.pop(job.key))
                self._rest()

    def _detach(self, job: Job) -> None:
        self._active.remove(job)
        self._ungate(job)

    def _ungate(self, job: Job) -> None:
        if job.gate is not None:
            self._gates[job.gate] -= 1
            if not self._gates[job.gate]:
                del self._gates[job.gate]

    def _plan(self) -> tuple[list[Job], list[int]]:
        """Who takes part in this step, with how many tokens each: all that is new, as far as a step should take."""
        longest = max(len(_session(job).tokens) for job in self._active)
        if not self._clear(self.decoder.capacity(longest)):
            self._preempt(self.decoder.capacity(longest))
        budget = self.decoder.chunk(longest)
        batch, counts = [], []
        for job in self._active:
            session = _session(job)
            new = len(session.tokens) - session.length
            if new > 1 and budget == 0:
                continue
            take = min(new, 1 + budget)
            budget -= take - 1
            if not job.sampled:
                job.prefilled += take
                self.stats.prefilled += take
            batch.append(job)
            counts.append(take)
        return batch, counts

    def _admit(self) -> None:
        """Move waiting jobs, in the order of their arrival, to the active ones where there is a place for them."""
        busy = {id(job.session) for job in self._active}
        wanted = {job.key for job in self._waiting}
        still: deque[Job] = deque()
        full = False
        for job in self._waiting:
            tokens = job.prompt + job.sampled
            session = self._sessions.get(job.key)
            if session is not None and id(session) in busy:  # a second answer to one conversation gets a place of its own
                job.key, session = object(), None
            if session is not None:
                self.decoder.truncate(session, min(_common(session.tokens, tokens, session.length), len(tokens) - 1))
                session.tokens = tokens
            elif not full:
                limit = min(self.max_sessions, self.decoder.capacity(len(tokens)))
                full = not self._clear(limit - 1, wanted)
                session = None if full else self._place(job.key, tokens)
            if session is None:
                still.append(job)
                continue
            job.session = session
            busy.add(id(session))
            self._active.append(job)
        self._waiting = still

    def _place(self, key: object, tokens: list[int]) -> Session | None:
        """A place for a new session, or None if it should wait for the prefix that another session is computing."""
        source, ready, coming = self.decoder.match(tokens)
        ready, coming = min(ready, len(tokens) - 1), min(coming, len(tokens) - 1)
        if coming - ready >= _SHARED:
            return None
        session = self._sessions[key] = Session(key=key, tokens=tokens, used=self.stats.steps)
        self.decoder.place(session)
        if source is not None and ready >= _SHARED:
            self.decoder.copy(source, session, ready)
            source.used = self.stats.steps
            self.stats.copied += ready
        return session

    def _clear(self, limit: int, wanted: Set[object] = frozenset()) -> bool:
        """Evict idle sessions, the least recently used first, until at most `limit` are left; False if too few are idle.

        Sessions whose key is `wanted` by a waiting job are spared: evicting them would only turn the queue around.
        """
        if len(self._sessions) <= limit:
            return True
        busy = {id(job.session) for job in self._active}
        idle = [s for s in self._sessions.values() if id(s) not in busy and s.key not in wanted]
        for session in sorted(idle, key=lambda s: s.used)[: len(self._sessions) - limit]:
            self._evict(session)
        return len(self._sessions) <= limit

    def _preempt(self, limit: int) -> None:
        """Send the youngest jobs back to the queue until `limit` sessions are left: the cache has to hold longer ones."""
        while len(self._sessions) > limit and len(self._active) > 1:
            job = self._active.pop()
            self._evict(_session(job))
            self._waiting.appendleft(job)

    def _evict(self, session: Session) -> None:
        del self._sessions[session.key]
        self.decoder.drop(session)
        self.stats.evicted += 1


def _session(job: Job) -> Session:
    assert job.session is not None, "an active job has a session"
    return job.session


def _common(a: list[int], b: list[int], limit: int) -> int:
    """Length of the common prefix of two token lists, at most `limit`."""
    limit = min(limit, len(a), len(b))
    if a[:limit] == b[:limit]:
        return limit
    return next(i for i in range(limit) if a[i] != b[i])
