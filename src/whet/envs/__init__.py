"""Environments: what an agent acts in, how one is loaded by name, and the contract that each keeps."""

from whet.envs.base import Action, Env, EnvFactory, Step, ToolError, ToolTimeout
from whet.envs.check import Problem, Report, check_env
from whet.envs.registry import EnvInfo, describe, load_env, names

__all__ = [
    "Action",
    "Env",
    "EnvFactory",
    "EnvInfo",
    "Problem",
    "Report",
    "Step",
    "ToolError",
    "ToolTimeout",
    "check_env",
    "describe",
    "load_env",
    "names",
]
