"""LLM-TMBR: tuning on dialogues of three roles, then acting by decomposition, judgement and backtracking (arXiv:2403.19962).

construct   a question generator poses a task, an action maker thinks and acts, an environment agent says what comes of it, until it
            ends the dialogue; keep those that it calls done
tune        minimise  J = lambda E_agent[-log M(y | x)] + (1 - lambda) E_general[-log M(y | x)]   (LoRA),
            by drawing each row of a batch from the dialogues with probability lambda, else from the general data
act         the planner divides the task into at most k = 3 subtasks; for each of them:
                go on until the judge finds it done; if it does not, go back to the state before it and take another branch

Known from the authors' code are the adapter's sizes and the learning rate; lambda, the number of branches and their length, what
the judge is asked and how the code goes back are not verified. Its adapter's dropout (0.05) is left out. There the three roles are
GPT-4's, and the tuned model plans and judges for itself; here scripts stand in unless models are named.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from whet import learn
from whet.agents import Agent
from whet.agents.branching import Branching, Ways
from whet.config import at_least
from whet.data import filters, rows_of
from whet.data.general import general_rows
from whet.data.mixing import mixed
from whet.envs.base import EnvFactory
from whet.errors import ConfigError
from whet.learn.lora import Lora
from whet.methods import Parts, note_roles, player
from whet.rollout import success_rates
from whet.rollout.roleplay import Cast, roleplay
from whet.types import Cost, Data

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("train", "general")
PARTS = Parts(
    source="dialogues of three roles",
    filter="rules; the environment agent's verdict",
    reuse="drop",
    update="SFT (LoRA), mixed with general conversations",
    schedule="once",
    inference="decompose, judge, backtrack",
)


@dataclass(frozen=True, kw_only=True)
class LLMTMBRConfig:
    """Defaults: the authors' script for 7B parameters where it names them; `mix`, `batch_size` and most of `ways` unverified."""

    question: str = "script:question"
    """Who poses tasks, who acts, and who is the environment (GPT-4 in the paper); scripted unless a model is named."""
    maker: str = "script:actor"
    environment: str = "script:environment"
    mix: float = 0.5
    """lambda: the share of dialogues in what is learned."""
    planner: str = "script:plan"
    """Who divides tasks; `self` is the tuned model. Scripted unless it or another is named."""
    judge: str = "script:judge"
    """Who finds subtasks done; likewise."""
    branching: bool = True
    """False leaves the tuned model alone."""
    ways: Ways = Ways()
    """How it decomposes and goes back, such as ways.branches=2."""
    epochs: int = 3
    lr: float = 5e-5
    batch_size: int = 64
    warmup: float = 0.0
    lora: Lora | None = Lora(rank=16, alpha=32.0)

    def __post_init__(self) -> None:
        at_least(self, 1, "epochs", "batch_size")
        at_least(self, 0, "lr", "warmup")
        if not 0 < self.mix <= 1:
            raise ConfigError(f"mix is {self.mix}; expected a share in (0, 1]")


def llm_tmbr(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: LLMTMBRConfig = LLMTMBRConfig()) -> Agent[Any]:
    """The agent tuned on simulated dialogues and general conversations, with a planner and a judge around it."""
    data.require(*NEEDS, by="llm_tmbr")
    cast = Cast(question=player(cfg.question, agent), maker=player(cfg.maker, agent), environment=player(cfg.environment, agent))
    around = {"planner": cfg.planner, "judge": cfg.judge} if cfg.branching else {}
    note_roles(run, **cast.policies, **{role: player(spec, agent) for role, spec in around.items()})

    # Construct dialogues.
    for _ in run.steps(1, name="dialogues"):
        played = roleplay(cast, env, data.train, seed=run.seed("dialogues"), tag="dialogues")
        run.save_episodes(played, "dialogues")
        run.spend(sum((episode.cost for episode in played), Cost()))
    dialogues = list(run.load_episodes("dialogues"))
    kept, audit = filters.select(dialogues, filters.readable(), filters.success(), filters.deduplicate())
    run.event("filter", **audit.summary())
    rows, general = rows_of(kept, agent.policy, env), general_rows(data.general, agent.policy)

    # Tune on the mixture.
    per_epoch = math.ceil(round(len(rows) / cfg.mix) / cfg.batch_size)
    learner = learn.learner_for(agent.policy, cfg, per_epoch)
    for epoch in run.steps(cfg.epochs, learner, name="llm_tmbr", practice=False):
        mixture = mixed(rows, general, cfg.batch_size, eta=cfg.mix, seed=run.seed("mix", epoch))
        run.log(epoch, **success_rates(dialogues), kept=len(kept), **learn.optimise(learner, mixture, learn.nll()))

    # Act by decomposition, judgement and backtracking.
    tuned = agent.replace(policy=learner.sample())
    if not cfg.branching:
        return tuned
    planner, judge = player(cfg.planner, tuned), player(cfg.judge, tuned)
    return tuned.replace(policy=Branching(planner=planner, judge=judge, worker=tuned.policy, **asdict(cfg.ways)))
