"""Writes the embedded model's card from what its training left behind and from what it does on dev tasks.

python scripts/base/card.py [--model src/whet/base]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from whet import Agent, Sampling, evaluate, load_env, load_policy
from whet.types import Score

SHOWN = (
    ("search:hops=1", "Search, 1 hop"),
    ("search:hops=2", "Search, 2 hops"),
    ("search:hops=3", "Search, 3 hops"),
    ("babyai:level=GoToLocal,max_turns=12", "BabyAI GoToLocal, 12 turns"),
)
CARD = """\
# whet's embedded base model

A Qwen3 of {parameters:,} parameters (2 layers, width 160, 2,048 tokens, bfloat16), built from nothing by
`make base`. It is to a user of whet what a weak pretrained model is: it speaks the language of chats and tool calls,
finds and copies what stands in its context, and is bad at the bundled tasks, because most of the episodes that it read
were played by actors who are hasty, lost or mistaken.

- **Data**: procedural text only, endless and made from a seed (`scripts/base/corpus.py`): looking things up, following
  relations over pages, copying, calling tools that are new in every document, small talk; and episodes of the *train*
  splits of Search and BabyAI by experts, by actors who make mistakes and by explorers, some with a hint in the context.
  Names of people of all splits occur as words to look up and copy; no question, page or world of dev or test does.
- **Training**: {steps:,} steps of AdamW, {tokens:,} tokens, {seconds:.0f} processor seconds of one thread, final loss
  {loss:.3f} on the assistant's tokens. Weights start near the known circuit for in-context lookup
  (`scripts/base/build.py`).
- **Tokenizer**: byte-level BPE in which a word is one token wherever it stands (`scripts/base/tokenizer.py`).
- **Licence**: Apache-2.0, as whet. **Not for**: anything but trying whet out.

Of the assistant's tokens in 200 fresh documents of each kind it predicts (teacher forced; what mistaken actors do in the
episodes cannot be predicted):

| kind | accuracy | loss |
|---|---|---|
{kinds}

Success on {n} dev tasks (95% interval clustered by task), with {seeds} sampled attempts at each or the one greedy attempt:

| environment | sampled at temperature 1 | greedy |
|---|---|---|
{scores}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path(__file__).parents[2] / "src" / "whet" / "base")
    parser.add_argument("--tasks", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    training = json.loads((args.model / "training.json").read_text())
    policy = load_policy(str(args.model))

    def success(spec: str, temperature: float) -> Score:
        env = load_env(spec)
        agent = Agent(policy, sampling=Sampling(temperature=temperature))
        return evaluate(agent, env, env.tasks("dev", args.tasks), repeats=args.repeats if temperature else 1).success

    kinds = "\n".join(f"| {kind} | {m['accuracy']:.3f} | {m['loss']:.3f} |" for kind, m in training.pop("held_out").items())
    rows = []
    for spec, title in SHOWN:
        cells = (f"{s.mean:.3f} [{s.low:.3f}, {s.high:.3f}]" for s in (success(spec, 1.0), success(spec, 0.0)))
        rows.append(f"| {title} | {' | '.join(cells)} |")
    card = CARD.format(**training, kinds=kinds, n=args.tasks, seeds=args.repeats, scores="\n".join(rows))
    (args.model / "README.md").write_text(card)
    print(card)


if __name__ == "__main__":
    main()
