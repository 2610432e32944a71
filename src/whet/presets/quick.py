"""The preset `quick`: each method with an environment that shows what it is for, at a size that takes minutes on two cores.

Sizes here are for a look, not for a result: what a method gains is in the tables under results/.
"""

from __future__ import annotations

from typing import Any

SWITCH = {
    "switch.early": 6,
    "switch.failed": ("^error: ", "^No tool call found", r"^(no|need|not with|look first)\b"),
    "switch.critical": ("^give",),
}
"""When Sage is asked in the workshop: what a failure looks like there, and which action cannot be taken back."""

QUICK: dict[str, dict[str, Any]] = {
    "sft": {"env": "search:hops=1-3", "expert_episodes": 16, "epochs": 4, "lr": 5e-4, "batch_size": 8},
    "rejection_sampling": {
        "env": "search:hops=1-2",
        "train_tasks": 128,
        "iterations": 2,
        "samples": 8,
        "keep": 4,
        "restart": False,
        "epochs": 1,
        "lr": 5e-4,
        "batch_size": 32,
    },
    "eto": {
        "env": "search:hops=1-3",
        "expert_episodes": 32,
        "iterations": 3,
        "samples": 8,
        "explore_temperature": 1.0,
        "beta": (0.5,),
        "lr": (5e-5,),
        "epochs": 1,
    },
    "grpo": {"env": "search:hops=1-2", "train_tasks": 128, "steps": 16, "tasks_per_step": 8, "group_size": 8, "lr": 5e-4, "kl": 0.0},
    "envisions": {
        "env": "search:hops=1-2",
        "train_tasks": 96,
        "iterations": 3,
        "samples": 3,
        "restart": False,
        "lr": 5e-4,
        "batch_size": 16,
    },
    "reflexion": {"env": "search:hops=1-2", "train_tasks": 64, "trials": 3, "reflector": "environment"},
    "coevol": {"env": "search:hops=1-3", "train_tasks": 64, "window": 8, "epochs": 4, "lr": 5e-4, "batch_size": 8},
    "agent_tuning": {"env": "search:hops=1-3", "train_tasks": 32, "epochs": 4, "lr": 5e-4, "batch_size": 8},
    "agent_ohana": {
        "env": "search:hops=1-3 + workshop:depth=1",
        "train_tasks": 64,
        "sources": ("expert", "expert@0.7", "self"),
        "samples": (1, 2, 1),
        "epochs": 4,
        "lr": 5e-3,
        "batch_size": 8,
    },
    "fireact": {"env": "search:hops=1-3 + search:hops=1-2,given=6", "train_tasks": 64, "epochs": 6, "lr": 5e-3, "batch_size": 8},
    "nat": {
        "env": "search:hops=1-3",
        "train_tasks": 48,
        "teachers": ("expert", "expert@0.2"),
        "temperatures": (1.0,),
        "epochs": 8,
        "lr": 1e-3,
        "batch_size": 8,
    },
    "atm": {
        "env": "search:hops=1,given=4,copies=2,lies=2",
        "expert_episodes": 64,
        "rounds": 2,
        "fabrications": 2,
        "steps": 16,
        "lr": 1e-4,
        "init_epochs": 4,
        "init_lr": 5e-4,
        "attacker_epochs": 4,
        "dpo_lr": 1e-4,
        "max_tokens": 32,
        "probes": 16,
    },
    "nlrl": {
        "env": "search:hops=1-2",
        "train_tasks": 48,
        "iterations": 2,
        "continuations": 3,
        "samples": 6,
        "reasons": False,
        "epochs": 4,
        "lr": 5e-4,
        "max_tokens": 48,
    },
    "ste": {
        "env": "catalogue:calls=1,hold=3",
        "train_tasks": 32,
        "sessions": 6,
        "paraphrases": 2,
        "epochs": 3,
        "lr": 1e-3,
    },
    "lumos": {"env": "workshop:depth=1-2", "expert_episodes": 32, "epochs": 12, "lr": 2e-3, "batch_size": 8},
    "swift_sage": {
        "env": "workshop:depth=1-3",
        "expert_episodes": 32,
        **SWITCH,
        "epochs": 6,
        "lr": 5e-4,
        "batch_size": 8,
    },
    "self_talk": {
        "env": "client:steps=4",
        "train_tasks": 128,
        "demonstrations": 48,
        "epochs": 4,
        "lr": 1e-3,
        "batch_size": 8,
        "lora": None,
    },
    "llm_tmbr": {"env": "workshop:depth=1-3", "train_tasks": 32, "ways.told": False, "epochs": 3, "lr": 5e-3, "batch_size": 8},
    "reft": {
        "env": "search:hops=1-2",
        "train_tasks": 128,
        "epochs": 4,
        "tasks_per_step": 32,
        "lr": 3e-4,
        "ppo.value": 0.5,
    },
    "re_rest": {
        "env": "search:hops=1-2",
        "train_tasks": 128,
        "samples": 3,
        "iterations": 2,
        "epochs": 2,
        "lr": 5e-4,
        "batch_size": 16,
    },
    "agent_evol": {
        "env": "search:hops=1-3 + babyai:level=GoToLocal,max_turns=12",
        "train_tasks": 128,
        "expert_episodes": 16,
        "iterations": 2,
        "samples": 2,
        "keep": 2,
        "explore_temperature": 1.0,
        "epochs": 4,
        "lr": 5e-4,
        "batch_size": 8,
    },
}
"""Method -> the environment it is shown on, sizes of the data, and its options."""
SIZES = {"train_tasks": 128, "dev_tasks": 32, "test_tasks": 64, "expert_episodes": 32}
"""Where a method says nothing else."""
