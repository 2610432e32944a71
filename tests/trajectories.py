"""Strategies for episodes and for records of each format, odd ones included."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from whet.types import Cost, Episode, Stop, Task, ToolCall, Turn

text = st.text(max_size=12)
words = st.text(alphabet='ab <>\n{}"\\é', max_size=12)
names = st.text(alphabet="abcdefgh_", min_size=1, max_size=8)
numbers = st.floats(allow_nan=False)
scalars = st.none() | st.booleans() | st.integers(-9, 9) | numbers | text
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2), max_leaves=4)
objects = st.dictionaries(names, values, max_size=3)
schemas = st.builds(
    lambda name, about: {"type": "function", "function": {"name": name, "description": about, "parameters": {}}}, names, text
)


# -- episodes ------------------------------------------------------------------------------------------------------------

costs = st.builds(Cost, episodes=st.integers(0, 3), prompt_tokens=st.integers(0, 9), sampled_tokens=st.integers(0, 9), money=numbers)
calls = st.builds(ToolCall, name=names | text, arguments=objects, id=st.sampled_from(["", "call_0", "call_1", "x"]), error=st.none() | text)


@st.composite
def turns(draw: st.DrawFn, least: int = 0, forks: bool = True) -> tuple[Turn, ...]:
    made: list[Turn] = []
    for i in range(draw(st.integers(least, 5))):
        n = draw(st.integers(0, 3))
        logprobs = draw(st.booleans())
        before = i - 1 if i else None
        parent = draw(st.just(before) | st.none() | st.integers(0, i - 1)) if forks and i else before
        made.append(
            Turn(
                role=draw(st.sampled_from(["system", "user", "assistant", "tool"])),
                content=draw(words),
                tool_calls=tuple(draw(st.lists(calls, max_size=2))),
                name=draw(st.none() | names),
                call_id=draw(st.none() | st.sampled_from(["call_0", "call_1", "x"])),
                tokens=tuple(draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))),
                logprobs=tuple(draw(st.lists(numbers, min_size=n, max_size=n))) if logprobs else (),
                versions=(("v1", n),) if n else (),
                temperature=draw(numbers),
                finish=draw(st.sampled_from(["stop", "length", "none"])),
                reward=draw(numbers),
                parent=parent,
                cost=draw(costs),
            )
        )
    return tuple(made)


def episodes(least: int = 0, forks: bool = True) -> st.SearchStrategy[Episode]:
    """Any episode: nothing in it need make sense, but parents come before their children."""
    tags = st.fixed_dictionaries(
        {},
        optional={
            "actor": names,
            "temperature": numbers,
            "schemas": st.lists(schemas, max_size=2),
            "reasoning": st.dictionaries(st.sampled_from("012"), text, max_size=2),
            "source": names,
            "info": objects,
        },
    )
    return st.builds(
        Episode,
        id=text,
        task=st.builds(Task, id=text, env=text, split=st.sampled_from(["train", "dev", "test"]), seed=st.integers(0, 2**63), data=objects),
        turns=turns(least, forks),
        stop=st.sampled_from(Stop),
        reason=text,
        reward=numbers,
        success=st.booleans(),
        error=st.none() | text,
        policy=text,
        seed=st.integers(0, 2**63),
        cost=costs,
        tags=tags,
    )


# -- records -------------------------------------------------------------------------------------------------------------

extra = st.dictionaries(st.sampled_from(["score", "note", "meta"]), values, max_size=2)
parts = st.lists(
    st.builds(lambda t: {"type": "text", "text": t}, words) | st.just({"type": "image_url", "image_url": {"url": "http://x/y.png"}}),
    max_size=2,
)


def _with(record: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return record | {key: value for key, value in optional.items() if value is not None}


def written(arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    function = st.builds(lambda name, given, more: {"name": name, "arguments": given, **more}, names, arguments, extra)
    return st.builds(lambda i, f: {"id": i, "type": "function", "function": f}, st.sampled_from(["call_0", "a", "b"]), function)


argument_text = objects.map(json.dumps) | objects.map(lambda o: json.dumps(o, indent=1)) | words


def messages(arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    content = words | parts | st.none()
    asked = st.builds(lambda r, c, m: {"role": r, "content": c, **m}, st.sampled_from(["system", "developer", "user"]), content, extra)
    said = st.builds(
        lambda c, calls, thought, more: _with({"role": "assistant", "content": c, **more}, tool_calls=calls, reasoning_content=thought),
        content,
        st.none() | st.lists(written(arguments), max_size=2),
        st.none() | words,
        extra,
    )
    silent = st.builds(lambda calls: {"role": "assistant", "tool_calls": calls}, st.lists(written(arguments), min_size=1, max_size=2))
    got = st.builds(
        lambda c, i, n: _with({"role": "tool", "content": c}, tool_call_id=i, name=n),
        content,
        st.none() | st.sampled_from(["call_0", "a", "b"]),
        st.none() | names,
    )
    older = st.builds(lambda n, a: {"role": "assistant", "content": None, "function_call": {"name": n, "arguments": a}}, names, arguments)
    return asked | said | silent | got | older


def openai() -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda m, tools, parallel, more: _with({"messages": m, **more}, tools=tools, parallel_tool_calls=parallel),
        st.lists(messages(argument_text), min_size=1, max_size=5),
        st.none() | st.lists(schemas, max_size=2),
        st.none() | st.booleans(),
        extra,
    )


def _columns(record: dict[str, Any], tools: Any, more: Any) -> dict[str, Any]:
    return _with({**record, **more}, tools=tools)


_tools = st.none() | st.lists(schemas, max_size=2) | st.lists(schemas, max_size=2).map(json.dumps)
_conversation = st.lists(messages(objects), min_size=1, max_size=3)


def trl() -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(lambda m, tools, more: _columns({"messages": m}, tools, more), _conversation, _tools, extra)


def trl_completion() -> st.SearchStrategy[dict[str, Any]]:
    label = st.none() | st.booleans()
    record = st.builds(lambda p, c, y: _with({"prompt": p, "completion": c}, label=y), _prompts, _answers, label)
    return st.builds(_columns, record, _tools, extra)


def trl_preference() -> st.SearchStrategy[dict[str, Any]]:
    record = st.builds(lambda p, a, b: {"prompt": p, "chosen": a, "rejected": b}, _prompts, _answers, _answers)
    return st.builds(_columns, record, _tools, extra)


_user = st.builds(lambda c: {"role": "user", "content": c}, words)
_assistant = st.builds(lambda c: {"role": "assistant", "content": c}, words)
_prompts = words | st.lists(_user, min_size=1, max_size=2)
_answers = words | st.builds(lambda first, rest: [first, *rest], _assistant, st.lists(messages(objects), max_size=2))


def sharegpt() -> st.SearchStrategy[dict[str, Any]]:
    call = st.builds(lambda n, a: {"name": n, "arguments": a}, names, objects)
    value = words | call.map(lambda c: f"look <tool_call>{json.dumps(c)}</tool_call>")
    speakers = ["human", "user", "gpt", "assistant", "system", "observation", "tool"]
    turn = st.builds(lambda who, v, more: {"from": who, "value": v, **more}, st.sampled_from(speakers), value, extra)
    calling = st.builds(
        lambda v: {"from": "function_call", "value": v},
        call.map(json.dumps) | st.lists(call, max_size=2).map(json.dumps) | words.filter(lambda w: "{" not in w and "[" not in w),
    )
    tools = st.none() | st.lists(schemas.map(lambda s: s["function"]) | schemas, max_size=2).map(json.dumps)
    return st.builds(
        lambda turns, system, tools, name, more: _with({"conversations": turns, **more}, system=system, tools=tools, id=name),
        st.lists(turn | calling, min_size=1, max_size=5),
        st.none() | words,
        tools,
        st.none() | names,
        extra,
    )


def adp() -> st.SearchStrategy[dict[str, Any]]:
    about = st.none() | words
    link = st.none() | st.sampled_from(["c1", "c2"])
    reward = st.none() | st.integers(0, 3) | numbers
    api = st.builds(
        lambda f, k, d, t, r, p: _with(
            {"class_": "api_action", "function": f, "kwargs": k, "description": d}, tool_call_id=t, reasoning_content=r, reward=p
        ),
        names,
        objects,
        about,
        link,
        about,
        reward,
    )
    code = st.builds(
        lambda c, d, t: _with({"class_": "code_action", "language": "python", "content": c, "description": d}, tool_call_id=t),
        words,
        about,
        link,
    )
    message = st.builds(lambda c, d, p: _with({"class_": "message_action", "content": c}, description=d, reward=p), words, about, reward)
    seen = st.builds(
        lambda c, s, n, t, p: _with({"class_": "text_observation", "content": c, "source": s}, name=n, tool_call_id=t, reward=p),
        words,
        st.sampled_from(["user", "agent", "environment"]),
        st.none() | st.just("system") | names,
        link,
        reward,
    )
    image = st.just({"class_": "image_observation", "content": "a.png", "source": "environment", "annotations": None})
    web = st.builds(
        lambda h, a: {"class_": "web_observation", "html": h, "axtree": a, "url": "u", "image_observation": None, "viewport_size": [1, 2]},
        st.none() | words,
        st.none() | words,
    )
    return st.builds(
        lambda name, version, content, details: _with({"id": name, "content": content}, schema_version=version, details=details),
        names,
        st.none() | st.sampled_from(["1.2.0", "1.3.1"]),
        st.lists(api | code | message | seen | image | web, min_size=1, max_size=6),
        st.none() | objects,
    )


def atif() -> st.SearchStrategy[dict[str, Any]]:
    content = words | st.lists(
        st.builds(lambda t: {"type": "text", "text": t}, words)
        | st.just({"type": "image", "source": {"media_type": "image/png", "path": "a.png"}}),
        max_size=2,
    )
    call = st.builds(
        lambda i, f, a, x: _with({"tool_call_id": i, "function_name": f, "arguments": a}, extra=x),
        st.sampled_from("ab"),
        names,
        objects,
        st.none() | objects,
    )
    result = st.builds(lambda i, c: _with({"content": c}, source_call_id=i), st.none() | st.sampled_from("ab"), content)
    tokens = st.lists(st.tuples(st.integers(0, 9), numbers), max_size=3)
    metrics = st.builds(
        lambda t, p, c: _with(
            {}, completion_token_ids=[i for i, _ in t] or None, logprobs=[x for _, x in t] or None, prompt_tokens=p, cost_usd=c
        ),
        tokens,
        st.none() | st.integers(0, 9),
        st.none() | st.floats(0, 1),
    )
    observation = st.lists(result, max_size=2).map(lambda r: {"results": r})
    agent = st.builds(
        lambda m, r, c, o, x, n: _with(
            {"source": "agent", "message": m}, reasoning_content=r, tool_calls=c, observation=o, metrics=x, llm_call_count=n
        ),
        content,
        st.none() | words,
        st.none() | st.lists(call, max_size=2),
        st.none() | observation,
        st.none() | metrics,
        st.none() | st.just(1),
    )
    other = st.builds(
        lambda s, m, o: _with({"source": s, "message": m}, observation=o, timestamp="2025-01-01T00:00:00Z"),
        st.sampled_from(["user", "system"]),
        content,
        st.none() | observation,
    )
    steps = st.lists(agent | other, min_size=1, max_size=4).map(lambda found: [{"step_id": i, **step} for i, step in enumerate(found, 1)])
    return st.builds(
        lambda v, n, who, steps, m, x: _with(
            {"schema_version": v, "agent": who, "steps": steps}, trajectory_id=n, final_metrics=m, extra=x
        ),
        st.sampled_from(["ATIF-v1.8", "ATIF-v1.5"]),
        st.none() | names,
        st.builds(lambda t: _with({"name": "terminus", "version": "2"}, tool_definitions=t), st.none() | st.lists(schemas, max_size=2)),
        steps,
        st.none() | st.just({"total_prompt_tokens": 7, "total_completion_tokens": 3}),
        st.none() | objects,
    )


RECORDS = {
    "openai": openai(),
    "trl": trl(),
    "trl-completion": trl_completion(),
    "trl-preference": trl_preference(),
    "sharegpt": sharegpt(),
    "adp": adp(),
    "atif": atif(),
}
