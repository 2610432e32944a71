"""Agent Lumos: a planning and a grounding module, trained apart on annotated solutions (arXiv:2311.05657).

annotate   an annotator converts gold solutions into subgoals and the actions that each is grounded to; what has no readable
           subgoal is left out
train      planner:   -log pi_P(subgoal_i | task, subgoals and results before)         Lumos-O: all subgoals, from the task alone
           grounder:  -log pi_G(actions_i | task, subgoals, actions and results before, subgoal_i)
act        the planner names a subgoal, the grounder turns it into calls, the environment's tools execute them, and what comes
           back conditions the next subgoal (Lumos-I; in Lumos-O the plan is made once)

The paper's Lumos-O grounds all subgoals at once, with variables for results; actions here have none, so each subgoal is grounded
when those before it have been executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from whet import learn
from whet.agents import Agent
from whet.agents.plan_ground import PlanGround, grounded, to_grounder, to_planner
from whet.config import at_least
from whet.data import batches, rows_of
from whet.envs.base import EnvFactory
from whet.learn.lora import Lora
from whet.methods import Parts, note_roles, player
from whet.policies import Policy
from whet.rollout import ask
from whet.runs import JsonState
from whet.transcript import line
from whet.types import Cost, Data, Episode, Turn

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("experts",)
PARTS = Parts(
    source="annotated gold solutions",
    filter="rules: a readable subgoal for each action",
    reuse="drop",
    update="SFT, a module each",
    schedule="once",
    inference="plan, ground, execute",
)
QUESTION = "The next action is {action}. Which subgoal does it serve? Name it in a few words, as `next: ...`, on one line."


@dataclass(frozen=True, kw_only=True)
class LumosConfig:
    """Defaults: the authors' scripts for 7B parameters."""

    annotator: str = "script:planner"
    """Who names the subgoals of gold solutions (the paper's GPT-4); scripted by the environment unless a model is named."""
    iterative: bool = True
    """Lumos-I; False is Lumos-O, which plans once."""
    epochs: int = 2
    lr: float = 2e-5
    batch_size: int = 128
    warmup: float = 0.03
    lora: Lora | None = None
    """Adapters in place of the weights, once a part is set, such as lora.rank=8."""

    def __post_init__(self) -> None:
        at_least(self, 1, "epochs", "batch_size")
        at_least(self, 0, "lr", "warmup")


def lumos(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: LumosConfig = LumosConfig()) -> Agent[Any]:
    """The agent as two modules, a planner and a grounder, both tuned from its policy on annotated expert episodes."""
    data.require(*NEEDS, by="lumos")
    annotator = player(cfg.annotator, agent)
    note_roles(run, annotator=annotator)

    # Annotate.
    state = JsonState(subgoals={})
    for _ in run.steps(1, state, name="annotate", practice=False):
        state["subgoals"], cost = annotate(data.experts, annotator, env, run.seed("annotate"))
        run.spend(cost)
    annotated = [grounded(e, subgoals) for e in data.experts if all(subgoals := state["subgoals"][e.id])]
    run.event("annotated", kept=len(annotated), dropped=len(data.experts) - len(annotated))
    planned = [replace(e, turns=to_planner(e.turns, iterative=cfg.iterative)) for e in annotated]
    rows = {
        "planner": rows_of(planned, agent.policy),
        "grounder": rows_of([replace(e, turns=to_grounder(e.turns)) for e in annotated], agent.policy, env),
    }

    # Train each module from the given policy.
    modules: dict[str, Policy] = {}
    for module in rows:
        learner = learn.learner_for(agent.policy, cfg, per_epoch=-(-len(rows[module]) // cfg.batch_size))
        for epoch in run.steps(cfg.epochs, learner, name=f"lumos_{module}", practice=False):
            shuffled = batches(rows[module], cfg.batch_size, seed=run.seed(module, epoch))
            run.log(epoch, annotated=len(annotated), **learn.optimise(learner, shuffled, learn.nll()))
        modules[module] = learner.sample()
    return agent.replace(policy=PlanGround(**modules, iterative=cfg.iterative))


def annotate(solutions: Sequence[Episode], annotator: Policy, env: EnvFactory, seed: int) -> tuple[dict[str, list[str]], Cost]:
    """Of each solution, by its id, the subgoal of every action, empty where none could be read; and what that took."""
    places = [(e, at) for e in solutions for at, turn in enumerate(e.turns) if turn.trained]
    prompts = [(*e.turns[:at], Turn(role="user", content=QUESTION.format(action=line(e.turns[at])))) for e, at in places]
    answers = ask(annotator, prompts, seed=seed, env=env, tasks=[e.task for e, _ in places])
    named: dict[str, list[str]] = {e.id: [] for e in solutions}
    for (e, _), answer in zip(places, answers):
        named[e.id].append(subgoal(answer.content if answer else ""))
    return named, sum((answer.cost for answer in answers if answer), Cost())


def subgoal(answer: str) -> str:
    """The subgoal that an answer names; empty where it names none."""
    first = next(iter(answer.strip().splitlines()), "").strip()
    return first if first.lower().startswith("next:") and first.partition(":")[2].strip() else ""
