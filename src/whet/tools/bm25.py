"""BM25: ranks texts by the words that they share with a query (Robertson and Zaragoza, 2009), as Lucene computes it.

    score(d, q) = sum over the words t of q of  idf(t) tf / (tf + k1 (1 - b + b |d| / mean |d|)),
    idf(t) = ln(1 + (N - n_t + 1/2) / (n_t + 1/2))

tf is how often t stands in d, n_t how many of the N texts hold t. A word that stands twice in the query counts twice.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

# Scripts that are written without blanks between words are taken by the character.
_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


def words(text: str) -> list[str]:
    """The words of a text in order: letters and digits, in lower case; `foo_bar.baz` has three."""
    return _WORD.findall(text.casefold())


class BM25:
    """An index of `texts`. `k1` is how soon another occurrence of a word stops to matter, `b` how much length does."""

    def __init__(self, texts: Sequence[str], *, k1: float = 1.2, b: float = 0.75) -> None:
        counts = [Counter(words(text)) for text in texts]
        lengths = [sum(count.values()) for count in counts]
        mean = sum(lengths) / len(lengths) if any(lengths) else 1.0
        found: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for i, (count, length) in enumerate(zip(counts, lengths)):
            for word, tf in count.items():
                found[word].append((i, tf / (tf + k1 * (1 - b + b * length / mean))))
        self._n = len(counts)
        self._postings: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for word, places in found.items():
            idf = math.log(1 + (self._n - len(places) + 0.5) / (len(places) + 0.5))
            self._postings[word] = (np.array([i for i, _ in places]), idf * np.array([weight for _, weight in places]))

    def __len__(self) -> int:
        return self._n

    def scores(self, query: str) -> np.ndarray:
        """float64 [N]: the score of each text, 0 where it shares no word with the query."""
        scores = np.zeros(self._n)
        for word, times in Counter(words(query)).items():
            if word in self._postings:
                places, weights = self._postings[word]
                scores[places] += times * weights
        return scores

    def search(self, query: str, k: int = 10) -> list[tuple[int, float]]:
        """The `k` best texts, as (index, score) from the best on; equal ones in their order, those without a word left out."""
        scores = self.scores(query)
        hits = np.flatnonzero(scores)
        order = hits[np.argsort(-scores[hits], kind="stable")[:k]]
        return [(int(i), float(scores[i])) for i in order]
