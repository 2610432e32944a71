"""From what a tool returns to what a model reads: text of bounded length, always valid Unicode."""

from __future__ import annotations

import json

MAX_OUTPUT = 8_000
"""Characters of a tool's result that a model is shown where nobody says otherwise; some 2,000 tokens of English."""


def to_text(result: object, limit: int | None = None) -> str:
    """A result as the model reads it: text as it is, bytes as UTF-8 with replacements, anything else as JSON.

    Past `limit` characters (None: no limit) the middle is cut out, with a marker that says how much is missing.
    """
    if isinstance(result, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(result), limit)
    text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=_plain)
    return _valid(text if limit is None else clip(text, limit))


def clip(text: str, limit: int, unit: str = "characters") -> str:
    """`text` if it has at most `limit` characters, else its first and last ones, `limit` together, around a marker."""
    if len(text) <= limit:
        return text
    head, tail = limit - limit // 2, limit // 2
    return f"{text[:head]}\n[... {len(text) - limit:,} {unit} cut ...]\n{text[len(text) - tail :]}"


def _from_bytes(data: bytes, limit: int | None) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        # Replacing takes twenty times as long as reading what is valid, so only what is shown is replaced.
        if limit is None or len(data) <= 8 * limit + 8:
            text = data.decode(errors="replace")
        else:
            head, tail = limit - limit // 2, limit // 2
            first = data[: 4 * head].decode(errors="replace")[:head]
            last = data[len(data) - 4 * tail :].decode(errors="replace")[-tail:] if tail else ""
            shown = len(first.encode()) + len(last.encode())
            return f"{first}\n[... about {max(len(data) - shown, 0):,} bytes cut ...]\n{last}"
    return text if limit is None else clip(text, limit)


def _plain(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _valid(text: str) -> str:
    """The text with lone surrogates replaced: they come from bytes that were no UTF-8, and no tokenizer takes them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
