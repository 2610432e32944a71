"""The chat format: rendering grows by appending alone, and what is written is read back."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers

from helpers import tiny_tokenizer
from whet.envs.search import Search
from whet.errors import CheckpointError
from whet.policies.chat import ChatFormat, read_calls
from whet.types import ToolCall, Turn

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=30)


@pytest.fixture(scope="module", params=["tiny", "base"])
def chat(request) -> ChatFormat:
    if request.param == "tiny":
        return ChatFormat(tiny_tokenizer())
    from importlib.resources import files

    from transformers import AutoTokenizer

    return ChatFormat(AutoTokenizer.from_pretrained(str(files("whet") / "base")))


def test_a_conversation_put_together_turn_by_turn_is_the_one_rendered_at_once(chat):
    env = Search(hops="3")
    task = env.tasks("train", 1)[0]
    turns = [Turn(role="system", content=env.instructions), Turn(role="user", content=env.reset(task))]
    tokens = list(chat.open(turns, env.tools))
    while True:
        action = env.expert(random.Random(0))
        said = Turn(role="assistant", content=action.text, tool_calls=action.tool_calls)
        step = env.step(action)
        tokens += chat.answer(said)
        turns += [said, *step.observation]
        if step.terminated:
            break
        tokens += chat.extend(step.observation, closed=True)
    messages = []
    for turn in turns[:-1]:
        calls = [{"type": "function", "function": {"name": c.name, "arguments": dict(c.arguments)}} for c in turn.tool_calls]
        messages.append({"role": turn.role, "content": turn.content} | ({"tool_calls": calls} if calls else {}))
    whole = chat.tokenizer.apply_chat_template(messages, tools=[t.schema() for t in env.tools], tokenize=False)
    assert chat.tokenizer.decode(tokens).strip() == chat.tokenizer.decode(chat.tokenizer.encode(whole, add_special_tokens=False)).strip()


def test_a_turn_that_was_cut_off_is_closed_by_what_follows(chat):
    new = (Turn(role="user", content="go on"),)
    closed, cut = chat.extend(new, closed=True), chat.extend(new, closed=False)
    assert cut[0] == chat.end
    assert cut[1:] == closed


MARKED = st.lists(st.one_of(TEXT, st.sampled_from(["<|im_start|>", "<|im_end|>", "<tool_call>", "\n", " ", "<|im_", "friend"]))).map(
    "".join
)


@settings(deadline=None, max_examples=200)
@given(text=MARKED)
def test_a_text_in_pieces_has_the_tokens_of_the_whole(chat, text):
    assert chat._marks is not None
    assert chat._encode(text) == tuple(chat.tokenizer.encode(text, add_special_tokens=False))


def _with_token(content: str, **kind: bool) -> ChatFormat:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(content, **kind)], special_tokens=not kind.get("normalized", False))
    return ChatFormat(tokenizer)


@pytest.mark.parametrize("kind", [{"lstrip": True}, {"single_word": True}, {"rstrip": True}, {"normalized": True}, {}], ids=str)
def test_tokens_that_look_at_what_is_beside_them_are_seen_whole(kind):
    chat = _with_token("<x>", **{"normalized": False} | kind)
    assert (chat._marks is None) == bool(kind.keys() & {"lstrip", "single_word"})
    for text in ("a <x> b", "a<x>b", "<|im_end|> <x> <|im_start|>a", "<x><x", " <x>\n<|im_end|>"):
        assert chat._encode(text) == tuple(chat.tokenizer.encode(text, add_special_tokens=False)), text


@pytest.mark.parametrize("scheme", ["first", "always", "never", "normalizer"])
def test_tokenizers_that_put_a_space_first_are_cut_alike(scheme):
    tokenizer = tiny_tokenizer()
    backend = tokenizer.backend_tokenizer
    if scheme == "normalizer":  # as Llama 2 writes it
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("G"), normalizers.Replace(" ", "G")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="G", prepend_scheme=scheme)
    chat = ChatFormat(tokenizer)
    texts = ("a b", "<|im_start|>a b<|im_end|>c", "a <|im_start|> b", "<|im_end|>", "a<|im_end|><|im_start|>user\na")
    for text in texts:
        assert chat._encode(text) == tuple(tokenizer.encode(text, add_special_tokens=False)), text


def test_a_mark_inside_another_is_no_place_to_cut():
    chat = _with_token("<|im_start|><|im_end|>!", normalized=False)
    text = "a<|im_start|><|im_end|>!b<|im_end|>"
    assert chat._encode(text) == tuple(chat.tokenizer.encode(text, add_special_tokens=False))
    assert chat._encode(text)[1] == chat.tokenizer.convert_tokens_to_ids("<|im_start|><|im_end|>!")


@settings(deadline=None, max_examples=60)
@given(TEXT, st.dictionaries(st.sampled_from(["query", "text", "n"]), st.one_of(TEXT, st.integers(-99, 99)), max_size=2))
def test_a_written_call_is_read_back(chat, thought, arguments):
    thought = thought.replace("<", "").strip()
    arguments = {k: v.replace("<", "") if isinstance(v, str) else v for k, v in arguments.items()}
    call = ToolCall(name="search", arguments=arguments, id="call_0")
    content, calls = chat.read(chat.answer(Turn(role="assistant", content=thought, tool_calls=(call,))))
    assert calls == (call,)
    assert dict(calls[0].arguments) == arguments
    if not thought.startswith("{"):
        assert content.split() == thought.split()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<tool_call>{nonsense}</tool_call>", "not valid JSON"),
        ("<tool_call>[1, 2]</tool_call>", "must be"),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', "must be"),
        ('<tool_call>{"name": "f", "arguments": "x"}</tool_call>', "must be"),
        ("<tool_call>" + "[" * 100_000, "not valid JSON"),
    ],
)
def test_a_malformed_call_says_what_is_wrong(text, problem):
    _, calls = read_calls(text)
    assert problem in (calls[0].error or "")


def test_calls_of_other_shapes():
    assert read_calls('{"name": "f", "parameters": {"a": 1}}')[1] == (ToolCall(name="f", arguments={"a": 1}, id="call_0"),)
    thought, calls = read_calls('first <tool_call>{"name": "a", "arguments": {}}</tool_call> <tool_call>{"name": "b", "arguments": {}}')
    assert (thought, [c.name for c in calls], [c.id for c in calls]) == ("first", ["a", "b"], ["call_0", "call_1"])
    assert read_calls("no call here") == ("no call here", ())


def test_a_tokenizer_without_a_template_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(CheckpointError, match="chat template"):
        ChatFormat(tokenizer)


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cs",), exclude_characters="\u2060"), max_size=60))
def test_the_embedded_tokenizer_gives_every_text_back(text):
    chat = _base()
    assert chat.tokenizer.decode(chat.tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_embedded_tokenizer_has_one_token_for_a_word_wherever_it_stands():
    tokenizer = _base().tokenizer
    (word,) = tokenizer.encode(" friend", add_special_tokens=False)
    for text in ('"friend"', "boss\nfriend Otto", json.dumps({"query": "friend"}), "Who is Soli's friend?"):
        assert word in tokenizer.encode(text, add_special_tokens=False)


_cache: list[ChatFormat] = []


def _base() -> ChatFormat:
    if not _cache:
        from whet.policies import load_policy

        _cache.append(load_policy("base").chat)
    return _cache[0]
