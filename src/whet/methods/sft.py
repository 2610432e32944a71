"""Supervised fine-tuning on expert episodes (behaviour cloning; as the first stage of ETO, arXiv:2403.02502).

minimise  -log pi(actions | u, history)   over the expert's episodes, on action tokens only
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet import learn
from whet.agents import Agent
from whet.config import at_least
from whet.data import batches, rows_of
from whet.envs.base import EnvFactory
from whet.learn.lora import Lora
from whet.methods import Parts
from whet.types import Data

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("experts",)
PARTS = Parts(source="expert", update="SFT", schedule="once")


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """Defaults: ETO's settings for models of 7B parameters."""

    epochs: int = 3
    lr: float = 2e-5
    batch_size: int = 64
    warmup: float = 0.03
    """Share of the steps; then a cosine to zero."""
    lora: Lora | None = None
    """Adapters in place of the weights, once a part is set, such as lora.rank=8."""

    def __post_init__(self) -> None:
        at_least(self, 1, "epochs", "batch_size")
        at_least(self, 0, "lr")


def sft(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: SFTConfig = SFTConfig()) -> Agent[Any]:
    """The agent with a policy that imitates `data.experts`."""
    data.require(*NEEDS, by="sft")
    rows = rows_of(data.experts, agent.policy, env)
    learner = learn.learner_for(agent.policy, cfg, per_epoch=-(-len(rows) // cfg.batch_size))
    for epoch in run.steps(cfg.epochs, learner, name="sft"):
        run.log(epoch, **learn.optimise(learner, batches(rows, cfg.batch_size, seed=run.seed("sft", epoch)), learn.nll()))
    return agent.replace(policy=learner.sample())
