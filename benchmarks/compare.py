"""Do two runs of the suite on one machine agree? Each ratio's median of the second within the
first's spread, widened.

The first run's [p20, p80] of a ratio, widened by 15 %: [0.85 p20, 1.15 p80].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.rows import Ratio, Result, Row, case, figure, key, ratios

WIDER = 0.15


class Verdict(NamedTuple):
    """One ratio of the first run. second: the second run's median, None where it has none."""

    row: Row
    first: Ratio
    second: float | None

    @property
    def within(self) -> bool:
        low, high = (1 - WIDER) * self.first.p20, (1 + WIDER) * self.first.p80
        return self.second is not None and low <= self.second <= high

    def __str__(self) -> str:
        there = "missing" if self.second is None else figure(self.second)
        where = f"{self.row['kind']} {self.row['what']} ({case(self.row, also=('cache',))})"
        return f"{where}, {self.first.peer}: {self.first} then {there}"


def numbered(rows: Sequence[Row]) -> dict[tuple[str, int], Row]:
    """Rows by their case; a case measured twice is numbered."""
    seen: Counter[str] = Counter()
    found = {}
    for row in rows:
        seen[key(row)] += 1
        found[key(row), seen[key(row)]] = row
    return found


def compare(first: Result, second: Result) -> tuple[list[Verdict], list[Row]]:
    """A verdict for each ratio of the first run; and the rows that only the second has."""
    theirs = numbered(second.rows)
    verdicts = []
    ours = numbered(first.rows)
    for name, row in ours.items():
        medians = {r.peer: r.median for r in ratios(theirs[name])} if name in theirs else {}
        verdicts += [Verdict(row, r, medians.get(r.peer)) for r in ratios(row)]
        if name not in theirs and not ratios(row):
            verdicts.append(
                Verdict(row, Ratio("no peer", 1.0, 1.0, 1.0), None)
            )  # the row itself is what is missing
    return verdicts, [row for name, row in theirs.items() if name not in ours]
