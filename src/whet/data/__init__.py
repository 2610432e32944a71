"""From episodes to training rows, and from rows to the packs that a model computes."""

from whet.data.packing import Pack, pack_rows
from whet.data.rows import batches, to_examples, to_pair

__all__ = ["Pack", "batches", "pack_rows", "to_examples", "to_pair"]
