"""What a rollout may take, and when it gives up."""

from __future__ import annotations

from dataclasses import dataclass, fields

from whet.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Deadlines in seconds, and what bounds a rollout. Raises ConfigError for values that could never work.

    Deadlines are there for what hangs, not for what is slow: `turn_s` includes the wait for a place in a decode batch,
    so it must allow for a large model on a small machine.
    """

    step_s: float | None = None
    """Of one `env.step`; None takes the environment's `step_timeout`. Coroutine tools come on top, with `tool_timeout` each."""
    reset_s: float | None = None
    """Of making an environment and its `reset`; None takes the environment's `reset_timeout`."""
    turn_s: float = 600.0
    """Of one `policy.generate`."""
    episode_s: float = 3600.0
    """Of one attempt at an episode, all waiting included."""
    close_s: float = 10.0
    """Of `env.close`; what it exceeds is logged, never counted against the episode."""
    in_flight: int = 256
    """Episodes under way at once; a finished one's place is taken at once."""
    threads: int = 256
    """Calls of environments with `inline = False` that run at once."""
    retries: int = 2
    """Further attempts, from the start of the episode, after an infrastructure error."""
    max_error_rate: float = 0.5
    """Share of failed episodes above which the rollout raises (from 8 failures on, or as soon as all have failed)."""

    def __post_init__(self) -> None:
        for name in ("step_s", "reset_s", "turn_s", "episode_s", "close_s"):
            value = getattr(self, name)
            if not (value is None and name in ("step_s", "reset_s")) and not value > 0:
                raise ConfigError(f"Limits.{name} is {value!r}; expected a number of seconds above 0")
        if self.in_flight < 1 or self.threads < 1 or self.retries < 0:
            values = {f.name: getattr(self, f.name) for f in fields(self) if f.name in ("in_flight", "threads", "retries")}
            raise ConfigError(f"Limits has {values}; expected in_flight >= 1, threads >= 1 and retries >= 0")
        if not 0 <= self.max_error_rate <= 1:
            raise ConfigError(f"Limits.max_error_rate is {self.max_error_rate!r}; expected a share in [0, 1]")
