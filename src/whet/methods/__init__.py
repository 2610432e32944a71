"""Every method is one file named after it, with one function `method(agent, data, *, env, run, cfg) -> Agent`.

The registry reads the files: a method exists because its file does. Each begins with its title and paper, followed by
the paper's algorithm box, and says in `NEEDS` which parts of the data it cannot do without, and in `PARTS` what it is put
together from.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from whet.errors import ConfigError, did_you_mean
from whet.policies import Policy, load_policy
from whet.rollout.replay import must_replay
from whet.userfile import load_file

if TYPE_CHECKING:
    from whet.agents import Agent
    from whet.envs.base import EnvFactory
    from whet.runs import Run
    from whet.types import Data


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The building blocks of a method, in a few words each; empty where it has none of a kind."""

    source: str = ""
    """Where episodes come from."""
    filter: str = ""
    """How they are judged."""
    reuse: str = ""
    """What becomes of the bad ones."""
    update: str = ""
    """What changes, by which loss."""
    schedule: str = ""
    """What is repeated."""
    inference: str = ""
    """What the agent does when it acts, beyond one answer a turn."""

    def __str__(self) -> str:
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return "; ".join(f"{name}: {text}" for name, text in named.items() if text)


@dataclass(frozen=True)
class Method:
    """What the command line knows about a method."""

    name: str
    title: str
    paper: str
    """Such as `arXiv:2402.03300`; several are separated by commas."""
    needs: tuple[str, ...]
    """Of `train`, `dev`, `experts`, `general`: what must not be empty in its data; and `replay`, where it begins episodes in the midst
    of others."""
    config: type
    """The frozen dataclass of its options, with the paper's values."""
    function: Callable[..., Any]
    """`function(agent, data, *, env, run, cfg) -> Agent`"""
    parts: Parts = Parts()


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The config of a method that has none."""


SIGNATURE = "def {}(agent, data, *, env, run, cfg)"


def require(needs: Sequence[str], data: Data, env: EnvFactory, *, by: str) -> None:
    """What a method checks before any work. Raises ConfigError for a part of the data that is empty.

    Raises CannotReplay where it needs `replay` and an environment of its train tasks or expert episodes cannot.
    """
    data.require(*(need for need in needs if need != "replay"), by=by)
    if "replay" in needs:
        must_replay(env, [*data.train, *(episode.task for episode in data.experts)], by=by)


def player(spec: str, agent: Agent[Any]) -> Policy:
    """Who plays a role: the agent's own policy for `self`, else what `load_policy` finds under the name."""
    return agent.policy if spec == "self" else load_policy(spec)


def note_roles(run: Run, **played: Any) -> None:
    """Write down who plays which role, and which of them are scripts: tables say so wherever the result is shown."""
    scripted = {role: policy.version for role, policy in played.items() if getattr(policy, "actor", "workflow") != "workflow"}
    run.event("roles", played={role: policy.version for role, policy in played.items()}, scripted=scripted)


def names() -> list[str]:
    """The names of all methods."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Method:
    """A method by its name, or by the path of its file. Raises ConfigError with the nearest name for one that does not exist."""
    if name.endswith(".py"):
        return _described(load_file(name), Path(name).stem)
    if name not in names():
        raise ConfigError(f"unknown method {name!r}. {did_you_mean(name, names())} One of your own is path/to/my_method.py.")
    return _described(importlib.import_module(f"{__name__}.{name}"), name)


def _described(module: ModuleType, name: str) -> Method:
    """The method of a module, whose function is named as the module is. Raises ConfigError where it has none."""
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{module.__file__} has no function {name!r}; a method's function is named as its file: {SIGNATURE.format(name)}")
    title = (module.__doc__ or name).splitlines()[0].strip()
    own = (value for key, value in vars(module).items() if key.endswith("Config") and value.__module__ == module.__name__)
    return Method(
        name=name,
        title=title.split(" (")[0].rstrip("."),
        paper=", ".join(re.findall(r"arXiv:\d{4}\.\d{5}", title)),
        needs=getattr(module, "NEEDS", ("train",)),
        config=next(own, NoOptions),
        function=function,
        parts=getattr(module, "PARTS", Parts()),
    )
