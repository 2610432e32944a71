"""Tools behind HTTP endpoints with tasks and a grader: `whet.envs.http:HTTP:url=http://localhost:9000,tasks=tasks.jsonl`.

How calls travel is told by `whet.tools.http`. State is kept apart by the header that names the attempt at an episode: tools,
the tool that sets a task up, and graders at a URL are all told the same.
"""

from __future__ import annotations

import asyncio
from typing import Any

from whet.envs.grading import Match
from whet.envs.served import Result, Rules, Served
from whet.errors import ConfigError
from whet.tools.function import Tool
from whet.tools.http import HttpTools
from whet.tools.schema import Style

_servers: dict[tuple[str, str, float], HttpTools] = {}


class HTTP(Served):
    """Tools behind HTTP endpoints, tasks from a file of JSON lines, reward by comparing answers, by a tool, URL or function.

    Options: `url` of the server; `tools`, where they are described (`URL/tools` if empty); `tasks`, the file; `grader`:
    `answer`, `tool:NAME`, `path.py:function` or a URL; `match` of answers: `exact`, `loose` or `number`; `setup`, a tool that
    is called first with the task's data; `answer_tool`, `only`, `hide`, `pure`, names of tools; `schema`: `plain`, `flat` or
    `strict`; `timeout`, seconds for a call with all its tries.
    """

    name = "http"

    def __init__(
        self,
        url: str = "",
        tasks: str = "",
        tools: str = "",
        grader: str = "answer",
        match: Match = "exact",
        setup: str = "",
        answer_tool: str = "answer",
        only: str = "",
        hide: str = "",
        pure: str = "",
        schema: Style = "plain",
        instructions: str = "",
        max_turns: int = 16,
        max_tokens: int = 64,
        timeout: float = 30.0,
    ) -> None:
        if not url or not tasks:
            raise ConfigError("http needs url and tasks, such as whet.envs.http:HTTP:url=http://localhost:9000,tasks=tasks.jsonl")
        self._http = _servers.setdefault((url, tools, timeout), HttpTools(url, description=tools or None, timeout=timeout))
        self._follow(
            Rules(
                tasks=tasks,
                grader=grader,
                match=match,
                setup=setup,
                answer_tool=answer_tool,
                only=only,
                hide=hide,
                pure=pure,
                schema=schema,
                instructions=instructions,
                max_turns=max_turns,
                max_tokens=max_tokens,
                timeout=timeout,
            )
        )

    def _list(self) -> tuple[tuple[Tool, ...], str]:
        return self._http.tools(), ""

    async def _open(self) -> None:
        await asyncio.to_thread(self._http.tools)

    async def _ask(self, name: str, arguments: dict[str, Any]) -> Result:
        given = await self._http.call(name, arguments, rollout=self.rollout_id)
        return Result(shown=given, value=given)

    def _where(self) -> str:
        return f"the tool server {self._http.url}"
