"""Local policies: loading, saving, rendering, and what is said about checkpoints that cannot be used."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForMaskedLM

from helpers import tiny_module, tiny_policy, tiny_tokenizer
from whet.errors import CheckpointError, ConfigError, ContextFull, StorageError
from whet.policies.base import Policy, Request, Sampling
from whet.policies.local import LocalPolicy
from whet.tools import tool
from whet.tools.function import describe
from whet.types import ToolCall, Turn

PROMPT = (Turn(role="system", content="You answer."), Turn(role="user", content="Who is the friend of Rosa?"))


@tool
def search(name: str) -> str:
    """Find a page."""
    return name


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tiny_policy().save(tmp_path / "model")
    return tmp_path / "model"


def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        return module(torch.tensor([[5, 9, 200, 17]])).logits


@pytest.mark.parametrize(("arch", "tied"), [("qwen3", False), ("qwen3", True), ("gemma2", True), ("gpt2", True)])
def test_save_and_load_round_trip(tmp_path: Path, arch: str, tied: bool) -> None:
    policy = tiny_policy(arch, tie_word_embeddings=tied)
    policy.save(tmp_path / "deep" / "model")
    again = LocalPolicy.load(tmp_path / "deep" / "model")
    assert again.version == policy.version
    assert again.weights.keys() == policy.weights.keys()
    assert all(torch.equal(again.weights[name], policy.weights[name]) for name in policy.weights)
    assert again.chat.open(PROMPT, ()) == policy.chat.open(PROMPT, ())
    written_by_save = {"_name_or_path", "architectures", "dtype"}
    before, after = ({k: v for k, v in p.config.to_dict().items() if k not in written_by_save} for p in (policy, again))
    assert before == after
    assert torch.equal(logits(again.module()), logits(policy.module()))
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json"} <= {
        file.name for file in (tmp_path / "deep" / "model").iterdir()
    }
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model"], "nothing else is left behind"


def test_transformers_reads_what_is_saved(checkpoint: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    module, report = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True, dtype=torch.float32)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(logits(module.eval()), logits(tiny_policy().module()))
    assert AutoTokenizer.from_pretrained(checkpoint).chat_template == tiny_tokenizer().chat_template


def test_saving_replaces_the_old_checkpoint_whole(checkpoint: Path) -> None:
    (checkpoint / "stale.bin").write_text("old")
    tiny_policy(seed=1).save(checkpoint)
    assert not (checkpoint / "stale.bin").exists()
    assert LocalPolicy.load(checkpoint).version == tiny_policy(seed=1).version


def test_a_failed_save_leaves_the_old_checkpoint(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("whet.policies.local.save_file", full)
    with pytest.raises(StorageError, match="No space left"):
        tiny_policy(seed=1).save(checkpoint)
    assert LocalPolicy.load(checkpoint).version == tiny_policy().version
    assert [path.name for path in checkpoint.parent.iterdir()] == ["model"]


def test_loading_a_directory_never_touches_the_network(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked for something")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    LocalPolicy.load(checkpoint)


def test_versions_follow_the_weights() -> None:
    policy = tiny_policy()
    assert policy.version == tiny_policy().version != tiny_policy(seed=1).version
    weights = dict(policy.weights)
    name = next(iter(weights))
    weights[name] = weights[name] + 1e-6
    assert policy.with_weights(weights).version != policy.version
    assert policy.with_weights(weights, "grpo-7").version == "grpo-7"


def test_handles_do_not_follow_a_module_that_is_trained() -> None:
    policy = tiny_policy(tie_word_embeddings=True)
    module = policy.module()
    assert module.lm_head.weight is module.model.embed_tokens.weight
    before = {name: w.clone() for name, w in policy.weights.items()}
    trained = policy.with_weights(module.state_dict())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    for handle in (policy, trained):
        assert all(torch.equal(handle.weights[name], before[name]) for name in before)
    assert policy.with_weights(module.state_dict()).version != policy.version
    with pytest.raises(TypeError):
        policy.weights["x"] = torch.zeros(1)  # type: ignore[index]


def test_weights_of_another_shape_are_refused() -> None:
    policy = tiny_policy()
    with pytest.raises(ConfigError, match=r"model.norm.weight.* is missing"):
        policy.with_weights({name: w for name, w in policy.weights.items() if name != "model.norm.weight"})
    with pytest.raises(ConfigError, match=r"shape \(16,\)"):
        policy.with_weights(dict(policy.weights) | {"model.norm.weight": torch.ones(16)})


def test_dtypes(checkpoint: Path) -> None:
    policy = LocalPolicy.load(checkpoint, dtype="bfloat16")
    assert policy.dtype == torch.bfloat16 == policy.module().dtype
    assert policy.with_weights(tiny_policy().module().state_dict()).dtype == torch.bfloat16
    turn = ask(policy, policy.observe((), PROMPT, ()))
    assert turn.tokens
    with pytest.raises(ConfigError, match="'float31'"):
        LocalPolicy.load(checkpoint, dtype="float31")


def drop(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


def truncate(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def garble(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"\xff" * 4096)


def lose_a_weight(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def lose_the_tokenizer(path: Path) -> None:
    for file in path.glob("tokenizer*"):
        file.unlink()


def lose_the_template(path: Path) -> None:
    (path / "chat_template.jinja").unlink()


def become_a_masked_model(path: Path) -> None:
    BertForMaskedLM(
        BertConfig(vocab_size=320, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    ).save_pretrained(path)


def garble_config(path: Path) -> None:
    (path / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("config.json"), "no config.json"),
        (drop("model.safetensors"), "model.safetensors"),
        (truncate, "truncated or damaged"),
        (garble, "truncated or damaged"),
        (lose_a_weight, "up_proj"),
        (lose_the_tokenizer, "no tokenizer"),
        (lose_the_template, "no chat template"),
        (become_a_masked_model, "not a causal language model but BertForMaskedLM"),
        (garble_config, "could not load"),
    ],
)
def test_damaged_checkpoints_are_named(checkpoint: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(checkpoint)
    with pytest.raises(CheckpointError, match=message):
        LocalPolicy.load(checkpoint)


def test_what_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whet.policies.loading._hub_in_reach", lambda: False)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="no such directory"):
        LocalPolicy.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no directory 'runs/nowhere' here, and the hub"):
        LocalPolicy.load("runs/nowhere")
    with pytest.raises(CheckpointError, match="is a file"):
        LocalPolicy.load(tmp_path / "file")


@pytest.fixture
def adapter(checkpoint: Path, tmp_path: Path) -> Path:
    """A LoRA adapter with weights that change something, saved by peft as users save them."""
    base = LocalPolicy.load(checkpoint).module()
    base.name_or_path = str(checkpoint)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.peft_config["default"].base_model_name_or_path = str(checkpoint)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_adapters_are_merged(adapter: Path, checkpoint: Path) -> None:
    from peft import PeftModel

    policy = LocalPolicy.load(adapter)
    expected = PeftModel.from_pretrained(LocalPolicy.load(checkpoint).module(), adapter).eval()
    torch.testing.assert_close(logits(policy.module()), logits(expected), atol=1e-4, rtol=1e-4)
    assert policy.weights.keys() == tiny_policy().weights.keys()
    assert policy.version != LocalPolicy.load(checkpoint).version
    policy.save(adapter.parent / "merged")
    assert LocalPolicy.load(adapter.parent / "merged").version == policy.version


def test_adapters_that_cannot_be_used(adapter: Path, checkpoint: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match="could not load the adapter"):
        LocalPolicy.load(adapter)
    weights.write_bytes(whole)
    shutil.rmtree(checkpoint)
    with pytest.raises(CheckpointError, match="put its base model back"):
        LocalPolicy.load(adapter)
    (adapter / "adapter_config.json").write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match="does not name a base model"):
        LocalPolicy.load(adapter)


def ask(policy: LocalPolicy, turns: tuple[Turn, ...], **options: Any) -> Turn:
    return asyncio.run(policy.generate(Request(turns=turns, **options)))


def test_a_turn_says_how_it_was_made() -> None:
    policy = tiny_policy(version="v1")
    assert isinstance(policy, Policy)
    turns = policy.observe((), PROMPT, (describe(search),))
    turn = ask(policy, turns, max_tokens=7, seed=4, sampling=Sampling(temperature=0.5))
    assert turn.role == "assistant"
    assert turn.versions == (("v1", len(turn.tokens)),)
    assert len(turn.logprobs) == len(turn.tokens) == turn.cost.sampled_tokens
    assert turn.cost.prompt_tokens == sum(len(t.tokens) for t in turns)
    assert turn.temperature == 0.5
    assert turn.finish == ("stop" if turn.tokens[-1] in policy.chat.stops else "length")
    assert (turn.content, turn.tool_calls) == policy.chat.read(turn.tokens)
    assert turn == ask(policy, turns, max_tokens=7, seed=4, sampling=Sampling(temperature=0.5))
    assert turn.tokens != ask(policy, turns, max_tokens=7, seed=5, sampling=Sampling(temperature=0.5)).tokens
    assert ask(policy, turns, sampling=Sampling(temperature=0.0)).temperature == 1.0, "greedy log-probs are those at temperature 1"
    assert len(ask(policy, turns, max_tokens=7, sampling=Sampling(max_tokens=2)).tokens) <= 2


def test_observed_turns_join_to_what_the_template_renders() -> None:
    policy = tiny_policy()
    call = ToolCall(name="search", arguments={"name": "Rosa"}, id="call_0")
    said = Turn(role="assistant", tool_calls=(call,))
    seen = Turn(role="tool", name="search", content="Page of Rosa: boss Joe")
    turns = policy.observe((), PROMPT, (describe(search),))
    turns += policy.observe(turns, (said, seen), (describe(search),))
    text = policy.tokenizer.decode([token for turn in turns for token in turn.tokens])
    function = {"name": "search", "arguments": {"name": "Rosa"}}
    messages = [
        {"role": "system", "content": "You answer."},
        {"role": "user", "content": "Who is the friend of Rosa?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": function}],
        },
        {"role": "tool", "name": "search", "content": "Page of Rosa: boss Joe"},
    ]
    schemas = [describe(search).schema()]
    assert text == policy.tokenizer.apply_chat_template(messages, tools=schemas, add_generation_prompt=True, tokenize=False)
    assert policy.chat.read(turns[2].tokens) == ("", (call,))
    # The same turns at once, as an imported episode would come.
    assert policy.observe((), (*PROMPT, said, seen), (describe(search),)) == turns


def test_an_answer_that_was_cut_off_is_closed_by_what_follows() -> None:
    policy = tiny_policy()
    turns = policy.observe((), PROMPT, ())
    answer = Turn(role="assistant", tokens=(7, 8, 9))
    [new] = policy.observe((*turns, answer), (Turn(role="user", content="more"),), ())
    [closed] = policy.observe((*turns, Turn(role="assistant", tokens=(7, 8, policy.chat.end))), (Turn(role="user", content="more"),), ())
    assert new.tokens == (policy.chat.end, *closed.tokens)


def test_a_full_context_is_told_apart() -> None:
    policy = tiny_policy(max_position_embeddings=64)
    with pytest.raises(ContextFull):
        ask(policy, policy.observe((), (Turn(role="user", content="x" * 400),), ()))


def test_a_new_engine_takes_over_the_memory_of_the_last() -> None:
    policy = tiny_policy(num_hidden_layers=3)
    turns = policy.observe((), PROMPT, ())

    async def talk(handle: LocalPolicy) -> int:
        await handle.generate(Request(turns=turns, session="s"))
        address = int(handle.engine.decoder.cache.data.data_ptr())  # type: ignore[attr-defined]
        handle.release("s")
        return address

    handles = [policy, *(policy.with_weights(policy.weights, f"v{i}") for i in range(3))]
    assert len({asyncio.run(talk(handle)) for handle in handles}) == 1


def test_modules_of_any_kind_make_a_handle() -> None:
    module = tiny_module("llama")
    policy = LocalPolicy.from_module(module, tiny_tokenizer(), "mine")
    assert torch.equal(logits(policy.module()), logits(module))
    assert torch.equal(logits(policy.module(share=True)), logits(module))
