"""Seeds by name: the same names give the same seed in every process, order and version of Python."""

from __future__ import annotations

import hashlib


def derive_seed(*names: object) -> int:
    """A seed in [0, 2**63) for this sequence of names, such as `derive_seed(run_seed, "grpo", step)`.

    Names are hashed with their types' `repr`, so `1` and `"1"` differ and ("a", "bc") differs from ("ab", "c").
    """
    digest = hashlib.blake2b("\x1f".join(map(repr, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
