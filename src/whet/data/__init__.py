"""From episodes to training rows, and from rows to the packs that a model computes."""

from whet.data.packing import Pack, pack_rows
from whet.data.pairs import Contrast, extremes, outcome, segment, siblings, step, to_pairs, unpaired
from whet.data.rows import (
    actions,
    batches,
    confidence,
    contexts,
    different,
    last_action,
    opening,
    reopened,
    rows_of,
    to_examples,
    turn_ends,
)

__all__ = [
    "Contrast",
    "Pack",
    "actions",
    "batches",
    "confidence",
    "contexts",
    "different",
    "extremes",
    "last_action",
    "opening",
    "outcome",
    "pack_rows",
    "reopened",
    "rows_of",
    "segment",
    "siblings",
    "step",
    "to_examples",
    "to_pairs",
    "turn_ends",
    "unpaired",
]
