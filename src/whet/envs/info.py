"""What there is to say about the bundled environments, for `whet envs`: what they are, what they need, what was measured."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import inspect
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whet.envs.base import Env
from whet.envs.registry import _BUNDLED, _arguments, _bundled
from whet.errors import ConfigError, MissingExtra, did_you_mean

_JAVA = ("scienceworld", "textworldexpress")
"""Environments that run in a Java machine."""
_PACKAGES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "babyai": (("minigrid", "gymnasium"), "pip install 'whet[envs]'"),
    "bfcl": (("bfcl-eval", "tree-sitter"), "pip install --no-deps bfcl-eval; docs/environments/bfcl.md names the rest"),
    "gymnasium": (("gymnasium",), "pip install 'whet[envs]'"),
    "mcp": (("mcp",), "pip install 'whet[mcp]'"),
    "miniwob": (("miniwob",), "pip install 'whet[miniwob]'"),
    "openenv": (("websockets",), "pip install 'whet[openenv]'"),
    "reasoning_gym": (("reasoning-gym",), "pip install 'whet[reasoning-gym]'"),
    "scienceworld": (("scienceworld", "py4j"), "pip install 'whet[scienceworld]'"),
    "tau2": (("loguru", "docstring-parser", "deepdiff", "addict", "toml", "python-dotenv", "pandas"), "pip install 'whet[tau2]'"),
    "textcraft": (("minecraft-data",), "pip install 'whet[textcraft]'"),
    "textworld": (("textworld",), "pip install 'whet[textworld]'"),
    "textworldexpress": (("textworld-express", "py4j"), "pip install 'whet[textworldexpress]'"),
    "verifiers": (("pyzmq", "msgpack"), "pip install 'whet[verifiers]'"),
}
"""Distributions that an environment imports, and how they are installed."""


@dataclass(frozen=True, slots=True)
class EnvInfo:
    """What there is to say about a bundled environment."""

    name: str
    summary: str
    options: Mapping[str, str] = field(default_factory=dict)
    """Option -> its type and default, as in `int = 4`; empty after `glance`."""
    missing: str | None = None
    """What it takes to play it here: a package or a program that must be installed."""
    measured: Mapping[str, Any] | None = None
    """What `scripts/environments.py` measured, with the machine and the date: `rows`, `install`, `also` and `licence`."""


def describe(name: str) -> EnvInfo:
    """Everything about a bundled environment. Raises ConfigError for an unknown name."""
    seen = glance(name)
    if seen.missing is not None and _package(name) is not None:
        return seen
    try:
        cls = _bundled(name)
    except MissingExtra as error:
        return EnvInfo(name, seen.summary, missing=str(error), measured=seen.measured)
    options = {key: _shown(p) for key, p in _arguments(cls)[0].items()} if issubclass(cls, Env) else {}
    return EnvInfo(name, seen.summary, options, missing=seen.missing, measured=seen.measured)


def glance(name: str) -> EnvInfo:
    """As `describe`, without the options, and so without importing what may take seconds. Raises ConfigError for an unknown name."""
    if name not in _BUNDLED:
        raise ConfigError(f"unknown environment {name!r}. {did_you_mean(name, _BUNDLED)}")
    return EnvInfo(name, _summary(name), missing=_package(name) or _program(name), measured=measured().get(name))


def measured() -> dict[str, dict[str, Any]]:
    """The figures of all environments that were measured, by name."""
    found: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("measured.json").read_text())
    return found


def _summary(name: str) -> str:
    """The first paragraph of the class's docstring in one line, read from its source."""
    module, _, attribute = _BUNDLED[name].partition(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"{module} is part of whet"
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text())
    cls = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == attribute), None)
    return " ".join(((ast.get_docstring(cls) if cls else None) or "").split("\n\n")[0].split())


def _package(name: str) -> str | None:
    """The package that must be installed, where one is not."""
    packages, command = _PACKAGES.get(name, ((), ""))
    for package in packages:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return f"the environment {name!r} needs the package {package!r}, which is not installed. Run: {command}"
    return None


def _program(name: str) -> str | None:
    """What must be installed besides packages, where it is not there."""
    if name in _JAVA and not any(map(shutil.which, ("java", os.path.join(os.environ.get("JAVA_HOME", ""), "bin", "java")))):
        return (
            f"the environment {name!r} needs a Java runtime (8 or later), and there is no program 'java'. "
            "Run as root: apt-get install -y default-jre-headless"
        )
    if name == "miniwob":
        from whet.envs.chromium_process import executable

        try:
            executable()
        except MissingExtra as error:
            return str(error)
    if name == "tau2" and not os.environ.get("WHET_TAU2"):
        return "the environment 'tau2' needs a checkout of tau2-bench: give path=DIR, or set WHET_TAU2=DIR; see docs/environments/tau2.md"
    return None


def _shown(parameter: inspect.Parameter) -> str:
    """An argument's type and default, as the source has them."""
    kind = parameter.annotation if isinstance(parameter.annotation, str) else getattr(parameter.annotation, "__name__", "")
    return kind if parameter.default is parameter.empty else f"{kind} = {parameter.default!r}"
