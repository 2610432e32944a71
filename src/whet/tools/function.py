"""A typed function with a docstring as a tool: schema from the types, descriptions from the docstring."""

from __future__ import annotations

import inspect
import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_type_hints

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError, create_model

from whet.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "__whet_tool__"


@dataclass(frozen=True, kw_only=True)
class Tool:
    """What a policy is told about a tool, and how a call to it is checked. Equality is by what the policy sees."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON Schema of the arguments, as in OpenAI's function calling."""
    arguments: Any = field(default=None, compare=False, repr=False)
    """Pydantic model that validates the arguments of a call."""

    def __hash__(self) -> int:
        return hash(self.name)

    def schema(self) -> dict[str, Any]:
        """The tool as OpenAI's chat completions and Hugging Face chat templates take it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The validated arguments. Raises ValueError with a message made for the model, not for a programmer."""
        try:
            checked = self.arguments.model_validate(dict(arguments), strict=False)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in error.errors())
            raise ValueError(f"bad arguments for {self.name}: {problems}") from None
        return {name: getattr(checked, name) for name in type(checked).model_fields}


def tool(function: F) -> F:
    """Mark a method of an `Env` as a tool. Its arguments must be annotated; its docstring describes it.

    The docstring's first paragraph becomes the tool's description, and lines of an `Args:` section become the
    descriptions of the arguments.
    """
    setattr(function, _MARK, True)
    return function


def is_tool(value: object) -> bool:
    return getattr(value, _MARK, False) is True


def describe(function: Callable[..., Any]) -> Tool:
    """The `Tool` of a function or unbound method. Raises ConfigError where an annotation is missing or has no JSON schema."""
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ConfigError(
            f"an annotation of tool {function.__name__!r} cannot be resolved: {error}; import the type, or define it above"
        ) from None
    summary, per_argument = _docstring(function)
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigError(f"tool {function.__name__!r} takes *{parameter.name}; name each argument, so that a schema can be made")
        if parameter.name.startswith("_"):
            raise ConfigError(f"argument {parameter.name!r} of tool {function.__name__!r} begins with an underscore; give it another name")
        if parameter.name not in hints:
            raise ConfigError(
                f"argument {parameter.name!r} of tool {function.__name__!r} has no type; annotate it, such as `{parameter.name}: str`"
            )
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hints[parameter.name], default)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*shadows an attribute")  # arguments may be called `copy` or `json`
            config = ConfigDict(extra="forbid", protected_namespaces=())
            arguments = create_model(f"{function.__name__}_arguments", __config__=config, **fields)
        schema = TypeAdapter(arguments).json_schema()
    except (PydanticUserError, NameError) as error:
        problem = str(error).splitlines()[0]
        raise ConfigError(f"tool {function.__name__!r} cannot be described to a model: {problem}") from error
    properties = {
        name: {key: value for key, value in spec.items() if key != "title"}
        | ({"description": per_argument[name]} if name in per_argument else {})
        for name, spec in schema.get("properties", {}).items()
    }
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if schema.get("required"):
        parameters["required"] = schema["required"]
    if "$defs" in schema:
        parameters["$defs"] = schema["$defs"]
    return Tool(name=function.__name__, description=summary, parameters=parameters, arguments=arguments)


def to_text(result: object) -> str:
    """A tool's result as the model reads it: strings as they are, anything else as JSON."""
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)


def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    text = inspect.getdoc(function) or ""
    head, _, rest = text.partition("Args:")
    per_argument = {}
    for line in rest.splitlines():
        if match := re.match(r"\s+(\w+)(?:\s*\([^)]*\))?:\s*(.+)", line):
            per_argument[match[1]] = match[2].strip()
        elif line and not line[0].isspace():
            break
    return " ".join(head.split("\n\n")[0].split()), per_argument
