"""Writes the general conversations that come with whet: what methods mix in so that an agent keeps what else it can do.

    python scripts/base/general.py [--out src/whet/base/general.jsonl.gz]

They are drawn from the kinds of text of `corpus.py` that are about no environment, by a seed of their own: conversations of
the kind that the embedded model learned from, and new to it. A line is a conversation in OpenAI's form.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from pathlib import Path
from typing import Any

from corpus import Document, calling, chain, copying, dialogue, lookup

from whet.seeding import derive_seed
from whet.types import ToolCall, Turn

KINDS = ((0.30, lookup), (0.20, chain), (0.15, copying), (0.20, calling), (0.15, dialogue))
"""Each kind's share. Of the embedded model's general text lookups are 40%, because there they are hard to learn."""


def message(turn: Turn, number: int) -> dict[str, Any]:
    found: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.tool_calls:
        found["tool_calls"] = [call(c, f"call_{number}_{i}") for i, c in enumerate(turn.tool_calls)]
    if turn.role == "tool" and turn.name:
        found |= {"name": turn.name, "tool_call_id": f"call_{number - 1}_0"}
    return found


def call(c: ToolCall, id: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": c.name, "arguments": json.dumps(dict(c.arguments))}}


def record(doc: Document, kind: str, number: int) -> dict[str, Any]:
    """A conversation as a line of the file."""
    found: dict[str, Any] = {"id": f"general/{number}", "kind": kind, "messages": [message(t, i) for i, t in enumerate(doc.turns)]}
    return found | ({"tools": [tool.schema() for tool in doc.tools]} if doc.tools else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-n", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "src" / "whet" / "base" / "general.jsonl.gz")
    args = parser.parse_args()
    rng = random.Random(derive_seed("general", args.seed))
    weights, kinds = zip(*KINDS)
    lines = []
    for number in range(args.n):
        kind = rng.choices(kinds, weights)[0]
        lines.append(json.dumps(record(kind(rng), kind.__name__, number), separators=(",", ":"), ensure_ascii=False) + "\n")
    # without a name and a time inside, the same conversations are the same bytes
    with open(args.out, "wb") as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0, compresslevel=9) as out:
        out.write("".join(lines).encode())
    print(f"{args.out}: {len(lines)} conversations, {args.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
