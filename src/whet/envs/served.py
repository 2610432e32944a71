"""Environments whose tools live on a server of the user's: tasks from a file, reward from a grader.

What `mcp` and `http` have in common. The model sees the server's tools, but for those that set up or grade, and a tool
`answer` that ends the episode; where the server has a tool of that name, it is this one whose call ends it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from whet.envs.base import Env, Step
from whet.envs.grading import Match, call_function, chosen, matches, read_grade, wanted
from whet.envs.taskfile import read_tasks
from whet.errors import ConfigError, EnvError, ToolError, did_you_mean
from whet.tools.function import Tool, describe
from whet.tools.schema import Style
from whet.types import SPLITS, Split, Task, Turn
from whet.userfile import load_function


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a server gave for a call: what the model is to see, and what a grader is to read."""

    shown: object
    value: Any


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What every such environment may be told. Lists of names are written with commas."""

    tasks: str
    """File of JSON lines (see `whet.envs.taskfile`)."""
    grader: str = "answer"
    """`answer`: compared with the task's; `tool:NAME`: a tool of the server, hidden from the model; `path.py:function`; or a URL."""
    match: Match = "exact"
    answer_tool: str = "answer"
    setup: str = ""
    """A tool of the server that is called first, with the task's data; hidden from the model."""
    only: str = ""
    """The tools that the model sees; all, if empty."""
    hide: str = ""
    pure: str = ""
    """Tools whose results depend on their arguments and the task alone, so that they may be kept."""
    schema: Style = "plain"
    instructions: str = ""
    """System prompt; the server's own, if empty."""
    max_turns: int = 16
    max_tokens: int = 64
    timeout: float = 30.0
    """Seconds that a call, and that grading, may take."""

    def __post_init__(self) -> None:
        if self.max_turns < 1 or self.max_tokens < 1:
            raise ConfigError(f"max_turns is {self.max_turns} and max_tokens {self.max_tokens}; expected 1 or more of each")
        if not self.timeout > 0:
            raise ConfigError(f"timeout is {self.timeout}; expected a number of seconds above 0")

    @property
    def grading_tool(self) -> str:
        return self.grader.removeprefix("tool:") if self.grader.startswith("tool:") else ""


def names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


class Served(Env):
    """Base of environments with tools on a server; a subclass connects, lists and calls."""

    inline = False
    reset_timeout = 300.0  # an episode may have to wait until a server process is free

    def _follow(self, rules: Rules) -> None:
        """Take the options; what needs no server is checked."""
        self._rules = rules
        self.max_turns, self.max_tokens = rules.max_turns, rules.max_tokens  # type: ignore[misc]
        self.tool_timeout = rules.timeout  # type: ignore[misc]
        self.step_timeout = rules.timeout + 30.0  # type: ignore[misc]
        self.tool_schema, self.instructions = rules.schema, rules.instructions  # type: ignore[misc]
        is_url = rules.grader.startswith(("http://", "https://"))
        if rules.grader != "answer" and not rules.grading_tool and not is_url:
            self._grade_by: Callable[..., Any] = load_function(rules.grader)
        self._task: Task | None = None
        self._made: list[dict[str, Any]] = []
        self._given = ""

    # What a subclass does.

    def _list(self) -> tuple[tuple[Tool, ...], str]:
        """All tools of the server and its instructions; may connect, and wait."""
        raise NotImplementedError

    async def _open(self) -> None:
        """Connect for this episode."""

    async def _ask(self, name: str, arguments: dict[str, Any]) -> Result:
        """Call a tool of the server. Raises ToolError for what the model is to see, EnvError for a broken server."""
        raise NotImplementedError

    async def _post(self, url: str, facts: dict[str, Any]) -> Any:
        """What a grader at a URL gives."""
        from whet.tools.http import post

        return await post(url, facts, rollout=self.rollout_id, timeout=self._rules.timeout)

    # Tasks and tools.

    def tasks(self, split: Split, n: int, start: int = 0) -> list[Task]:
        """Tasks `start` to `start + n` of the split, in the order of the file."""
        rules = self._rules
        found = read_tasks(rules.tasks, self.name, prompts=not rules.setup)
        if rules.grader == "answer":
            for task in (task for each in SPLITS for task in found[each]):
                if "answer" not in task.data:
                    raise ConfigError(f"task {task.id!r} in {rules.tasks} has no answer to compare with; give it one, or another grader")
        return list(found[split][start : start + n])

    @functools.cached_property
    def _offered(self) -> tuple[Tool, ...]:
        """Every tool of the server."""
        tools, instructions = self._list()
        self.instructions = self._rules.instructions or instructions  # type: ignore[misc]
        known = {tool.name for tool in tools}
        rules = self._rules
        for option, listed in (("setup", rules.setup), ("grader", rules.grading_tool), *((o, getattr(rules, o)) for o in _LISTS)):
            for name in names(listed):
                if name not in known:
                    raise ConfigError(
                        f"option {option!r} names a tool {name!r} that {self._where()} does not have. {did_you_mean(name, known)}"
                    )
        return tools

    @functools.cached_property
    def _visible(self) -> tuple[Tool, ...]:
        rules = self._rules
        hidden = {rules.setup, rules.grading_tool, *names(rules.hide)}
        shown = names(rules.only) or tuple(tool.name for tool in self._offered)
        pure = names(rules.pure)
        tools = [replace(t, pure=t.name in pure) for t in self._offered if t.name in (*shown, rules.answer_tool) and t.name not in hidden]
        if all(tool.name != rules.answer_tool for tool in tools):
            tools.append(replace(describe(_ANSWERS[rules.grader == "answer"]), name=rules.answer_tool))
        return tuple(tool.styled(self.tool_schema) for tool in tools)

    @property
    def tools(self) -> tuple[Tool, ...]:
        """What the model is shown: asks the server the first time."""
        return self._visible

    def _where(self) -> str:
        return f"the server of {self.name!r}"

    # An episode.

    async def reset(self, task: Task) -> str | tuple[Turn, ...]:
        """Connect, set the task up, and ask what the task asks. Raises EnvError where the server does not play along."""
        self._task = task
        await self._open()
        prompt = str(task.data.get("prompt", ""))
        if self._rules.setup:
            told = await self._own_call(self._rules.setup, "set the task up")
            prompt = prompt or (told.shown if isinstance(told.shown, str) else "")
            if not prompt:
                raise EnvError(f"task {task.id!r} has no prompt, and {self._rules.setup!r} of {self._where()} gave none")
        assert self._offered is not None  # the server's instructions are known from here on
        return prompt

    def call_tool(self, name: str, arguments: dict[str, Any]) -> Awaitable[object]:
        return self._answer(arguments) if name == self._rules.answer_tool else self._use(name, arguments)

    async def _use(self, name: str, arguments: dict[str, Any]) -> object:
        result = await self._ask(name, arguments)
        self._made.append({"name": name, "arguments": arguments, "output": result.shown})
        return result.shown

    async def _answer(self, arguments: dict[str, Any]) -> object:
        """The last call: what was answered is graded."""
        shown: object = ""
        if any(tool.name == self._rules.answer_tool for tool in self._offered):
            shown = await self._use(self._rules.answer_tool, arguments)
        self._given = self._text_of(arguments)
        reward, success = await self._grade()
        self.finish(reward=reward, success=success)
        return shown

    def _text_of(self, arguments: dict[str, Any]) -> str:
        """What of the last call's arguments is the answer: `text`, `answer`, or the only one there is."""
        for key in ("text", "answer", *(arguments if len(arguments) == 1 else ())):
            if key in arguments:
                return arguments[key] if isinstance(arguments[key], str) else str(arguments[key])
        if self._rules.grader == "answer":
            raise ConfigError(
                f"tool {self._rules.answer_tool!r} has the arguments {', '.join(arguments)}; expected 'text' or 'answer' to compare"
            )
        return ""

    async def _grade(self) -> tuple[float, bool]:
        rules, task = self._rules, self._task
        assert task is not None
        if rules.grader == "answer":
            right = matches(self._given, task.data["answer"], rules.match)
            return float(right), right
        by = f"the grader {rules.grader!r}"
        try:
            async with asyncio.timeout(rules.timeout) as deadline:
                if rules.grading_tool:
                    return read_grade((await self._own_call(rules.grading_tool, "grade")).value, by)
                if rules.grader.startswith(("http://", "https://")):
                    return read_grade(await self._post(rules.grader, self._facts()), by)
                return read_grade(await call_function(self._grade_by, self._facts(), by), by)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise EnvError(f"{by} did not answer within {rules.timeout:g} s") from None

    async def _own_call(self, name: str, purpose: str) -> Result:
        """Call a hidden tool with the facts that its schema names. What would be told to the model is a failure here."""
        schema = next(tool.parameters for tool in self._offered if tool.name == name)
        arguments = chosen(self._facts(), wanted(schema), f"tool {name!r} of {self._where()}")
        try:
            return await self._ask(name, arguments)
        except ToolError as error:
            raise EnvError(f"tool {name!r} of {self._where()} could not {purpose}: {error}") from error

    def _facts(self) -> dict[str, Any]:
        task = self._task
        assert task is not None
        known = {"answer": self._given, "task": task.id, "prompt": task.data.get("prompt", ""), "expected": task.data.get("answer")}
        return {**dict(task.data.get("data", {})), **known, "split": task.split, "calls": self._made, "rollout": self.rollout_id}

    def _deadline_of(self, name: str) -> float:
        """An answer may also take the time that grading takes."""
        return self.tool_timeout + (self._rules.timeout if name == self._rules.answer_tool else 0.0)

    def _outcome(self, turns: tuple[Turn, ...]) -> Step:
        step = super()._outcome(turns)
        return replace(step, info={"reason": "answered", "answer": self._given[:1000]}) if step.terminated else step


def _answer(text: str) -> str:
    """Give the final answer."""
    return text


def _done(text: str = "") -> str:
    """Say that the task is done; ends it."""
    return text


_ANSWERS = {True: _answer, False: _done}
_LISTS = ("only", "hide", "pure")
