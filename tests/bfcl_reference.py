"""BFCL's own program to compare with: its real evaluation functions, and answers to give to both sides."""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import itertools
import json
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from whet.envs.base import Action, Step
from whet.envs.bfcl import BFCL, gold, package
from whet.tools.sandbox import SandboxUnavailable, open_sandbox
from whet.types import ToolCall, Turn

try:
    open_sandbox("zygote").close()
    _MISSING = ""
except SandboxUnavailable as error:
    _MISSING = str(error)
needs_sandbox = pytest.mark.skipif(bool(_MISSING), reason=_MISSING)

Calls = list[gold.Call]
_names = itertools.count()


def answer(env: BFCL, action: Action) -> Step:
    """`env.step`, awaited where it has to be."""

    async def awaited(step: Any) -> Step:
        return await step if inspect.isawaitable(step) else step

    return asyncio.run(awaited(env.step(action)))


def begin(category: str, number: int = 0, **options: Any) -> tuple[BFCL, tuple[Turn, ...]]:
    """An environment at the beginning of a task, and what it shows."""
    env = BFCL(category, **options)
    return env, env.reset(env.tasks("test", 1, number)[0])


def called(function: str, /, **arguments: Any) -> Action:
    """An action that is one call."""
    return Action(tool_calls=(ToolCall(name=function, arguments=arguments, id="call_0"),))


class Handler:
    """Decodes as the package's OpenAI handler does for function calling (`OpenAICompletionsHandler`, which needs a client)."""

    def decode_ast(self, result: Any, language: Any, has_tool_call_tag: bool) -> list[dict[str, Any]]:
        decoded = []
        for invoked in result:
            name = next(iter(invoked.keys()))
            decoded.append({name: json.loads(invoked[name])})
        return decoded

    def decode_execute(self, result: Any, has_tool_call_tag: bool) -> list[str]:
        handler = importlib.import_module("bfcl_eval.model_handler.utils")
        return handler.convert_to_function_call(result)


CONFIG = SimpleNamespace(
    underscore_to_dot=True, display_name="whet", url="", org="", license="", input_price=None, output_price=None, model_handler=Handler
)


@functools.cache
def runner() -> ModuleType:
    """The package's `eval_runner`. What it imports for asking vendors' models is left out where it is not installed."""
    stubs = {
        "bfcl_eval.constants.model_config": {"MODEL_CONFIG_MAPPING": {"whet": CONFIG}},
        "bfcl_eval.model_handler.base_handler": {"BaseHandler": object},
        "dotenv": {"load_dotenv": lambda *args, **kwargs: None},
    }
    kept = {name: sys.modules.get(name) for name in stubs}
    for name, content in stubs.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(content)
    try:
        return importlib.import_module("bfcl_eval.eval_checker.eval_runner")
    finally:
        for name, module in kept.items():
            sys.modules.pop(name) if module is None else sys.modules.__setitem__(name, module)


def result_of(answer: str | list[ToolCall]) -> Any:
    """An answer as the package stores it: text, or calls with their arguments as JSON (broken where the call was)."""
    if isinstance(answer, str):
        return answer
    return [{call.name: "{broken" if call.error else json.dumps(dict(call.arguments))} for call in answer]


def single_turn_verdict(category: str, id: str, answer: str | list[ToolCall]) -> bool:
    """What the package's program says about an answer."""
    run, entry = runner(), package.entries(category)[id]
    if "relevance" in category:
        return bool(run._evaluate_single_relevance_entry(Handler(), id, result_of(answer), entry, "whet", category)["valid"])
    language = run.Language(package.language_of(category))
    returned = run.ReturnFormat(package.language_of(category))
    possible = package.answers(category)[id]
    verdict = run._evaluate_single_ast_entry(Handler(), id, result_of(answer), possible, entry, "whet", category, language, returned)
    return bool(verdict["valid"])


def conversation_verdict(category: str, id: str, turns: list[list[Calls]]) -> bool:
    """What the package's program says about a conversation; under a name of its own, which nothing has left a state for."""
    name = f"reference{next(_names)}"
    results = [[result_of(list(gold.as_calls(calls))) for calls in turn] for turn in turns]
    entry = {key: value for key, value in package.entries(category)[id].items() if key != "function"}
    verdict = runner()._evaluate_single_multi_turn_entry(Handler(), id, results, package.answers(category)[id], entry, name, category)
    state = vars(importlib.import_module("bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils"))
    for left in [key for key in state if key.startswith(name) and key.endswith("_instance")]:
        del state[left]
    return bool(verdict["valid"])


def single_turn_answers(category: str, id: str) -> Iterator[tuple[str, str | list[ToolCall]]]:
    """(What is wrong with it, answer): gold, then one fault at a time. Of (ir)relevance, answers with and without calls."""
    entry = package.entries(category)[id]
    yield "text", "I would call it."
    yield "nothing", ""
    if "relevance" in category:
        name = entry["function"][0]["name"].replace(".", "_") if entry["function"] else "anything"
        call = ToolCall(name=name, arguments={"x": 1}, id="a")
        yield "call", [call]
        yield "two calls", [call, call]
        yield "call without arguments", [ToolCall(name=name, id="a")]
        yield "broken call", [ToolCall(name=name, id="a", error="no JSON")]
        return
    right = gold.single_turn(entry["function"], package.answers(category)[id], package.language_of(category))
    for what, calls in faults(right):
        yield what, list(gold.as_calls(calls))
    yield "broken call", [*gold.as_calls(right[:-1]), ToolCall(name=right[-1][0], id="b", error="no JSON")]


def faults(calls: Calls) -> Iterator[tuple[str, Calls]]:
    """Gold calls, then with one fault at a time."""
    (name, arguments), rest = calls[0], calls[1:]
    yield "gold", calls
    yield "dropped call", calls[:-1]
    yield "dropped first call", rest
    yield "reversed order", calls[::-1]
    yield "repeated call", [*calls, calls[-1]]
    yield "wrong name", [(f"{name}_x", arguments), *rest]
    yield "extra parameter", [(name, {**arguments, "surplus": 1}), *rest]
    for key, value in arguments.items():
        yield f"missing {key}", [(name, {k: v for k, v in arguments.items() if k != key}), *rest]
        yield f"wrong type of {key}", [(name, {**arguments, key: of_another_type(value)}), *rest]
        yield f"wrong value of {key}", [(name, {**arguments, key: another(value)}), *rest]


def of_another_type(value: Any) -> Any:
    if isinstance(value, str):
        return 7
    return str(value) if not isinstance(value, list) else {"items": value}


def another(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"{value} not"
    return [*value, *value[:1]] if isinstance(value, list) and value else type(value)()


def conversations(category: str, id: str) -> Iterator[tuple[str, list[list[Calls]]]]:
    """(What is wrong with it, turns of steps of calls): the gold conversation, then one fault at a time."""
    entry = package.prompts(category)[id]
    docs = [*entry["function"], *itertools.chain(*entry.get("missed_function", {}).values())]
    right = [gold.conversation_turn(docs, calls) for calls in package.answers(category)[id]]

    def steps(turns: list[Calls]) -> list[list[Calls]]:
        return [[calls] if calls else [] for calls in turns]

    first = next(i for i, calls in enumerate(right) if calls)
    last = next(i for i in reversed(range(len(right))) if right[i])
    yield "gold", steps(right)
    for what, calls in faults(right[first]):
        if what != "gold" and not what.startswith("wrong value"):
            yield f"{what} in the first turn", steps([*right[:first], calls, *right[first + 1 :]])
    yield "dropped call in the last turn", steps([*right[:last], right[last][:-1], *right[last + 1 :]])
    yield "reversed order in every turn", steps([calls[::-1] for calls in right])
    yield "one call a step", [[[call] for call in calls] for calls in right]
    yield "every call twice", steps([[call for call in calls for _ in range(2)] for calls in right])
    yield "everything in the first turn", steps([list(itertools.chain(*right)), *([] for _ in right[1:])])
    yield "nothing", [[] for _ in right]
    yield "too few turns", steps(right[:-1])
    early = [calls or (right[i + 1] if i + 1 < len(right) else []) for i, calls in enumerate(right)]
    yield "calls where there should be none", steps(early)
    yield "an unknown function besides", steps([[("look_up", {"x": 1}), *calls] for calls in right])
