"""Typed overrides: `key=value` texts (dotted where a config holds another) onto a frozen dataclass."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from whet.errors import ConfigError, did_you_mean

C = TypeVar("C")


def parse_overrides(texts: Sequence[str]) -> dict[str, str]:
    """`["lr=1e-3", "a.b=2"]` as a dict. Raises ConfigError for a text without `=` and for a key given twice."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{text!r} is not an override; expected key=value, such as steps=20")
        if key in found:
            raise ConfigError(f"{key!r} is given twice ({found[key]!r} and {value!r}); expected it once")
        found[key.strip()] = value.strip()
    return found


def configure(cls: type[C], overrides: Mapping[str, Any], *, of: str = "") -> C:
    """A `cls` (a dataclass type) with its defaults and these overrides on top; texts are read as the field's type says.

    `of` says in messages whose config it is. Raises ConfigError for unknown keys, with the nearest valid one, and for
    values that do not fit.
    """
    config = cls()
    for key, value in overrides.items():
        config = _set(config, key.split("."), value, key, of or cls.__name__)
    return config


def to_json(config: Any) -> dict[str, Any]:
    """A config dataclass as a nested dict of plain values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """A field of a config, for people to read."""

    key: str
    type: str
    default: str
    doc: str


def options(cls: type[Any], prefix: str = "", defaults: Any = None) -> list[Option]:
    """The fields of a config with their types, defaults and the docstrings under them; nested ones under dotted keys.

    Of a nested config that may be None, the field itself comes first. `defaults` is a config to take the defaults from.
    """
    hints, docs, found = get_type_hints(cls), _field_docs(cls), []
    for f in dataclasses.fields(cls):
        default = getattr(defaults, f.name) if defaults is not None else _default(f)
        inner, key = _nested(hints[f.name]), prefix + f.name
        if inner is not hints[f.name]:
            kind = f"{inner.__name__} | None" if inner else _type_name(hints[f.name])
            shown = inner.__name__ if inner and default is not None else repr(default)
            found.append(Option(key=key, type=kind, default=shown, doc=docs.get(f.name, "")))
        if inner:
            found += options(inner, f"{key}.", default)
    return found


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def _nested(hint: Any) -> type[Any] | None:
    """The dataclass that a field holds, or may hold beside None."""
    kinds = [kind for kind in (get_args(hint) or (hint,)) if dataclasses.is_dataclass(kind)]
    return kinds[0] if len(kinds) == 1 and isinstance(kinds[0], type) else None


def _set(config: Any, path: list[str], value: Any, key: str, of: str) -> Any:
    names = [f.name for f in dataclasses.fields(config)]
    if path[0] not in names:
        raise ConfigError(f"{of} has no option {key!r}. {did_you_mean(path[0], names)}")
    hint = get_type_hints(type(config))[path[0]]
    nested, inner = _nested(hint), getattr(config, path[0])
    if len(path) > 1:
        if nested is None:
            raise ConfigError(f"{of} has no option {key!r}: {path[0]!r} is a {_type_name(hint)} and has no parts")
        return _replace(config, path[0], _set(inner if inner is not None else nested(), path[1:], value, key, of), key)
    if nested is not None and not isinstance(value, nested):
        if nested is not hint and str(value).lower() in ("none", "null"):
            return _replace(config, path[0], None, key)
        parts = [f"{key}.{f.name}" for f in dataclasses.fields(nested)]
        none = f", or {key}=none" if nested is not hint else ""
        raise ConfigError(f"option {key!r} of {of} has parts; give them one by one: {', '.join(parts)}{none}")
    return _replace(config, path[0], value if nested else _read(hint, value, key, of), key)


def _replace(config: Any, name: str, value: Any, key: str) -> Any:
    try:
        return dataclasses.replace(config, **{name: value})
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"option {key!r} cannot be {value!r}: {error}") from error


def _read(hint: Any, value: Any, key: str, of: str) -> Any:
    """The value as this type. A text is tried as JSON first (numbers, lists, null), then as it stands."""
    adapter = TypeAdapter(hint)
    candidates = [value]
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            candidates.insert(0, None if value.lower() in ("none", "null") else json.loads(value))
    problem = ""
    for candidate in candidates:
        try:
            return adapter.validate_python(candidate)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
    raise ConfigError(f"option {key!r} of {of} is {value!r}; expected {_type_name(hint)} ({problem})")


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint).replace("typing.", "")


def _field_docs(cls: type[Any]) -> dict[str, str]:
    """The string under each field, which Python itself throws away."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    except (OSError, TypeError, SyntaxError):
        return {}
    docs: dict[str, str] = {}
    previous = None
    for node in getattr(body, "body", []):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) and previous:
            docs[previous] = " ".join(node.value.value.split())
        previous = node.target.id if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else None
    return docs


def at_least(config: object, least: float, *names: str) -> None:
    """Raises ConfigError for an option of a config that is smaller than `least`, or for an empty tuple or one with such a value."""
    for name in names:
        value = getattr(config, name)
        values = value if isinstance(value, tuple) else (value,)
        if not values or any(v < least for v in values):
            raise ConfigError(f"{name} is {value!r}; expected {least:g} or more")
