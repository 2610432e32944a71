"""From episodes to training rows, and from rows to the packs that a model computes."""

from whet.data.packing import Pack, pack_rows
from whet.data.pairs import unpaired
from whet.data.rows import actions, batches, confidence, last_action, opening, reopened, rows_of, to_examples, to_pair

__all__ = [
    "Pack",
    "actions",
    "batches",
    "confidence",
    "last_action",
    "opening",
    "pack_rows",
    "reopened",
    "rows_of",
    "to_examples",
    "to_pair",
    "unpaired",
]
