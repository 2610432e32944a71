"""BFCL v4: the Berkeley Function Calling Leaderboard (Patil et al., ICML 2025), judged by its own package `bfcl-eval`.

    bfcl:simple_python       one call of one function          -> the call, compared with lists of accepted values
    bfcl:parallel_multiple   several calls, several functions
    bfcl:irrelevance         no function fits                  -> no call
    bfcl:multi_turn_base     a conversation with a simulator   -> calls, executed; states and results are compared
    bfcl:all                 everything that is supported, with the benchmark's own sums

Data, prompts, decoders, simulators and checkers are the package's. What its checkers would run with `eval` is executed in the
sandbox, and only where it is a plain call of a simulator's method (see worker.py).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar, Literal

from whet.envs.base import Action, Env, Step
from whet.envs.benchmark import Benchmark, Group
from whet.envs.bfcl import execution, gold, package
from whet.envs.probe import made_up
from whet.errors import ConfigError, EnvError, did_you_mean
from whet.tools.function import Tool
from whet.types import Split, Task, ToolCall, Turn

NO_CALL = "None of the functions can be used for this."
LONGEST = 8
"""User turns of the longest conversation."""


UNAVAILABLE = {
    **{name: "it asks a paid web search (SerpAPI) and live pages" for name in package.AGENTIC if "web_search" in name},
    **{name: "it reads a memory that the model has to fill in earlier conversations" for name in package.AGENTIC if "memory" in name},
    "format_sensitivity": "it does not count towards the benchmark's scores",
}
"""Category -> why it is not run."""
COLLECTIONS = ("all", "single_turn", "multi_turn", "live", "non_live", "python", "non_python")


class BFCL(Env):
    """Answer with the right function calls: the Berkeley Function Calling Leaderboard v4, all of it test tasks.

    `category` is one of the benchmark's categories (simple_python, multi_turn_base and so on), one of its collections
    (single_turn, multi_turn, live, non_live, python, non_python), several of these joined with `+`, or `all`. In the mode `fc`
    functions are tools and calls are tool calls, as with the benchmark's OpenAI handler; in `prompting` the benchmark's system
    prompt describes functions and calls are written as text.
    """

    max_turns = LONGEST * (package.STEP_LIMIT + 2)
    max_tokens = 4096
    step_timeout = 600.0
    max_concurrent = 64
    splits: ClassVar[tuple[Split, ...]] = ("test",)

    def __init__(self, category: str = "simple_python", *, mode: Literal["fc", "prompting"] = "fc") -> None:
        if mode not in ("fc", "prompting"):
            raise ConfigError(f"mode is {mode!r}; expected 'fc' (functions are tools) or 'prompting' (functions stand in the prompt)")
        self.categories = _categories(category)
        self._mode: str = mode
        self._task: Task | None = None
        self._tools: tuple[Tool, ...] = ()
        self._turn = self._count = 0
        self._steps: list[list[list[str]]] = [[]]
        """What was called in each user turn, step by step, as Python expressions."""

    # -- tasks -----------------------------------------------------------------------------------------------------------

    def tasks(self, split: Split, n: int, start: int = 0) -> list[Task]:
        """The benchmark's tasks in its own order, category by category. Raises ConfigError for train and dev, which it has not."""
        if split != "test":
            raise ConfigError(
                f"BFCL has no {split} tasks: it is a benchmark, and all of its tasks are test tasks. Evaluate on them with "
                "`whet eval --env bfcl:...`, and train in another environment"
            )
        everything = ((category, id) for category in self.categories for id in package.entries(category))
        return [
            Task(id=f"bfcl/{id}", env=self.name, split="test", data={"category": category, "entry": id})
            for number, (category, id) in enumerate(everything)
            if start <= number < start + n
        ]

    def benchmark(self) -> Benchmark:
        """The leaderboard's categories and sums (`generate_leaderboard_csv` of the package)."""
        return _benchmark(self._mode)

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The functions of the task, once there is one, with those that came along later."""
        return self._tools

    # -- the episode -----------------------------------------------------------------------------------------------------

    def reset(self, task: Task) -> tuple[Turn, ...]:
        self._task = task
        category, id = task.data["category"], task.data["entry"]
        self._entry, self._shown = package.entries(category)[id], package.prompts(category)[id]
        self._gold = package.answers(category).get(id, [])
        self._functions = list(self._shown["function"])
        self._offer()
        return tuple(_message(message) for message in package.opening(self._shown, self._mode))

    def _offer(self) -> None:
        self._tools = package.tools(self._functions) if self._mode == "fc" else ()

    @property
    def _category(self) -> str:
        assert self._task is not None
        return str(self._task.data["category"])

    @property
    def _conversation(self) -> bool:
        return self._category in package.MULTI_TURN

    def step(self, action: Action) -> Step | Awaitable[Step]:
        """Judge the answer, or execute its calls and go on with the conversation, as the benchmark does.

        In a conversation, an answer without calls (or with one that cannot be read) ends the user's turn.
        """
        if self._task is None or self._over:
            raise EnvError("the episode of 'BFCL' is over, or has not begun; one object is one episode, so make another one")
        answer = action.tool_calls if self._mode == "fc" and action.tool_calls else action.text
        if self._conversation:
            return self._converse(answer)
        return self._verdict(package.judge(self._category, self._task.data["entry"], answer, self._mode))

    async def _converse(self, answer: str | tuple[ToolCall, ...]) -> Step:
        calls = await asyncio.to_thread(package.decode_executable, answer, self._mode)
        if not calls:
            return await self._next_turn()
        self._steps[self._turn].append(calls)
        self._count += 1
        try:
            results = await asyncio.to_thread(execution.execute, self._entry, self._steps)
        except execution.TooMuch as error:
            return self._verdict({"valid": False, "error_type": "multi_turn:limits", "error": str(error)})
        if self._count > package.STEP_LIMIT:
            return await self._judged(forced=True)
        return Step(observation=self._results(answer, calls, results))

    def _results(self, answer: str | tuple[ToolCall, ...], calls: Sequence[str], results: Sequence[str]) -> tuple[Turn, ...]:
        if isinstance(answer, str):
            return (Turn(role="user", content=package.results_message(calls, results)),)
        return tuple(Turn(role="tool", name=call.name, call_id=call.id, content=result) for call, result in zip(answer, results))

    async def _next_turn(self) -> Step:
        """The user's next message, or the verdict where there is none."""
        if self._turn + 1 == len(self._shown["question"]):
            return await self._judged(forced=False)
        self._turn += 1
        self._count = 0
        self._steps.append([])
        missed = self._shown.get("missed_function", {}).get(str(self._turn))
        if missed is None:
            return Step(observation=tuple(_message(message) for message in self._shown["question"][self._turn]))
        self._functions += missed
        self._offer()
        return Step(observation=package.added(missed, self._mode))

    async def _judged(self, *, forced: bool) -> Step:
        """The package's verdict on the conversation; one that was broken off before its last turn has failed."""
        if forced and self._turn + 1 < len(self._shown["question"]):
            told = f"more than {package.STEP_LIMIT} steps in user turn {self._turn}"
            return self._verdict({"valid": False, "error_type": "multi_turn:force_terminated", "error": told}, truncated=True)
        try:
            verdict = await asyncio.to_thread(execution.judge, self._entry, self._steps, self._gold)
        except execution.TooMuch as error:
            verdict = {"valid": False, "error_type": "multi_turn:limits", "error": str(error)}
        return self._verdict(verdict)

    def _verdict(self, verdict: dict[str, Any], *, truncated: bool = False) -> Step:
        self._over = True
        right = bool(verdict["valid"])
        info = {"category": self._category, "reason": "correct" if right else verdict["error_type"]}
        if not right:
            info["error"] = str(verdict["error"])[:500]
        return Step(reward=float(right), terminated=not truncated, truncated=truncated, success=right, info=info)

    # -- who needs no model ------------------------------------------------------------------------------------------------

    def expert(self, rng: random.Random) -> Action:
        """The benchmark's gold answer; any call where only relevance is asked for, which has none."""
        if self._conversation:
            due = self._gold[self._turn] if not self._steps[self._turn] else []
            later = (function for missed in self._shown.get("missed_function", {}).values() for function in missed)
            docs = [*self._shown["function"], *later]  # one gold conversation calls a function before it is offered
            return self._said(gold.conversation_turn(docs, due)) if due else Action(text="Done.")
        if self._category == "live_relevance":
            return self._any_call(random.Random(0))
        if "irrelevance" in self._category:
            return Action(text=NO_CALL)
        language = package.language_of(self._category)
        return self._said(gold.single_turn(self._entry["function"], self._gold, language))

    def random_action(self, rng: random.Random) -> Action:
        """No call half of the time, else one of a function drawn by chance, with arguments of its types."""
        if not self._functions or rng.random() < 0.5:
            return Action(text=NO_CALL)
        return self._any_call(rng)

    def _any_call(self, rng: random.Random) -> Action:
        call = made_up(package.tools(self._functions), rng).tool_calls
        names = {function["name"].replace(".", "_"): function["name"] for function in self._functions}
        return self._said([(names[call[0].name], dict(call[0].arguments))])

    def _said(self, calls: list[gold.Call]) -> Action:
        if self._mode == "fc":
            return Action(tool_calls=gold.as_calls(calls))
        return Action(text=gold.as_text(calls, package.language_of(self._category)))


def _message(message: dict[str, str]) -> Turn:
    return Turn(role=message["role"], content=message["content"])  # type: ignore[arg-type]


def _categories(text: str) -> tuple[str, ...]:
    """The categories that `text` names. Raises ConfigError for what is unknown, or not supported, with the reason."""
    found: dict[str, None] = {}
    for name in (part.strip() for part in text.split("+")):
        names = (name,) if name in package.SUPPORTED else package.collection(name) if name in COLLECTIONS else ()
        if name in UNAVAILABLE:
            raise ConfigError(f"BFCL's category {name!r} is not supported: {UNAVAILABLE[name]}")
        if not names:
            known = (*package.SUPPORTED, *COLLECTIONS)
            raise ConfigError(f"BFCL has no category {name!r}. {did_you_mean(name, known)}")
        found |= dict.fromkeys(names)
    return tuple(found)


def _benchmark(mode: str) -> Benchmark:
    sizes: dict[str, int] = {name: package.size(name) for name in (*package.SUPPORTED, *package.AGENTIC)}
    live = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
    equal: Callable[..., dict[str, float]] = lambda *names: dict.fromkeys(names, 1.0)  # noqa: E731
    groups = (
        Group(name="non_live simple", parts=equal("simple_python", "simple_java", "simple_javascript")),
        Group(name="non_live", parts=equal("non_live simple", "multiple", "parallel", "parallel_multiple")),
        Group(name="live", parts={name: sizes[name] for name in live}),
        Group(name="irrelevance detection", parts=equal("irrelevance", "live_irrelevance")),
        Group(name="multi_turn", parts=equal(*package.MULTI_TURN)),
        Group(name="web_search", parts=equal(*(name for name in package.AGENTIC if "web_search" in name))),
        Group(name="memory", parts=equal(*(name for name in package.AGENTIC if "memory" in name))),
        Group(name="agentic", parts=equal("web_search", "memory")),
        Group(name="overall", parts={"non_live": 10, "live": 10, "irrelevance detection": 10, "multi_turn": 30, "agentic": 40}),
    )
    told = "function calling (the package's OpenAI handler)" if mode == "fc" else "prompting (the package's default system prompt)"
    return Benchmark(
        name="BFCL v4",
        sizes=sizes,
        groups=groups,
        headline="overall",
        unavailable={name: why for name, why in UNAVAILABLE.items() if name in sizes},
        temperature=0.0,
        notes=(f"bfcl-eval {package.version()}, mode {told}.", "live_relevance counts towards no sum."),
    )
