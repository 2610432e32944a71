"""Memory and speed of `whet data` on many trajectories: imported, filtered, mixed and exported, each as the command a user gives.

    python benchmarks/bench_data.py [--episodes 200000] [--json out.json]

What goes in: `--episodes` conversations of an agent with tools in OpenAI's format (4 to 12 turns, about 2 kB each; one in
twenty is a near copy of an earlier one, one in ten thousand is malformed), and a quarter as many general conversations in
ShareGPT's. Filters: readable, length, exact and near duplicates, 13-gram overlap with 200 held-out texts. The mixture draws
from the agent's with probability 0.2. Every step is a process of its own; its peak memory is what the kernel counted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine

from whet.runs import EpisodeStore

LIMIT_MB = 1000
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{name} in the shop",
            "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
        },
    }
    for name in ("search", "open", "buy")
]


def sentence(rng: random.Random, words: list[str], n: int) -> str:
    return " ".join(rng.choices(words, k=n))


def conversation(rng: random.Random, words: list[str]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": "You are a careful buyer. Use the tools, one call at a time."}]
    messages.append({"role": "user", "content": sentence(rng, words, 30)})
    for i in range(rng.randrange(1, 5)):
        call = {"name": rng.choice(("search", "open", "buy")), "arguments": json.dumps({"query": sentence(rng, words, 3)})}
        messages.append(
            {
                "role": "assistant",
                "content": sentence(rng, words, 12),
                "tool_calls": [{"id": f"call_{i}", "type": "function", "function": call}],
            }
        )
        messages.append({"role": "tool", "tool_call_id": f"call_{i}", "content": sentence(rng, words, 60)})
    messages.append({"role": "assistant", "content": sentence(rng, words, 20)})
    return {"messages": messages, "tools": TOOLS}


def generate(directory: Path, n: int) -> None:
    """The files that are read."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(2, 9))) for _ in range(5000)]
    recent: list[dict[str, Any]] = []
    with open(directory / "agent.jsonl", "w") as file:
        for i in range(n):
            if i % 10_000 == 9_999:
                file.write('{"messages": [{"role": "robot"}]}\n')
                continue
            record = conversation(rng, words)
            if i % 20 == 19:
                record = json.loads(json.dumps(rng.choice(recent)))
                record["messages"][-1]["content"] += " thanks"
            recent = [*recent[-99:], record]
            file.write(json.dumps(record) + "\n")
    with open(directory / "general.json", "w") as file:
        file.write("[\n")
        for i in range(n // 4):
            turns = [{"from": who, "value": sentence(rng, words, 50)} for who in ("human", "gpt") * 2]
            file.write((",\n" if i else "") + json.dumps({"id": f"g{i}", "conversations": turns}))
        file.write("\n]\n")
    held_out = [
        {"messages": [{"role": "user", "content": sentence(rng, words, 40)}, {"role": "assistant", "content": "x"}]} for _ in range(200)
    ]
    (directory / "held.jsonl").write_text("".join(json.dumps(record) + "\n" for record in held_out))


def step(name: str, directory: Path, argv: list[str], *, episodes: int, codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """Run `whet data ARGV`; seconds, processor seconds, peak memory, episodes per second."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "whet.cli", "data", *argv], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    shown = process.stdout.read().strip().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    code = os.waitstatus_to_exitcode(status)
    if code not in codes:
        raise SystemExit(f"whet data {' '.join(argv)} ended with {code}")
    processor = usage.ru_utime + usage.ru_stime
    found = {
        "step": name,
        "seconds": seconds,
        "processor": processor,
        "peak_mb": usage.ru_maxrss / 1024,
        "episodes": episodes,
        "said": shown[-1],
    }
    print(
        f"{name:<10}{episodes:>9,}{seconds:>9.1f}{processor:>9.1f}{episodes / processor:>12,.0f}{found['peak_mb']:>9.0f}  {shown[-1][:90]}",
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=200_000)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    args = parser.parse_args()
    n = args.episodes
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        generate(directory, n)
        sizes = {file.name: file.stat().st_size / 1e6 for file in directory.iterdir()}
        print(", ".join(f"{file}: {mb:,.0f} MB" for file, mb in sorted(sizes.items())))
        print(f"{'step':<10}{'episodes':>9}{'s':>9}{'cpu s':>9}{'per cpu s':>12}{'peak MB':>9}")
        quiet = ["--quiet", "--outcome", "success"]
        found = [step("import", directory, ["import", "agent.db", "agent.jsonl", *quiet], episodes=n, codes=(0, 3))]
        found.append(step("import", directory, ["import", "general.db", "general.json", *quiet], episodes=n // 4))
        step("import", directory, ["import", "held.db", "held.jsonl", "--split", "test", *quiet], episodes=200)
        rules = ["--success", "--readable", "--max-turns", "20", "--distinct-by", "0.8", "--no-overlap", "held.db"]
        found.append(step("filter", directory, ["filter", "agent.db", "--out", "good.db", *rules, "--quiet"], episodes=n))
        found.append(
            step(
                "mix", directory, ["mix", "good.db", "general.db", "--eta", "0.2", "-n", str(n), "--out", "mixed.db", "--quiet"], episodes=n
            )
        )
        for form, file in (("trl", "x.jsonl"), ("openai", "x.json"), ("atif", "y.jsonl"), ("whet", "x.parquet")):
            found.append(step(f"to {form}", directory, ["export", "mixed.db", file, "--to", form, "--quiet"], episodes=n))
        found.append(step("stats", directory, ["stats", "mixed.db"], episodes=n))
        store = EpisodeStore(directory / "good.db", read_only=True)
        print(f"kept by the filters: {store.count():,} of {n:,}")
        store.close()
    peak = max(one["peak_mb"] for one in found)
    print(f"highest peak: {peak:.0f} MB (limit {LIMIT_MB})")
    if args.json:
        about = {"benchmark": "data", "machine": machine("whet"), "files_mb": sizes}
        args.json.write_text(json.dumps(about | {"steps": found, "peak_mb": peak}, indent=1) + "\n")
    if peak > LIMIT_MB:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
