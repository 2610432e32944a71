"""Results of pure tools, kept by content: the same call in the same scope is answered without being made again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

ENTRIES = 10_000
CHARACTERS = 50_000_000


class ResultCache:
    """The results used last, up to so many `entries` and `characters`. Safe to use from several threads."""

    def __init__(self, entries: int = ENTRIES, characters: int = CHARACTERS) -> None:
        self._entries, self._characters = entries, characters
        self._results: OrderedDict[Hashable, str] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()
        self.hits = self.misses = 0

    def get(self, key: Hashable) -> str | None:
        with self._lock:
            text = self._results.get(key)
            if text is None:
                self.misses += 1
                return None
            self.hits += 1
            self._results.move_to_end(key)
            return text

    def put(self, key: Hashable, text: str) -> None:
        """Keep a result. One that is longer than a tenth of the whole cache is not kept."""
        if len(text) > self._characters // 10:
            return
        with self._lock:
            self._size += len(text) - len(self._results.pop(key, ""))
            self._results[key] = text
            while len(self._results) > self._entries or self._size > self._characters:
                self._size -= len(self._results.popitem(last=False)[1])

    def clear(self) -> None:
        with self._lock:
            self._results.clear()
            self._size = self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._results)


RESULTS = ResultCache()
"""Those of this process."""
