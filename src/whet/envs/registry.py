"""From what a user types to an environment: `load_env("search:hops=1-3")`, `load_env("path/to/file.py:MyEnv")`.

    search                               a bundled environment
    search:hops=1-3,facts=6              with options
    path/to/file.py:MyEnv                a class of a file outside any package
    path/to/file.py:MyEnv:size=3         with options
    package.module:MyEnv                 a class of an installed module
    gymnasium:FrozenLake-v1,map_name=8x8 a gymnasium environment, by its id
    bfcl:simple_python                   a benchmark, by the category
    search:hops=1-2 + 2*babyai           several at once, with weights (see whet.envs.mixture)

A class may be an `Env`, a `gymnasium.Env`, or a function that makes one of the latter. Options are read by the
annotations of the class's `__init__`; one that stands alone before a `*` there may come first, without its name.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from whet.envs.base import Env, EnvFactory
from whet.errors import ConfigError, did_you_mean
from whet.userfile import load_file, load_module

_BUNDLED = {
    "babyai": "whet.envs.babyai:BabyAI",
    "bfcl": "whet.envs.bfcl:BFCL",
    "catalogue": "whet.envs.catalogue:Catalogue",
    "client": "whet.envs.client:Client",
    "desk": "whet.envs.desk:Desk",
    "documents": "whet.envs.documents:Documents",
    "gymnasium": "whet.envs.gymnasium:GymEnv",
    "http": "whet.envs.http:HTTP",
    "mcp": "whet.envs.mcp:MCP",
    "miniwob": "whet.envs.miniwob:MiniWoB",
    "mix": "whet.envs.mixture:Mixture",
    "openenv": "whet.envs.openenv:OpenEnv",
    "python": "whet.envs.python:Python",
    "reasoning_gym": "whet.envs.reasoning_gym:ReasoningGym",
    "scienceworld": "whet.envs.scienceworld:ScienceWorld",
    "search": "whet.envs.search:Search",
    "sql": "whet.envs.sql:SQL",
    "tau2": "whet.envs.tau2:Tau2",
    "textcraft": "whet.envs.textcraft:TextCraft",
    "textworld": "whet.envs.textworld:TextWorld",
    "textworldexpress": "whet.envs.textworldexpress:TextWorldExpress",
    "verifiers": "whet.envs.verifiers:Verifiers",
    "workshop": "whet.envs.workshop:Workshop",
}
_FILE = re.compile(r"(?P<path>.*?\.py)(?::(?P<name>[^:=,]*))?(?::(?P<options>.*))?", re.DOTALL)
_MODULE = re.compile(r"(?P<path>\w+(?:\.\w+)*):(?P<name>[A-Za-z_]\w*)(?::(?P<options>.*))?", re.DOTALL)


def names() -> tuple[str, ...]:
    """Names of the bundled environments."""
    return tuple(sorted(_BUNDLED))


def load_env(spec: str) -> EnvFactory:
    """The environment that `spec` names (forms above).

    Raises ConfigError where there is no such environment, file, class or option, where a value has the wrong type, or
    where the file cannot be imported; MissingExtra where a bundled environment needs a package that is not installed.
    """
    head, _, rest = spec.partition(":")
    if head == "mix" or " + " in spec:
        from whet.envs.mixture import Mixture

        return Mixture.parse(rest if head == "mix" else spec)
    if head in _BUNDLED:
        if head == "gymnasium" and not rest.partition(",")[0]:
            raise ConfigError("the environment 'gymnasium' needs an id, such as gymnasium:FrozenLake-v1")
        return _factory(_bundled(head), rest, spec)
    if match := _FILE.fullmatch(spec):
        module = load_file(match["path"])
        return _factory(_pick(module, match["name"] or "", match["path"]), match["options"] or "", spec)
    if match := _MODULE.fullmatch(spec):
        if (found := load_module(match["path"])) is not None:
            return _factory(_pick(found, match["name"], match["path"]), match["options"] or "", spec)
        if "." in match["path"]:
            raise ConfigError(f"no module {match['path']!r} to take {match['name']!r} from; is it installed, or on PYTHONPATH?")
    known = did_you_mean(head, _BUNDLED)
    raise ConfigError(f"unknown environment {head!r}. {known} One of your own is path/to/file.py:ClassName or module.path:ClassName.")


def _bundled(name: str) -> type[Env]:
    module, _, attribute = _BUNDLED[name].partition(":")
    cls: type[Env] = getattr(importlib.import_module(module), attribute)
    return cls


def _factory(target: Any, text: str, spec: str) -> EnvFactory:
    """A factory of `target`, an `Env` class or what makes a gymnasium environment, with the options in `text`."""
    if inspect.isclass(target) and issubclass(target, Env):
        given, text = _leading(target, text, spec)
        return EnvFactory(target, {**given, **_options(target, text, spec, given)}, spec=spec)
    adapter = _bundled("gymnasium")
    return EnvFactory(adapter, {"env": target, **_options(target, text, spec, also=adapter)}, spec=spec)


def _leading(target: type[Env], text: str, spec: str) -> tuple[dict[str, Any], str]:
    """The option that comes first and needs no name, as in `gymnasium:FrozenLake-v1,map_name=8x8`, and the text behind it.

    It is the one before the star, where `__init__` has only one: `def __init__(self, env, *, map_name="4x4")`.
    """
    accepted, hints, _ = _arguments(target)
    leading = [p for p in accepted.values() if p.kind is not p.KEYWORD_ONLY]
    if len(leading) != 1:
        return {}, text
    key = leading[0].name
    first, _, rest = text.partition(",")
    if first.strip() and not re.match(r"\s*[A-Za-z_]\w*\s*=", first):
        return {key: _value(hints[key], first.strip(), key) if key in hints else first.strip()}, rest
    if leading[0].default is leading[0].empty and not re.search(rf"(^|,)\s*{key}\s*=", text):
        raise ConfigError(f"{spec!r} does not say which {key}; expected it first, as in {spec.partition(':')[0]}:{key.upper()}")
    return {}, text


def _options(
    target: Callable[..., Any], text: str, spec: str, given: Mapping[str, Any] | None = None, *, also: type[Env] | None = None
) -> dict[str, Any]:
    """`a=1,b=x` by the annotations of `target`'s arguments. Commas inside a value are kept unless a `key=` follows."""
    accepted, hints, open_ended = _arguments(target)
    if also is not None:
        accepted, hints = {**_arguments(also)[0], **accepted}, {**_arguments(also)[1], **hints}
    options: dict[str, Any] = {}
    for part in re.split(r",(?=\s*[A-Za-z_]\w*\s*=)", text) if text.strip() else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise ConfigError(f"{part!r} in {spec!r} is no option; expected key=value, with commas between options")
        if key not in accepted and not open_ended:
            raise ConfigError(f"{spec!r}: the environment has no option {key!r}. {did_you_mean(key, accepted)}")
        if key in options or key in (given or {}):
            raise ConfigError(f"option {key!r} stands twice in {spec!r}")
        options[key] = _value(hints[key], value, key) if key in hints else _literal(value)
    return options


def _arguments(target: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], dict[str, Any], bool]:
    """What may be passed to `target` by name, the types of these arguments, and whether it takes any others, too."""
    parameters = inspect.signature(target).parameters.values()
    named = {p.name: p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    try:
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):  # types that exist for type checkers only: values are then read by their looks
        hints = {}
    return named, {key: hint for key, hint in hints.items() if key in named}, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _value(annotation: Any, text: str, key: str) -> Any:
    """`text` as the annotation wants it: as a word (`8`, `true`, `1-3`), else as JSON (`[1, 2]`); `none` where allowed."""
    adapter = TypeAdapter(annotation)
    if text.lower() in ("none", "null"):
        with contextlib.suppress(ValidationError):
            return adapter.validate_python(None)
    try:
        return adapter.validate_strings(text)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
    try:
        return adapter.validate_json(text)
    except ValidationError:
        expected = annotation.__name__ if inspect.isclass(annotation) else str(annotation).replace("typing.", "")
        raise ConfigError(f"option {key!r} is {text!r}; expected {expected}: {problem}") from None


def _literal(text: str) -> Any:
    """The value of an option without an annotation: JSON where it is JSON, a string otherwise."""
    lowered = text.lower()
    if lowered in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[lowered]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _pick(module: ModuleType, name: str, where: str) -> Any:
    """The environment called `name` in the module; the only one there is, where no name is given."""
    own = {key: value for key, value in vars(module).items() if _is_env(value) and value.__module__ == module.__name__}
    if not name:
        if len(own) == 1:
            return next(iter(own.values()))
        raise ConfigError(f"{where} has {len(own) or 'no'} environments; name one as {where}:ClassName. {did_you_mean('', own)}")
    if not hasattr(module, name):
        raise ConfigError(f"{where} has no {name!r}. {did_you_mean(name, own)}")
    found = getattr(module, name)
    if _is_env(found) or (inspect.isfunction(found) and "gymnasium" in sys.modules):
        return found
    what = "a class" if inspect.isclass(found) else f"a {type(found).__name__}"
    raise ConfigError(f"{where}:{name} is {what}; expected a subclass of whet.Env or gymnasium.Env, such as `class {name}(Env):`")


def _is_env(value: object) -> bool:
    """A class of whet's or gymnasium's environments; gymnasium is asked only when the user's file has imported it."""
    if not inspect.isclass(value):
        return False
    stock = getattr(sys.modules.get("gymnasium"), "Env", None)
    return (issubclass(value, Env) and value is not Env) or (stock is not None and issubclass(value, stock) and value is not stock)
