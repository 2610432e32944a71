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
}
"""METHOD@PLACE -> the same as in `whet.presets.finetuning`."""
