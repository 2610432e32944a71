"""Texts that are nearly the same, among any number that come one after another (MinHash with banding, Broder 1997).

The similarity of two texts is the Jaccard index of their sets of runs of words. It is estimated from 128 hash functions,
with a standard error of at most 0.044; with 16 bands of 8, a text that is 0.9 similar to an earlier one is compared with it
with probability 0.9999, one that is 0.8 similar with probability 0.95. A text takes about 1.5 kB of memory.
"""

from __future__ import annotations

import functools
import re
import zlib
from array import array

import numpy as np

from whet.seeding import derive_seed

_HASHES, _BANDS = 128, 16
_WIDTH = 5
"""Words of a run."""
_MOST = 64
"""Earlier texts that are compared in a band: where many share a run of words, the last ones."""
_WORD = re.compile(r"\w+")
_RNG = np.random.default_rng(20240607)
_MULTIPLY = _RNG.integers(0, 2**31, (_HASHES, 1), dtype=np.uint32) * np.uint32(2) + np.uint32(1)
_ADD = _RNG.integers(0, 2**32, (_HASHES, 1), dtype=np.uint32)


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.lower())


def runs(found: list[str], width: int) -> np.ndarray:
    """uint64 [len(found) - width + 1]: a hash of each run of `width` words; of all of them where there are fewer."""
    width = min(width, len(found))
    if not width:
        return np.zeros(0, dtype=np.uint64)
    each = np.fromiter((zlib.crc32(word.encode("utf-8", "replace")) for word in found), dtype=np.uint64, count=len(found))
    each = _mixed(each + np.uint64(1))
    total = np.zeros(len(found) - width + 1, dtype=np.uint64)
    for i in range(width):
        total += each[i : i + len(total)] * _factor(i)
    return _mixed(total)


@functools.cache
def _factor(place: int) -> np.uint64:
    """An odd factor for each place of a run, so that the same words in another order are another run."""
    return np.uint64(derive_seed("run", place) | 1)


def _mixed(value: np.ndarray) -> np.ndarray:
    """Each uint64 spread over all its bits (the finaliser of SplitMix64)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = value ^ (value >> np.uint64(31))
    return mixed


def signature(text: str) -> np.ndarray:
    """uint32 [128]: the least of each hash function's values over the text's runs of words."""
    shingles = runs(words(text), _WIDTH).astype(np.uint32)
    if not len(shingles):
        return np.full(_HASHES, 0xFFFFFFFF, dtype=np.uint32)
    least: np.ndarray = (shingles * _MULTIPLY + _ADD).min(axis=1)
    return least


class Near:
    """Remembers texts, and finds the one among them that is like a new one."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._known = np.zeros((256, _HASHES), dtype=np.uint32)
        self._n = 0
        self._heads = _Table()
        self._next = array("i")
        """For each text and band, the text before it that has the same band; -1 where there is none."""

    def add(self, text: str) -> int | None:
        """The number of an earlier text that is at least as similar as the threshold; where there is none, this one is remembered."""
        own = signature(text)
        keys = _band_keys(own)
        candidates = sorted({number for band, key in enumerate(keys) for number in self._chain(band, key)})
        if candidates:
            same = (self._known[candidates] == own).mean(axis=1)
            if float(same.max()) >= self._threshold:
                return candidates[int(same.argmax())]
        if self._n == len(self._known):
            self._known = np.concatenate([self._known, np.zeros_like(self._known)])
        self._known[self._n] = own
        for key in keys:
            self._next.append(self._heads.swap(key, self._n))
        self._n += 1
        return None

    def _chain(self, band: int, key: int) -> list[int]:
        found: list[int] = []
        number = self._heads.get(key)
        while number >= 0 and len(found) < _MOST:
            found.append(number)
            number = self._next[number * _BANDS + band]
        return found


def _band_keys(own: np.ndarray) -> list[int]:
    """A key other than 0 for each band."""
    bands = own.reshape(_BANDS, -1).astype(np.uint64)
    keys = np.arange(1, _BANDS + 1, dtype=np.uint64)
    for column in range(bands.shape[1]):
        keys = _mixed(keys * np.uint64(0x9E3779B97F4A7C15) + bands[:, column])
    return [key or 1 for key in keys.tolist()]


class _Table:
    """A map from integers other than 0 to integers, in a fifth of a dict's memory."""

    def __init__(self) -> None:
        self._resize(1 << 12)
        self._n = 0

    def _resize(self, size: int) -> None:
        self._mask = size - 1
        self._keys, self._values = array("Q", bytes(8 * size)), array("i", bytes(4 * size))

    def _slot(self, key: int) -> int:
        at = key & self._mask
        while self._keys[at] not in (0, key):
            at = (at + 1) & self._mask
        return at

    def get(self, key: int) -> int:
        """The value; -1 where there is none."""
        at = self._slot(key)
        return self._values[at] if self._keys[at] else -1

    def swap(self, key: int, value: int) -> int:
        """Put a value in; the one that was there, or -1."""
        at = self._slot(key)
        if self._keys[at]:
            before, self._values[at] = self._values[at], value
            return before
        self._keys[at], self._values[at] = key, value
        self._n += 1
        if 2 * self._n > self._mask:
            old = [(k, v) for k, v in zip(self._keys, self._values) if k]
            self._resize(2 * (self._mask + 1))
            for k, v in old:
                at = self._slot(k)
                self._keys[at], self._values[at] = k, v
        return -1
