"""Re-ReST: self-training in which a reflector corrects what went wrong (reflection-reinforced self-training, arXiv:2406.01495).

pi, R <- the given policy
repeat I times:
    sample      k episodes of every training task from pi;  D <- those that are right
    reflect     each wrong one, with the environment's verdict, is shown to R, which does the task again;
                D_R <- (task, wrong one, verdict -> corrected one)  where it is right now
    train R     SFT on D_R
    reflect     the wrong ones again, by the trained R;  D <- D + the corrected ones, as if nothing had stood before them
    train pi    SFT on D, from the given policy;  then, with beta > 0, DPO of right ones over wrong ones of their task

The paper goes through it once. The verdict exists for training tasks alone, and so does the reflector's work: the agent that comes of
it acts by itself. Reflecting at test time without a verdict and voting over the answers, which the paper tries as well, is left out:
an episode that has acted cannot be taken back. Where the paper's reflector writes a corrected trajectory, here it acts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet import learn
from whet.agents import Agent
from whet.config import at_least
from whet.data import batches, different, opening, outcome, reopened, to_examples, to_pairs
from whet.envs.base import EnvFactory
from whet.learn.lora import Lora
from whet.methods import Parts
from whet.rollout import retried, rollout_groups, success_rates
from whet.transcript import transcript
from whet.types import Data, Episode

if TYPE_CHECKING:
    from whet.runs import Run

NEEDS = ("train",)
PARTS = Parts(
    source="self",
    filter="environment",
    reuse="correct: a reflector does the task again, after the wrong attempt; contrast, with beta > 0",
    update="SFT of the agent and of the reflector; DPO, with beta > 0",
    schedule="reflector and agent in turn, from the given policy",
)
REQUEST = "An attempt at this task is below. Find out what went wrong in it, and do the task again, correctly."


@dataclass(frozen=True, kw_only=True)
class ReReSTConfig:
    """Defaults: the authors' code, but for what is called unverified."""

    iterations: int = 1
    samples: int = 5
    """Episodes of a task (k; value unverified)."""
    keep: int = 5
    """Different right ones of a task, of its own and corrected, that are trained on (value unverified)."""
    reflect: bool = True
    """Have wrong ones corrected; without it, this is plain self-training."""
    epochs: int = 3
    """Of agent and reflector, as are lr and batch size."""
    lr: float = 2e-5
    """Value unverified."""
    batch_size: int = 128
    beta: float = 0.0
    """Of DPO after the agent's SFT; 0 leaves it out."""
    dpo_lr: float = 1e-6
    """Value unverified."""
    lora: Lora | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "iterations", "samples", "keep", "epochs", "batch_size")
        at_least(self, 0, "lr", "beta", "dpo_lr")


def re_rest(agent: Agent[Any], data: Data, *, env: EnvFactory, run: Run, cfg: ReReSTConfig = ReReSTConfig()) -> Agent[Any]:
    """The agent trained on what it got right, and on what a reflector made of what it got wrong."""
    data.require(*NEEDS, by="re_rest")
    both = {name: learn.Learner(agent.policy, lr=cfg.lr, lora=cfg.lora) for name in ("agent", "reflector")}
    learners = learn.Learners(**both)

    def fit(name: str, episodes: Sequence[Episode]) -> dict[str, float]:
        rows = [row for e in episodes for row in to_examples(e, agent.policy, tools=env.of(e.task).tools)]
        shuffled = batches(rows, cfg.batch_size, epochs=cfg.epochs, seed=run.seed(name, iteration))
        return learn.optimise(learners[name], shuffled, learn.nll())

    def corrected(tag: str) -> list[tuple[Episode, Episode]]:
        reflector, seed = agent.replace(policy=learners["reflector"].sample()), run.seed(tag, iteration)
        again = retried(reflector, env, wrong, request, seed=seed, run=run, tag=f"{tag}{iteration}")
        return [(before, e) for before, e in zip(wrong, again, strict=True) if e.ok and e.success]

    for iteration in run.steps(cfg.iterations, learners, name="re_rest"):
        current, seed = agent.replace(policy=learners["agent"].sample()), run.seed("sample", iteration)
        groups = rollout_groups(current, env, data.train, n=cfg.samples, seed=seed, run=run, tag=f"sample{iteration}")
        right = [e for group in groups for e in group.episodes if e.ok and e.success]
        wrong = [e for group in groups for e in group.episodes if e.ok and not e.success]

        # Reflector: what it corrected untrained teaches it to correct more.
        lessons = corrected("reflect") if cfg.reflect else []
        fit("reflector", [e for _, e in lessons])
        fixed = corrected("correct") if cfg.reflect else []

        # Agent: its own successes and the corrected ones, from the given policy.
        right += [reopened(e, opening(before)) for before, e in fixed]
        kept = {task.id: different((e for e in right if e.task.id == task.id), cfg.keep) for task in data.train}
        learners["agent"].restart(agent.policy, lr=cfg.lr)
        metrics = fit("agent", [e for each in kept.values() for e in each])
        if cfg.beta:
            reference = learners["agent"].sample()
            found = [c for e in wrong for better in kept[e.task.id][:1] for c in outcome(better, e)]
            pairs = learn.with_reference(to_pairs(found, reference, env), reference)
            learners["agent"].restart(reference, lr=cfg.dpo_lr)
            shuffled = batches(pairs, cfg.batch_size, seed=run.seed("dpo", iteration))
            contrast = learn.optimise(learners["agent"], shuffled, learn.dpo(beta=cfg.beta))
            metrics |= {f"dpo_{name}": contrast[name] for name in ("loss", "accuracy") if name in contrast}
        shares = {"corrected_before": len(lessons) / max(1, len(wrong)), "corrected": len(fixed) / max(1, len(wrong))}
        run.log(iteration, **success_rates(groups), kept=sum(map(len, kept.values())), **shares, **metrics)
    return agent.replace(policy=learners["agent"].sample())


def request(episode: Episode) -> str:
    """What the reflector goes by: the log of the attempt, and the environment's verdict."""
    return f"{REQUEST}\n{transcript(episode.turns, opening=False)}\nverdict: wrong ({episode.reason}), reward {episode.reward:g}"
