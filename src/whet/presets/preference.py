"""The comparisons of preference-based and hybrid systems (`make leaderboard FAMILY=preference`), each beside SFT and ETO.

Every system goes on from the same clone of a few expert episodes, on the same tasks and with the same number of environment steps
(`env_steps`; what is replayed counts), after which no new iteration is begun. Settings were chosen on dev tasks.
"""

from __future__ import annotations

from typing import Any

PLACES: dict[str, dict[str, Any]] = {
    "search": {
        "env": "search:hops=1-3",
        "": {"train_tasks": 256, "expert_episodes": 16, "env_steps": 8192, "test_tasks": 256, "test_start": 4000},
        "sft": {"epochs": 4, "lr": 5e-4, "batch_size": 8},
        "eto": {"iterations": 16, "samples": 16, "explore_temperature": 1.0, "beta": (1.0,), "lr": (1e-4,), "epochs": 1},
    },
    "babyai": {
        "env": "babyai:level=GoToLocal,max_turns=12",
        "": {"train_tasks": 256, "expert_episodes": 16, "env_steps": 8192, "test_tasks": 256, "test_start": 4000},
        "sft": {"epochs": 4, "lr": 5e-4, "batch_size": 8},
        "eto": {"iterations": 16, "samples": 16, "explore_temperature": 1.0, "beta": (1.0,), "lr": (1e-4,), "epochs": 1},
    },
}
"""Where they are compared, with what SFT and ETO are run with there."""


def beside(
    place: str,
    method: str,
    options: dict[str, Any],
    *,
    recipe: str = "",
    recipes: tuple[str, ...] = (),
    baseline: str = "sft",
    note: str = "",
) -> dict[str, Any]:
    """An entry: `sft+METHOD` (or `recipe`), with these options, held against `baseline`. `sft` and `sft+eto` stand in every table."""
    claim = recipe or f"sft+{method}"
    shown = tuple(dict.fromkeys(("sft", "sft+eto", *recipes, claim)))
    return {**PLACES[place], method: options, "recipes": shown, "baseline": baseline, "claim": claim, **({"note": note} if note else {})}


EVOLVE = {"keep": 4, "explore_temperature": 1.0, "epochs": 4, "lr": 5e-4, "batch_size": 8}

# As ETO is run here, but uncut and with discounted turns.
DMPO = {"iterations": 16, "samples": 16, "explore_temperature": 1.0, "beta": 1.0, "lr": 1e-4, "epochs": 1}
IPR = {"iterations": 24, "completions": 3, "samples": 2, "beta": 0.3, "nll": 0.1, "lr": 1e-4, "epochs": 3, "batch_size": 16}
STEP_AGENT = {"iterations": 8, "samples": 8, "beta": 1.0, "nll": 0.1, "lr": 1e-4, "batch_size": 16}

REFT = {"epochs": 12, "tasks_per_step": 32, "ppo.value": 0.5}
SELF_TRAINING = ("agent_evol:iterations=1:samples=8", "agent_evol:iterations=8:restart=false:epochs=1")
"""What ReFT's paper compares it with: offline, from many episodes of the clone, and online."""
RE_REST = {"iterations": 3, "samples": 2, "epochs": 2, "lr": 5e-4, "batch_size": 8}
GRPO = {"steps": 24, "tasks_per_step": 16, "group_size": 8, "kl": 0.0}
TWO_STAGES = "The two-stage recipe that OpenAI calls reinforcement fine-tuning: some examples to imitate, then a grader's reward."

LEADERBOARD: dict[str, dict[str, Any]] = {
    "dmpo@search": beside("search", "dmpo", DMPO),
    "dmpo@babyai": beside("babyai", "dmpo", DMPO),
    "ipr@search": beside("search", "ipr", IPR),
    "ipr@babyai": beside("babyai", "ipr", IPR),
    "step_agent@search": beside("search", "step_agent", STEP_AGENT),
    "step_agent@babyai": beside("babyai", "step_agent", STEP_AGENT),
    # Seen on 200 dev tasks, 1 seed: 0.815 [0.755, 0.863] against 0.470 [0.401, 0.540] of the clone.
    "agent_evol@search": beside("search", "agent_evol", {**EVOLVE, "iterations": 3, "samples": 3}, recipe="agent_evol"),
    # Likewise 0.785 [0.722, 0.837] against 0.690 [0.622, 0.750].
    "agent_evol@babyai": beside("babyai", "agent_evol", {**EVOLVE, "iterations": 2, "samples": 2}, recipe="agent_evol"),
    # Seen on 200 dev tasks after two epochs (1,800 steps), 1 seed: 0.860 [0.805, 0.902] against 0.470 [0.401, 0.540] of the clone.
    "reft@search": {**beside("search", "reft", {**REFT, "lr": 3e-4}, recipes=SELF_TRAINING), "agent_evol": EVOLVE},
    "reft@babyai": {**beside("babyai", "reft", {**REFT, "lr": 2e-4}, recipes=SELF_TRAINING), "agent_evol": EVOLVE},
    # Seen on 200 dev tasks, 1 seed: 0.740 [0.675, 0.796] against 0.470 [0.401, 0.540] of the clone; without the reflector not looked at.
    "re_rest@search": beside("search", "re_rest", RE_REST, recipes=("sft+re_rest:reflect=false:samples=5",)),
    "re_rest@babyai": beside("babyai", "re_rest", RE_REST, recipes=("sft+re_rest:reflect=false:samples=3",)),
    "grpo@search": beside("search", "grpo", {**GRPO, "lr": 5e-4}, note=TWO_STAGES),
    "grpo@babyai": beside("babyai", "grpo", {**GRPO, "lr": 2e-4}, note=TWO_STAGES),
    "agile@desk": {
        "env": "desk",
        "recipes": ("sft", "agile:session=false", "agile"),
        "baseline": "sft",
        "claim": "agile",
        "": {"train_tasks": 256, "expert_episodes": 32, "env_steps": 8192, "test_tasks": 256, "test_start": 4000},
        "sft": {"epochs": 8, "lr": 1e-3, "batch_size": 8},
        # Not chosen by a score. With the head on the backbone and lr=3e-4, sessions paid less from update to update: 0.816, then
        # 0.797, 0.713, 0.686, 0.748 and 0.695 (16 train sessions each, 1 seed, desk:questions=4,people=2,hidden=1).
        "agile": {
            "imitation": 8,
            "imitation_lr": 1e-3,
            "batch_size": 8,
            "epochs": 4,
            "lr": 1e-4,
            "critic_lr": 1e-3,
            "ppo.lam": 1.0,
            "ppo.clip_value": 10.0,
        },
    },
}
"""METHOD@PLACE -> the same as in `whet.presets.finetuning`."""
