"""Any environment as an MCP server, so that any MCP client can play it: reset, act, read the reward.

    python -m whet.envs.mcp_server --env search:hops=1-3                    # over stdio
    python -m whet.envs.mcp_server --env babyai --http 127.0.0.1:8000       # at http://127.0.0.1:8000/mcp

Beside the environment's own tools (or `act`, where it takes text) there are `reset`, which begins an episode and names it,
`status`, which says what it has earned, and `close`. Each result holds the observation as text and, structured,
`episode`, `reward` (of this call; of `status`, all of it), `total`, `terminated`, `truncated` and `success`. A tool takes
the episode's name as another argument; it may be left out while only one is open. MCP connections no longer have a state
that an episode could be tied to, so the name is what keeps several clients apart. Test tasks are served only where `splits`
says so.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import itertools
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from whet.envs.base import Action, Env, EnvFactory, Step
from whet.envs.calling import Situation, caller_of
from whet.errors import ConfigError, EnvError, WhetError, did_you_mean, missing_extra
from whet.types import SPLITS, Split, Task, ToolCall, Turn

if TYPE_CHECKING:
    from mcp.server import Server

OPEN_EPISODES = 64
"""Episodes that may be open at once, and how many that are over can still be asked about."""
EPISODE = "episode"
_OBSERVED = {
    "type": "object",
    "properties": {
        "episode": {"type": "string"},
        "observation": {"type": "string"},
        "reward": {"type": "number", "description": "Of this call; of status, the total."},
        "total": {"type": "number", "description": "Of the episode so far."},
        "terminated": {"type": "boolean"},
        "truncated": {"type": "boolean"},
        "success": {"type": "boolean"},
    },
    "required": ["episode", "observation", "reward", "total", "terminated", "truncated", "success"],
}


class Mistake(Exception):
    """What a client did wrong, in words for it."""


@dataclass
class Played:
    """An episode under way, or over."""

    id: str
    env: Env
    turns: int = 0
    total: float = 0.0
    terminated: bool = False
    truncated: bool = False
    success: bool = False
    busy: bool = False

    @property
    def over(self) -> bool:
        return self.terminated or self.truncated

    def record(self, observation: str, reward: float = 0.0) -> dict[str, Any]:
        return {
            "episode": self.id,
            "observation": observation,
            "reward": reward,
            "total": self.total,
            "terminated": self.terminated,
            "truncated": self.truncated,
            "success": self.success,
        }


class Episodes:
    """The episodes of one environment that clients play, with the tools that they see."""

    def __init__(self, env: EnvFactory, splits: Sequence[Split] = ("train", "dev"), prefix: str = "") -> None:
        """Raises ConfigError for an unknown split, and where the environment has a tool called as one of ours."""
        for split in splits:
            if split not in SPLITS:
                raise ConfigError(f"unknown split {split!r}. {did_you_mean(split, SPLITS)}")
        self._env, self._splits = env, tuple(splits)
        self._own = {f"{prefix}{name}": name for name in ("reset", "status", "close")}
        self._tools = env.tools
        for tool in self._tools:
            if tool.name in self._own:
                raise ConfigError(f"environment {env.name!r} has a tool {tool.name!r} of its own; give ours a prefix, such as 'whet_'")
            if EPISODE in tool.parameters.get("properties", {}):
                raise ConfigError(f"tool {tool.name!r} of {env.name!r} has an argument {EPISODE!r}, by which episodes are told apart here")
        self._played: dict[str, Played] = {}
        self._numbers = itertools.count(1)

    def listed(self) -> list[dict[str, Any]]:
        """Name, description and schema of each tool."""
        name_of = {ours: shown for shown, ours in self._own.items()}
        task = {
            "split": {"type": "string", "enum": list(self._splits), "default": self._splits[0]},
            "index": {"type": "integer", "minimum": 0, "default": 0, "description": "Which task of the split."},
        }
        found = [
            {"name": name_of["reset"], "description": "Begin an episode.", "parameters": {"type": "object", "properties": task}},
            {"name": name_of["status"], "description": "What an episode has earned so far.", "parameters": _with_episode({})},
            {"name": name_of["close"], "description": "Give an episode up.", "parameters": _with_episode({})},
        ]
        for tool in self._tools:
            found.append({"name": tool.name, "description": tool.description, "parameters": _with_episode(tool.parameters)})
        if not self._tools:
            act = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
            found.append({"name": "act", "description": "Do one thing, in words.", "parameters": _with_episode(act)})
        return found

    async def call(self, name: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """What a tool call led to, and whether it failed in the environment. Raises Mistake for a call that cannot be made."""
        ours = self._own.get(name)
        if ours == "reset":
            return await self._reset(arguments), False
        played = self._find(arguments.pop(EPISODE, None))
        if ours == "status":
            return played.record("", played.total), False
        if ours == "close":
            self._played.pop(played.id)
            await _settled(played.env.close)
            return played.record("closed"), False
        known = [tool.name for tool in self._tools] or ["act"]
        if name not in known:
            raise Mistake(f"unknown tool {name!r}. {did_you_mean(name, [*known, *self._own])}")
        if not self._tools and not isinstance(arguments.get("text"), str):
            raise Mistake(f"act needs a text, not {arguments.get('text')!r}")
        action = Action(tool_calls=(ToolCall(name=name, arguments=arguments, id="call_0"),)) if self._tools else Action(**arguments)
        return await self._step(played, action)

    async def _reset(self, arguments: dict[str, Any]) -> dict[str, Any]:
        split, index = arguments.get("split", self._splits[0]), arguments.get("index", 0)
        if split not in self._splits:
            raise Mistake(f"split {split!r} is not served. {did_you_mean(str(split), self._splits)}")
        if type(index) is not int or index < 0:
            raise Mistake(f"index is {index!r}; expected a whole number of at least 0")
        tasks = self._env.tasks(split, 1, index)
        if not tasks:
            raise Mistake(f"split {split!r} has no task {index}")
        for id in [id for id, played in self._played.items() if played.over][:-OPEN_EPISODES]:
            del self._played[id]
        if sum(not played.over for played in self._played.values()) >= OPEN_EPISODES:
            raise Mistake(f"{OPEN_EPISODES} episodes are open; finish or close one first")
        return await self._begin(tasks[0])

    async def _begin(self, task: Task) -> dict[str, Any]:
        factory = self._env.of(task)
        id = f"e{next(self._numbers)}"
        env = factory()
        caller_of(env).situation = Situation(task=task, episode=id, rollout=id, factory=factory)
        try:
            async with asyncio.timeout(env.reset_timeout):
                observation = await _settled(partial(env.reset, task))
        except BaseException:
            await _settled(env.close)
            raise
        self._played[id] = played = Played(id, env)
        return played.record(_told(observation)) | {"task": task.id, "instructions": env.instructions}

    async def _step(self, played: Played, action: Action) -> tuple[dict[str, Any], bool]:
        if played.over:
            raise Mistake(f"episode {played.id!r} is over (success {played.success}, total {played.total:g}); reset begins another one")
        if played.busy:
            raise Mistake(f"episode {played.id!r} is in the middle of another call")
        env, outcomes = played.env, caller_of(played.env).outcomes
        good = outcomes["ok"]
        played.busy = True
        try:
            async with asyncio.timeout(env.step_timeout + env.tool_timeout):
                step = await _settled(partial(env.step, action))
        except BaseException:  # nobody knows in what state it is
            played.truncated = True
            await _settled(env.close)
            raise
        finally:
            played.busy = False
        if not isinstance(step, Step):
            raise EnvError(f"step of {env.name!r} returned {type(step).__name__}; expected a whet.envs.Step")
        played.turns += 1
        played.total += step.reward
        played.terminated, played.success = step.terminated, step.success
        played.truncated = step.truncated or (not step.terminated and played.turns >= env.max_turns)
        if played.over:
            await _settled(env.close)
        return played.record(_told(step.observation), step.reward), bool(action.tool_calls) and outcomes["ok"] == good and bool(outcomes)

    def _find(self, id: Any) -> Played:
        """The episode that a call is about; the only one that is open, where none is named."""
        if id is not None:
            if id not in self._played:
                raise Mistake(f"there is no episode {id!r}; open: {', '.join(k for k, p in self._played.items() if not p.over) or 'none'}")
            return self._played[id]
        open_ones = [played for played in self._played.values() if not played.over] or list(self._played.values())[-1:]
        if len(open_ones) != 1:
            raise Mistake("no episode has begun; call reset" if not open_ones else f"{len(open_ones)} episodes are open; name one")
        return open_ones[0]


def _with_episode(parameters: Any) -> dict[str, Any]:
    said = {"type": "string", "description": "Which episode, as reset named it; may be left out if only one is open."}
    properties = {**parameters.get("properties", {}), EPISODE: said}
    return {"type": "object", **parameters, "properties": properties}


def _told(observation: str | tuple[Turn, ...]) -> str:
    return observation if isinstance(observation, str) else "\n".join(turn.content for turn in observation)


async def _settled(function: Any) -> Any:
    """What a plain function or a coroutine function comes to; a plain one runs on a thread."""
    result = await asyncio.to_thread(function)
    return await result if inspect.isawaitable(result) else result


def env_server(env: EnvFactory, *, splits: Sequence[Split] = ("train", "dev"), prefix: str = "") -> Server[Any]:
    """The MCP server of an environment (low-level, of the package `mcp`): run it over any transport.

    Raises ConfigError as `Episodes`, MissingExtra without the package.
    """
    try:
        import mcp_types as types
        from mcp.server import Server
    except ImportError as error:
        raise missing_extra("mcp", "mcp", "an environment as an MCP server") from error

    episodes = Episodes(env, splits, prefix)
    listed = [
        types.Tool(name=t["name"], description=t["description"], input_schema=t["parameters"], output_schema=_OBSERVED)
        for t in episodes.listed()
    ]

    def failed(text: str) -> types.CallToolResult:
        return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=True)

    async def list_tools(context: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=listed)

    async def call_tool(context: Any, params: Any) -> types.CallToolResult:
        try:
            record, bad = await episodes.call(params.name, dict(params.arguments or {}))
        except Mistake as error:
            return failed(str(error))
        except Exception as error:  # the client must learn why, and the package would hide it
            logging.getLogger("whet.mcp_server").warning("%s failed: %s: %s", params.name, type(error).__name__, error)
            return failed(f"the environment failed, and the episode is over: {type(error).__name__}: {error}")
        text = types.TextContent(type="text", text=record["observation"] or json.dumps(record))
        return types.CallToolResult(content=[text], structured_content=record, is_error=bad)

    instructions = env.cls.instructions if isinstance(env.cls.instructions, str) else ""
    return Server(
        env.name,
        instructions=f"{instructions}\nBegin with {prefix}reset.".strip(),
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Serve an environment over stdio, or over HTTP at /mcp."""
    from whet.envs.registry import load_env

    parser = argparse.ArgumentParser("python -m whet.envs.mcp_server", description="Serve an environment as an MCP server.")
    parser.add_argument("--env", required=True, help="what `whet envs` lists, or path/to/file.py:ClassName")
    parser.add_argument("--splits", default="train,dev", help="splits whose tasks may be played (default: train,dev)")
    parser.add_argument("--prefix", default="", help="put before reset, status and close, such as whet_")
    parser.add_argument("--http", default="", metavar="HOST:PORT", help="serve over HTTP instead of stdio")
    args = parser.parse_args(argv)
    try:
        splits: Any = tuple(args.splits.split(","))
        server = env_server(load_env(args.env), splits=splits, prefix=args.prefix)
        host, _, port = args.http.rpartition(":")
        if args.http and not port.isdigit():
            raise ConfigError(f"--http is {args.http!r}; expected HOST:PORT, such as 127.0.0.1:8000")
    except WhetError as error:
        sys.exit(f"error: {error}")
    if not args.http:
        asyncio.run(_over_stdio(server))
        return
    import uvicorn

    uvicorn.run(server.streamable_http_app(host=host or "127.0.0.1"), host=host or "127.0.0.1", port=int(port), log_level="warning")


async def _over_stdio(server: Server[Any]) -> None:
    from mcp.server.stdio import stdio_server

    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


if __name__ == "__main__":
    main()
