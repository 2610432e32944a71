"""The records that everything in whet passes around: frozen, plain, without heavy imports.

    Task      what is asked: an id, a split, a seed, the environment's own data
    Turn      one node of an episode: a message, and the tokens that it adds
    Episode   what happened: turns as a prefix graph, how it stopped, the reward, the cost
    Group     several episodes of one task
    Example   a training row: tokens, mask, weights, log-probs
    Pair      a chosen and a rejected row
    Score     a mean with its interval, n, seeds and cost

Tokens are stored when they are sampled and never made again from text. A turn holds only the tokens it adds, so
episodes that share a beginning share those turns, and a walk from a root to a leaf is one training row. Assistant
turns hold exactly what the policy produced (its end-of-turn token included); everything that a template or an
environment put in stands in the other turns. The mask follows from the role and is therefore never stored apart.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from whet.errors import ConfigError, SplitError

if TYPE_CHECKING:
    import numpy as np

SCHEMA_VERSION = 2
"""Version of the records on disk; a store of another version is refused, never guessed at."""

Role = Literal["system", "user", "assistant", "tool"]
Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What one episode is about. `data` belongs to the environment and must survive JSON."""

    id: str
    """Unique within the environment, such as `search/train/17`."""
    env: str
    split: Split
    seed: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(self.id)


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """A call as the policy wrote it. `error` says why the text could not be read as one; then `arguments` is empty."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    error: str | None = None

    def __hash__(self) -> int:
        return hash((self.name, self.id))


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What something took. Tokens are counted by the policy that handled them."""

    episodes: int = 0
    env_steps: int = 0
    prompt_tokens: int = 0
    """Tokens read that were not in a cache already."""
    sampled_tokens: int = 0
    seconds: float = 0.0
    money: float = 0.0
    """In the currency of the endpoint's price list; 0 for local weights."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            episodes=self.episodes + other.episodes,
            env_steps=self.env_steps + other.env_steps,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            sampled_tokens=self.sampled_tokens + other.sampled_tokens,
            seconds=self.seconds + other.seconds,
            money=self.money + other.money,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One message and the tokens that it adds to the conversation.

    As an environment's observation or an imported message, a turn has no tokens yet; a policy that works on tokens
    fills them in once (`Policy.observe`). Of an assistant turn, `logprobs` are those of the sampled tokens under the
    distribution they were drawn from (softmax of logits / temperature), and `versions` names, as runs of
    (policy version, number of tokens), the weights that produced each of them.
    """

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    """Of a tool turn: the tool's name."""
    call_id: str | None = None
    """Of a tool turn: the `id` of the call it answers."""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    versions: tuple[tuple[str, int], ...] = ()
    temperature: float = 1.0
    finish: Literal["stop", "length", "none"] = "none"
    """Of an assistant turn: it ended by itself, or ran into its token limit."""
    reward: float = 0.0
    """Of an assistant turn: what the environment paid for it."""
    parent: int | None = None
    """Index in `Episode.turns` of the turn before this one; None for a root."""
    cost: Cost = Cost()

    def __post_init__(self) -> None:
        if self.logprobs and len(self.logprobs) != len(self.tokens):
            raise ValueError(f"a turn has {len(self.tokens)} tokens but {len(self.logprobs)} log-probs; expected one for each")
        if self.versions and sum(n for _, n in self.versions) != len(self.tokens):
            raise ValueError(f"versions {self.versions!r} do not cover the turn's {len(self.tokens)} tokens")

    @property
    def trained(self) -> bool:
        """Whether the policy produced this turn, so that losses may see its tokens."""
        return self.role == "assistant"


class Stop(enum.StrEnum):
    """How an episode ended. Only the first two carry a reward that means something."""

    TERMINATED = "terminated"
    """The environment reached an end of its own."""
    TRUNCATED = "truncated"
    """Cut off from outside: turn limit, token limit, context full."""
    ERROR = "error"
    """Infrastructure failed: an exception, a deadline, a lost endpoint. Never counted as zero reward."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Episode:
    """One attempt at a task: what was sampled, observed and paid, and how it stopped."""

    id: str
    task: Task
    turns: tuple[Turn, ...]
    stop: Stop
    reason: str = ""
    """Why it stopped, in a word: `answered`, `max_turns`, `step_deadline`, an exception's name."""
    reward: float = 0.0
    success: bool = False
    error: str | None = None
    """Of a failed episode: the message, with the traceback's last lines."""
    policy: str = ""
    """Version of the policy that acted (the last one, if several did)."""
    seed: int = 0
    cost: Cost = Cost()
    tags: Mapping[str, Any] = field(default_factory=dict)
    """Provenance: who acted (`actor`: `expert`, `self`, ...), at what `temperature`, the hash of the `prompt`, the `schemas` of the
    tools that it showed, the `fork`'s origin, the environment's `info`; of an imported episode its `source` and `record`, and an
    `outcome` of `unknown` where it does not say. See `whet.data.provenance`."""

    @property
    def ok(self) -> bool:
        """Whether the episode counts: it ended or was cut off, but nothing broke."""
        return self.stop is not Stop.ERROR

    def walks(self) -> list[tuple[Turn, ...]]:
        """Every path from a root to a leaf; an episode without forks has one."""
        parents = {turn.parent for turn in self.turns}
        walks = []
        for leaf in range(len(self.turns)):
            if leaf in parents:
                continue
            path: list[Turn] = []
            at: int | None = leaf
            while at is not None:
                path.append(self.turns[at])
                at = self.turns[at].parent
            walks.append(tuple(reversed(path)))
        return walks

    @property
    def n_actions(self) -> int:
        return sum(turn.trained for turn in self.turns)


def chain(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns of a conversation without forks, each with the one before it as its parent."""
    return tuple(replace(turn, parent=i - 1 if i else None) for i, turn in enumerate(turns))


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Episodes of one task, sampled to be compared with each other."""

    task: Task
    episodes: tuple[Episode, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A training row. All arrays are [T]; `weights` and log-probs count only where `mask` is true."""

    tokens: np.ndarray
    """int64 [T]"""
    mask: np.ndarray
    """bool [T]: tokens whose log-prob enters the loss."""
    weights: np.ndarray
    """float32 [T]: 1 for plain imitation, an advantage for a policy gradient."""
    logprobs: np.ndarray | None = None
    """float32 [T]: as sampled (the old policy's)."""
    reference: np.ndarray | None = None
    """float32 [T]: log-probs under the reference policy (for a loss of divergences, its divergences)."""
    values: np.ndarray | None = None
    """float32 [T]: the return that a critic expected before each token, when the row was sampled."""
    returns: np.ndarray | None = None
    """float32 [T]: what it is to expect instead."""
    temperature: float = 1.0
    """That of the distribution the log-probs belong to."""
    origin: str = ""
    """Id of the episode it was made from."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """Two rows of one task, the first preferred by `margin` (in units of reward).

    Or one answer in two contexts, the harder one first (`learn.mito`); or a row that is good or bad by itself, and a mismatched one
    (`learn.kto`).
    """

    chosen: Example
    rejected: Example
    margin: float = 0.0
    origin: str = ""
    """Id of the task."""
    kind: str = ""
    """How it was found (`outcome`, `step`, ...); the rows' own origins say of which episodes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A mean that never travels without its interval.

    `low` and `high` bound the mean at `level` confidence, clustered by task; n counts tasks, seeds counts the
    independently trained or sampled repetitions.
    """

    mean: float
    low: float
    high: float
    n: int
    seeds: int = 1
    level: float = 0.95
    cost: Cost = Cost()

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.n}, seeds={self.seeds})"


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a method may learn from. Test tasks are refused here, so that no method can be handed one.

    `train` is what it practises on, `dev` what it may accept its own work by, `experts` are finished episodes of
    train tasks to imitate, `general` are conversations about anything else, which some methods mix in. Any of them may be
    empty; a method that needs one says so.
    """

    train: tuple[Task, ...] = ()
    dev: tuple[Task, ...] = ()
    experts: tuple[Episode, ...] = ()
    general: tuple[Episode, ...] = ()

    def __post_init__(self) -> None:
        for field_name, tasks, allowed in (
            ("train", self.train, "train"),
            ("dev", self.dev, "dev"),
            ("experts", [episode.task for episode in self.experts], "train"),
            ("general", [episode.task for episode in self.general], "train"),
        ):
            for task in tasks:
                if task.split != allowed:
                    raise SplitError(
                        f"task {task.id!r} of split {task.split!r} was put into Data.{field_name}, which holds {allowed!r} "
                        f"tasks only. Evaluate on it with whet.evals.evaluate instead."
                    )

    def require(self, *parts: str, by: str) -> None:
        """Raises ConfigError where one of these parts is empty; `by` says in the message who needs it."""
        named = {
            "train": ("train tasks", "--train-tasks N"),
            "dev": ("dev tasks", "--dev-tasks N"),
            "experts": ("expert episodes", "--expert-episodes N"),
            "general": ("general conversations", "--general FILE"),
        }
        for part in parts:
            if not getattr(self, part):
                what, option = named[part]
                raise ConfigError(f"{by} needs {what}, and Data.{part} is empty. Give it some (on the command line {option}).")
