"""What generates: local weights, OpenAI-compatible endpoints, scripts. `load_policy` finds one by name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.errors import ConfigError, did_you_mean, missing_extra
from whet.policies.base import Policy, Request, Sampling
from whet.policies.scripted import ExpertPolicy, MixedPolicy, RandomPolicy, RolePolicy, ScriptedPolicy

if TYPE_CHECKING:
    from whet.policies.endpoint import EndpointPolicy, Price
    from whet.policies.local import LocalPolicy

__all__ = [
    "EndpointPolicy",
    "ExpertPolicy",
    "LocalPolicy",
    "MixedPolicy",
    "Policy",
    "Price",
    "RandomPolicy",
    "Request",
    "RolePolicy",
    "Sampling",
    "ScriptedPolicy",
    "load_policy",
]

_LAZY = {"EndpointPolicy": "endpoint", "Price": "endpoint", "LocalPolicy": "local"}
_NAMES = ("base", "expert", "expert@SKILL", "random", "script:ROLE", "openai:MODEL@URL")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def __getattr__(name: str) -> Any:
    """The policies that need an optional package are imported when they are first asked for."""
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"whet.policies.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_policy(spec: str, **options: Any) -> Policy:
    """The policy that a name stands for.

        base                     the small model that comes with whet
        expert, random           the environment's own expert; chance level
        expert@0.8               the expert in 8 of 10 turns, chance in the others
        script:ROLE              the environment's own script for a role (`Env.role`), such as script:judge
        openai:MODEL[@URL]       an OpenAI-compatible endpoint (options: those of EndpointPolicy)
        DIRECTORY or owner/name  a Hugging Face causal LM (options: those of LocalPolicy.load, such as dtype), or a saved workflow

    Raises ConfigError for a name that is none of these or an option that the policy does not have, and what loading
    the policy raises.
    """
    if spec in ("expert", "random"):
        _check_options(spec, lambda: None, options)
        return ExpertPolicy() if spec == "expert" else RandomPolicy()
    if spec.startswith(("expert@", "script:")):
        _check_options(spec, lambda: None, options)
        return _scripted(spec)
    if spec.startswith("openai:"):
        return _endpoint(spec.removeprefix("openai:"), options)
    path: str | Path = spec
    if spec == "base":
        path = Path(__file__).parents[1] / "base"
    elif not Path(spec).expanduser().exists() and not _HUB_ID.fullmatch(spec):
        if "/" in spec or "\\" in spec:
            raise ConfigError(
                f"there is no model directory {spec!r}. Give a checkpoint's directory, a hub id, or one of: {', '.join(_NAMES)}"
            )
        raise ConfigError(f"unknown policy {spec!r}: neither a directory nor a hub id (owner/name). {did_you_mean(spec, _NAMES)}")
    if (Path(path).expanduser() / "workflow.json").is_file():
        from whet.policies.workflow import load_workflow

        return load_workflow(Path(path).expanduser())
    try:
        from whet.policies.local import LocalPolicy
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("whet"):
            raise
        raise missing_extra(error.name, "train", f"the model {spec!r}") from error
    _check_options(spec, LocalPolicy.load, options)
    return LocalPolicy.load(path, **options)


def _scripted(spec: str) -> Policy:
    if spec.startswith("script:"):
        if spec == "script:":
            raise ConfigError("'script:' names no role; write script:ROLE, such as script:judge")
        return RolePolicy(spec.removeprefix("script:"))
    try:
        skill = float(spec.removeprefix("expert@"))
    except ValueError:
        raise ConfigError(f"{spec!r} names no skill; write the share of turns that the expert takes, as in expert@0.8") from None
    return MixedPolicy(ExpertPolicy(), RandomPolicy(), skill, name=spec)


def _endpoint(rest: str, options: dict[str, Any]) -> Policy:
    from whet.policies.endpoint import EndpointPolicy

    model, at, url = rest.partition("@http")
    if not model:
        raise ConfigError(f"'openai:{rest}' names no model; write openai:MODEL or openai:MODEL@http://HOST:PORT/v1")
    base_url = f"http{url}" if at else None
    api_key = options.pop("api_key", None)
    _check_options(f"openai:{rest}", EndpointPolicy.__init__, options)
    return EndpointPolicy(model, base_url, api_key, **options)


def _check_options(spec: str, function: Callable[..., Any], options: dict[str, Any]) -> None:
    known = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise ConfigError(f"policy {spec!r} has no option {name!r}. {did_you_mean(name, known)}")
