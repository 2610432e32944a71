"""The words of the embedded model's procedural text: plain lists, so that the corpus needs no download."""

from whet.envs.search import NAMES, RELATIONS
from whet.envs.words import NOUNS

VERBS = """
add answer ask bring buy call carry check close come cook cost count cut draw drink drive drop eat explore fall find finish fly follow get
give go have help hold jump keep know learn leave let like list live look make meet move need open pay pick play pull push put read repeat
ride run say search see sell send set show sing sit sleep stand start stay stop swim take talk tell think toggle touch try turn use wait
walk want wash wear work write
""".split()  # noqa: SIM905

SMALL = """
a about after again all an and any are as at away back be before below between big black blue both but by can cold dark did do does done
down each empty end error every first for forward free from full good green grey hard he hello here hint hot how i if in into is it its
last left light long many me more much my near new next nice no not now of off old on one only or other our out over plan please purple
red right same she short side small so soft some step than thank that the their them then there these they thing this time to today two
under up very warm was we well were what when where which white who why will with yellow yes you your ahead adjacent carrying closed
locked nothing goal object string integer number boolean true false none null args result value type query text expression calculate name
arguments state plus minus age person people system user assistant tool tools final give mission matching visible valid actions action
""".split()  # noqa: SIM905

PEOPLE = [name for names in NAMES.values() for name in names]
"""Of every split: as words to look up and copy. Tasks of dev and test are never seen by the model."""
WORDS = sorted({*NOUNS, *VERBS, *SMALL, *RELATIONS})
NUMBERS = [str(i) for i in range(100)]
