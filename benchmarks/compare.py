"""Compares two runs of the suite on one machine.

They agree in a ratio if its median in the second run lies within its spread [p20, p80] in the first
run, widened by 15 %: [0.85 p20, 1.15 p80]. To compare two revisions of fastdiff, see
compare_revisions.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.rows import Ratio, Result, Row, case, figure, key, ratios

WIDER = 0.15


class Verdict(NamedTuple):
    """A ratio of the first run. second: its median in the second run, None where it is missing."""

    row: Row
    first: Ratio
    second: float | None

    @property
    def within(self) -> bool:
        low, high = (1 - WIDER) * self.first.p20, (1 + WIDER) * self.first.p80
        return self.second is not None and low <= self.second <= high

    def __str__(self) -> str:
        second = "missing" if self.second is None else figure(self.second)
        row = f"{self.row['kind']} {self.row['what']} ({case(self.row, also=('cache',))})"
        return f"{row}, {self.first.peer}: {self.first} then {second}"


def numbered(rows: Sequence[Row]) -> dict[tuple[str, int], Row]:
    """Returns {(case, n): row}; n counts the rows of the same case."""
    counts: Counter[str] = Counter()
    found = {}
    for row in rows:
        counts[key(row)] += 1
        found[key(row), counts[key(row)]] = row
    return found


def compare(first: Result, second: Result) -> tuple[list[Verdict], list[Row]]:
    """Returns (a verdict for each ratio of the first run, the rows that only the second has)."""
    theirs = numbered(second.rows)
    verdicts = []
    ours = numbered(first.rows)
    for name, row in ours.items():
        medians = {r.peer: r.median for r in ratios(theirs[name])} if name in theirs else {}
        verdicts += [Verdict(row, r, medians.get(r.peer)) for r in ratios(row)]
        if name not in theirs and not ratios(row):
            # the row itself is missing
            verdicts.append(Verdict(row, Ratio("no peer", 1.0, 1.0, 1.0), None))
    return verdicts, [row for name, row in theirs.items() if name not in ours]
