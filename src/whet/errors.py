"""Errors that whet raises on purpose; each names what was wrong, what was expected and what to do.

WhetError
├── ConfigError (ValueError)        an option, name or combination that cannot work
├── MissingExtra (ImportError)      an optional dependency that this call needs
├── SplitError (ValueError)         test tasks on their way into a method
├── CannotReplay (TypeError)        a step-level method on an environment that cannot replay
├── CheckpointError (OSError)       a model or run directory that is incomplete or damaged
├── EnvError (RuntimeError)         an environment that broke its contract, raised or hung
├── ToolError (RuntimeError)        what a tool tells the model instead of a result: an observation, no failure of the episode
│   └── ToolTimeout                 the tool gave up waiting
├── PolicyError (RuntimeError)      a policy that could not answer
│   ├── ContextFull                 the conversation leaves no room to sample: the episode is truncated
│   └── PolicyUnavailable           a passing fault (endpoint down, overloaded): worth another try
└── StorageError (OSError)          a run directory that could not be written (disk full, read-only)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WhetError(Exception):
    """Base of every error above; the command line prints its message alone and exits with 1."""


class ConfigError(WhetError, ValueError):
    """An option, name or combination of options that cannot work."""


class MissingExtra(WhetError, ImportError):
    """An optional dependency is not installed; the message holds the command that installs it."""


class SplitError(WhetError, ValueError):
    """Test tasks were handed to something that learns."""


class CannotReplay(WhetError, TypeError):
    """The environment cannot be put back into an earlier state, and the caller needs that."""


class CheckpointError(WhetError, OSError):
    """A model or run directory is incomplete, damaged or not of this kind."""


class EnvError(WhetError, RuntimeError):
    """An environment broke its contract, raised, or did not answer before its deadline."""


class ToolError(WhetError, RuntimeError):
    """Raised by a tool to tell the model what went wrong: its message becomes the observation `error: ...`.

    Anything else that a tool raises is a failure of infrastructure: the episode is tried again, then dropped.
    """

    outcome = "tool_error"
    """The class under which the call is counted (see `Env.tool_outcomes`)."""


class ToolTimeout(ToolError):
    """A tool did not answer before its deadline; the model is told."""

    outcome = "timeout"


class PolicyError(WhetError, RuntimeError):
    """A policy could not produce an action."""


class ContextFull(PolicyError):
    """The conversation fills the policy's context. A rollout truncates the episode with the reason `context`."""


class PolicyUnavailable(PolicyError):
    """A fault that may pass: an endpoint that is down, overloaded or late. A rollout tries the episode again."""


class StorageError(WhetError, OSError):
    """A run directory could not be written."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`name` against the valid names: the nearest one first, then the whole list."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Valid: {', '.join(names) or 'none'}."


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtra:
    """The error for an optional dependency that is not installed."""
    return MissingExtra(f"{purpose} needs the package {package!r}, which is not installed. Run: pip install 'whet[{extra}]'")
