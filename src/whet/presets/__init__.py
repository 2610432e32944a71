"""Settings that go with an environment and the embedded base model, chosen by their scores on dev tasks.

The methods' own defaults are their papers', for models of billions of parameters; the embedded model has one million,
takes learning rates a thousand times as large, and is trained for seconds. A preset is nothing but overrides: `whet run`
writes what it ran with to the run's config. What stands under "" is about the data and holds for all methods.

Tables of the first test tasks prompted some of these choices: another learning rate and temperature for ETO on Search, and
the whole of BabyAI's after a table in which practice added nothing. So the presets begin their test split at `test_start`:
no result on the tasks from there on was seen before the settings were final.
"""

from __future__ import annotations

from typing import Any

from whet.errors import ConfigError, did_you_mean
from whet.presets import preference
from whet.presets.finetuning import LEADERBOARD as FINETUNING
from whet.presets.quick import QUICK, SIZES

FAMILIES = {"finetuning": FINETUNING, "preference": preference.LEADERBOARD}
"""The leaderboards: family -> method -> what is compared, at which settings. A comparison's preset is FAMILY/METHOD.

A method that is compared in several environments has an entry METHOD@PLACE for each of them."""
ANY = "*"
"""Stands for every environment."""

PRESETS: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    # Where to begin with a model of some million parameters in an environment of one's own.
    (ANY, "small"): {
        "": {"train_tasks": 128, "test_tasks": 128, "expert_episodes": 32},
        "sft": {"epochs": 4, "lr": 5e-4, "batch_size": 8},
        "rejection_sampling": {"iterations": 2, "samples": 8, "keep": 4, "restart": False, "epochs": 1, "lr": 5e-4, "batch_size": 32},
        "eto": {"iterations": 3, "samples": 8, "explore_temperature": 1.0, "beta": (0.5,), "lr": (5e-5,), "epochs": 1},
        "grpo": {"steps": 30, "tasks_per_step": 8, "group_size": 8, "lr": 5e-4, "kl": 0.0},
        "reflexion": {"trials": 4},
        # Seen on 128 dev tasks of Search and of the workshop (depth=1), seed 0. Of sft 0.812 and 0.820; after it, dmpo 0.852 and 0.922,
        # ipr 0.898 and 0.867, step_agent 0.906 and 0.891, reft 0.938 (Search), re_rest 0.680 and 0.969 (eto 0.820 and 0.844, grpo 0.906
        # and 0.984). Of base 0.117 and 0.000; after it, agent_evol 0.953 and 0.992, nat 0.711 and 0.641, retrospex 1.000 (Search).
        "dmpo": {**preference.DMPO, "iterations": 3, "samples": 8},
        "ipr": {**preference.IPR, "iterations": 3, "completions": 4},
        "step_agent": {**preference.STEP_AGENT, "iterations": 4},
        "reft": {**preference.REFT, "epochs": 15, "lr": 2e-4},
        "re_rest": {**preference.RE_REST, "iterations": 2, "samples": 4},
        "agent_evol": {**preference.EVOLVE, "iterations": 2, "samples": 8},
        "retrospex": preference.RETROSPEX,
        **{name: FINETUNING[name][name] for name in ("nat", "agent_tuning", "envisions")},
    },
    # What `small` leaves at chance: queries and games whose words the bundled model has never seen want more of a beginning.
    ("sql", "small"): {
        "": {"train_tasks": 256, "test_tasks": 128, "expert_episodes": 16},
        "sft": {"epochs": 30, "lr": 1e-3, "batch_size": 4},
        "grpo": {"steps": 20, "tasks_per_step": 8, "group_size": 8, "lr": 5e-4, "kl": 0.0},
    },
    ("textworldexpress", "small"): {
        "": {"train_tasks": 256, "test_tasks": 128, "expert_episodes": 64},
        "sft": {"epochs": 16, "lr": 1e-3, "batch_size": 8},
        # At 5e-4 a single step makes all episodes of a group alike, and nothing is left to compare.
        "grpo": {"steps": 20, "tasks_per_step": 16, "group_size": 8, "lr": 5e-5, "kl": 0.0},
    },
    # 4,096 episodes of practice for each method that practises, from the same 16 expert episodes.
    ("search", "demo"): {
        "": {"train_tasks": 512, "test_tasks": 512, "test_start": 1000, "expert_episodes": 16},
        "sft": {"epochs": 4, "lr": 5e-4, "batch_size": 8},
        "rejection_sampling": {"iterations": 2, "samples": 4, "keep": 4, "restart": False, "epochs": 1, "lr": 5e-4, "batch_size": 32},
        "eto": {"iterations": 4, "samples": 64, "explore_temperature": 1.0, "beta": (1.0,), "lr": (1e-4,), "epochs": 1},
        "grpo": {"steps": 32, "tasks_per_step": 16, "group_size": 8, "lr": 5e-4, "kl": 0.0},
        "reflexion": {"trials": 4, "reflector": "environment"},
    },
    # 4,096 episodes of practice for each method that practises, from the same 8 expert episodes.
    ("babyai", "demo"): {
        "": {"train_tasks": 256, "test_tasks": 256, "test_start": 1000, "expert_episodes": 8},
        "sft": {"epochs": 4, "lr": 5e-4, "batch_size": 8},
        "rejection_sampling": {"iterations": 4, "samples": 4, "keep": 2, "restart": False, "epochs": 2, "lr": 5e-4, "batch_size": 32},
        "eto": {"iterations": 4, "samples": 128, "explore_temperature": 1.0, "beta": (1.0,), "lr": (1e-4,), "epochs": 1},
        "grpo": {"steps": 32, "tasks_per_step": 16, "group_size": 8, "lr": 2e-4, "kl": 0.0},
    },
}


def shown(entry: str) -> str:
    """The method that an entry of a leaderboard is about."""
    return entry.partition("@")[0]


def names(env_name: str) -> list[str]:
    """The presets of an environment."""
    return sorted({name for env, name in PRESETS if env in (env_name, ANY)} | {"quick"})


def home(preset: str | None, method: str) -> str | None:
    """The environment that a preset shows a method on, where it names one."""
    return QUICK[method]["env"] if preset == "quick" and method in QUICK else None


def get(env_name: str, preset: str, method: str) -> dict[str, Any]:
    """A preset's overrides for a method, together with sizes of the data. Raises ConfigError for an unknown preset."""
    if preset == "quick":
        return SIZES | {key: value for key, value in QUICK.get(method, {}).items() if key != "env"}
    family, _, name = preset.partition("/")
    found = FAMILIES.get(family, {}).get(name) or {**PRESETS.get((ANY, preset), {}), **PRESETS.get((env_name, preset), {})}
    if not found:
        raise ConfigError(f"environment {env_name!r} has no preset {preset!r}. {did_you_mean(preset, names(env_name))}")
    return {**found[""], **found.get(method, {})}
