"""The comparisons of fine-tuning systems (`make leaderboard FAMILY=finetuning`), each with what its paper beats beside it.

Settings were chosen on dev tasks; `test_start` leaves out test tasks on which a result had been seen before.
"""

from __future__ import annotations

from typing import Any

LEADERBOARD: dict[str, dict[str, Any]] = {
    "coevol": {
        "env": "search:hops=1-3",
        "recipes": ("coevol:iterations=0", "coevol"),
        "baseline": "coevol:iterations=0",
        "claim": "coevol",
        "": {"train_tasks": 128, "test_tasks": 256, "test_start": 2000},
        "coevol": {"window": 8, "epochs": 4, "lr": 5e-4, "batch_size": 8},
    },
}
"""Method -> `env`, `recipes`, `baseline` (one of them), `claim` (the recipe that is held against it), sizes under "", and
options of methods under their names."""
