"""Words that the bundled worlds are made of. The embedded model knows each as one token, from general text, in no task.

A world's things are drawn from `THINGS` of the task's split, so that no thing of a dev or test task is ever in a train task.
"""

from __future__ import annotations

from collections.abc import Collection

from whet.seeding import derive_seed
from whet.types import SPLITS, Split

NOUNS = """
apple arm bag ball bank basket bear bed bell bird boat book bottle bowl box boy bread bridge brush bus cake camera candle car card carpet
cat chair cheese city clock cloud coat coffee coin corn cow cup day desk dog doll door dress drum duck ear egg engine eye face farm field
fire fish flag floor flower fork forest fox frog garden gate ghost girl glass glove goat gold grape grass hall hammer hand hat hill home
horse house ice ink iron island item jacket jar job key king kite knife ladder lake lamp leaf lemon letter lion list lock map market milk
mirror money moon mouse name nest net night number oil onion orange order page paint pan paper park pear pen pencil phone picture pie pig
pillow plane plant plate pocket price queen rabbit radio rain ring river road rock roof room root rope rose salt sand school sea seed
sheep shelf ship shirt shoe shop silver sink snake snow soap sock soup spoon star stone store street sugar sun table tail tea tent ticket
tiger toy train tree truck vase village wall watch water wheel window wind wolf wood wool word
""".split()  # noqa: SIM905
UTENSILS = ("hammer", "knife", "brush", "fire", "soap", "rope", "pan", "oil")
"""What things are made with; the same in all splits."""


def by_split(words: Collection[str], name: str) -> dict[Split, tuple[str, ...]]:
    """The words in three disjoint parts of about equal size, by a hash that `name` is part of."""
    order = sorted(words, key=lambda word: derive_seed(name, word))
    return {split: tuple(order[i :: len(SPLITS)]) for i, split in enumerate(SPLITS)}


_PLAIN = "day item job key list map name night number order page price room shop store street village word"
"""Nouns that are no thing, or that worlds use as a key."""
THINGS = by_split([noun for noun in NOUNS if noun not in (*UTENSILS, *_PLAIN.split())], "thing")
"""Things that may occur in a split's tasks."""
