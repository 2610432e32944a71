"""General conversations: what an agent should still be able to do after it was trained for its tasks.

Those that come with whet (`bundled`) are made by a program, as text for the embedded model (`scripts/base/general.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from whet.data.formats import Origin
from whet.data.importing import import_file
from whet.data.provenance import tools_of
from whet.data.rows import HasChat, to_examples
from whet.errors import ConfigError
from whet.runs import EpisodeStore
from whet.types import Episode, Example

BUNDLED = Path(__file__).parents[1] / "base" / "general.jsonl.gz"


def read_general(source: str | Path) -> tuple[Episode, ...]:
    """The conversations of a file in any format that `whet data import` reads, or for `bundled` those that come with whet.

    They count as episodes of train tasks. Raises ConfigError for a file that cannot be read, with file and line for a
    record that is no conversation, and for a file without any.
    """
    path = BUNDLED if source == "bundled" else Path(source)

    def refuse(line: int, why: str) -> None:
        raise ConfigError(f"{path}, line {line} is no general conversation: {why}")

    store = EpisodeStore(None)
    import_file(store, path, Origin(source=path.name, env="general"), on_bad=refuse)
    found = tuple(episode for episode in store.load() if episode.n_actions)
    if not found:
        raise ConfigError(f"{path} has no conversation in which an assistant speaks; expected some to mix in")
    return found


def general_rows(conversations: Sequence[Episode], policy: HasChat) -> list[Example]:
    """A row for each conversation, with its own tools in the prompt and the assistant's turns masked in."""
    return [row for one in conversations for row in to_examples(one, policy, tools=tools_of(one))]
