"""Builds whet's embedded base model from nothing: corpus, tokenizer, pretraining, checkpoint, model card.

    python scripts/base/build.py [--out src/whet/base]

Two layers of Qwen3 are enough to look things up in a context, provided that the match between a question's key and a
page's line forms at all, which from the usual initialisation is a lottery. So the weights start out near the known
circuit for it (Olsson et al., arXiv 2209.11895): one head of the first layer looks at the previous token, the heads of
the second look for tokens that follow one like the present. Only the starting point is special; the checkpoint is an
ordinary one, and everything in it is trained.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from corpus import EARLY, LATE, Document, Mixture, babyai_episode, calling, chain, copying, dialogue, document, lookup, search_episode
from tokenizer import train as train_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from words import NUMBERS, PEOPLE, WORDS

from whet.data.rows import render
from whet.policies.chat import ChatFormat
from whet.types import chain as chained

WIDTH, HEAD, LAYERS, VOCABULARY = 160, 32, 2, 2048
Row = tuple[list[int], list[bool]]


def plain_text(doc: Document) -> Iterator[str]:
    """Pieces of a document as the tokenizer will meet them, between special tokens."""
    for turn in doc.turns:
        yield f"{turn.role}\n{turn.content}"
        yield "\n"
        for call in turn.tool_calls:
            yield f'\n{{"name": "{call.name}", "arguments": {json.dumps(dict(call.arguments))}}}\n'
    for tool in doc.tools:
        arguments = ", ".join(f"{name}: {spec['type']}" for name, spec in tool.parameters["properties"].items())
        yield f"\n{tool.name}({arguments}): {tool.description}"


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    rng = random.Random(seed)
    texts = [text for _ in range(8000) for text in plain_text(document(rng))]
    texts += [f" {word}" for word in (*PEOPLE, *WORDS, *NUMBERS) for _ in range(60)]
    texts += [f" {word.capitalize()}" for word in WORDS for _ in range(5)]
    return train_tokenizer(texts, VOCABULARY)


def make_row(doc: Document, chat: ChatFormat) -> Row:
    tokens: list[int] = []
    mask: list[bool] = []
    for turn, ids in render(chained(doc.turns), chat, tools=doc.tools):
        tokens += ids
        mask += [turn.trained] * len(ids)
    return tokens, mask


def make_model(vocabulary: int, seed: int) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=512,
        num_hidden_layers=LAYERS,
        num_attention_heads=WIDTH // HEAD,
        num_key_value_heads=WIDTH // HEAD,
        head_dim=HEAD,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    model = Qwen3ForCausalLM(config)
    near_induction(model)
    return model


@torch.no_grad()
def near_induction(model: Any, scale: float = 0.1) -> None:
    """Weights that already look for `A B ... A -> B`, with noise on everything.

    All embeddings share a constant in their first dimension. The first head turns it into a query and a key whose
    rotary phases agree one position apart, and writes what the previous token was into a subspace of its own, from
    which the second layer makes its keys. The second layer's queries are made of the present token; its values are
    copied as they are.
    """
    generator = torch.Generator().manual_seed(0)
    first, second = (layer.self_attn for layer in model.model.layers)
    for attention in (first, second):
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            projection.weight.normal_(0, 0.02)
    embedding = model.model.embed_tokens.weight
    embedding.normal_(0, scale)
    embedding[:, 0] = 3 * scale
    basis, _ = torch.linalg.qr(torch.randn(WIDTH - 1, WIDTH - 1, generator=generator))
    read, written = torch.zeros(HEAD, WIDTH), torch.zeros(HEAD, WIDTH)
    read[:, 1:], written[:, 1:] = basis[:HEAD], basis[HEAD : 2 * HEAD]

    half = HEAD // 2
    theta = model.config.rope_parameters["rope_theta"]
    for pair in range(3):  # the fastest rotations tell one position from the next
        phase = theta ** (-pair / half)
        first.q_proj.weight[pair, 0] += 1.0
        first.k_proj.weight[pair, 0] += math.cos(phase)
        first.k_proj.weight[pair + half, 0] += math.sin(phase)
        for norm in (first.q_norm, first.k_norm):
            norm.weight[[pair, pair + half]] = 2.5
    first.v_proj.weight[:HEAD] += read
    first.o_proj.weight[:, :HEAD] += 0.15 * written.T

    slow = [i for i in range(HEAD) if i % half >= 5]  # rotations that stay in phase over a whole context
    for start in range(0, WIDTH, HEAD):
        rows = [start + i for i in slow]
        second.q_proj.weight[rows] += read[: len(slow)]
        second.k_proj.weight[rows] += written[: len(slow)]
    for norm in (second.q_norm, second.k_norm):
        norm.weight.fill_(1.5)
    second.v_proj.weight += torch.eye(WIDTH)
    second.o_proj.weight += 0.5 * torch.eye(WIDTH)


def to_tensors(rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both [rows, longest], padded on the right, where causal attention never looks."""
    longest = max(len(tokens) for tokens, _ in rows)
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, (tokens, learned) in enumerate(rows):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        mask[i, : len(tokens)] = torch.tensor(learned)
    return ids, mask


def predict(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [n, vocabulary] and targets [n] of the n tokens in the mask."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    learned = mask[:, 1:]
    return model.lm_head(hidden[learned]), ids[:, 1:][learned]


class Stream:
    """Endless batches of about `tokens` tokens, of documents of like length."""

    def __init__(self, chat: ChatFormat, tokens: int, seed: int, mixture: Mixture) -> None:
        self._chat, self._tokens, self._rng, self._pool, self._mixture = chat, tokens, random.Random(seed), list[Row](), mixture

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        while len(self._pool) < 500:
            row = make_row(document(self._rng, self._mixture), self._chat)
            if len(row[0]) <= 640:
                self._pool.append(row)
        self._pool.sort(key=lambda row: len(row[0]))
        at, batch, total = self._rng.randrange(len(self._pool)), list[Row](), 0
        while self._pool and total < self._tokens:
            batch.append(self._pool.pop(min(at, len(self._pool) - 1)))
            total += len(batch[-1][0])
        return to_tensors(batch)


@torch.no_grad()
def accuracy(model: Any, chat: ChatFormat, kind: Callable[[random.Random], Document], n: int = 200) -> tuple[float, float]:
    """Share of the assistant's tokens predicted, and the mean loss, on fresh documents."""
    rng = random.Random(f"held out {kind.__name__}")
    right = total = 0
    loss = 0.0
    for _ in range(0, n, 25):
        logits, targets = predict(model, *to_tensors([make_row(kind(rng), chat) for _ in range(25)]))
        right += int((logits.argmax(-1) == targets).sum())
        loss += float(F.cross_entropy(logits, targets, reduction="sum"))
        total += len(targets)
    return right / total, loss / total


def train(model: Any, chat: ChatFormat, steps: int, lr: float, tokens: int, seed: int, mixture: Mixture) -> dict[str, float]:
    """AdamW with warm-up and cosine decay. Returns what it took."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    stream, began, seen, recent = Stream(chat, tokens, seed, mixture), time.process_time(), 0, list[float]()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 50) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        ids, mask = stream.next()
        logits, targets = predict(model, ids, mask)
        loss = F.cross_entropy(logits, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen += ids.numel()
        recent = [*recent[-99:], float(loss.detach())]
        if (step + 1) % max(1, steps // 20) == 0:
            took = time.process_time() - began
            scores = " ".join(f"{kind.__name__} {accuracy(model, chat, kind, 50)[0]:.3f}" for kind in KINDS)
            print(
                f"step {step + 1}/{steps} {took:.0f}s {seen / took:.0f} tok/s loss {sum(recent) / len(recent):.3f} | {scores}", flush=True
            )
    return {"seconds": time.process_time() - began, "tokens": seen, "steps": steps, "loss": sum(recent) / len(recent)}


KINDS = (lookup, chain, copying, calling, dialogue, search_episode, babyai_episode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2500, help="tokens in a batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "src" / "whet" / "base")
    parser.add_argument("--continue-from", type=Path, default=None, help="a checkpoint of the first stage, to do the second one only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.continue_from is None:
        tokenizer = make_tokenizer(args.seed)
        model = make_model(len(tokenizer), args.seed)
        first = train(model, ChatFormat(tokenizer), 2400, 3e-3, args.tokens, args.seed, EARLY)
        save(model, tokenizer, args.out, first)
        args.continue_from = args.out
    # The second stage begins from the checkpoint as it was written, so that it can be done apart.
    tokenizer = AutoTokenizer.from_pretrained(args.continue_from)
    model = Qwen3ForCausalLM.from_pretrained(args.continue_from, dtype=torch.float32)
    chat = ChatFormat(tokenizer)
    first = json.loads((args.continue_from / "training.json").read_text())
    second = train(model, chat, 1500, 1e-3, args.tokens, args.seed + 1, LATE)
    took = {key: first[key] + second[key] for key in ("seconds", "tokens", "steps")} | {"loss": second["loss"]}
    measured = {kind.__name__: dict(zip(("accuracy", "loss"), accuracy(model, chat, kind))) for kind in KINDS}
    save(model, tokenizer, args.out, {"parameters": sum(p.numel() for p in model.parameters()), **took, "held_out": measured})


def save(model: Any, tokenizer: Any, out: Path, training: dict[str, Any]) -> None:
    """An ordinary checkpoint in bfloat16, with what its training took."""
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "training.json").write_text(json.dumps(training, indent=2) + "\n")


if __name__ == "__main__":
    main()
