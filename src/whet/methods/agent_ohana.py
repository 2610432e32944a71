"""AgentOhana (arXiv:2402.15506): trajectories of many sources in one form, rated, and loaded so that none dominates.

pool        trajectories of several actors in several environments, all as episodes
rate        AgentRater: a judge rates each whole trajectory from 0 to 5; keep those of at least 4
load        a generic loader: each row of a batch is of a source drawn by its weight, whatever the source's size
tune        minimise  -log pi(y | x)   (LoRA)

A source is an actor in an environment; `--env "search + babyai"` makes two of each actor. `balance=false min_score=0` pools
everything as it comes. The paper's model is tuned with QLoRA: `lora.quantize=nf4`, where bitsandbytes works.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet import learn
from whet.agents import Agent
from whet.config import at_least
from whet.data import batches, filters, rows_of
from whet.data.mixing import weighted
from whet.envs.base import EnvFactory
from whet.errors import ConfigError
from whet.learn.lora import Lora
from whet.methods import Parts, note_roles, player
from whet.rewards.judges import Verdict, rate, tally
from whet.rollout import collect, success_rates
from whet.runs import JsonState
from whet.types import Cost, Data, Episode, Example

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("train",)
PARTS = Parts(
    source="experts, noisy experts, self, given episodes; in several environments",
    filter="judge's rating of the whole trajectory",
    reuse="drop",
    update="SFT (LoRA) with a weight for each source",
    schedule="once",
)
RUBRIC = (
    "Rate the whole trajectory from 0 to 5: whether each step follows from what was seen before, whether the calls were needed "
    "and right, and whether the task was done in the end."
)


@dataclass(frozen=True, kw_only=True)
class AgentOhanaConfig:
    """Defaults: four actors in place of the paper's ten environments; the threshold, and how it was tuned, are unverified."""

    sources: tuple[str, ...] = ("expert", "expert@0.7", "expert@0.4", "self")
    """Whose trajectories are pooled: scripts, models, `self`, or `given` for `data.experts`."""
    samples: tuple[int, ...] = (1,)
    """Attempts of each source at each task; the last entry holds for all later ones."""
    weights: tuple[float, ...] = ()
    """Of the sources, in what is learned; by default all weigh the same."""
    judge: str = "script:judge"
    """AgentRater; scripted unless a model is named."""
    min_score: float = 4.0
    balance: bool = True
    """Load by the sources' weights; otherwise every trajectory once an epoch."""
    epochs: int = 3
    lr: float = 2e-5
    batch_size: int = 64
    warmup: float = 0.03
    lora: Lora | None = Lora()

    def __post_init__(self) -> None:
        at_least(self, 1, "samples", "epochs", "batch_size")
        at_least(self, 0, "lr", "min_score")
        if len(set(self.sources)) != len(self.sources) or not self.sources or len(self.weights) not in (0, len(self.sources)):
            raise ConfigError(
                f"sources is {self.sources} and weights is {self.weights}; expected different ones, and a weight for each or none"
            )


def agent_ohana(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: AgentOhanaConfig = AgentOhanaConfig()) -> Agent[Any]:
    """The agent tuned on the well-rated trajectories of all sources, each with its weight."""
    data.require(*NEEDS, by="agent_ohana")
    actors = {spec: player(spec, agent) for spec in cfg.sources if spec != "given"}
    judge = player(cfg.judge, agent)
    note_roles(run, judge=judge, **{f"source {spec}": actor for spec, actor in actors.items()})

    # Pool.
    pool = {"given": list(data.experts)} if "given" in cfg.sources else {}
    for i, (spec, actor) in enumerate(actors.items()):
        n = cfg.samples[min(i, len(cfg.samples) - 1)]
        pool[spec] = collect(agent.replace(policy=actor), env, data.train, n=n, run=run, tag=f"source {spec}")
    episodes = [episode for found in pool.values() for episode in found]

    # Rate, and keep the best.
    state = JsonState(verdicts={})
    for _ in run.steps(1, state, name="rate", practice=False):
        verdicts = rate(episodes, judge, env=env, rubric=RUBRIC, seed=run.seed("rate"))
        run.spend(sum((verdict.cost for verdict in verdicts), Cost()))
        run.event("judge", **tally(verdicts))
        state["verdicts"] = {e.id: (verdict.score, verdict.reason) for e, verdict in zip(episodes, verdicts, strict=True)}
    opinions = {name: Verdict(score=score, reason=reason) for name, (score, reason) in state["verdicts"].items()}
    kept, audit = filters.select(episodes, filters.judged(lambda page: [opinions[e.id] for e in page], at_least=cfg.min_score))
    run.event("filter", **audit.summary())

    # Load by the sources' weights, and tune.
    rows = rows_of(kept, agent.policy, env)
    sources, weights = by_source(rows, kept, pool, dict(zip(cfg.sources, cfg.weights)))
    per_epoch = -(-len(rows) // cfg.batch_size)
    learner = learn.learner_for(agent.policy, cfg, per_epoch)
    for epoch in run.steps(cfg.epochs, learner, name="agent_ohana", practice=False):
        seed = run.seed("load", epoch)
        balanced = weighted(sources, cfg.batch_size, weights=weights, seed=seed)
        metrics = learn.optimise(learner, balanced if cfg.balance else batches(rows, cfg.batch_size, seed=seed), learn.nll())
        run.log(epoch, **success_rates(episodes), kept=len(kept), sources=len(sources), **metrics)
    return agent.replace(policy=learner.sample())


def by_source(
    rows: Sequence[Example], kept: Sequence[Episode], pool: Mapping[str, Sequence[Episode]], given: Mapping[str, float]
) -> tuple[dict[str, list[Example]], dict[str, float]]:
    """The rows of each actor in each environment, and their weights: an actor's (by default 1) is shared by its environments."""
    actor = {episode.id: spec for spec, found in pool.items() for episode in found}
    where = {episode.id: (actor[episode.id], f"{actor[episode.id]} in {episode.task.env}") for episode in kept}
    found = {where[row.origin] for row in rows}
    parts = Counter(spec for spec, _ in found)
    sources = {source: [row for row in rows if where[row.origin][1] == source] for _, source in sorted(found)}
    return sources, {source: given.get(spec, 1.0) / parts[spec] for spec, source in found}
