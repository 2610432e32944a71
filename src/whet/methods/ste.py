"""STE: tools learned by simulated trial and error (arXiv:2403.04746).

explore     for every tool, E sessions of T trials in each of which the explorer
                imagines a query that needs the tool, after short-term memory (this session's dialogue) and long-term memory
                (all its queries, solved or not), so that queries build on what was found out and stay apart
                acts on it, and is asked whether it fulfilled it
exploit     a judge keeps a trial if it answers the query, faithfully, by appropriate calls; each is paraphrased up to P times,
            up to N rows of a tool
use         tune:    minimise  -log pi(y | x);  in R > 1 rounds, each of other tools, the rows of earlier tools are rehearsed
            context: the k trials whose queries are nearest stand in the prompt

Where the paper keeps the last call of a trial, all of a kept one is learned from, since here a query may take several. Where it
compares queries by sentence embeddings, here it is BM25.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from whet import learn
from whet.agents import Agent
from whet.agents.recalling import Recalling
from whet.config import at_least
from whet.data import batches, rows_of
from whet.data.general import general_rows
from whet.data.mixing import continual
from whet.envs.base import EnvFactory
from whet.learn.lora import Lora
from whet.methods import Parts, note_roles, player
from whet.rollout import success_rates
from whet.rollout.imagining import Explorer, Exploring, Memory, approved, asked, examples, lessons, tools_in, tried, wordings
from whet.runs.run import JsonState
from whet.types import Data

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("train",)
PARTS = Parts(
    source="self-exploration of each tool by imagined queries, with two memories",
    filter="model judge, three criteria",
    reuse="drop; paraphrase what is kept",
    update="SFT",
    schedule="once, or tools in rounds with rehearsal",
    inference="the nearest trials as examples, with use=context",
)


@dataclass(frozen=True, kw_only=True)
class STEConfig:
    """Defaults: the authors' code; the warm-up and the number of examples are unverified."""

    explorer: str = "expert@0.8"
    """Who acts on what was imagined: a policy's name, or `self`. Scripted unless a model is named."""
    speaker: str = "script"
    """Who imagines, paraphrases, and says what was fulfilled; scripted by the environment unless a model is named."""
    judge: str = "script:judge"
    """Who decides what is learned from; scripted unless a model is named."""
    tools: tuple[str, ...] = ()
    """Tools that are explored; all unless some are named."""
    sessions: int = 15
    trials: int = 4
    short_memory: bool = True
    long_memory: bool = True
    paraphrases: int = 6
    """Other wordings of a trial at most."""
    per_tool: int = 150
    """Rows of a tool at most."""
    use: Literal["tune", "context"] = "tune"
    k: int = 8
    """Examples in the prompt, with use=context."""
    rounds: int = 1
    """Continual learning: parts of the tools that are learned one after the other."""
    rehearse: int = 2000
    """Rows of each earlier part, and of general conversations where there are some, in a later round."""
    epochs: int = 2
    lr: float = 2e-5
    batch_size: int = 16
    warmup: float = 0.03
    lora: Lora | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "sessions", "trials", "per_tool", "k", "rounds", "epochs", "batch_size")
        at_least(self, 0, "paraphrases", "rehearse", "lr")


def ste(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: STEConfig = STEConfig()) -> Agent[Any]:
    """The agent tuned on, or shown, what was found out by trying every tool."""
    data.require(*NEEDS, by="ste")
    homes = tools_in(env, data.train, cfg.tools)
    roles = ("imagine", "judge", "paraphrase")
    imagine, check, paraphrase = (player(f"script:{r}" if cfg.speaker == "script" else cfg.speaker, agent) for r in roles)
    explorer, judge = player(cfg.explorer, agent), player(cfg.judge, agent)
    note_roles(run, explorer=explorer, imagine=imagine, check=check, paraphrase=paraphrase, judge=judge)

    # Explore: every tool beside the others, session after session.
    how = Exploring(trials=cfg.trials, short=cfg.short_memory, long=cfg.long_memory)
    explore = Explorer(agent.replace(policy=explorer), imagine, check, env, run, how)
    state = JsonState(past={})
    for number in run.steps(cfg.sessions, state, name="explore"):
        memories = {tool: Memory(past=state["past"].get(tool, [])) for tool in homes}
        explore.session(number, memories, {tool: tasks[number % len(tasks)] for tool, tasks in homes.items()})
        state["past"] = {tool: memory.past for tool, memory in memories.items()}
    trials = tried(run, cfg.sessions, cfg.trials)

    # Exploit: keep what meets the criteria, in several wordings.
    state = JsonState(wordings={})
    for _ in run.steps(1, state, name="exploit", practice=False):
        kept = approved(trials, judge, env=env, run=run)
        state["wordings"] = wordings(paraphrase, kept, cfg.paraphrases, env=env, run=run)
    learned = lessons([e for e in trials if e.id in state["wordings"]], state["wordings"], cfg.per_tool)
    distinct = len({asked(e.task) for e in trials}) / max(1, len(trials))
    figures = success_rates(trials) | {"kept": len(state["wordings"]), "distinct": distinct}

    if cfg.use == "context":
        for _ in run.steps(1, name="ste", practice=False):
            run.log(0, **figures)
        return agent.replace(policy=Recalling(agent.policy, examples(chain(*learned.values())), cfg.k))

    # Tune, on one part of the tools after the other.
    parts = [rows_of(list(chain(*list(learned.values())[r :: cfg.rounds])), agent.policy, env) for r in range(cfg.rounds)]
    general = general_rows(data.general, agent.policy) if cfg.rounds > 1 else []
    rounds = continual(parts, general, keep=cfg.rehearse, seed=run.seed("rehearse"))
    learner = learn.learner_for(agent.policy, cfg, per_epoch=sum(-(-len(rows) // cfg.batch_size) for rows in rounds))
    for step in run.steps(cfg.rounds * cfg.epochs, learner, name="ste", practice=False):
        shuffled = batches(rounds[step // cfg.epochs], cfg.batch_size, seed=run.seed("ste", step))
        run.log(step, **figures, **learn.optimise(learner, shuffled, learn.nll()))
    return agent.replace(policy=learner.sample())
