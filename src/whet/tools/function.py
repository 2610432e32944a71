"""A typed function with a docstring as a tool: schema from the types, descriptions from the docstring."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, get_type_hints, overload

from pydantic import BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError, create_model

from whet.errors import ConfigError
from whet.tools.docstring import read_docstring
from whet.tools.output import to_text
from whet.tools.schema import SchemaCheck, Style, clean, styled

__all__ = ["Tool", "describe", "is_tool", "to_text", "tool"]

F = TypeVar("F", bound=Callable[..., Any])
Pure = bool | Literal["global"]
"""Whether a tool's result depends on its arguments alone: within a task (True), or whatever the task (`global`)."""
_MARK = "__whet_tool__"


@dataclass(frozen=True, kw_only=True)
class Tool:
    """What a policy is told about a tool, and how a call to it is checked. Equality is by what the policy sees."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON Schema of the arguments, as in OpenAI's function calling."""
    strict: bool = False
    """Whether the schema is of OpenAI's strict kind, which servers may enforce while they decode."""
    arguments: type[BaseModel] | SchemaCheck | None = field(default=None, compare=False, repr=False)
    """What validates the arguments of a call: a pydantic model, or a JSON Schema; None takes any."""
    pure: Pure = field(default=False, compare=False)
    """Whether its results may be kept and given again (see `tool`)."""
    max_output: int | None = field(default=None, compare=False)
    """Characters of its result that a model is shown; None: what the environment says."""

    def __hash__(self) -> int:
        return hash(self.name)

    def schema(self) -> dict[str, Any]:
        """The tool as OpenAI's chat completions and Hugging Face chat templates take it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function | ({"strict": True} if self.strict else {})}

    def styled(self, style: Style) -> Tool:
        """The tool with its schema `plain`, `flat` (no references) or `strict` (OpenAI's). Calls are checked as before.

        Raises ConfigError where a schema has no such form.
        """
        return replace(self, parameters=styled(self.parameters, style, of=self.name), strict=self.strict or style == "strict")

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The validated arguments. Raises ValueError with a message made for the model, not for a programmer."""
        if self.arguments is None:
            return dict(arguments)
        try:
            if isinstance(self.arguments, SchemaCheck):
                return self.arguments(arguments)
            checked = self.arguments.model_validate(dict(arguments), strict=False)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in error.errors())
            raise ValueError(f"bad arguments for {self.name}: {problems}") from None
        except ValueError as error:
            raise ValueError(f"bad arguments for {self.name}: {error}") from None
        return {name: getattr(checked, name) for name in type(checked).model_fields}


@overload
def tool(function: F) -> F: ...
@overload
def tool(*, pure: Pure = False, max_output: int | None = None) -> Callable[[F], F]: ...
def tool(function: F | None = None, *, pure: Pure = False, max_output: int | None = None) -> F | Callable[[F], F]:
    """Mark a method of an `Env` as a tool. Its arguments must be annotated; its docstring describes it.

    The docstring's first paragraph becomes the tool's description, and its arguments' section (Google's, numpy's or
    Sphinx's) the descriptions of the arguments.

    `pure` says that the result depends on the arguments and the task alone and that the call changes nothing; it is then
    kept, and given again to the same call in any episode of the same task. `pure="global"` says that it does not depend on
    the task either. `max_output` is how many characters of the result a model is shown, instead of `Env.max_output`.
    """
    if pure not in (True, False, "global"):
        raise ConfigError(f"pure is {pure!r}; expected True, False or 'global'")
    if max_output is not None and max_output < 1:
        raise ConfigError(f"max_output is {max_output!r}; expected a number of characters above 0, or None")

    def mark(marked: F) -> F:
        setattr(marked, _MARK, {"pure": pure, "max_output": max_output})
        return marked

    return mark if function is None else mark(function)


def is_tool(value: object) -> bool:
    return isinstance(getattr(value, _MARK, None), dict)


def describe(function: Callable[..., Any]) -> Tool:
    """The `Tool` of a function or unbound method. Raises ConfigError where an annotation is missing or has no JSON schema."""
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ConfigError(
            f"an annotation of tool {function.__name__!r} cannot be resolved: {error}; import the type, or define it above"
        ) from None
    summary, per_argument = read_docstring(function)
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
        name: clean(spec) | ({"description": per_argument[name]} if name in per_argument else {})
        for name, spec in schema.get("properties", {}).items()
    }
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if schema.get("required"):
        parameters["required"] = schema["required"]
    if "$defs" in schema:
        parameters["$defs"] = {name: clean(spec) for name, spec in schema["$defs"].items()}
    options = getattr(function, _MARK, {})
    return Tool(name=function.__name__, description=summary, parameters=parameters, arguments=arguments, **options)
