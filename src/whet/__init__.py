"""whet makes LLM agents better and proves it.

A method maps an agent and its tasks to a better agent; `compare` tells which one helped, with intervals and costs.

    from whet import Agent, Env, Task, tool          # what an environment of one's own needs
    from whet import evaluate, load_env, load_policy  # and to try an agent out
    from whet.rollout import rollout

Names are loaded when they are first used, so that `import whet` costs nothing and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whet.agents import Agent
    from whet.envs import Env, EnvFactory, check_env, load_env
    from whet.envs.base import Action, Step, ToolError
    from whet.evals import compare, evaluate
    from whet.policies import load_policy
    from whet.policies.base import Sampling
    from whet.runs import Run
    from whet.tools import tool
    from whet.types import Data, Episode, Task, Turn

__version__ = "0.1.0"

_HOME = {
    "Action": "envs.base",
    "Agent": "agents",
    "Data": "types",
    "Env": "envs.base",
    "EnvFactory": "envs.base",
    "Episode": "types",
    "Run": "runs",
    "Sampling": "policies.base",
    "Step": "envs.base",
    "Task": "types",
    "ToolError": "envs.base",
    "Turn": "types",
    "check_env": "envs",
    "compare": "evals",
    "evaluate": "evals",
    "load_env": "envs",
    "load_policy": "policies",
    "tool": "tools",
}

__all__ = [
    "Action",
    "Agent",
    "Data",
    "Env",
    "EnvFactory",
    "Episode",
    "Run",
    "Sampling",
    "Step",
    "Task",
    "ToolError",
    "Turn",
    "check_env",
    "compare",
    "evaluate",
    "load_env",
    "load_policy",
    "tool",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
