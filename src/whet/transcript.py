"""Conversations as plain text: what reflectors, judges and people read."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from whet.types import Role, ToolCall, Turn

if TYPE_CHECKING:
    from whet.tools.function import Tool

_HEAD = re.compile(r"^(system|user|assistant|tool): ?", re.MULTILINE)


def line(turn: Turn) -> str:
    """A turn without its role: what was said, and the calls that were made."""
    calls = [f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})" for call in turn.tool_calls]
    return " ".join([turn.content, *calls]).strip()


def transcript(turns: Sequence[Turn], *, opening: bool = True) -> str:
    """A line `role: text` for each turn; without `opening`, only from the first assistant turn on."""
    first = 0 if opening else next((i for i, turn in enumerate(turns) if turn.trained), len(turns))
    return "\n".join(f"{turn.role}: {line(turn)}" for turn in turns[first:])


def read_transcript(text: str) -> list[Turn]:
    """The turns of a transcript, each with its whole line as content, for scripts that read what a model would read.

    A line of an observation that itself begins with a role and a colon is taken for a turn.
    """
    heads = list(_HEAD.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    return [Turn(role=cast(Role, head[1]), content=text[head.end() : end].strip()) for head, end in zip(heads, ends)]


def calls_in(text: str, tools: Sequence[Tool]) -> list[ToolCall]:
    """The calls of these tools in a text that has them as transcripts do; what cannot be read is left out."""
    names = "|".join(re.escape(tool.name) for tool in tools)
    found = []
    for match in re.finditer(rf"\b(?:{names})\((?:[^()'\"]|'[^'\n]*'|\"[^\"\n]*\")*\)", text):
        try:
            node = ast.parse(match[0], mode="eval").body
            assert isinstance(node, ast.Call)
            arguments = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
        except (SyntaxError, ValueError, AssertionError):
            continue
        found.append(ToolCall(name=match[0].partition("(")[0], arguments=arguments))
    return found
