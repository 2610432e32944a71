"""What an agent acts in. One object is one episode; `EnvFactory` makes the objects.

    class Shop(Env):
        instructions = "Find the price, then answer."

        def reset(self, task):            # -> the first observation
            ...
        @tool
        def price(self, item: str) -> str:
            "Price of an item."
        @tool
        def answer(self, price: int) -> str:
            "Say what the item costs; ends the episode."
            return self.finish("noted", reward=float(price == self.gold))

A tool raises `ToolError` to tell the model what went wrong; whatever else it raises is a failure of infrastructure, for
which the episode is tried again. An environment without tools overrides `step` and reads `action.text`.
"""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from whet.envs.calling import FAILED, caller_of
from whet.errors import ConfigError, EnvError, ToolError, ToolTimeout, did_you_mean
from whet.seeding import derive_seed
from whet.tools.function import Tool, describe, is_tool
from whet.tools.output import MAX_OUTPUT
from whet.tools.schema import Style
from whet.types import SPLITS, Split, Task, ToolCall, Turn

__all__ = ["FAILED", "Action", "Env", "EnvFactory", "Step", "ToolError", "ToolTimeout"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """What the policy did in a turn: its text, and the tool calls that were read from it."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What came of an action.

    A `str` observation becomes a user turn; tools answer with turns of role `tool`. `terminated` is an end that the
    task defines, `truncated` one imposed from outside; the last step of an episode may have either.
    """

    observation: str | tuple[Turn, ...] = ""
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    fresh: bool = False
    """The observation begins a new context, behind the agent's prompt: the policy does not see what came before it any more."""
    success: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)


class Env:
    """One episode of an environment. Subclass it, give it `reset`, and either `@tool` methods or `step`.

    `reset` and `step` may be plain functions or coroutines. Set `inline = False` where a plain one waits for
    something (a network, a process): it then runs on a thread while other episodes go on decoding.
    """

    name: ClassVar[str] = ""
    """Defaults to the class's name in lower case."""
    instructions: ClassVar[str] = ""
    """System prompt of every episode."""
    max_turns: ClassVar[int] = 16
    """Assistant turns before an episode is truncated."""
    max_tokens: ClassVar[int] = 64
    """Tokens that a policy may sample per turn, unless the caller says otherwise."""
    splits: ClassVar[tuple[Split, ...]] = SPLITS
    """The splits that it has tasks of. A benchmark may have `test` alone; its `tasks` then refuses the others."""
    replayable: ClassVar[bool] = True
    """Whether the same task and actions always lead to the same state; step-level methods depend on it."""
    inline: ClassVar[bool] = True
    """Whether plain `reset` and `step` take milliseconds, so that they may run between two decoding steps."""
    reset_timeout: ClassVar[float] = 60.0
    """Seconds that making the environment and its `reset` may take; then the episode has failed."""
    step_timeout: ClassVar[float] = 30.0
    """Seconds that `step` may take; then the episode has failed."""
    tool_timeout: ClassVar[float] = 30.0
    """Seconds before a coroutine tool is given up; the model sees the failure as an observation."""
    max_output: ClassVar[int] = MAX_OUTPUT
    """Characters of a tool's result that the model is shown; what is longer loses its middle, and says so."""
    tool_schema: ClassVar[Style] = "plain"
    """How arguments are described: `plain`, `flat` (no references; for small models) or `strict` (OpenAI's strict mode)."""
    max_concurrent: ClassVar[int | None] = None
    """Episodes of this class that a rollout may have under way at once, where each holds something scarce; None for no limit."""

    _reward: float | None = None
    _success: bool | None = None
    _over: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__.lower()

    def tasks(self, split: Split, n: int, start: int = 0) -> list[Task]:
        """Tasks `start` to `start + n` of a split; fewer where the split is finite.

        As it stands: endlessly many, told apart by seeds that differ between splits. Override it for tasks with data.
        """
        return [
            Task(id=f"{self.name}/{split}/{i}", env=self.name, split=split, seed=derive_seed("task", self.name, split, i))
            for i in range(start, start + n)
        ]

    def reset(self, task: Task) -> str | tuple[Turn, ...] | Awaitable[str | tuple[Turn, ...]]:
        """Begin the episode; returns what the agent sees first."""
        raise EnvError(f"environment {type(self).__name__!r} has no reset; define `def reset(self, task) -> str`")

    def step(self, action: Action) -> Step | Awaitable[Step]:
        """Do what the agent did. As it stands: run its tool calls one after another.

        What the model got wrong (no call, an unknown tool, bad arguments) comes back to it as an observation.
        """
        if self._over:
            raise EnvError(f"the episode of {type(self).__name__!r} is over; one object is one episode, so make another one")
        if not self.tools:
            raise EnvError(f"environment {type(self).__name__!r} has no tools and no step; mark methods with @tool or define step(action)")
        self._reward = self._success = None
        if not action.tool_calls:
            names = ", ".join(t.name for t in self.tools)
            return Step(observation=f"No tool call found. Call one of: {names}.")
        turns = caller_of(self).run(self, action.tool_calls)
        return self._step_async(turns) if inspect.isawaitable(turns) else self._outcome(turns)

    async def _step_async(self, turns: Awaitable[tuple[Turn, ...]]) -> Step:
        return self._outcome(await turns)

    def call_tool(self, name: str, arguments: dict[str, Any]) -> object | Awaitable[object]:
        """What a tool gives, or an awaitable of it. Override it together with `tools` where tools are not methods.

        The arguments are checked already. A ToolError tells the model what went wrong; anything else that is raised is a
        failure of infrastructure, for which the episode is tried again.
        """
        result: object = getattr(self, name)(**arguments)
        return result

    def _deadline_of(self, name: str) -> float:
        """Seconds before a call of a tool is given up that has to be waited for."""
        return self.tool_timeout

    @property
    def rollout_id(self) -> str:
        """Id of this attempt at an episode, unlike any other: what servers of tools and of graders tell episodes apart by."""
        return caller_of(self).rollout

    def _outcome(self, turns: tuple[Turn, ...]) -> Step:
        self._over = self._reward is not None
        return Step(observation=turns, reward=self._reward or 0.0, terminated=self._over, success=bool(self._success))

    def finish(self, text: str = "", *, reward: float, success: bool | None = None) -> str:
        """Called by a tool: end the episode with this reward. `success` defaults to `reward >= 1`."""
        self._reward = float(reward)
        self._success = reward >= 1.0 if success is None else success
        return text

    @property
    def _finished(self) -> tuple[float, bool] | None:
        """Reward and success of a step in which a tool has called `finish`."""
        return None if self._reward is None else (self._reward, bool(self._success))

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools of this environment, in the order of their definition, described as `tool_schema` says."""
        return _tools_of(type(self), self.tool_schema)

    def expert(self, rng: random.Random) -> Action | None:
        """The expert's next action in the present state, if the environment has an expert that looks inside it."""
        return None

    def random_action(self, rng: random.Random) -> Action | None:
        """A valid action drawn without looking at the task, if the environment can name its actions; chance level."""
        return None

    def reflect(self, turns: tuple[Turn, ...]) -> str | None:
        """A scripted reflection on an unsuccessful attempt, made from its log alone, if the environment has one."""
        return None

    def documents(self) -> tuple[str, ...]:
        """The texts that the first observation holds besides what is asked, as a retriever's; empty where there are none.

        An environment that has some shows those in `task.data["documents"]` in their place, where a task has that entry: so
        they can be put in another order, left out, or joined by others.
        """
        return ()

    @property
    def begun(self) -> bool:
        """Whether anything has been done in this episode. An environment that takes more than tool calls for actions says so itself."""
        return bool(caller_of(self).outcomes)

    @property
    def cast(self) -> Mapping[str, str]:
        """Who plays a role within episodes, such as a user: role -> a policy's name (`script:client`); empty where nobody does."""
        return {}

    def pose(self, task: Task, query: str) -> Task | None:
        """The task with this query in the place of its own, if the environment takes queries that others make up."""
        return None

    def role(self, role: str, turns: tuple[Turn, ...], rng: random.Random) -> str | Action | None:
        """What a scripted speaker in this role answers to these turns, if the environment has a script for it.

        Such as a `judge` that rates an episode in the words that it was asked for, or a `planner` that names the next
        subgoal; it may look inside the environment, which is at its task (or in the midst of the episode that is played).
        """
        return None

    def close(self) -> None:
        """Let go of what the episode held; called once, whatever happened."""


_TOOLS: dict[tuple[type, Style], tuple[Tool, ...]] = {}


def _tools_of(cls: type[Env], style: Style) -> tuple[Tool, ...]:
    if (cls, style) not in _TOOLS:
        found: dict[str, Tool] = {}
        for owner in reversed(cls.__mro__):
            for name, value in vars(owner).items():
                if is_tool(value):
                    found[name] = describe(value).styled(style)
        _TOOLS[cls, style] = tuple(found.values())
    return _TOOLS[cls, style]


@dataclass(frozen=True)
class EnvFactory:
    """Makes one `Env` per episode, always with the same options. `spec` is how the command line names it."""

    cls: type[Env]
    options: Mapping[str, Any] = field(default_factory=dict)
    spec: str = ""

    def __post_init__(self) -> None:
        accepted = inspect.signature(self.cls.__init__).parameters
        if any(p.kind is p.VAR_KEYWORD for p in accepted.values()) and self.cls.__init__ is not object.__init__:
            return
        for key in self.options:
            if key not in accepted or self.cls.__init__ is object.__init__:
                known = [name for name in accepted if name not in ("self", "args", "kwargs")]
                raise ConfigError(f"environment {self.name!r} has no option {key!r}. {did_you_mean(key, known)}")

    def __call__(self) -> Env:
        return self.cls(**self.options)

    @property
    def name(self) -> str:
        return self.cls.name

    @property
    def envs(self) -> tuple[str, ...]:
        """What `Task.env` may be in its tasks: its own name, or those of a mixture's parts."""
        return (self.name,)

    def of(self, task: Task) -> EnvFactory:
        """The factory of the environment that plays this task: itself, or a part of a mixture."""
        return self

    @functools.cached_property
    def tools(self) -> tuple[Tool, ...]:
        """The tools that a policy is told about in this environment with these options."""
        return self._told("tools")  # type: ignore[no-any-return]

    @functools.cached_property
    def replayable(self) -> bool:
        """Whether this environment with these options can replay (`Env.replayable`, which some say of each object)."""
        return bool(self._told("replayable"))

    def _told(self, name: str) -> Any:
        """What an object that is made for this says of itself."""
        env = self()
        try:
            return getattr(env, name)
        finally:
            if not inspect.iscoroutinefunction(env.close):
                env.close()

    @property
    def cast(self) -> Mapping[str, str]:
        """Who plays roles within episodes, as `Env.cast`."""
        return self().cast

    def tasks(self, split: Split, n: int, start: int = 0) -> tuple[Task, ...]:
        """As `Env.tasks`, checked. Raises ConfigError for an unknown split, EnvError for tasks of another one."""
        if split not in SPLITS:
            raise ConfigError(f"unknown split {split!r}. {did_you_mean(split, SPLITS)}")
        tasks = tuple(self().tasks(split, n, start))
        for task in tasks:
            if task.split != split:
                raise EnvError(f"environment {self.name!r} returned task {task.id!r} of split {task.split!r} when asked for {split!r}")
        return tasks
