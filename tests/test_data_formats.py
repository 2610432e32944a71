"""Records of every format come back equal, episodes come back equal where the format has a place for them, and losses are named."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import trajectories
from whet.data import formats, parquet
from whet.data.formats import Origin, RecordError, dump, get, load
from whet.data.formats.difference import apply, difference
from whet.data.formats.exact import ORIGINAL, forked, walks
from whet.data.formats.messages import opening
from whet.runs.codec import decode, encode
from whet.types import Cost, Episode, Stop, Task, ToolCall, Turn, chain

EXAMPLES = int(os.environ.get("WHET_EXAMPLES", "20"))
"""Of each property; set it higher to look harder."""
SLOWLY = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
HERE = Origin(source="some.jsonl", number=7, env="shop")


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def stored(episode: Episode) -> Episode:
    """As it comes out of a store."""
    return decode(encode(episode))


def sourced(episode: Episode) -> Episode:
    return replace(episode, tags={"source": HERE.source, **episode.tags})


# -- differences ---------------------------------------------------------------------------------------------------------


@SLOWLY
@given(trajectories.values, trajectories.values)
def test_a_difference_leads_from_one_value_to_another(old: Any, new: Any) -> None:
    change = difference(old, new)
    assert canonical(apply(old, through_json(change))) == canonical(new)
    assert (change is None) == (canonical(old) == canonical(new))


@SLOWLY
@given(st.lists(trajectories.objects, max_size=6), st.data())
def test_a_difference_of_lists_is_about_what_changed(rows: list[Any], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows)))
    longer = [*rows[:at], {"new": True}, *rows[at:]]
    change = difference(rows, longer)
    assert change is not None
    assert canonical(apply(rows, change)) == canonical(longer)
    assert len(canonical(change)) < 60, "only the new element is in it"


@pytest.mark.parametrize(("old", "new"), [(1, 1.0), (1, True), (0, False), ([1], [1.0]), ({"a": 0}, {"a": None}), ("1", 1)])
def test_values_that_python_takes_for_equal_are_not(old: Any, new: Any) -> None:
    assert canonical(apply(old, difference(old, new))) == canonical(new)


def test_a_difference_that_does_not_fit_is_refused() -> None:
    for change in (["{", {"a": ["{", {}, ["x"]]}, []], ["[", {"4": ["=", 1]}], ["~", 3, 0, []], ["?"]):
        with pytest.raises(ValueError, match="difference"):
            apply([1, 2], change)


# -- records come back equal ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", trajectories.RECORDS)
def test_records_come_back_equal(name: str) -> None:
    """Through the episode and a store, whatever the import took for granted."""
    form = get(name)

    @SLOWLY
    @given(trajectories.RECORDS[name], st.sampled_from(["success", "failure", "unknown"]))
    def check(record: Any, outcome: Any) -> None:
        origin = replace(HERE, outcome=outcome)
        try:
            episodes = tuple(map(stored, load(form, through_json(record), origin)))
        except RecordError:
            assume(False)
        back, _ = dump(form, episodes, bare=True)
        assert canonical(back) == canonical(record)
        full, lost = dump(form, episodes)
        again = load(form, through_json(full), Origin(source="other.jsonl", number=1))
        if form.extension:
            assert not lost
            assert tuple(map(stored, again)) == episodes, "with the extension, where it was first imported from is known, too"
        back, _ = dump(form, again, bare=True)
        assert canonical(back) == canonical(record)

    check()


@pytest.mark.parametrize("name", trajectories.RECORDS)
@pytest.mark.parametrize("other", ["adp", "atif", "whet"])
def test_records_survive_a_way_through_another_format(name: str, other: str) -> None:
    form, way = get(name), get(other)

    @settings(SLOWLY, max_examples=EXAMPLES // 2)
    @given(trajectories.RECORDS[name])
    def check(record: Any) -> None:
        try:
            episodes = load(form, through_json(record), HERE)
        except RecordError:
            assume(False)
        passed = [load(way, through_json(dump(way, [e])[0]), Origin(source="x", number=1))[0] for e in episodes]
        assert canonical(dump(form, passed, bare=True)[0]) == canonical(record)

    check()


# -- episodes come back equal --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["whet", "atif", "adp"])
def test_any_episode_comes_back_equal(name: str) -> None:
    form = get(name)

    @SLOWLY
    @given(trajectories.episodes(least=1))
    def check(episode: Episode) -> None:
        record, lost = dump(form, [episode])
        assert not lost
        assert load(form, through_json(record), HERE) == (sourced(episode),)

    check()


@pytest.mark.parametrize("name", ["trl", "trl-completion"])
def test_any_conversation_comes_back_equal(name: str) -> None:
    form = get(name)

    @SLOWLY
    @given(trajectories.episodes(least=1, forks=False))
    def check(episode: Episode) -> None:
        assume(name == "trl" or 0 < opening(episode.turns) < len(episode.turns))
        record, lost = dump(form, [episode])
        assert not lost
        assert load(form, through_json(record), HERE) == (sourced(episode),)

    check()


@SLOWLY
@given(trajectories.episodes(least=1, forks=False), trajectories.turns(least=1, forks=False), trajectories.words, trajectories.words)
def test_any_preference_comes_back_equal(episode: Episode, more: tuple[Turn, ...], asked: str, answered: str) -> None:
    prompt = (Turn(role="user", content=asked), Turn(role="assistant", content=answered, finish="stop"))
    better = replace(episode, turns=chain((*prompt, *episode.turns)), tags={"source": "x"})
    worse = replace(better, id="worse", turns=chain((*prompt, *more)))
    record, lost = dump(get("trl-preference"), [better, worse])
    assert not lost
    assert load(get("trl-preference"), through_json(record), HERE) == (better, worse)


@SLOWLY
@given(trajectories.episodes())
def test_any_episode_comes_back_from_parquets_columns(episode: Episode) -> None:
    row = parquet.row_of(episode)
    assert load(get("whet"), parquet.record_of(row), HERE) == (sourced(episode),)


def test_lone_surrogates_and_huge_integers_come_back_from_parquet(tmp_path: Any) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    from whet.data.writing import open_target

    odd = [
        Episode(id="\ud800", task=Task(id="t", env="e", split="train"), turns=(Turn(role="user", content="\udfff"),), stop=Stop.TRUNCATED),
        Episode(
            id="a",
            task=Task(id="\udc00", env="e", split="dev"),
            turns=(Turn(role="assistant", tokens=(2**70,)),),
            stop=Stop.ERROR,
            error="\ud800",
        ),
        Episode(
            id="b", task=Task(id="t", env="e", split="train", seed=2**63), turns=(Turn(role="user"),), stop=Stop.TERMINATED, success=True
        ),
    ]
    with open_target(tmp_path / "x.parquet") as write:
        for episode in odd:
            write(episode)
    table = pq.read_table(tmp_path / "x.parquet")
    assert [record is None for record in table["record"].to_pylist()] == [False, False, True]
    assert [load(get("whet"), parquet.record_of(row), HERE)[0] for row in table.to_pylist()] == list(map(sourced, odd))


# -- losses --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["openai", "sharegpt", "trl", "adp", "atif"])
def test_what_no_loss_names_comes_back(name: str) -> None:
    """A loss that is not named would show as a field that differs though the account says that nothing of its kind was lost."""
    form = get(name)
    kinds = {
        "identity (id and task)": lambda e: (e.id, e.task),
        "outcome": lambda e: (e.stop, e.reason, e.success, e.reward, e.error),
        "tokens": lambda e: [(t.tokens, t.versions) for t in e.turns],
        "log-probs": lambda e: [t.logprobs for t in e.turns],
        "rewards of turns": lambda e: [t.reward for t in e.turns],
        "costs": lambda e: (e.cost, [t.cost for t in e.turns]),
        "tool schemas": lambda e: e.tags.get("schemas"),
        "reasoning": lambda e: e.tags.get("reasoning"),
    }

    @SLOWLY
    @given(trajectories.episodes(least=1, forks=False))
    def check(episode: Episode) -> None:
        record, lost = dump(form, [episode], bare=True)
        (back,) = load(form, through_json(record), Origin())
        if "text" in lost:
            return
        assert [(t.role, t.content) for t in back.turns] == [(t.role, t.content) for t in episode.turns]
        for kind, of in kinds.items():
            if kind not in lost:
                ours, theirs = of(episode), of(back)
                default = of(
                    Episode(
                        id="",
                        task=Task(id="", env="", split="train"),
                        turns=tuple(Turn(role="user") for _ in episode.turns),
                        stop=Stop.TERMINATED,
                    )
                )
                if kind in ("tool schemas", "reasoning"):
                    assert not ours or ours == theirs, kind
                elif isinstance(ours, tuple):
                    assert all(a in (b, d) for a, b, d in zip(ours, theirs, default)), (kind, ours, theirs)
                else:
                    assert all(a in (b, d) or not a for a, b, d in zip(ours, theirs, default)), (kind, ours, theirs)

    check()


ROLLED = Episode(
    id="iteration0/search/train/1#0",
    task=Task(id="search/train/1", env="search", split="train", seed=3, data={"hops": 1}),
    turns=chain(
        (
            Turn(role="system", content="be brief"),
            Turn(role="user", content="who?", tokens=(1, 2)),
            Turn(
                role="assistant",
                content="look",
                tool_calls=(ToolCall(name="search", arguments={"name": "Rosa"}, id="call_0"),),
                tokens=(3, 4),
                logprobs=(-0.5, -0.25),
                versions=(("v1", 2),),
                reward=0.5,
                finish="stop",
                cost=Cost(sampled_tokens=2, prompt_tokens=2),
            ),
            Turn(role="tool", name="search", call_id="call_0", content="Rosa: boss Joe"),
            Turn(role="assistant", content="Joe", finish="stop"),
        )
    ),
    stop=Stop.TERMINATED,
    reason="answered",
    reward=1.0,
    success=True,
    policy="v1",
    seed=5,
    cost=Cost(episodes=1, sampled_tokens=2),
    tags={"actor": "self", "temperature": 1.0, "prompt": "abcd", "schemas": [{"type": "function", "function": {"name": "search"}}]},
)
_OUTSIDE = {"identity (id and task)", "outcome", "provenance", "costs", "rewards of turns", "tokens", "log-probs"}


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("openai", _OUTSIDE),
        ("trl", _OUTSIDE),
        ("sharegpt", _OUTSIDE),
        ("adp", (_OUTSIDE - {"rewards of turns"}) | {"tool schemas"}),
        ("atif", _OUTSIDE - {"log-probs"}),
    ],
)
def test_the_losses_of_a_rollout_are_these(name: str, lost: set[str]) -> None:
    assert dump(get(name), [ROLLED], bare=True)[1] == lost


def test_an_imported_conversation_loses_nothing_on_the_way_back() -> None:
    record = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    for outcome in ("success", "failure", "unknown"):
        (episode,) = load(get("openai"), record, replace(HERE, outcome=outcome))
        assert dump(get("openai"), [stored(episode)]) == (record, frozenset())


def test_what_a_conversation_was_before_an_edit_is_not_put_back() -> None:
    record = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, {"role": "assistant", "content": "hello"}]}
    (episode,) = load(get("openai"), record, HERE)
    edited = replace(episode, turns=(episode.turns[0], replace(episode.turns[1], content="bye")))
    back, lost = dump(get("openai"), [edited])
    assert back == {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "bye"}]}
    assert lost == {"further fields of the original record"}
    judged = replace(episode, tags={**episode.tags, "judged": 4})
    assert dump(get("openai"), [judged]) == (record, {"provenance"}), "what the format does not know may change"


def test_an_extension_that_fits_no_more_is_malformed() -> None:
    record, _ = dump(get("atif"), [ROLLED])
    with pytest.raises(RecordError, match="does not fit the record any more"):
        load(get("atif"), {**record, "steps": record["steps"][:1]}, HERE)
    record["extra"]["whet"]["version"] = 99
    with pytest.raises(RecordError, match="version 99, and this whet reads version 1"):
        load(get("atif"), record, HERE)


def test_forks_become_walks_where_a_format_has_no_place_for_them() -> None:
    a, b, c = Turn(role="user", content="a"), Turn(role="assistant", content="b", parent=0), Turn(role="assistant", content="c", parent=0)
    episode = replace(ROLLED, turns=(a, b, c))
    assert forked(episode)
    assert not forked(ROLLED)
    assert [[t.content for t in walk.turns] for walk in walks(episode)] == [["a", "b"], ["a", "c"]]
    assert not any(map(forked, walks(episode)))
    assert len({walk.id for walk in walks(episode)}) == 2


# -- each format ---------------------------------------------------------------------------------------------------------

CHAT = {
    "messages": [
        {"role": "developer", "content": "be good"},
        {"role": "user", "content": [{"type": "text", "text": "what is"}, {"type": "image_url", "image_url": {"url": "u"}}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"x":1,  "y": 2}'}},
                {"id": "b", "type": "function", "function": {"name": "now", "arguments": ""}},
                {"id": "c", "type": "function", "function": {"name": "now", "arguments": "{oops"}},
            ],
        },
        {"role": "tool", "tool_call_id": "b", "content": "noon"},
        {"role": "tool", "tool_call_id": "a", "content": "3"},
        {"role": "assistant", "content": "3", "weight": 0},
    ],
    "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}],
    "parallel_tool_calls": True,
}


def test_a_chat_is_understood() -> None:
    (episode,) = load(get("openai"), CHAT, HERE)
    assert [t.role for t in episode.turns] == ["system", "user", "assistant", "tool", "tool", "assistant"]
    assert episode.turns[1].content == "what is\n[image_url]"
    add, now, broken = episode.turns[2].tool_calls
    assert (add.name, add.arguments, add.id) == ("add", {"x": 1, "y": 2}, "a")
    assert (now.arguments, now.error) == ({}, None)
    assert broken.error is not None
    assert "not valid JSON" in broken.error
    assert [(t.call_id, t.name, t.content) for t in episode.turns[3:5]] == [("b", "now", "noon"), ("a", "add", "3")]
    assert episode.tags["schemas"] == CHAT["tools"]
    assert (episode.id, episode.task.id, episode.task.env, episode.task.split) == ("some.jsonl#7", "some.jsonl#7", "shop", "train")
    assert (episode.tags["source"], episode.tags["record"], episode.tags["actor"]) == ("some.jsonl", 7, "imported")
    assert episode.tags["outcome"] == "unknown"
    assert not episode.success
    assert dump(get("openai"), [episode])[0] == CHAT


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("openai", [], "the record is .* expected an object"),
        ("openai", {}, "there is no 'messages'"),
        ("openai", {"messages": []}, "messages is empty"),
        ("openai", {"role": "user", "content": "x"}, "this is a message; expected a conversation"),
        ("openai", {"messages": [{"content": "x"}]}, r"messages\[0\] has no 'role'"),
        ("openai", {"messages": [{"role": "robot"}]}, r"messages\[0\].role is 'robot'; expected one of system"),
        (
            "openai",
            {"messages": [{"role": "user", "content": 5}]},
            r"messages\[0\].content is 5 \(int\); expected a string, a list of parts",
        ),
        ("openai", {"messages": [{"role": "user", "content": ["x"]}]}, r"messages\[0\].content\[0\] is 'x'"),
        ("openai", {"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]}, r"messages\[0\].tool_calls\[0\] has no 'function'"),
        ("openai", {"messages": [{"role": "user", "content": "x"}], "tools": 3}, "tools is 3"),
        ("trl", {"text": "once upon"}, "nobody can tell who said what"),
        ("trl-preference", {"chosen": [{"role": "user", "content": "x"}]}, "there is no 'rejected'"),
        ("sharegpt", {"conversations": [{"from": "alien", "value": "x"}]}, "from is 'alien'; expected one of human"),
        ("sharegpt", {"conversations": [{"from": "human"}]}, r"conversations\[0\] has no 'value'"),
        ("adp", {"id": "x", "content": [{"class_": "dance"}]}, r"content\[0\].class_ is 'dance'; expected one of api_action"),
        ("adp", {"id": "x", "schema_version": "2.0.0", "content": [{}]}, "schema_version is '2.0.0'; expected 1.x"),
        ("adp", {"id": "x", "content": [{"class_": "api_action", "function": "f"}]}, r"content\[0\] has no 'kwargs'"),
        ("atif", {"schema_version": "ATIF-v9.0", "agent": {"name": "a"}, "steps": [{}]}, "schema_version is 'ATIF-v9.0'"),
        ("atif", {"schema_version": "ATIF-v1.8", "agent": {"name": "a"}, "steps": []}, "steps is empty"),
        ("atif", {"schema_version": "ATIF-v1.8", "agent": {"name": "a"}, "steps": [{"source": "dog"}]}, "source is 'dog'"),
        ("whet", {"whet": 1, "turns": []}, "whet is 1; expected 2"),
        ("whet", {"whet": 2, "turns": []}, "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_record_is_said(name: str, record: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        load(get(name), record, HERE)


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("openai", CHAT),
        ("trl", {"messages": [{"role": "user", "content": "x"}], "tools": "[]"}),
        ("trl-completion", {"prompt": "a", "completion": "b"}),
        ("trl-preference", {"prompt": "a", "chosen": "b", "rejected": "c"}),
        ("sharegpt", {"conversations": []}),
        ("adp", {"id": "x", "content": [{"class_": "message_action", "content": "x"}]}),
        ("atif", {"schema_version": "ATIF-v1.8", "agent": {}, "steps": []}),
        ("whet", {"whet": 2, "turns": []}),
    ],
)
def test_formats_are_told_apart(name: str, record: Any) -> None:
    found = formats.detect([{"something": "else"}, record])
    assert found is not None
    assert found.name == name


def test_nothing_known_is_no_format() -> None:
    assert formats.detect([{"a": 1}, 5, "x", [], None]) is None
    with pytest.raises(RecordError, match=r"unknown format 'openia'\. Did you mean 'openai'"):
        get("openia")


def test_sharegpt_with_tools() -> None:
    record = {
        "conversations": [
            {"from": "human", "value": "weather?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Jinan"}}'},
            {"from": "observation", "value": "sunny"},
            {"from": "gpt", "value": "It is sunny."},
        ],
        "system": "be brief",
        "tools": '[{"name": "weather", "description": "of a city", "parameters": {}}]',
    }
    (episode,) = load(get("sharegpt"), record, HERE)
    assert [t.role for t in episode.turns] == ["system", "user", "assistant", "tool", "assistant"]
    assert episode.turns[2].tool_calls == (ToolCall(name="weather", arguments={"city": "Jinan"}, id="call_0"),)
    assert (episode.turns[3].name, episode.turns[3].call_id) == ("weather", "call_0")
    assert episode.tags["schemas"][0]["function"]["name"] == "weather"
    assert ORIGINAL not in episode.tags, "this is how whet writes it, too"


def test_adp_joins_parallel_calls_and_pays_the_action_before() -> None:
    record = {
        "id": "t1",
        "content": [
            {"class_": "text_observation", "content": "find it", "source": "user"},
            {"class_": "api_action", "function": "search", "kwargs": {"q": 1}, "description": "look twice", "tool_call_id": "a"},
            {"class_": "code_action", "language": "bash", "content": "ls", "description": None, "tool_call_id": "b", "reward": 0.25},
            {"class_": "text_observation", "content": "one", "source": "environment", "tool_call_id": "a"},
            {"class_": "text_observation", "content": "two", "source": "environment", "tool_call_id": "b", "reward": 0.5},
            {"class_": "message_action", "content": "done", "reasoning_content": "so that is it"},
        ],
    }
    (episode,) = load(get("adp"), record, HERE)
    asked, acted, one, two, done = episode.turns
    assert (asked.role, acted.role, one.role, done.role) == ("user", "assistant", "tool", "assistant")
    assert acted.content == "look twice"
    assert [(c.name, c.arguments) for c in acted.tool_calls] == [("search", {"q": 1}), ("code", {"language": "bash", "content": "ls"})]
    assert acted.reward == 0.75
    assert episode.reward == 0.75
    assert (one.call_id, two.call_id, two.name) == ("a", "b", "code")
    assert episode.tags["reasoning"] == {"4": "so that is it"}
    assert episode.id == "t1"


def adp_is_linked(record: Any) -> None:
    """The rules of ADP's `Trajectory` about ids of calls, as its schema 1.2.0 has them."""
    known: dict[str, int] = {}
    answered: Counter[str] = Counter()
    content = record["content"]
    for i, item in enumerate(content):
        action, call = item["class_"].endswith("_action"), item.get("tool_call_id")
        follows = i + 1 < len(content) and content[i + 1]["class_"].endswith("_observation")
        assert not (item["class_"] in ("api_action", "code_action") and follows and call is None)
        if call is None:
            continue
        assert item["class_"] != "message_action"
        if action:
            assert call not in known
            known[call] = i
        else:
            assert call in known
            answered[call] += 1
    assert set(known) == set(answered)
    assert set(answered.values()) <= {1}


def atif_is_valid(record: Any) -> None:
    """The rules of Harbor's models that types alone do not express."""
    assert record["steps"]
    for number, step in enumerate(record["steps"], 1):
        assert step["step_id"] == number
        assert isinstance(step["message"], str)
        if step["source"] != "agent":
            assert not set(step) & {"model_name", "reasoning_effort", "reasoning_content", "tool_calls", "metrics"}
        ids = [call["tool_call_id"] for call in step.get("tool_calls", ())]
        assert len(set(ids)) == len(ids)
        for result in step.get("observation", {"results": ()})["results"]:
            assert result.get("source_call_id") is None or result["source_call_id"] in ids
    assert set(record) <= {"schema_version", "trajectory_id", "agent", "steps", "final_metrics", "extra"}


@SLOWLY
@given(trajectories.episodes(least=1))
def test_what_is_written_keeps_the_rules_of_adp_and_atif(episode: Episode) -> None:
    adp_is_linked(dump(get("adp"), [episode])[0])
    atif_is_valid(dump(get("atif"), [episode])[0])


def test_atif_has_a_rollouts_tokens_in_its_metrics() -> None:
    record, _ = dump(get("atif"), [ROLLED])
    assert [step["source"] for step in record["steps"]] == ["system", "user", "agent", "agent"]
    look = record["steps"][2]
    assert look["metrics"] == {"completion_tokens": 2, "completion_token_ids": [3, 4], "logprobs": [-0.5, -0.25]}
    assert look["tool_calls"] == [{"tool_call_id": "call_0", "function_name": "search", "arguments": {"name": "Rosa"}}]
    assert look["observation"] == {"results": [{"source_call_id": "call_0", "content": "Rosa: boss Joe"}]}
    assert record["agent"]["tool_definitions"] == ROLLED.tags["schemas"]
    assert record["schema_version"] == "ATIF-v1.8"


def test_preferences_are_two_episodes_of_one_task() -> None:
    record = {
        "prompt": [{"role": "user", "content": "2 + 2?"}],
        "chosen": [{"role": "assistant", "content": "4"}],
        "rejected": [{"role": "assistant", "content": "5"}],
    }
    chosen, rejected = load(get("trl-preference"), record, HERE)
    assert chosen.task == rejected.task
    assert (chosen.id, rejected.id) == ("some.jsonl#7/chosen", "some.jsonl#7/rejected")
    assert (chosen.success, chosen.reward, rejected.success, rejected.reward) == (True, 1.0, False, 0.0)
    assert dump(get("trl-preference"), [chosen, rejected], bare=True) == (record, frozenset())
    other = replace(rejected, turns=(replace(rejected.turns[0], content="3 + 3?"), *rejected.turns[1:]))
    with pytest.raises(RecordError, match="different prompts"):
        dump(get("trl-preference"), [chosen, other])
