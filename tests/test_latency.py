"""What keeps the engine busy while tools are slow: steps that only wait need no thread, and openings are put together, not rendered."""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import Any, ClassVar

import pytest

from helpers import tiny_tokenizer
from whet.agents import Agent
from whet.envs.base import Action, Env, EnvFactory
from whet.envs.search import Search
from whet.policies.chat import ChatFormat
from whet.policies.scripted import ScriptedPolicy
from whet.rollout import rollout
from whet.tools.function import tool
from whet.types import Task, ToolCall, Turn


class Both(Env):
    """A tool that waits and one that does not; where each began is noted."""

    max_turns = 2
    where: ClassVar[dict[str, set[str]]] = {}

    def reset(self, task: Task) -> str:
        self._note("reset")
        return "go"

    @tool
    async def wait(self) -> str:
        "Wait."
        self._note("wait")
        await asyncio.sleep(0.001)
        return "waited"

    @tool
    def block(self) -> str:
        "Do not wait."
        self._note("block")
        return "done"

    def _note(self, what: str) -> None:
        Both.where.setdefault(what, set()).add(threading.current_thread().name)


def test_coroutine_tools_need_no_thread_and_plain_ones_never_run_on_the_loop() -> None:
    Both.where.clear()
    calls = itertools.cycle([["wait"], ["block"], ["wait", "wait"], ["block", "wait"]])

    def act(request: Any, rng: Any) -> Action:
        return Action(tool_calls=tuple(ToolCall(name=name) for name in next(calls)))

    env = EnvFactory(Both)
    episodes = rollout(Agent(ScriptedPolicy(act)), env, env.tasks("train", 8))
    assert all(e.ok for e in episodes)
    assert "MainThread" not in Both.where["reset"] | Both.where["block"]
    assert "MainThread" in Both.where["wait"]


def test_what_a_coroutine_tool_is_called_with_wrongly_comes_back_all_the_same() -> None:
    def act(request: Any, rng: Any) -> Action:
        return Action(tool_calls=(ToolCall(name="wait", arguments={"long": 1}),))

    env = EnvFactory(Both)
    episode = rollout(Agent(ScriptedPolicy(act)), env, env.tasks("train", 1))[0]
    assert episode.turns[2].content.startswith("error: ")
    assert episode.tags["tools"] == {"bad_arguments": 2}


@pytest.mark.parametrize("model", ["tiny", "base"])
def test_openings_put_together_are_those_that_are_rendered(model: str) -> None:
    if model == "tiny":
        tokenizer: Any = tiny_tokenizer()
    else:
        from importlib.resources import files

        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(files("whet") / "base"))
    whole, chat = ChatFormat(tokenizer), ChatFormat(tokenizer)
    whole._opening = lambda turns, tools: whole._render(  # type: ignore[method-assign]
        [{"role": t.role, "content": t.content} for t in turns], tools, prompt=True
    )
    contents = ["Who?", "system", " spaced ", "", "Who?", "a <tool_response>", "Who is Rosa's friend?", "{{ x }}", "\u241f", "Answer"]
    openings = [
        (*before, Turn(role="user", content=content))
        for content in contents
        for before in ((), (Turn(role="system", content="Answer"),), (Turn(role="user", content="first"),))
    ]
    rendered = []
    render = chat._render
    chat._render = lambda *args, **kw: rendered.append(1) or render(*args, **kw)  # type: ignore[func-returns-value, method-assign]
    for tools in ((), Search().tools):
        for turns in openings:
            assert chat.open(turns, tools) == whole.open(turns, tools), (turns, tools)
    assert len(rendered) < 2 * len(openings) - 10
