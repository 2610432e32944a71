"""The embedded model's tokenizer: byte-level BPE in which a word is the same token wherever it stands.

A word after a quote or a line break is written by most tokenizers with another token than the same word after a space,
and a small model would have to learn that the two are one. Here a word always carries its leading space; where the text
has none, an invisible glue character (U+2060) is put before it, which merges into the punctuation on its left and is
taken out again by the decoder. The template ends its generation prompt with the glue, so that an answer begins likewise.
So `"Otto"` and `is Otto` share the token of Otto, and the text round-trips.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

GLUE = "\u2060"
SPECIAL = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"]

CHAT_TEMPLATE = """\
{%- if tools or messages[0].role == 'system' -%}
<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}
{%- for tool in tools or [] %}
{%- set f = tool.function if tool.function is defined else tool -%}
{{ '\\n' }}{{ f.name }}(
{%- for name, spec in f.parameters.properties.items() -%}
{{ name }}: {{ spec.type | default('any') }}{{ ', ' if not loop.last }}
{%- endfor -%}
): {{ f.description }}
{%- endfor %}<|im_end|>
{% endif -%}
{%- for message in messages %}
{%- if message.role == 'assistant' -%}
<|im_start|>assistant
{{ '\\u2060' }}{% generation %}{{ ' ' + message.content if message.content else '' }}
{%- for call in message.tool_calls or [] %}
{%- set f = call.function if call.function is defined else call -%}
<tool_call>
{"name": "{{ f.name }}", "arguments": {{ f.arguments if f.arguments is string else f.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>{% endgeneration %}
{% elif message.role != 'system' or not loop.first -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif -%}
{%- endfor %}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{{ '\\u2060' }}{%- endif -%}
"""

# How transformers (and TRL through it) reads an answer back. The anchor leaves the glue out, because decoding does.
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}


def train(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer trained on `texts`, with the chat template above."""
    tokenizer = Tokenizer(models.BPE())
    # One rule per character, because a rule of zero width makes the library lose its place in the text.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(re.escape(mark) + r"(?=\w)"), f"{mark}{GLUE} ") for mark in '\n\t!"#$%&()*+,-./:;<=>?@[\\]^`{|}~']
    )
    scaffold = rf"\n\{{\"{GLUE} name\": \"{GLUE}|\", \"{GLUE} arguments\": \{{\"{GLUE}"
    punctuation = r"(?:[^\p{L}\p{N} ]| (?=[^\p{L}\p{N} ]))+"
    pattern = rf"{scaffold}|'\p{{L}}+| ?\p{{L}}+| ?\p{{N}}{{1,3}}|{punctuation}| +"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Fuse(), decoders.Replace(GLUE + " ", ""), decoders.Replace(GLUE, "")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>", clean_up_tokenization_spaces=False, model_max_length=2048
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.response_template = RESPONSE_TEMPLATE
    return fast
