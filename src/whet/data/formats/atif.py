"""ATIF, the Agent Trajectory Interchange Format of Harbor, version 1.8 (earlier 1.x are read, too).

A trajectory is a list of steps by the system, the user or the agent; what a call gave stands in the agent's step. Sampled
tokens and log-probs are `metrics.completion_token_ids` and `metrics.logprobs`. `prompt_token_ids`, which repeat the whole
conversation in each step, are not written: whet keeps the tokens that each turn adds, in `extra.whet`, with whatever else an
episode holds. Embedded trajectories of sub-agents stay in the record of the one they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from whet.data.formats.base import (
    Format,
    Origin,
    RecordError,
    answered,
    call_ids,
    entry,
    expect,
    links,
    reasoning_of,
    said,
    schemas_of,
)
from whet.data.formats.messages import text_of
from whet.types import Cost, Episode, Role, ToolCall, Turn

VERSION = "ATIF-v1.8"
_READ = tuple(f"ATIF-v1.{minor}" for minor in range(9))
_ROLES: dict[str, Role] = {"system": "system", "user": "user", "agent": "assistant"}


def _recognises(record: Any) -> bool:
    return isinstance(record, dict) and isinstance(record.get("steps"), list) and str(record.get("schema_version", "")).startswith("ATIF")


def _read(record: Any, origin: Origin) -> tuple[Episode, ...]:
    version = entry(record, "schema_version", str, "", f"'{VERSION}'")
    if version not in _READ:
        raise RecordError(f"schema_version is {version!r}; expected one of {', '.join(_READ)}")
    agent = entry(record, "agent", dict, "", "an object with the agent's name and version")
    steps = entry(record, "steps", list, "", "a list of steps")
    if not steps:
        raise RecordError("steps is empty; expected at least one step")
    turns: list[Turn] = []
    reasoning: dict[int, str] = {}
    for i, step in enumerate(steps):
        thought = expect(step, dict, f"steps[{i}]", "an object").get("reasoning_content")
        if thought is not None:
            reasoning[len(turns)] = expect(thought, str, f"steps[{i}].reasoning_content", "a string, or null")
        turns += _turns(step, f"steps[{i}]")
    schemas = agent.get("tool_definitions")
    schemas = [] if schemas is None else expect(schemas, list, "agent.tool_definitions", "a list of tools, or null")
    name = next((record[key] for key in ("trajectory_id", "session_id") if isinstance(record.get(key), str)), "")
    who = entry(agent, "name", str, "agent", "the agent's name")
    tags = {"actor": who} | said(schemas, reasoning)
    return (origin.episode(answered(turns), id=name, tags=tags, policy=agent.get("model_name") or "", cost=_total(record)),)


def _total(record: Mapping[str, Any]) -> Cost:
    found = record.get("final_metrics")
    found = {} if found is None else expect(found, dict, "final_metrics", "an object, or null")
    return _cost(found, ("total_prompt_tokens", "total_cached_tokens", "total_completion_tokens", "total_cost_usd"), "final_metrics")


def _cost(metrics: Mapping[str, Any], keys: Sequence[str], where: str) -> Cost:
    prompt, cached, completion, money = (
        0 if metrics.get(key) is None else expect(metrics[key], (int, float), f"{where}.{key}", "a number, or null") for key in keys
    )
    return Cost(prompt_tokens=int(prompt - cached), sampled_tokens=int(completion), money=float(money))


def _turns(step: Mapping[str, Any], where: str) -> list[Turn]:
    source = entry(step, "source", str, where, f"one of {', '.join(_ROLES)}")
    if source not in _ROLES:
        raise RecordError(f"{where}.source is {source!r}; expected one of {', '.join(_ROLES)}")
    content = text_of(entry(step, "message", (str, list), where, "a string or a list of parts"), f"{where}.message")
    turn = Turn(role=_ROLES[source], content=content)
    if source == "agent":
        turn = replace(turn, tool_calls=_calls(step.get("tool_calls"), where), finish="stop", **_metrics(step.get("metrics"), where))
    turns = [turn]
    observation = step.get("observation")
    if observation is None:
        return turns
    for i, result in enumerate(entry(observation, "results", list, f"{where}.observation", "a list of results")):
        at = f"{where}.observation.results[{i}]"
        call_id = expect(result, dict, at, "an object").get("source_call_id")
        if call_id is not None:
            expect(call_id, str, f"{at}.source_call_id", "a string, or null")
        turns.append(Turn(role="tool", content=text_of(result.get("content"), f"{at}.content"), call_id=call_id))
    return turns


def _calls(calls: Any, where: str) -> tuple[ToolCall, ...]:
    found = []
    for i, call in enumerate([] if calls is None else expect(calls, list, f"{where}.tool_calls", "a list of calls, or null")):
        at = f"{where}.tool_calls[{i}]"
        name = entry(call, "function_name", str, at, "the function's name")
        arguments = entry(call, "arguments", dict, at, "an object")
        found.append(ToolCall(name=name, arguments=arguments, id=entry(call, "tool_call_id", str, at, "the call's id")))
    return tuple(found)


def _metrics(metrics: Any, where: str) -> dict[str, Any]:
    """Tokens, log-probs and cost of an agent's step."""
    if metrics is None:
        return {}
    where = f"{where}.metrics"
    expect(metrics, dict, where, "an object, or null")
    tokens = metrics.get("completion_token_ids") or []
    logprobs = metrics.get("logprobs") or []
    if not all(isinstance(t, int) for t in expect(tokens, list, f"{where}.completion_token_ids", "a list of integers, or null")):
        raise RecordError(f"{where}.completion_token_ids holds something that is no integer")
    if not all(isinstance(p, (int, float)) for p in expect(logprobs, list, f"{where}.logprobs", "a list of numbers, or null")):
        raise RecordError(f"{where}.logprobs holds something that is no number")
    if tokens and logprobs and len(tokens) != len(logprobs):
        raise RecordError(f"{where} has {len(tokens)} completion_token_ids and {len(logprobs)} logprobs; expected one for each")
    cost = _cost(metrics, ("prompt_tokens", "cached_tokens", "completion_tokens", "cost_usd"), where)
    return {"tokens": tuple(tokens), "logprobs": tuple(map(float, logprobs)) if tokens else (), "cost": cost}


def _write(episodes: Sequence[Episode]) -> dict[str, Any]:
    (episode,) = episodes
    if not episode.turns:
        raise RecordError("they have no turns, and ATIF wants at least one step")
    turns, reasoning = episode.turns, reasoning_of(episode)
    ids, answers = call_ids(turns, across=False), links(turns)
    steps: list[dict[str, Any]] = []
    of_turn: dict[int, dict[str, Any]] = {}
    for i, turn in enumerate(turns):
        if turn.role != "tool":
            of_turn[i] = _step(turn, i, len(steps) + 1, ids, reasoning.get(i))
            steps.append(of_turn[i])
            continue
        if not steps:
            steps.append({"step_id": 1, "source": "system", "message": ""})
        result = {"source_call_id": ids[answers[i]]} if i in answers else {}
        step = of_turn[answers[i][0]] if i in answers else steps[-1]  # a result stands with its call, even if others spoke first
        step.setdefault("observation", {"results": []})["results"].append(result | {"content": turn.content})
    agent: dict[str, Any] = {"name": str(episode.tags.get("actor", "agent")), "version": episode.policy or "unknown"}
    agent |= {"model_name": episode.policy} if episode.policy else {}
    agent |= {"tool_definitions": schemas} if (schemas := schemas_of(episode)) else {}
    record = {"schema_version": VERSION, "trajectory_id": episode.id, "agent": agent, "steps": steps}
    cost = {"total_completion_tokens": episode.cost.sampled_tokens, "total_cost_usd": episode.cost.money}
    return record | {"final_metrics": {key: value for key, value in cost.items() if value} | {"total_steps": len(steps)}}


def _step(turn: Turn, index: int, number: int, ids: Mapping[tuple[int, int], str], thought: str | None) -> dict[str, Any]:
    source = "agent" if turn.role == "assistant" else turn.role
    step: dict[str, Any] = {"step_id": number, "source": source, "message": turn.content}
    if source != "agent":
        return step
    if thought is not None:
        step["reasoning_content"] = thought
    if turn.tool_calls:
        step["tool_calls"] = [
            {"tool_call_id": ids[index, n], "function_name": call.name, "arguments": dict(call.arguments)}
            for n, call in enumerate(turn.tool_calls)
        ]
    metrics: dict[str, Any] = {"completion_tokens": turn.cost.sampled_tokens, "cost_usd": turn.cost.money}
    metrics |= {"completion_token_ids": list(turn.tokens), "logprobs": list(turn.logprobs)}
    metrics = {key: value for key, value in metrics.items() if value}
    return step | ({"metrics": metrics} if metrics else {})


FORMAT = Format(
    name="atif",
    title="ATIF 1.8, Harbor's Agent Trajectory Interchange Format",
    recognises=_recognises,
    read=_read,
    write=_write,
    extension=("extra", "whet"),
    forks=True,
)
