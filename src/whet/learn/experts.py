"""A model with an expert for each module: MLPs of their own, everything else shared (AMOR's module-aware mixture, arXiv:2402.01469).

Each module's rows go through its own MLPs alone, token for token: routing by a number that is known, so that no router is learned.
That is as many models whose other weights are one and the same storage, and so it is done here: every module has a learner, and what
one of them changes outside of the MLPs all have. A module's policy is a plain checkpoint, exact for decoding as for training. Unlike
in one model of several experts, each learner's optimiser has moments of its own for the shared weights.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

from whet import learn
from whet.errors import ConfigError
from whet.learn.learner import Learner
from whet.learn.losses import Loss
from whet.learn.several import Learners
from whet.learn.training import SUMMED
from whet.policies.local import LocalPolicy
from whet.types import Example, Pair

Batch = Sequence[Example] | Sequence[Pair]
OWN = ".mlp."
"""What stands in the names of weights that are not shared."""


class Experts(Learners[Learner]):
    """A learner for each module. A run saves and restores them together."""

    def __init__(self, policy: LocalPolicy, modules: Sequence[str], *, lr: float, own: bool = True) -> None:
        """Without `own`, MLPs are shared as well: one model for all modules. Raises ConfigError where none can be found by its name."""
        super().__init__({module: learn.Learner(policy, lr=lr) for module in modules})
        first, *others = self.values()
        if not any(OWN in name for name in first.weights):
            raise ConfigError(f"{policy!r} has no weights with {OWN!r} in their names, so no MLP can be copied for each module")
        for other in others:
            for name, parameter in other.weights.items():
                if OWN not in name or not own:
                    parameter.data = first.weights[name].data

    def policies(self) -> dict[str, LocalPolicy]:
        """Each module's policy, with a copy of the present weights."""
        return {module: learner.sample() for module, learner in self.items()}

    def restart(self, lr: float) -> None:
        """Go on from the present weights with fresh optimisers."""
        for learner in self.values():
            learner.restart(learner.sample(), lr=lr)

    def optimise(self, batches: Mapping[str, Sequence[Batch]], loss: Loss, *, seed: int) -> dict[str, float]:
        """A step on each batch by its module's learner, all of them mixed; what `learn.optimise` logs, and each module's loss."""
        order = [(module, batch) for module, each in batches.items() for batch in each]
        random.Random(seed).shuffle(order)
        logged: dict[str, list[float]] = defaultdict(list)
        for module, batch in order:
            figures = self[module].forward_backward(batch, loss) | self[module].optim_step()
            for name, value in (figures | {f"loss/{module}": figures["loss"]}).items():
                logged[name].append(value)
        return {name: sum(values) / (1 if name in SUMMED else len(values)) for name, values in logged.items()}
