"""FireAct (arXiv:2310.05915): a teacher's trajectories of several ways of prompting, in one form.

collect     a teacher attempts each task with ReAct, with chain of thought, and with Reflexion
filter      keep the successful ones
convert     all into ReAct's form: a chain of thought is one thought with the final action; a reflection is a thought
tune        minimise  -log pi(y | x)   with LoRA; the tuned agent needs no examples and chooses the way by itself

`formats=["react"]` is the paper's single-method data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet import learn
from whet.agents import Agent
from whet.agents.reflecting import Reflecting
from whet.config import at_least
from whet.data import batches, filters, rows_of
from whet.data.conversion import to_react
from whet.envs.base import EnvFactory
from whet.errors import ConfigError, did_you_mean
from whet.learn.lora import Lora
from whet.methods import Parts, note_roles, player
from whet.rollout import collect, success_rates
from whet.types import Data, Episode

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("train",)
PARTS = Parts(source="teacher with several ways of prompting", filter="environment", reuse="drop", update="SFT (LoRA)", schedule="once")
FORMATS = {
    "react": "In each turn, say in a sentence what you think, then act.",
    "cot": "Think step by step in a single turn, and take the final action in that same turn, without any other action before it.",
    "reflexion": "In each turn, say in a sentence what you think, then act. You will be asked to look back from time to time.",
}
"""What a model is told to act in each of the ways."""


@dataclass(frozen=True, kw_only=True)
class FireActConfig:
    """Defaults: the authors' scripts for 7B parameters; the rounds of reflection and the warm-up are unverified."""

    teacher: str = "script:teacher"
    """Who is prompted; scripted unless a model is named. A script plays the roles teacher:react, teacher:cot and so on."""
    formats: tuple[str, ...] = ("react", "cot", "reflexion")
    """Ways of prompting."""
    samples: int = 1
    """Attempts at each task in each way."""
    reflect_at: tuple[int, ...] = (6, 10)
    """Turns in which a model that acts with Reflexion looks back first."""
    epochs: int = 30
    lr: float = 3e-4
    batch_size: int = 128
    warmup: float = 0.03
    lora: Lora | None = Lora(rank=8, alpha=16.0, targets=("q_proj", "v_proj"))

    def __post_init__(self) -> None:
        at_least(self, 1, "samples", "epochs", "batch_size", "reflect_at")
        at_least(self, 0, "lr")
        wrong = [name for name in self.formats if name not in FORMATS]
        if wrong or not self.formats:
            raise ConfigError(f"formats is {self.formats}. {did_you_mean((*wrong, '')[0], FORMATS)}")


def fireact(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: FireActConfig = FireActConfig()) -> Agent[Any]:
    """The agent tuned on a teacher's successes in all formats."""
    data.require(*NEEDS, by="fireact")
    teachers = {name: teacher(name, agent, cfg) for name in cfg.formats}
    note_roles(run, **{f"teacher of {name}": found.policy for name, found in teachers.items()})

    # Collect in each format, keep successes, convert.
    episodes: list[Episode] = []
    converted: list[Episode] = []
    for name, actor in teachers.items():
        found = collect(actor, env, data.train, n=cfg.samples, run=run, tag=f"teacher {name}")
        episodes += found
        converted += [to_react(episode, told=FORMATS[name]) for episode in found]
    kept, audit = filters.select(converted, filters.success(), filters.deduplicate())
    run.event("filter", **audit.summary())
    rows = rows_of(kept, agent.policy, env)

    # Tune.
    learner = learn.learner_for(agent.policy, cfg, per_epoch=-(-len(rows) // cfg.batch_size))
    for epoch in run.steps(cfg.epochs, learner, name="fireact", practice=False):
        metrics = learn.optimise(learner, batches(rows, cfg.batch_size, seed=run.seed("fireact", epoch)), learn.nll())
        run.log(epoch, **success_rates(episodes), kept=len(kept), **metrics)
    return agent.replace(policy=learner.sample())


def teacher(name: str, agent: Agent[Any], cfg: FireActConfig) -> Agent[Any]:
    """Who acts in this format, and is told so behind the system prompt: a script in the role for it, or the model."""
    policy = player(f"{cfg.teacher}:{name}" if cfg.teacher.startswith("script:") else cfg.teacher, agent)
    if name == "reflexion" and not hasattr(policy, "actor"):
        policy = Reflecting(policy, cfg.reflect_at)
    told = "\n\n".join(part for part in (agent.instructions, FORMATS[name]) if part)
    return agent.replace(policy=policy, instructions=told)
