"""JSON Schemas of tool arguments: cleaned, flattened for small models, made strict for OpenAI, and checked against.

`plain` keeps nested models under `$defs`; `flat` puts each definition where it is used, which small models read better;
`strict` is what OpenAI's structured outputs accept: flat, every property required, nothing else allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from whet.errors import ConfigError, missing_extra

Style = Literal["plain", "flat", "strict"]

_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords that hold schemas by name; a name is no keyword, so that an argument may be called `title`."""
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_NESTED = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames", "unevaluatedProperties")


def _children(schema: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """The schema with `change` applied to each schema directly inside it."""
    changed = dict(schema)
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, Mapping):
            changed[key] = {name: change(inner) for name, inner in value.items()}
        elif key in _LISTED and isinstance(value, list):
            changed[key] = [change(inner) for inner in value]
        elif key in _NESTED and isinstance(value, Mapping):
            changed[key] = change(value)
    return changed


def clean(schema: Any) -> Any:
    """The schema without `title`s, which repeat the names of arguments and classes."""
    if not isinstance(schema, Mapping):
        return schema
    return _children({key: value for key, value in schema.items() if key != "title"}, clean)


def flat(schema: Mapping[str, Any], *, of: str) -> dict[str, Any]:
    """The schema with each `$ref` replaced by what it names. Raises ConfigError for a definition that contains itself."""
    definitions = {**schema.get("definitions", {}), **schema.get("$defs", {})}

    def inline(part: Any, inside: tuple[str, ...]) -> Any:
        if not isinstance(part, Mapping):
            return part
        if "$ref" in part:
            name = str(part["$ref"]).rpartition("/")[2]
            if name in inside:
                raise ConfigError(
                    f"the arguments of tool {of!r} cannot be written flat: {name!r} contains itself. "
                    "Take the nesting out of the type, or leave the schema plain."
                )
            if name not in definitions:
                raise ConfigError(f"the arguments of tool {of!r} refer to {part['$ref']!r}, which is not among its definitions")
            beside = {key: value for key, value in part.items() if key != "$ref"}
            return {**inline(definitions[name], (*inside, name)), **beside}
        return _children({k: v for k, v in part.items() if k not in ("$defs", "definitions")}, lambda inner: inline(inner, inside))

    result: dict[str, Any] = inline(schema, ())
    return result


def strict(schema: Mapping[str, Any], *, of: str) -> dict[str, Any]:
    """The schema as OpenAI's strict mode takes it; a default moves into the description, because its argument is now required.

    Raises ConfigError for what that mode has no form for: objects with any keys, tuples, intersections.
    """

    def close(part: Any) -> Any:
        if not isinstance(part, Mapping):
            return part
        open_keys = isinstance(part.get("additionalProperties"), Mapping) or part.get("additionalProperties") is True
        is_object = part.get("type") == "object"
        if open_keys or (is_object and "properties" not in part and part.get("additionalProperties") is not False):
            raise ConfigError(f"tool {of!r} cannot be strict: an argument is a dict with any keys. Name the keys in a model or TypedDict.")
        if unknown := {"prefixItems", "allOf", "patternProperties", "not", "if"} & set(part):
            raise ConfigError(f"tool {of!r} cannot be strict: its schema needs {min(unknown)!r}, which OpenAI's strict mode does not take")
        closed = {key: value for key, value in part.items() if key not in ("default", "discriminator", "oneOf")}
        if "oneOf" in part:
            closed["anyOf"] = part["oneOf"]
        if part.get("default") is not None:
            closed["description"] = f"{part.get('description', '')} Default: {part['default']!r}.".strip()
        if is_object:
            closed |= {"required": list(part.get("properties", {})), "additionalProperties": False}
        return _children(closed, close)

    result: dict[str, Any] = close(flat(schema, of=of))
    return {"properties": {}, **result, "required": list(result.get("properties", {})), "additionalProperties": False}


def styled(schema: Mapping[str, Any], style: Style, *, of: str) -> dict[str, Any]:
    """The parameters of tool `of` in one of the three styles."""
    if style == "plain":
        return dict(schema)
    if style not in ("flat", "strict"):
        raise ConfigError(f"tool_schema is {style!r}; expected 'plain', 'flat' or 'strict'")
    return (flat if style == "flat" else strict)(schema, of=of)


class SchemaCheck:
    """Checks arguments against a JSON Schema, for tools that are described by nothing else. Nothing remote is fetched."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """Raises ConfigError where it is no JSON Schema, MissingExtra without the package `jsonschema`."""
        try:
            import jsonschema
            import referencing
        except ImportError as error:
            raise missing_extra("jsonschema", "http", "a tool that is described by a JSON Schema") from error
        cls = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        try:
            cls.check_schema(schema)
        except jsonschema.SchemaError as error:
            raise ConfigError(f"the arguments of a tool are described by something that is no JSON Schema: {error.message}") from error
        self._validator = cls(schema, registry=referencing.Registry())

    def __call__(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as they are. Raises ValueError with everything that is wrong with them."""
        found = sorted(self._validator.iter_errors(dict(arguments)), key=lambda error: list(map(str, error.absolute_path)))
        if found:
            raise ValueError("; ".join(f"{'.'.join(map(str, e.absolute_path)) or 'arguments'}: {e.message[:300]}" for e in found[:5]))
        return dict(arguments)
