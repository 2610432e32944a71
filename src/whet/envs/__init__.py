"""Environments: what an agent acts in, how one is loaded by name, and the contract that each keeps."""

from whet.envs.base import Action, Env, EnvFactory, Step, ToolError, ToolTimeout
from whet.envs.check import Problem, Report, check_env
from whet.envs.info import EnvInfo, describe, glance
from whet.envs.registry import load_env, names

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
    "glance",
    "load_env",
    "names",
]
