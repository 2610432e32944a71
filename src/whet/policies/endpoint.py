"""Any server that speaks OpenAI's chat completions: a hosted model, vLLM, llama.cpp, a gateway."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet.errors import ConfigError, ContextFull, PolicyError, PolicyUnavailable, missing_extra
from whet.policies.base import Request
from whet.policies.chat import read_calls
from whet.tools.function import Tool
from whet.types import Cost, ToolCall, Turn

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_SEEDS = 2**31
"""Servers take seeds of 32 bits."""
_TOKEN_ID = "token_id:"


@dataclass(frozen=True, kw_only=True)
class Price:
    """Money per million tokens."""

    prompt: float
    sampled: float
    cached: float | None = None
    """Of prompt tokens that the server had in its cache; None: as any prompt token."""


class EndpointPolicy:
    """A model behind an OpenAI-compatible endpoint. Conversations travel as messages, so its turns have no tokens.

    Passing faults (429, 5xx, timeouts) are tried again with growing pauses, then raised as PolicyUnavailable; what the
    server refuses (other 4xx) is a PolicyError with the server's message, a prompt too long for it ContextFull.

    With `logprobs=True` each answer's tokens and log-probs are kept, for a server that serves the very weights to be
    trained and names tokens by id (vLLM: `extra={"return_tokens_as_token_ids": True}`); another server is refused.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        price: Price | None = None,
        timeout: float = 120.0,
        max_retries: int = 4,
        logprobs: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """`extra` goes into the body of each request as it is; `timeout` is in seconds, for each try.

        `base_url` and `api_key` default to OPENAI_BASE_URL and OPENAI_API_KEY, then to OpenAI's own service. Raises
        MissingExtra without the package `openai`, ConfigError without a key for OpenAI's own service.
        """
        try:
            import openai
        except ImportError:
            raise missing_extra("openai", "openai", "an OpenAI-compatible endpoint") from None
        self._openai = openai
        self.model = model
        self.base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        self._key = api_key or os.environ.get("OPENAI_API_KEY")
        if self._key is None and self.base_url is None:
            raise ConfigError(
                f"no key for OpenAI's service, which is to serve {model!r}: set OPENAI_API_KEY, or name a server: openai:{model}@http://..."
            )
        self.price, self._timeout, self._max_retries, self._logprobs = price, timeout, max_retries, logprobs
        self._extra = dict(extra or {})
        self.version = f"{model}@{self.base_url}" if self.base_url else model
        self._client: AsyncOpenAI | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def spec(self) -> str:
        """What `load_policy` makes this policy of again, its options aside."""
        return f"openai:{self.version}"

    def __repr__(self) -> str:
        return f"EndpointPolicy({self.version!r})"

    def observe(self, turns: Sequence[Turn], new: Sequence[Turn], tools: Sequence[Tool]) -> tuple[Turn, ...]:
        return tuple(new)

    def release(self, session: str) -> None:
        """Nothing is kept here."""

    async def generate(self, request: Request) -> Turn:
        openai = self._openai
        try:
            completion = await self._connect().chat.completions.create(**self._body(request))
        except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as error:
            raise PolicyUnavailable(f"endpoint {self.version} failed (tries: {self._max_retries + 1}): {_said(error)}") from error
        except openai.APIStatusError as error:
            if _too_long(error):
                raise ContextFull(f"endpoint {self.version}: {_said(error)}") from error
            raise PolicyError(f"endpoint {self.version} refused the request ({error.status_code}): {_said(error)}") from error
        except openai.OpenAIError as error:  # an answer that the client could not read
            raise PolicyUnavailable(f"endpoint {self.version}: {_said(error)}") from error
        return self._turn(completion, request)

    def _connect(self) -> AsyncOpenAI:
        """The client of this event loop; connections do not outlive theirs."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._client = self._openai.AsyncOpenAI(
                api_key=self._key or "none", base_url=self.base_url, timeout=self._timeout, max_retries=self._max_retries
            )
            self._loop = loop
        return self._client

    def _body(self, request: Request) -> dict[str, Any]:
        sampling = request.sampling
        extra = dict(self._extra)
        body: dict[str, Any] = {"model": self.model, "messages": messages(request.turns), "seed": request.seed % _SEEDS}
        # OpenAI's newer models know only the one name for it, many servers only the other.
        body["max_completion_tokens" if self.base_url is None else "max_tokens"] = sampling.max_tokens or request.max_tokens
        if request.tools:
            body["tools"] = [tool.schema() for tool in request.tools]
        if sampling.temperature != 1.0:
            body["temperature"] = sampling.temperature
        if sampling.top_p != 1.0:
            body["top_p"] = sampling.top_p
        if sampling.top_k:
            if self.base_url is None:
                raise ConfigError(f"top_k is {sampling.top_k}, but OpenAI's service has no such parameter; use top_p")
            extra["top_k"] = sampling.top_k
        if self._logprobs:
            body["logprobs"] = True
        if extra:
            body["extra_body"] = extra
        return body

    def _turn(self, completion: Any, request: Request) -> Turn:
        if not getattr(completion, "choices", None):
            raise PolicyUnavailable(f"endpoint {self.version} answered without choices: {str(completion)[:200]}")
        choice = completion.choices[0]
        content = choice.message.content or ""
        calls = tuple(_call(call) for call in choice.message.tool_calls or ())
        if request.tools and not calls:  # servers that leave the model's own notation in the text
            content, calls = read_calls(content)
        tokens, logprobs = self._sampled(choice) if self._logprobs else ((), ())
        return Turn(
            role="assistant",
            content=content,
            tool_calls=calls,
            tokens=tokens,
            logprobs=logprobs,
            versions=((self.version, len(tokens)),) if tokens else (),
            temperature=request.sampling.temperature or 1.0,
            finish="length" if choice.finish_reason == "length" else "stop",
            cost=self._cost(completion.usage),
        )

    def _sampled(self, choice: Any) -> tuple[tuple[int, ...], tuple[float, ...]]:
        entries = (choice.logprobs.content if choice.logprobs else None) or []
        if not entries or not all(entry.token.startswith(_TOKEN_ID) for entry in entries):
            raise PolicyError(
                f"endpoint {self.version} was asked for log-probs and gave {'none' if not entries else 'them without token ids'}. "
                "With vLLM pass extra={'return_tokens_as_token_ids': True}; otherwise use logprobs=False."
            )
        return tuple(int(e.token[len(_TOKEN_ID) :]) for e in entries), tuple(float(e.logprob) for e in entries)

    def _cost(self, usage: Any) -> Cost:
        if usage is None:
            return Cost()
        details = getattr(usage, "prompt_tokens_details", None)
        cached = (getattr(details, "cached_tokens", None) or 0) if details else 0
        fresh, sampled = usage.prompt_tokens - cached, usage.completion_tokens
        money = 0.0
        if self.price is not None:
            of_cached = self.price.prompt if self.price.cached is None else self.price.cached
            money = (fresh * self.price.prompt + cached * of_cached + sampled * self.price.sampled) / 1e6
        return Cost(prompt_tokens=fresh, sampled_tokens=sampled, money=money)


def messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Turns as chat messages. Each tool call is answered by a tool message right behind it, as servers demand.

    A call whose environment answered in a user turn, or not at all, gets an answer that says so.
    """
    result: list[dict[str, Any]] = []
    unanswered: list[str] = []
    for index, turn in enumerate(turns):
        if turn.role == "tool" and unanswered:
            at = unanswered.index(turn.call_id) if turn.call_id in unanswered else 0
            result.append({"role": "tool", "tool_call_id": unanswered.pop(at), "content": turn.content})
            continue
        result += [{"role": "tool", "tool_call_id": i, "content": "(see the next message)"} for i in unanswered]
        unanswered = []
        if turn.role == "tool":  # nobody asked for it: an observation all the same
            result.append({"role": "user", "content": turn.content})
            continue
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.tool_calls:
            unanswered = [call.id or f"call_{index}_{i}" for i, call in enumerate(turn.tool_calls)]
            message["tool_calls"] = [_written(call, call_id) for call, call_id in zip(turn.tool_calls, unanswered)]
        result.append(message)
    result += [{"role": "tool", "tool_call_id": i, "content": "(no answer)"} for i in unanswered]
    return result


def _written(call: ToolCall, call_id: str) -> dict[str, Any]:
    function = {"name": call.name or "unreadable", "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)}
    return {"type": "function", "id": call_id, "function": function}


def _call(call: Any) -> ToolCall:
    """A call of the server's; arguments that are no JSON object become an error for the model to read."""
    function = getattr(call, "function", None)
    if function is None:
        return ToolCall(name="", id=call.id, error=f"a call of type {call.type!r} was made; expected a function call")
    try:
        arguments = json.loads(function.arguments or "{}")
    except (json.JSONDecodeError, RecursionError) as error:
        return ToolCall(name=function.name, id=call.id, error=f"the arguments are not valid JSON ({error}): {function.arguments[:200]}")
    if not isinstance(arguments, dict):
        return ToolCall(name=function.name, id=call.id, error=f"the arguments must be a JSON object, not {function.arguments[:200]}")
    return ToolCall(name=function.name, arguments=arguments, id=call.id)


def _said(error: Exception) -> str:
    """The server's own message where there is one."""
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    cause = f" {error.__cause__}" if error.__cause__ is not None and str(error.__cause__) else ""
    return str(message or f"{error}{cause}")


def _too_long(error: Any) -> bool:
    text = _said(error).lower()
    return getattr(error, "code", None) == "context_length_exceeded" or (
        error.status_code in (400, 413, 422) and any(sign in text for sign in ("context length", "maximum context", "context size"))
    )
