"""The learner and what it minimises. Names load their module when first used: credit needs no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from whet.errors import missing_extra

if TYPE_CHECKING:
    from whet.learn.credit import PPO, at_end, credited, gae, group_advantages, leave_one_out_advantages, turn_weights, whitened
    from whet.learn.critic import CriticLearner
    from whet.learn.discriminator import discrimination, step_rewards, told_apart
    from whet.learn.experts import Experts
    from whet.learn.learner import Learner
    from whet.learn.lora import Lora
    from whet.learn.losses import Loss, dpo, ipo, kto, mito, nll, policy_gradient, simpo
    from whet.learn.proximal import actor_critic, ppo, value_regression
    from whet.learn.reference import with_divergences, with_reference
    from whet.learn.several import Learners
    from whet.learn.training import learner_for, mean_nll, optimise, worst_turn_nll

_HOME = {
    "PPO": "credit",
    "at_end": "credit",
    "credited": "credit",
    "gae": "credit",
    "whitened": "credit",
    "discrimination": "discriminator",
    "step_rewards": "discriminator",
    "told_apart": "discriminator",
    "actor_critic": "proximal",
    "ppo": "proximal",
    "value_regression": "proximal",
    "group_advantages": "credit",
    "leave_one_out_advantages": "credit",
    "turn_weights": "credit",
    "CriticLearner": "critic",
    "Experts": "experts",
    "Learner": "learner",
    "Learners": "several",
    "Lora": "lora",
    "with_divergences": "reference",
    "with_reference": "reference",
    "Loss": "losses",
    "dpo": "losses",
    "ipo": "losses",
    "kto": "losses",
    "mito": "losses",
    "nll": "losses",
    "policy_gradient": "losses",
    "simpo": "losses",
    "optimise": "training",
    "learner_for": "training",
    "mean_nll": "training",
    "worst_turn_nll": "training",
}

__all__ = [
    "PPO",
    "CriticLearner",
    "Experts",
    "Learner",
    "Learners",
    "Lora",
    "Loss",
    "actor_critic",
    "at_end",
    "credited",
    "discrimination",
    "dpo",
    "gae",
    "group_advantages",
    "ipo",
    "kto",
    "learner_for",
    "leave_one_out_advantages",
    "mean_nll",
    "mito",
    "nll",
    "optimise",
    "policy_gradient",
    "ppo",
    "simpo",
    "step_rewards",
    "told_apart",
    "turn_weights",
    "value_regression",
    "whitened",
    "with_divergences",
    "with_reference",
    "worst_turn_nll",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("whet"):
            raise
        raise missing_extra(error.name, "train", "changing weights") from error
