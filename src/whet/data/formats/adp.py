"""ADP, the Agent Data Protocol (neulab/agent-data-protocol, standardised schema 1.2.0).

A trajectory is a list of actions (`api_action`, `code_action`, `message_action`) and observations (`text_observation`,
`image_observation`, `web_observation`). Actions that follow one another become one turn with several calls where all but the
first say nothing. Code is a call of `code` with the language and the text. What else an episode holds stands in
`details.whet`. System prompts, for which there is no source, are text observations of the environment named `system`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from whet.data.formats.base import Format, Origin, RecordError, answered, call_ids, entry, expect, links, reasoning_of, said
from whet.types import Episode, Role, ToolCall, Turn

VERSION = "1.2.0"
_CODE = "code"
_ACTIONS = ("api_action", "code_action", "message_action")
_OBSERVATIONS = ("text_observation", "image_observation", "web_observation")
_FROM: dict[str, Role] = {"user": "user", "agent": "user", "environment": "tool"}


def _recognises(record: Any) -> bool:
    content = record.get("content") if isinstance(record, dict) else None
    return isinstance(content, list) and bool(content) and isinstance(content[0], dict) and "class_" in content[0]


def _read(record: Any, origin: Origin) -> tuple[Episode, ...]:
    name = entry(record, "id", str, "", "the trajectory's id")
    version = record.get("schema_version", VERSION)
    if not isinstance(version, str) or not version.startswith("1."):
        raise RecordError(f"schema_version is {version!r}; expected 1.x")
    content = entry(record, "content", list, "", "a list of actions and observations")
    if not content:
        raise RecordError("content is empty; expected at least one action or observation")
    reader = _Reader()
    for i, item in enumerate(content):
        reader.add(item, f"content[{i}]")
    tags = said(reasoning=reader.reasoning)
    reward = {"reward": sum(turn.reward for turn in reader.turns)} if any(turn.reward for turn in reader.turns) else {}
    return (origin.episode(answered(reader.turns), id=name, tags=tags, **reward),)


class _Reader:
    """Turns as they come up."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.reasoning: dict[int, str] = {}
        self._calling = False
        """Whether the last item was a call, which another one may join."""

    def add(self, item: Any, where: str) -> None:
        kind = entry(item, "class_", str, where, f"one of {', '.join((*_ACTIONS, *_OBSERVATIONS))}")
        if kind in _ACTIONS:
            self._act(kind, item, where)
        elif kind in _OBSERVATIONS:
            self._observe(kind, item, where)
        else:
            raise RecordError(f"{where}.class_ is {kind!r}; expected one of {', '.join((*_ACTIONS, *_OBSERVATIONS))}")

    def _act(self, kind: str, item: Mapping[str, Any], where: str) -> None:
        if kind == "message_action":
            self._say(entry(item, "content", str, where, "a string"), (), item, where)
            self._calling = False
            return
        call_id = item.get("tool_call_id")
        call_id = "" if call_id is None else expect(call_id, str, f"{where}.tool_call_id", "a string, or null")
        if kind == "api_action":
            name = entry(item, "function", str, where, "the function's name")
            call = ToolCall(name=name, arguments=entry(item, "kwargs", dict, where, "an object"), id=call_id)
        else:
            text = {key: entry(item, key, str, where, "a string") for key in ("language", "content")}
            call = ToolCall(name=_CODE, arguments=text, id=call_id)
        words = item.get("description")
        words = "" if words is None else expect(words, str, f"{where}.description", "a string, or null")
        if self._calling and not words and item.get("reasoning_content") is None:
            before = self.turns.pop()
            reward = before.reward + _number(item.get("reward"), f"{where}.reward")
            self.turns.append(replace(before, tool_calls=(*before.tool_calls, call), reward=reward))
        else:
            self._say(words, (call,), item, where)
        self._calling = True

    def _say(self, words: str, calls: tuple[ToolCall, ...], item: Mapping[str, Any], where: str) -> None:
        thought = item.get("reasoning_content")
        if thought is not None:
            self.reasoning[len(self.turns)] = expect(thought, str, f"{where}.reasoning_content", "a string, or null")
        reward = _number(item.get("reward"), f"{where}.reward")
        self.turns.append(Turn(role="assistant", content=words, tool_calls=calls, finish="stop", reward=reward))

    def _observe(self, kind: str, item: Mapping[str, Any], where: str) -> None:
        self._calling = False
        call_id = item.get("tool_call_id")
        if call_id is not None:
            expect(call_id, str, f"{where}.tool_call_id", "a string, or null")
        role: Role = "tool"
        if kind == "web_observation":
            content = next((item[key] for key in ("axtree", "html", "url") if isinstance(item.get(key), str)), "")
        else:
            content = entry(item, "content", str, where, "a string")
            source = entry(item, "source", str, where, f"one of {', '.join(_FROM)}")
            if source not in _FROM:
                raise RecordError(f"{where}.source is {source!r}; expected one of {', '.join(_FROM)}")
            role = _FROM[source]
            content = content if kind == "text_observation" else f"[image: {content}]"
            if source == "environment" and item.get("name") == "system" and call_id is None:
                role = "system"
        self.turns.append(Turn(role=role, content=content, call_id=call_id if role == "tool" else None))
        self._reward(_number(item.get("reward"), f"{where}.reward"))

    def _reward(self, reward: float) -> None:
        """What came with an observation was paid for the action before it."""
        at = next((i for i in range(len(self.turns) - 1, -1, -1) if self.turns[i].role == "assistant"), None)
        if reward and at is not None:
            self.turns[at] = replace(self.turns[at], reward=self.turns[at].reward + reward)


def _number(value: Any, where: str) -> float:
    return 0.0 if value is None else float(expect(value, (int, float), where, "a number, or null"))


def _write(episodes: Sequence[Episode]) -> dict[str, Any]:
    (episode,) = episodes
    turns, reasoning = episode.turns, reasoning_of(episode)
    answers = _answers(turns)
    ids = {place: name for place, name in call_ids(turns, across=True).items() if place in answers.values()}
    content: list[dict[str, Any]] = []
    for i, turn in enumerate(turns):
        if turn.role == "assistant":
            content += _actions(turn, i, ids, reasoning.get(i))
        else:
            item = {"class_": "text_observation", "content": turn.content, "source": "user" if turn.role == "user" else "environment"}
            item |= {"name": "system"} if turn.role == "system" else {}
            content.append(item | ({"tool_call_id": ids[answers[i]]} if i in answers else {}))
    languages = sorted({item["language"] for item in content if item["class_"] == "code_action"})
    record = {"schema_version": VERSION, "id": episode.id, "content": content}
    return record | ({"available_code_languages": languages} if languages else {})


def _answers(turns: Sequence[Turn]) -> dict[int, tuple[int, int]]:
    """The calls that observations answer. What follows the last call of a turn must be its result, says the schema."""
    answers = links(turns)
    for i, turn in enumerate(turns[:-1]):
        last = (i, len(turn.tool_calls) - 1)
        if turn.trained and turn.tool_calls and turns[i + 1].role != "assistant" and last not in answers.values():
            answers[i + 1] = last
    return answers


def _actions(turn: Turn, index: int, ids: Mapping[tuple[int, int], str], thought: str | None) -> list[dict[str, Any]]:
    actions: list[dict[str, Any]] = []
    for n, call in enumerate(turn.tool_calls):
        if (
            call.name == _CODE
            and set(call.arguments) == {"language", "content"}
            and all(isinstance(v, str) for v in call.arguments.values())
        ):
            action = {"class_": "code_action", **call.arguments, "description": None}
        else:
            action = {"class_": "api_action", "function": call.name, "kwargs": dict(call.arguments)}
        actions.append(action | ({"tool_call_id": ids[index, n]} if (index, n) in ids else {}))
    if not actions:
        actions = [{"class_": "message_action", "content": turn.content}]
    elif turn.content:
        actions[0]["description"] = turn.content
    if thought is not None:
        actions[0]["reasoning_content"] = thought
    if turn.reward:
        actions[0]["reward"] = turn.reward
    return actions


FORMAT = Format(
    name="adp",
    title="ADP, the Agent Data Protocol, schema 1.2.0",
    recognises=_recognises,
    read=_read,
    write=_write,
    extension=("details", "whet"),
    forks=True,
)
