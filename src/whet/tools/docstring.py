"""What a docstring says about a function and its arguments, in Google's, numpy's or Sphinx's form.

Args:                      Parameters                     :param item: What to send.
    item: What to send.    ----------                     :param int days: How long it may take.
    days (int): How long   item : str
        it may take.           What to send.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

_GOOGLE = re.compile(r"(Args|Arguments|Parameters|Params):\s*$")
_GOOGLE_ITEM = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:(?:\s+(.*))?$")
_NUMPY_ITEM = re.compile(r"\*{0,2}(\w+(?:\s*,\s*\w+)*)\s*(?::.*)?$")
_SPHINX = re.compile(r":(?:param|parameter|arg|argument|key|keyword)\s+(?:[^:]*\s)?\*{0,2}(\w+)\s*:\s*(.*)$")
_SPHINX_FIELD = re.compile(r":\w[^:]*:")
_RULE = re.compile(r"-{3,}\s*$")


def read_docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The first paragraph in one line, and the description of each argument that has one."""
    lines = (inspect.getdoc(function) or "").splitlines()
    arguments: dict[str, list[str]] = {}
    for name, text in _arguments(lines):
        arguments.setdefault(name, []).append(text)
    described = {name: " ".join(" ".join(texts).split()) for name, texts in arguments.items()}
    return _summary(lines), {name: text for name, text in described.items() if text}


def _summary(lines: list[str]) -> str:
    summary: list[str] = []
    for i, line in enumerate(lines):
        heading = _GOOGLE.match(line) or _SPHINX_FIELD.match(line) or (i + 1 < len(lines) and _RULE.match(lines[i + 1]))
        if heading or (not line.strip() and summary):
            break
        summary.append(line)
    return " ".join(" ".join(summary).split())


def _arguments(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Argument names with pieces of their description, in order."""
    at = 0
    while at < len(lines):
        line = lines[at]
        if _GOOGLE.match(line):
            section = _indented(lines[at + 1 :])
            yield from _items(section, _GOOGLE_ITEM)
            at += len(section)
        elif line.strip() in ("Parameters", "Other Parameters") and at + 1 < len(lines) and _RULE.match(lines[at + 1]):
            section = _until_heading(lines[at + 2 :])
            yield from _items(section, _NUMPY_ITEM)
            at += len(section) + 1
        elif match := _SPHINX.match(line.strip()):
            yield match[1], match[2]
            while at + 1 < len(lines) and lines[at + 1].strip() and not _SPHINX_FIELD.match(lines[at + 1].strip()):
                at += 1
                yield match[1], lines[at]
        at += 1


def _indented(lines: list[str]) -> list[str]:
    """The lines up to the first that begins at the margin."""
    for i, line in enumerate(lines):
        if line.strip() and not line[0].isspace():
            return lines[:i]
    return lines


def _until_heading(lines: list[str]) -> list[str]:
    """The lines up to the next underlined heading."""
    for i in range(len(lines) - 1):
        if _RULE.match(lines[i + 1]) and lines[i].strip():
            return lines[:i]
    return lines


def _items(lines: list[str], pattern: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    """Entries at the section's own indent, with the deeper lines that belong to them."""
    depths = [len(line) - len(line.lstrip()) for line in lines if line.strip()]
    names: list[str] = []
    for line in lines:
        if not line.strip():
            continue
        if len(line) - len(line.lstrip()) > min(depths):
            for name in names:
                yield name, line
        elif match := pattern.match(line.strip()):
            names = [name.strip() for name in match[1].split(",")]
            for name in names:
                yield name, (match[2] or "") if pattern is _GOOGLE_ITEM else ""
        else:
            names = []
