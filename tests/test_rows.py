"""Rows: masks follow roles, sampled tokens stay as sampled, written text becomes what a policy would have read."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import tiny_policy
from whet.data import batches, to_examples
from whet.errors import ConfigError
from whet.tools.function import Tool, describe, tool
from whet.types import Episode, Stop, Task, ToolCall, Turn, chain

TASK = Task(id="t/train/0", env="t", split="train")
policy = functools.cache(tiny_policy)


@tool
def search(name: str) -> str:
    """Page of a person."""
    return name


TOOLS: tuple[Tool, ...] = (describe(search),)


def episode(turns: tuple[Turn, ...], reward: float = 0.0, id: str = "e", task: Task = TASK) -> Episode:
    return Episode(id=id, task=task, turns=turns, stop=Stop.TERMINATED, reward=reward)


def sampled(*tokens: int, temperature: float = 1.0) -> Turn:
    return Turn(role="assistant", tokens=tokens, logprobs=tuple(-0.1 * t for t in tokens), temperature=temperature)


ids = st.lists(st.integers(0, 319), min_size=1, max_size=6).map(tuple)
talks = st.lists(st.tuples(ids, ids, st.sampled_from(["user", "tool", "system"])), min_size=1, max_size=5)


@given(talks)
@settings(max_examples=50, deadline=None)
def test_mask_is_exactly_the_assistants_tokens_and_none_is_made_again(talk: list) -> None:
    turns = [t for seen, said, role in talk for t in (Turn(role=role, content="text that is not looked at", tokens=seen), sampled(*said))]
    (row,) = to_examples(episode(chain(turns)), policy(), weight=0.25)
    assert row.tokens.tolist() == [t for turn in turns for t in turn.tokens]
    assert row.mask.tolist() == [turn.role == "assistant" for turn in turns for _ in turn.tokens]
    assert row.weights.tolist() == [0.25 * m for m in row.mask]
    assert row.logprobs is not None
    expected = [x for turn in turns for x in (turn.logprobs or [0.0] * len(turn.tokens))]
    np.testing.assert_allclose(row.logprobs, expected, rtol=1e-6)


def test_tokens_that_no_text_would_give_survive() -> None:
    tokenizer = policy().tokenizer
    odd = tuple(tokenizer.convert_tokens_to_ids(list("search")))  # letter by letter, where the tokenizer has one token
    assert tuple(tokenizer.encode(tokenizer.decode(odd), add_special_tokens=False)) != odd
    (row,) = to_examples(episode(chain([Turn(role="user", tokens=(5,)), sampled(*odd)])), policy())
    assert tuple(row.tokens[row.mask]) == odd


def talk_of_an_expert() -> tuple[Turn, ...]:
    call = ToolCall(name="search", arguments={"name": "Rosa"}, id="call_0")
    return chain(
        [
            Turn(role="system", content="Answer the question."),
            Turn(role="user", content="Who is the boss of Rosa?"),
            Turn(role="assistant", tool_calls=(call,)),
            Turn(role="tool", content="Page of Rosa: boss Joe", name="search", call_id="call_0"),
            Turn(role="tool", content="Page of Joe", name="search", call_id="call_1"),
            Turn(role="assistant", content="Joe"),
            Turn(role="user", content="Right."),
        ]
    )


def test_written_episodes_are_rendered_as_a_rollout_reads_them() -> None:
    turns = talk_of_an_expert()
    (row,) = to_examples(episode(turns), policy(), tools=TOOLS)
    seen: tuple[Turn, ...] = ()
    for run in (turns[:2], turns[2:3], turns[3:5], turns[5:6]):  # as a rollout hands them over
        seen += policy().observe(seen, run, TOOLS)
    assert row.tokens.tolist() == [t for turn in seen for t in turn.tokens]
    assert row.mask.tolist() == [turn.role == "assistant" for turn in seen for _ in turn.tokens]
    text = policy().tokenizer.decode(row.tokens)
    assert "Page of a person." in text, "the tools' schemas belong to the prompt"
    assert text.endswith("Joe<|im_end|>"), "the turn's end is trained, what follows the last answer is not there"
    assert row.logprobs is None
    assert policy().tokenizer.decode(row.tokens[row.mask]).count("<|im_end|>") == 2


def test_the_prompt_of_a_written_row_is_the_chat_templates_own() -> None:
    turns = talk_of_an_expert()[:3]
    (row,) = to_examples(episode(turns), policy(), tools=TOOLS)
    messages = [{"role": t.role, "content": t.content} for t in turns[:2]]
    prompt = policy().tokenizer.apply_chat_template(messages, tools=[t.schema() for t in TOOLS], add_generation_prompt=True, tokenize=False)
    assert policy().tokenizer.decode(row.tokens[~row.mask]) == prompt


def test_an_answer_cut_off_by_its_token_limit_is_closed_by_what_follows() -> None:
    end = policy().chat.end
    for said, closings in (((7, end), 0), ((7, 8), 1)):
        turns = [Turn(role="user", tokens=(5,)), sampled(*said), Turn(role="user", content="Go on"), sampled(9)]
        (row,) = to_examples(episode(chain(turns)), policy())
        between = row.tokens[1 + len(said) : -1].tolist()
        assert between.count(end) == closings + 1, "one for the user's turn, one more where the answer had none"


def test_old_logprobs_need_every_turn_sampled_at_one_temperature() -> None:
    ask = Turn(role="user", tokens=(5,))
    (row,) = to_examples(episode(chain([ask, sampled(6, temperature=0.7), ask, sampled(7, temperature=0.7)])), policy())
    assert row.temperature == 0.7
    assert row.logprobs is not None
    (mixed,) = to_examples(episode(chain([ask, sampled(6, temperature=0.7), ask, sampled(7)])), policy())
    (prefixed,) = to_examples(episode(chain([ask, Turn(role="assistant", tokens=(6,)), ask, sampled(7, temperature=0.7)])), policy())
    assert (mixed.logprobs, mixed.temperature) == (prefixed.logprobs, prefixed.temperature) == (None, 1.0)


def test_one_row_for_each_walk() -> None:
    turns = (
        Turn(role="user", tokens=(1, 2)),
        dataclasses.replace(sampled(3), parent=0),
        dataclasses.replace(sampled(4), parent=0),
    )
    rows = to_examples(episode(turns), policy())
    assert [row.tokens.tolist() for row in rows] == [[1, 2, 3], [1, 2, 4]]
    assert to_examples(episode((Turn(role="user", tokens=(1,)),)), policy()) == [], "no assistant, no row"


@given(st.integers(0, 30), st.integers(1, 7), st.integers(1, 3), st.integers(0, 5))
def test_batches_hold_every_row_once_an_epoch(n: int, size: int, epochs: int, seed: int) -> None:
    rows = list(range(n))
    made = list(batches(rows, size, epochs=epochs, seed=seed))
    per_epoch = -(-n // size)
    assert len(made) == epochs * per_epoch
    for epoch in range(epochs):
        part = made[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(x for batch in part for x in batch) == rows
        assert [len(batch) for batch in part[:-1]] == [size] * max(0, per_epoch - 1)
    assert made == list(batches(rows, size, epochs=epochs, seed=seed))


def test_batches_shuffle_by_seed_and_epoch() -> None:
    first, second = batches(range(20), 20, epochs=2, seed=1)
    assert first != second
    assert first != next(batches(range(20), 20, seed=2))
    with pytest.raises(ConfigError, match="batch size"):
        next(batches([1], 0))
