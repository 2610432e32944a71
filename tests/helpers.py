"""A tokenizer and models small enough to be made anew in every test."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from whet import learn
from whet.policies.local import LocalPolicy
from whet.types import Episode, Stop, Task, Turn, chain

CHATML = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] + '\\n\\n' }}{%- endif %}
{{- '# Tools\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
{{- '\\n</tools>\\nCall one as <tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call><|im_end|>\\n' }}
{%- elif messages and messages[0]['role'] == 'system' %}
{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message['role'] == 'assistant' %}
{{- '<|im_start|>assistant\\n' + (message['content'] or '') }}
{%- for call in message['tool_calls'] or [] %}
{%- if message['content'] or not loop.first %}{{- '\\n' }}{%- endif %}
{{- '<tool_call>\\n{"name": "' + call['function']['name'] + '", "arguments": ' }}
{{- call['function']['arguments'] | tojson }}{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message['role'] == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message['content'] + '\\n</tool_response><|im_end|>\\n' }}
{%- elif message['role'] == 'user' or not loop.first %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
"""ChatML with tool calls in the Hermes way."""

_TEXT = """\
<tool_call> {"name": "search", "arguments": {"name": "Rosa"}} </tool_call> <tool_response> Page of Rosa: boss Joe,
friend Otto, teacher Mila. </tool_response> {"name": "answer", "arguments": {"answer": "Joe"}} system user assistant
Who is the friend of the teacher? You have these tools; call one of them. {"type": "function", "function":
{"name": "search", "description": "", "parameters": {"type": "object", "properties": {"name": {"type": "string"}}}}}
"""


@functools.cache
def _tokenizer_json() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    return tokenizer.to_str()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (320 tokens, any text round-trips) with a ChatML template that knows tools."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json()),
        chat_template=CHATML,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )


_SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}


def tiny_module(arch: str = "qwen3", *, seed: int = 0, **config: Any) -> Any:
    """A transformers module with random weights, those of its norms and biases included.

    `arch` is a transformers model type (`qwen3`, `llama`, `gemma3_text`, `gpt2`, ...); `config` overrides its fields.
    """
    tokenizer = tiny_tokenizer()
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    module = AutoModelForCausalLM.from_config(CONFIG_MAPPING[arch](**(_SIZES | ids | config)), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.7 if parameter.shape[0] == 320 else 0.3))
    return module.eval()


def tiny_policy(arch: str = "qwen3", *, seed: int = 0, version: str = "", **config: Any) -> LocalPolicy:
    """`tiny_module` as a policy. Its weights are random, so that it babbles; the same seed gives the same weights."""
    return LocalPolicy.from_module(tiny_module(arch, seed=seed, **config), tiny_tokenizer(), version)


def small_talk(n: int = 6) -> tuple[Episode, ...]:
    """General conversations."""
    said = [[Turn(role="user", content=f"Say {i}."), Turn(role="assistant", content=str(i))] for i in range(n)]
    tasks = [Task(id=f"talk{i}", env="general", split="train") for i in range(n)]
    return tuple(Episode(id=task.id, task=task, turns=chain(turns), stop=Stop.TERMINATED) for task, turns in zip(tasks, said))


class Spy(learn.Learner):
    """A learner that keeps what it was given, batch by batch."""

    given: ClassVar[list[list[Any]]] = []

    def forward_backward(self, rows: Any, loss: Any) -> dict[str, float]:
        self.given.append(list(rows))
        return super().forward_backward(rows, loss)


def spied(monkeypatch: pytest.MonkeyPatch, learner: type[Spy] = Spy) -> list[list[Any]]:
    """The batches that methods give their learners from here on, which are of this class."""
    Spy.given = []
    monkeypatch.setattr(learn, "Learner", learner)
    return Spy.given
