"""Where an episode comes from, read from its record: who acted, with what, how it ended, where it was found."""

from __future__ import annotations

from typing import Literal

from whet.tools.function import Tool
from whet.types import Episode

DIMENSIONS = ("source", "env", "actor", "outcome")
"""By which a mixture of episodes is counted."""


def outcome_of(episode: Episode) -> Literal["success", "failure", "unknown", "error"]:
    """How it ended. It is `unknown` of imported episodes whose records do not say; then success and reward mean nothing."""
    if not episode.ok:
        return "error"
    if episode.tags.get("outcome") == "unknown":
        return "unknown"
    return "success" if episode.success else "failure"


def dimension(episode: Episode, name: str) -> str:
    """Its source (file or run), env, actor, outcome, split or policy."""
    if name == "outcome":
        return outcome_of(episode)
    if name in ("env", "split"):
        return str(getattr(episode.task, name)) or "(none)"
    if name == "policy":
        return episode.policy or "(none)"
    return str(episode.tags.get(name) or ("self" if name == "actor" else "(none)"))


def facts(episode: Episode) -> dict[str, str]:
    """All that is known of where an episode comes from and what it took, as text, in the order in which it is shown."""
    tags, cost, task = episode.tags, episode.cost, episode.task
    found = {
        "task": f"{task.id} ({', '.join(filter(None, (task.env, task.split)))})",
        "source": dimension(episode, "source") + (f", record {tags['record']}" if "record" in tags else ""),
        "actor": dimension(episode, "actor"),
        "policy": episode.policy,
        "temperature": str(tags.get("temperature", "")),
        "prompt": str(tags.get("prompt", "")),
        "tools": ", ".join(tool.name for tool in tools_of(episode)),
        "outcome": f"{outcome_of(episode)}, reward {episode.reward:g}, {episode.stop.value} ({episode.reason})",
        "cost": ", ".join(f"{value:,.6g} {name.replace('_', ' ')}" for name in cost.__slots__ if (value := getattr(cost, name))),
    }
    if "fork" in tags:
        found["fork"] = f"of {tags['fork'].get('episode')}, after {tags['fork'].get('actions')} actions"
    return {key: value for key, value in found.items() if value}


def tools_of(episode: Episode) -> tuple[Tool, ...]:
    """The tools that the episode's prompt showed, as far as their schemas were recorded; what `to_examples` takes."""
    found = []
    for schema in episode.tags.get("schemas") or ():
        function = schema.get("function", schema) if isinstance(schema, dict) else {}
        if isinstance(function.get("name"), str):
            parameters = function.get("parameters") or {"type": "object", "properties": {}}
            described = str(function.get("description") or "")
            found.append(Tool(name=function["name"], description=described, parameters=parameters, strict=bool(function.get("strict"))))
    return tuple(found)
