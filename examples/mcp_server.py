"""A tool server of one's own, as any MCP client knows them: where things are kept, one page for each thing.

    whet run grpo --preset small --env "mcp:command=python examples/mcp_server.py,tasks=examples/mcp_tasks.jsonl,shared=true"

The task file beside it was made by `python examples/mcp_server.py --tasks`.
"""

import json
import random
import sys

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

THINGS = [
    "lamp",
    "mug",
    "rug",
    "vase",
    "chair",
    "desk",
    "phone",
    "book",
    "cup",
    "box",
    "key",
    "ball",
    "door",
    "bed",
    "radio",
    "mirror",
    "candle",
    "engine",
    "hammer",
    "jacket",
    "kettle",
    "ladder",
    "ring",
    "rope",
    "saw",
    "spoon",
    "stove",
    "tent",
    "tray",
    "bag",
    "bell",
    "boat",
    "bowl",
    "camera",
    "car",
    "card",
    "fan",
    "hook",
    "iron",
    "jar",
    "lock",
    "map",
    "net",
    "paint",
    "pan",
    "pipe",
    "pot",
    "sink",
    "stamp",
    "stone",
    "toy",
    "train",
    "truck",
    "watch",
]
VALUES = {
    "room": ("hall", "garden", "tower", "market", "school", "village"),
    "owner": ("Rosa", "Bini", "Gulu", "Cole", "queen", "tailor"),
    "metal": ("gold", "silver", "iron"),
    "state": ("red", "blue", "yellow", "black", "purple", "pink"),
}


def inventory() -> dict[str, dict[str, str]]:
    """Everything's page."""
    rng = random.Random(7)
    return {thing: {key: rng.choice(VALUES[key]) for key in rng.sample(list(VALUES), 3)} for thing in THINGS}


PAGES = inventory()
server = MCPServer("inventory", instructions="Answer the question. Search one thing at a time.", log_level="ERROR")


@server.tool()
def search(query: str) -> str:
    """Read the page of a thing."""
    if query not in PAGES:
        raise ToolError(f"no page of {query[:40]}")
    return "\n".join([query, *(f"{key} {value}" for key, value in PAGES[query].items())])


def tasks() -> None:
    """One question for each line of each page; no thing is asked about in two splits."""
    for i, (thing, page) in enumerate(PAGES.items()):
        split = "test" if i % 4 == 3 else "dev" if i % 8 == 6 else "train"
        for key, value in page.items():
            print(json.dumps({"id": f"{thing}-{key}", "prompt": f"What is the {thing}'s {key}?", "split": split, "answer": value}))


if __name__ == "__main__":
    tasks() if "--tasks" in sys.argv else server.run()
