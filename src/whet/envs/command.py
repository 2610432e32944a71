"""How a text action is read from what a policy wrote."""

from __future__ import annotations

from whet.envs.base import Action


def command(action: Action) -> str:
    """What follows the last colon of the text's last line, so that a thought may come before it. Nothing is corrected."""
    return action.text.strip().rpartition("\n")[2].rpartition(":")[2].strip()
