"""NLRL: natural language reinforcement learning, policy iteration with values in words (arXiv:2411.14251).

repeat I times:
    play        an episode of every task from pi
    estimate    of actions (s, a) in them: the aggregator reads how it goes on, and writes the language value
                G(s, a) <- aggregate(K continuations to the end)                          language Monte Carlo
                G(s, a) <- aggregate(K short ones, each with V of where it was left)      language temporal difference
    value       V  <- SFT(V, prompt of (s, a) -> G(s, a)),    on the estimates of the last 3 iterations
    improve     in s the different ones of n actions of pi; V says in words what each is worth; the improvement operator
                picks the best by these words alone
    policy      pi <- SFT(pi, s -> reasons of the operator, best action)

The paper plays board games against an opponent and asks about states or state-action pairs; here it is a task's environment, and
pairs. In the paper one large model aggregates and improves, and smaller ones become V and pi. How many pairs an episode gives, and
that both go on from their present weights in each iteration, is unverified.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet import learn
from whet.agents import Agent
from whet.config import at_least
from whet.data import batches, last_action, to_examples
from whet.envs.base import EnvFactory
from whet.methods import Parts, note_roles, player, require
from whet.policies.base import Sampling
from whet.rollout import rollout, success_rates
from whet.rollout.language import aggregate, continued, evaluate, exchange, improve, moments, propose, taken, valued
from whet.types import Data, Episode

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("train", "replay")
PARTS = Parts(
    source="self, with continuations of its own actions",
    filter="language values: what can be read",
    update="SFT of a value model on aggregated words; SFT of the policy on the improvement operator's choices",
    schedule="repeat: evaluate, improve",
)


@dataclass(frozen=True, kw_only=True)
class NLRLConfig:
    """Defaults: the authors' scripts for tic-tac-toe, but for what is called unverified."""

    iterations: int = 30
    critic: str = "self"
    """Whose weights become the value model: `self` for such as the agent's own, or a model's directory or hub id."""
    aggregator: str = "script:aggregator"
    """Who sums up continuations; scripted unless a model or endpoint is named."""
    improver: str = "script:improver"
    """Who picks the best action by its evaluation; scripted unless a model or endpoint is named."""
    continuations: int = 5
    """Of each action (K)."""
    ahead: int = 0
    """Actions after which V is asked in place of playing on (TD); 0 for Monte Carlo."""
    moments: int = 1
    """Actions of each episode that are evaluated and improved on (value unverified)."""
    merged: int = 3
    """Iterations whose estimates the value model is trained on, the last ones."""
    samples: int = 10
    """Actions that are drawn in a state (n)."""
    top: int = 10
    """Different ones among them that are kept, the most frequent."""
    reasons: bool = True
    """Train the policy to write the operator's reasons before the action, as in the paper."""
    epochs: int = 2
    lr: float = 1e-5
    """Of both models, as are epochs and batch size."""
    batch_size: int = 8
    """Value unverified."""
    max_tokens: int = 512
    """Of an evaluation or a choice, which are written greedily (unverified, both)."""

    def __post_init__(self) -> None:
        at_least(self, 1, "iterations", "continuations", "moments", "merged", "samples", "top", "epochs", "batch_size", "max_tokens")
        at_least(self, 0, "ahead", "lr")


def nlrl(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: NLRLConfig = NLRLConfig()) -> Agent[Any]:
    """The agent improved by what words say about its actions."""
    require(NEEDS, data, env, by="nlrl")
    critic: Any = player(cfg.critic, agent)
    aggregator, improver = player(cfg.aggregator, agent), player(cfg.improver, agent)
    note_roles(run, critic=critic, aggregator=aggregator, improver=improver)
    learners = learn.Learners(policy=learn.Learner(agent.policy, lr=cfg.lr), value=learn.Learner(critic, lr=cfg.lr))
    words = Sampling(temperature=0.0, max_tokens=cfg.max_tokens)
    for step in run.steps(cfg.iterations, learners, name="nlrl"):
        now, critic, seed = agent.replace(policy=learners["policy"].sample()), learners["value"].sample(), run.seed("nlrl", step)
        asking: Any = {"env": env, "sampling": words, "seed": seed, "run": run}
        played = [e for e in rollout(now, env, data.train, seed=run.seed("play", step), run=run, tag=f"play{step}") if e.ok]
        met = moments(played, cfg.moments, random.Random(seed))

        # Estimate what the actions are worth, and train the value model on it.
        ways = continued(now, met, n=cfg.continuations, ahead=cfg.ahead, critic=critic, tag=f"ahead{step}", **asking)
        values = aggregate(aggregator, met, ways, **asking)
        estimates = [(valued(m)[0].content, str(value)) for m, value in zip(met, values, strict=True) if value]
        run.event("estimates", step=step, written=estimates)
        rows = [row for episode in told(run, cfg.merged) for row in to_examples(episode, critic)]
        learned = learn.optimise(learners["value"], batches(rows, cfg.batch_size, epochs=cfg.epochs, seed=seed), learn.nll())

        # Improve: of the actions that the policy would take, the one whose words are best.
        moves = propose(now, env, met, n=cfg.samples, top=cfg.top, seed=seed, run=run)
        said = iter(evaluate(learners["value"].sample(), [m for each in moves for m in each], **asking))
        options = [[(m, value) for m in each if (value := next(said))] for each in moves]
        options = [each for each in options if each]
        choices = improve(improver, options, **asking)
        better = [taken(each[c.best - 1][0], c.thought * cfg.reasons) for each, c in zip(options, choices, strict=True) if c]
        rows = [last_action(row) for e in better for row in to_examples(e, agent.policy, tools=env.of(e.task).tools)]
        metrics = learn.optimise(learners["policy"], batches(rows, cfg.batch_size, epochs=cfg.epochs, seed=seed), learn.nll())
        counts = {"estimates": len(estimates), "states": len(better), "moves": sum(map(len, options)), "value_nll": learned.get("nll")}
        run.log(step, **success_rates(played), **counts, **metrics)
    return agent.replace(policy=learners["policy"].sample())


def told(run: Run, last: int) -> list[Episode]:
    """The estimates of the last iterations, as what the value model should answer."""
    written = [pair for event in list(run.events("estimates"))[-last:] for pair in event["written"]]
    return [exchange(f"estimate{i}", prompt, value) for i, (prompt, value) in enumerate(written)]
