"""When two results of queries are the same: the rules of test-suite accuracy for Spider (Zhong et al., arXiv 2010.02840).

Columns may stand in any order; rows, too, unless the gold query orders them; a row that occurs twice must occur twice.
Values are compared as Python compares them, so that 1 and 1.0 are equal, and "1" is another value. Two empty results are
equal, whatever their columns.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from whet.envs.sql.database import Row

_TOKEN = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/|\w+|\W", re.DOTALL)


def ordered(gold: str) -> bool:
    """Whether the order of the rows matters, which is so where the gold query holds an ORDER BY anywhere."""
    return "order by" in " ".join(gold.lower().split())


def same_rows(gold: Sequence[Row], found: Sequence[Row], *, in_order: bool) -> bool:
    """Whether the rows are the same up to the order of the columns and, unless `in_order`, of the rows."""
    if not gold and not found:
        return True
    if len(gold) != len(found) or len(gold[0]) != len(found[0]):
        return False
    theirs = list(zip(*gold))
    mine = list(zip(*found))
    if in_order:
        return Counter(theirs) == Counter(mine)
    bags = [Counter(column) for column in mine]
    options = [[j for j, bag in enumerate(bags) if bag == Counter(column)] for column in theirs]
    return all(options) and _assign(theirs, mine, options, ())


def _assign(theirs: Sequence[Row], mine: Sequence[Row], options: Sequence[Sequence[int]], chosen: tuple[int, ...]) -> bool:
    """Whether the choice of columns so far can be completed to one under which both are the same bag of rows."""
    n = len(chosen)
    if n and Counter(zip(*theirs[:n])) != Counter(zip(*(mine[j] for j in chosen))):
        return False
    if n == len(theirs):
        return True
    tried: set[Row] = set()
    for j in options[n]:
        if j not in chosen and mine[j] not in tried:
            tried.add(mine[j])
            if _assign(theirs, mine, options, (*chosen, j)):
                return True
    return False


def without_distinct(sql: str) -> str:
    """The query without the keyword DISTINCT, which the official evaluation of Spider takes out of both queries."""
    return "".join(token for token in _TOKEN.findall(sql) if token.lower() != "distinct")
