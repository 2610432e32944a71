"""Runs agents in environments: the only place with concurrency, deadlines, retries, forks and replay."""

from whet.policies.ask import ask
from whet.rollout.collect import collect
from whet.rollout.limits import Limits
from whet.rollout.replay import Prefix
from whet.rollout.retrying import retried
from whet.rollout.runner import arollout, arollout_groups, rollout, rollout_groups
from whet.rollout.summary import means, success_rates

__all__ = [
    "Limits",
    "Prefix",
    "arollout",
    "arollout_groups",
    "ask",
    "collect",
    "means",
    "retried",
    "rollout",
    "rollout_groups",
    "success_rates",
]
