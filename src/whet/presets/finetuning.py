"""The comparisons of fine-tuning systems (`make leaderboard FAMILY=finetuning`), each with what its paper beats beside it.

Settings were chosen on dev tasks; `test_start` leaves out test tasks on which a result had been seen before.
"""

from __future__ import annotations

from typing import Any

LEADERBOARD: dict[str, dict[str, Any]] = {}
"""Method -> `env`, `recipes`, `baseline` (one of them), `claim` (the recipe that is held against it), sizes under "", and
options of methods under their names."""
