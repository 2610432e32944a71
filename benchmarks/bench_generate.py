"""Sampled tokens per second in multi-turn episodes: whet's engine against a loop over `transformers` generate.

    python benchmarks/bench_generate.py [--model DIR] [--episodes 8 32 128] [--threads 1]

An episode is a prompt and a fixed number of turns; a turn samples a number of tokens that was drawn beforehand, the same
for both sides, and is followed by an observation. The loop is what an agent written against transformers does: one
batched, left-padded `generate` over all episodes' histories per turn, which goes on until the longest answer is
complete. It is not asked for log-probs, which the engine returns. With `--spread 0` all answers have equal lengths, so
that the loop wastes nothing on padding. Both sides run in one process, in alternation, and are measured in processor
seconds; the ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from common import machine, spread
from transformers import AutoModelForCausalLM, Qwen3Config, StoppingCriteria, StoppingCriteriaList

from whet.policies.base import Sampling
from whet.policies.engine import Engine
from whet.policies.engine.select import decoder_for
from whet.policies.local import LocalPolicy, own_tensors


@dataclass(frozen=True)
class Work:
    """The episodes: `group` of them begin with the same prompt."""

    episodes: int
    group: int
    turns: int
    prompt: int
    observation: int
    answer: int
    spread: int

    def prompts(self, vocab: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(0)
        tasks = torch.randint(3, vocab, (-(-self.episodes // self.group), self.prompt), generator=generator)
        return tasks.repeat_interleave(self.group, 0)[: self.episodes].tolist()

    def observations(self, vocab: int) -> list[list[list[int]]]:
        """By turn and episode."""
        generator = torch.Generator().manual_seed(1)
        return torch.randint(3, vocab, (self.turns, self.episodes, self.observation), generator=generator).tolist()

    def answers(self) -> torch.Tensor:
        """int64 [turns, episodes]: tokens to sample."""
        low, high = self.answer - self.spread, self.answer + self.spread
        return torch.randint(low, high + 1, (self.turns, self.episodes), generator=torch.Generator().manual_seed(2))

    @property
    def sampled(self) -> int:
        return int(self.answers().sum())


class Lengths(StoppingCriteria):
    """Ends each row after its own number of tokens."""

    def __init__(self, start: int, lengths: torch.Tensor) -> None:
        self.ends = start + lengths

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return input_ids.shape[1] >= self.ends


def run_transformers(module: Any, work: Work) -> None:
    """One `generate` over all histories per turn, everything prefilled again each time."""
    vocab = module.config.get_text_config().vocab_size
    histories = work.prompts(vocab)
    for observations, answers in zip(work.observations(vocab), work.answers()):
        width = max(map(len, histories))
        out = module.generate(
            torch.tensor([[0] * (width - len(h)) + h for h in histories]),
            attention_mask=torch.tensor([[0] * (width - len(h)) + [1] * len(h) for h in histories]),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=int(answers.max()),
            stopping_criteria=StoppingCriteriaList([Lengths(width, answers)]),
            pad_token_id=0,
        )
        said = [row[width : width + n] for row, n in zip(out.tolist(), answers.tolist())]
        histories = [h + s + o for h, s, o in zip(histories, said, observations)]


def run_whet(engine: Engine, work: Work) -> None:
    """Every episode is a coroutine that asks for a turn, looks at it, and asks for the next."""
    vocab = engine.decoder.vocab_size
    prompts, observations, answers = work.prompts(vocab), work.observations(vocab), work.answers().tolist()

    async def episode(i: int) -> None:
        history = prompts[i]
        for turn in range(work.turns):
            result = await engine.generate(history, Sampling(), max_tokens=answers[turn][i], seed=i * 1000 + turn, session=f"e{i}")
            assert len(result.tokens) == answers[turn][i]
            history = [*history, *result.tokens, *observations[turn][i]]
        engine.release(f"e{i}")

    async def everything() -> None:
        await asyncio.gather(*(episode(i) for i in range(work.episodes)))

    asyncio.run(everything())


def seconds(function: Any, *args: Any) -> float:
    start = time.process_time()
    function(*args)
    return time.process_time() - start


def model(path: str | None) -> Any:
    if path:
        return LocalPolicy.load(path).module()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=1536,
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=2,
        num_attention_heads=5,
        num_key_value_heads=5,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint directory; a Qwen3 of 2 layers, width 160, with random weights unless given")
    parser.add_argument("--episodes", type=int, nargs="+", default=[8, 32, 128], help="numbers of concurrent episodes")
    parser.add_argument("--group", type=int, default=1, help="episodes that share a prompt")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--prompt", type=int, default=80, help="tokens of the prompt")
    parser.add_argument("--observation", type=int, default=20, help="tokens of an observation")
    parser.add_argument("--answer", type=int, default=12, help="tokens sampled per turn, on average")
    parser.add_argument("--spread", type=int, default=6, help="how many tokens an answer may be longer or shorter")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    module = model(args.model)
    module.generation_config.eos_token_id = None
    size = sum(p.numel() for p in module.parameters())
    print(f"{type(module).__name__}, {size:,} parameters, {args.threads} thread(s)")
    print(f"prompt of {args.prompt} tokens, {args.turns} answers of {args.answer} +- {args.spread}, observations of {args.observation}")
    print(f"{'episodes':>8} {'transformers tok/s':>19} {'whet tok/s':>11} {'ratio':>6}  {'(range)':>12}")
    measured = []
    for episodes in args.episodes:
        work = Work(episodes, args.group, args.turns, args.prompt, args.observation, args.answer, args.spread)
        decoder = decoder_for(module.config, own_tensors(module), lambda: module)
        engine = Engine(decoder, stops=frozenset())
        theirs, ours = [], []
        run_transformers(module, work)
        run_whet(engine, work)
        for _ in range(args.rounds):
            theirs.append(seconds(run_transformers, module, work))
            ours.append(seconds(run_whet, engine, work))
        ratio = spread([a / b for a, b in zip(theirs, ours)])
        print(
            f"{episodes:>8} {work.sampled / statistics.median(theirs):>19,.0f} {work.sampled / statistics.median(ours):>11,.0f} "
            f"{ratio['median']:>6.1f}  ({ratio['min']:.1f}-{ratio['max']:.1f})",
            flush=True,
        )
        measured.append({"work": asdict(work), "transformers_seconds": theirs, "whet_seconds": ours, "ratio": ratio})
    if args.json:
        about = {"benchmark": "generate", "machine": machine("whet", "torch", "transformers"), "model": args.model or "random weights"}
        args.json.write_text(json.dumps(about | {"threads": args.threads, "rounds": args.rounds, "measured": measured}, indent=1) + "\n")


if __name__ == "__main__":
    main()
