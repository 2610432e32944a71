"""Between messages and tokens: a Hugging Face tokenizer with its chat template, used so that nothing is tokenised twice.

A conversation is opened by rendering it once. From then on only what is new is rendered and appended, whatever the
template would do to earlier turns, so that the policy's own tokens stay exactly those it sampled. What follows an
assistant turn is found by rendering a stand-in conversation and cutting behind the stand-in's text.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet.errors import CheckpointError
from whet.tools.function import Tool
from whet.types import ToolCall, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_STAND_IN = "\u241f\u241f"
_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_FRAMES = 1000
"""Openings that are remembered: as many as there are environments, or as tasks where each has tools of its own."""


@dataclass(slots=True)
class _Frame:
    """What a template puts around a content, and whether it has done so twice."""

    before: str
    after: str
    agreed: bool = False


class ChatFormat:
    """Renders turns to token ids and reads tool calls back, for any chat template.

    Raises CheckpointError where the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise CheckpointError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template, and whet needs one to render turns. "
                "Use a chat model, or put a chat_template.jinja beside the tokenizer."
            )
        self.tokenizer = tokenizer
        self._marks = _marks(tokenizer)
        self._piece = functools.lru_cache(maxsize=50_000)(self._encode_now)
        self._open = functools.lru_cache(maxsize=20_000)(self._open_now)
        self._openings: dict[Any, _Frame] = {}
        self._frame = functools.cache(self._frame_now)
        after = self._after_stand_in(())
        ids = self._encode(after) if after else ()
        end = ids[0] if ids else tokenizer.eos_token_id
        if end is None:
            raise CheckpointError(f"the tokenizer of {tokenizer.name_or_path!r} has no end-of-sequence token, so no turn could end")
        self.end: int = int(end)
        """The token that ends an assistant turn in this template."""
        self.end_text: str = tokenizer.decode([self.end])
        eos = tokenizer.eos_token_id
        self.stops: frozenset[int] = frozenset({self.end} | ({int(eos)} if eos is not None else set()))

    def open(self, turns: Sequence[Turn], tools: Sequence[Tool]) -> tuple[int, ...]:
        """Token ids of a conversation that begins with these turns, up to where the assistant is to speak."""
        return self._open(tuple(turns), tuple(tools))

    def _open_now(self, turns: tuple[Turn, ...], tools: tuple[Tool, ...]) -> tuple[int, ...]:
        return self._encode(self._opening(turns, tools))

    def _opening(self, turns: tuple[Turn, ...], tools: tuple[Tool, ...]) -> str:
        """The opening as text. What surrounds the last turn's content is taken from earlier openings that differ in it alone.

        It is taken over once a second rendering has agreed with the first. Contents with tags are always rendered, because
        templates look for those.
        """
        content = turns[-1].content
        key = (turns[:-1], turns[-1].role, tools)
        alone = not turns[-1].tool_calls and turns[-1].name is None and content == content.strip() and "<" not in content
        frame = self._openings.get(key) if alone else None
        if frame is not None and frame.agreed:
            return frame.before + content + frame.after
        text = self._render([_message(t) for t in turns], tools, prompt=True)
        if alone and frame is not None:
            frame.agreed = text == frame.before + content + frame.after
        if alone and (frame is None or not frame.agreed) and text.count(content) == 1:
            if len(self._openings) >= _FRAMES:
                self._openings.clear()
            before, after = text.split(content)
            self._openings[key] = _Frame(before, after)
        return text

    def extend(self, new: Sequence[Turn], *, closed: bool) -> tuple[int, ...]:
        """Token ids that lead from the end of an assistant turn over `new` turns to where the assistant speaks again.

        `closed` says that the assistant's own tokens ended with its end-of-turn token; otherwise that is added.
        """
        if len(new) == 1 and not new[0].tool_calls and new[0].content == new[0].content.strip():
            before, after = self._frame(new[0].role, new[0].name)
            text = before + new[0].content + after
        else:
            text = self._after_stand_in(tuple(new))
        if closed and text.startswith(self.end_text):
            text = text[len(self.end_text) :]
        return self._encode(text)

    def answer(self, turn: Turn) -> tuple[int, ...]:
        """Token ids of an assistant turn that was written rather than sampled, its end-of-turn token included."""
        opening = [{"role": "user", "content": _STAND_IN}]
        before = self._render(opening, (), prompt=True)
        whole = self._render([*opening, _message(turn)], (), prompt=False)
        if not whole.startswith(before):  # templates that open a thinking block in the prompt only
            before = self._render(opening, (), prompt=False)
        text = whole[len(before) :]
        at = text.rfind(self.end_text)
        text = text[: at + len(self.end_text)] if at >= 0 else text + self.end_text
        return self._encode(text)

    def read(self, tokens: Sequence[int]) -> tuple[str, tuple[ToolCall, ...]]:
        """The text before any tool call, and the calls, of sampled tokens.

        A call that is not well-formed comes back with its `error` set: the environment shows it to the model.
        """
        kept = [t for t in tokens if t not in self.stops]
        text = self.tokenizer.decode(kept, skip_special_tokens=False)
        return read_calls(text)

    def _encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text. Most of what a template writes around a content is in the cache, so little is tokenised anew."""
        if self._marks is None:
            return self._piece(text)
        cuts = [0, *(mark.start() for mark in self._marks.finditer(text)), len(text)]
        return tuple(itertools.chain.from_iterable(self._piece(text[begin:end]) for begin, end in itertools.pairwise(cuts)))

    def _encode_now(self, text: str) -> tuple[int, ...]:
        if self._marks is not None:
            backend = self.tokenizer.backend_tokenizer
            if backend.truncation is None and backend.padding is None:  # others may have used it, with either
                return tuple(backend.encode(text, add_special_tokens=False).ids)
        return tuple(self.tokenizer.encode(text, add_special_tokens=False, verbose=False))  # whether it fits is asked later

    def _render(self, messages: list[dict[str, Any]], tools: Sequence[Tool], *, prompt: bool) -> str:
        schemas = [t.schema() for t in tools] or None
        rendered = self.tokenizer.apply_chat_template(messages, tools=schemas, add_generation_prompt=prompt, tokenize=False)
        return str(rendered)

    def _after_stand_in(self, new: tuple[Turn, ...]) -> str:
        """What the template puts behind an assistant's text, followed by `new` turns (and a prompt, if there are any)."""
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _STAND_IN}]
        try:
            text = self._render([*messages, *(_message(t) for t in new)], (), prompt=bool(new))
        except Exception:  # templates without a tool role raise from Jinja; the observation then comes from the user
            if all(t.role == "user" for t in new):
                raise
            return self._after_stand_in(tuple(Turn(role="user", content=t.content) for t in new))
        return text.split(_STAND_IN, 1)[1]

    def _frame_now(self, role: Any, name: str | None) -> tuple[str, str]:
        """What surrounds the content of a single new turn; rendering a template costs more than everything else here."""
        text = self._after_stand_in((Turn(role=role, name=name, content="\u241e"),))
        before, _, after = text.partition("\u241e")
        return before, after


def _marks(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Finds the places where a text can be cut without a change of its tokens: the beginnings of added tokens such as `<|im_start|>`.

    A Hugging Face tokenizer looks for those first, and does everything else in the pieces between them. None where a cut might
    show: tokenizers written in Python, and added tokens that take space before them along or want no letters beside them.
    """
    if not tokenizer.is_fast or tokenizer.backend_tokenizer.encode_special_tokens:
        return None
    added = [token for token in tokenizer.added_tokens_decoder.values() if not token.normalized]
    if not added or any(token.lstrip or token.single_word for token in added):
        return None
    return re.compile("|".join(re.escape(token.content) for token in sorted(added, key=lambda token: -len(token.content))))


def read_calls(text: str) -> tuple[str, tuple[ToolCall, ...]]:
    """Text before the calls, and the calls, of `... <tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

    A whole answer that is one JSON object with `name` and `arguments` (or `parameters`) counts as a call, too.
    """
    blocks = list(_CALL.finditer(text))
    if blocks:
        return text[: blocks[0].start()].strip(), tuple(_call(m[1], i) for i, m in enumerate(blocks))
    bare = text.strip()
    if bare.startswith("{") and '"name"' in bare:
        return "", (_call(bare, 0),)
    return bare, ()


def _call(text: str, index: int) -> ToolCall:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also of an integer with thousands of digits
        return ToolCall(name="", id=f"call_{index}", error=f"the tool call is not valid JSON: {error}")
    arguments = parsed.get("arguments", parsed.get("parameters", {})) if isinstance(parsed, dict) else None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("name"), str) or not isinstance(arguments, dict):
        return ToolCall(name="", id=f"call_{index}", error='a tool call must be {"name": "...", "arguments": {...}}')
    return ToolCall(name=parsed["name"], arguments=arguments, id=f"call_{index}")


def _message(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.tool_calls:
        calls = [{"name": c.name, "arguments": dict(c.arguments)} for c in turn.tool_calls]
        message["tool_calls"] = [{"type": "function", "id": f"call_{i}", "function": c} for i, c in enumerate(calls)]
    if turn.role == "tool" and turn.name:
        message["name"] = turn.name
    return message
