"""What keeps the engine busy while tools are slow: decoding goes on, steps that only wait need no thread, little is rendered anew."""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest

from helpers import tiny_tokenizer
from whet.agents import Agent
from whet.envs.base import Action, Env, EnvFactory
from whet.envs.search import Search
from whet.policies import load_policy
from whet.policies.chat import ChatFormat
from whet.policies.engine import Engine
from whet.policies.scripted import ScriptedPolicy
from whet.rollout import Limits, rollout
from whet.rollout.garbage import rare_collections
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


class Clocked(Env):
    """Search, whose pages take as long as the engine needs for 1 to 10 steps: a clock that a busy machine cannot stretch.

    Where the engine has nothing to do the page comes at once, and that is counted.
    """

    instructions = Search.instructions
    max_turns = 4
    tool_timeout = 30.0
    engine: ClassVar[Engine]
    nothing_to_do: ClassVar[int] = 0
    waiting: ClassVar[list[int]] = []
    """Pages under way, noted whenever another one is asked for."""
    under_way: ClassVar[int] = 0

    def reset(self, task: Task) -> str:
        self._inner = Search()
        return self._inner.reset(task)

    @tool
    async def search(self, query: str) -> str:
        """Read the page of a person."""
        until = Clocked.engine.stats.steps + 1 + len(Clocked.waiting) % 10
        Clocked.under_way += 1
        Clocked.waiting.append(Clocked.under_way)
        while Clocked.engine.stats.steps < until:
            await asyncio.sleep(0.001)
            if not (Clocked.engine._active or Clocked.engine._waiting):
                Clocked.nothing_to_do += 1
                break
        Clocked.under_way -= 1
        return self._inner.search(query)

    @tool
    async def answer(self, text: str) -> str:
        """Give the final answer."""
        return self.finish(reward=float(text == self._inner.question.answer))


@pytest.mark.slow
def test_decoding_goes_on_while_tools_wait() -> None:
    policy = load_policy("base")
    Clocked.engine = policy.engine
    env = EnvFactory(Clocked)
    episodes = rollout(Agent(policy), env, env.tasks("train", 48), n=2, limits=Limits(in_flight=48))
    assert all(e.ok for e in episodes)
    # had the engine waited for the tools, they would have waited for the engine until their deadline
    outcomes = [outcome for e in episodes for outcome in e.tags.get("tools", ())]
    assert "timeout" not in outcomes
    assert len(Clocked.waiting) > 50
    assert max(Clocked.waiting) > 10
    assert Clocked.nothing_to_do < 0.1 * len(Clocked.waiting)


def test_garbage_is_looked_for_rarely_while_rollouts_are_under_way() -> None:
    before = gc.get_threshold()
    seen = []

    def act(request: Any, rng: Any) -> Action:
        seen.append(gc.get_threshold())
        return Action(tool_calls=(ToolCall(name="block"),))

    env = EnvFactory(Both)
    rollout(Agent(ScriptedPolicy(act)), env, env.tasks("train", 1))
    assert {threshold[0] for threshold in seen} == {20 * before[0]}
    assert gc.get_threshold() == before
    outer, inner = rare_collections(), rare_collections()
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)  # rollouts that overlap end in any order
    assert gc.get_threshold() == (20 * before[0], *before[1:])
    inner.__exit__(None, None, None)
    assert gc.get_threshold() == before


@pytest.mark.exhaustive
@pytest.mark.slow
def test_512_episodes_with_slow_tools_keep_the_engine_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    from bench_latency import measure

    report = measure(argparse.Namespace(model="base", sessions=None, in_flight=512, episodes=1024), 0.2)
    assert report.evicted == 0
    # 82% on a quiet machine (results/bench_latency.json); counted so that what other programs take does not matter
    assert report.unshared > 0.75


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
