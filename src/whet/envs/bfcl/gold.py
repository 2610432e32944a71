"""Gold answers as tool calls: what the expert of BFCL says."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from whet.types import ToolCall

_OMITTED = object()
Call = tuple[str, dict[str, Any]]


class _Literal(str):
    """Source text of Java or JavaScript that is no string there."""


def single_turn(functions: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]], language: str) -> list[Call]:
    """One accepted answer as (name, arguments): of each argument the first value that is accepted.

    An empty string among the values says that the argument may be left out; it is, where nothing else is accepted. Arguments
    for Java and JavaScript are strings with a literal of the language, as the benchmark asks for.
    """
    docs = {function["name"]: function["parameters"] for function in functions}
    calls = []
    for answer in answers:
        ((name, accepted),) = answer.items()
        arguments = {}
        for key, values in accepted.items():
            doc = docs[name]["properties"].get(key, {})
            kind, inner = doc.get("type", "string"), doc.get("items", {}).get("type", "")
            value = _first(values, kind, inner)
            if value is _OMITTED and key in docs[name].get("required", ()):
                value = ""
            if value is not _OMITTED:
                plain = language == "python" or isinstance(value, str)
                arguments[key] = value if plain else _Literal(_literal(value, kind, inner, language))
        calls.append((name, arguments))
    return calls


def _first(values: Sequence[Any], kind: str, inner: str) -> Any:
    value = next((v for v in values if v != ""), _OMITTED)
    if isinstance(value, dict) and kind in ("dict", "HashMap"):
        return _entries(value)
    if isinstance(value, list) and inner == "dict":
        return [_entries(v) if isinstance(v, dict) else v for v in value]
    return value


def _entries(accepted: Mapping[str, Any]) -> dict[str, Any]:
    """A dictionary of accepted values as one of first values, without what may be left out."""
    chosen = {key: _first(values, "", "") for key, values in accepted.items()}
    return {key: value for key, value in chosen.items() if value is not _OMITTED}


def _literal(value: Any, kind: str, inner: str, language: str) -> str:
    """A value as source text of Java or JavaScript, as far as the benchmark's converters read it back."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        suffix = {"long": "L", "float": "f"}.get(kind, "") if language == "java" else ""
        return f"{value}{suffix}"
    if isinstance(value, dict) and language == "java":
        return "new HashMap<>() {{ " + " ".join(f'put("{key}", {_quoted(v)});' for key, v in value.items()) + " }}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_quoted(v)}" for key, v in value.items()) + "}"
    if isinstance(value, list) and language == "java":
        # The converter takes quotes off the strings of an ArrayList, but not off those of an array.
        items = ", ".join(_quoted(v) if kind == "ArrayList" and inner == "String" else _literal(v, inner, "", language) for v in value)
        return f"new ArrayList<>(Arrays.asList({items}))" if kind == "ArrayList" else f"new Object[]{{{items}}}"
    if isinstance(value, list):
        return "[" + ", ".join(_quoted(v) for v in value) + "]"
    return str(value)


def _quoted(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_quoted, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else _literal(value, "", "", "javascript")


def conversation_turn(functions: Sequence[Mapping[str, Any]], calls: Sequence[str]) -> list[Call]:
    """The gold calls of a user turn as (name, arguments), with names for the arguments that have none in the data."""
    docs = {function["name"]: list(function["parameters"]["properties"]) for function in functions}
    found = []
    for call in calls:
        node = ast.parse(call, mode="eval").body
        assert isinstance(node, ast.Call)
        assert isinstance(node.func, ast.Name)
        arguments = {name: ast.literal_eval(value) for name, value in zip(docs[node.func.id], node.args)}
        arguments |= {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
        found.append((node.func.id, arguments))
    return found


def as_calls(found: Sequence[Call]) -> tuple[ToolCall, ...]:
    """As tool calls; names cannot have dots there."""
    calls = []
    for number, (name, arguments) in enumerate(found):
        # The benchmark's checker asks for the very type, so a literal becomes an ordinary string.
        plain = {key: str(value) if isinstance(value, _Literal) else value for key, value in arguments.items()}
        calls.append(ToolCall(name=name.replace(".", "_"), arguments=plain, id=f"call_{number}"))
    return tuple(calls)


def as_text(found: Sequence[Call], language: str) -> str:
    """As the text that the mode `prompting` asks for."""

    def show(value: Any) -> str:
        if language == "python":
            return repr(value)
        return str(value) if isinstance(value, _Literal) else f'"{value}"'

    calls = (f"{name}({', '.join(f'{key}={show(value)}' for key, value in arguments.items())})" for name, arguments in found)
    return f"[{', '.join(calls)}]"
