"""Which rows of a table are in use: stretches of rows are taken and given back."""

from __future__ import annotations

import bisect


class RowSpace:
    """The rows of a table that may grow, of which stretches are in use and the others are free.

    Attributes:
        end: the number of rows up to the last one in use.
    """

    def __init__(self) -> None:
        self.end = 0
        self._free: list[tuple[int, int]] = []  # (first, end) of free rows before `end`, ascending

    def fit(self, count: int) -> int | None:
        """The first of `count` free rows before the end; None where they are too few in a row."""
        for i, (first, end) in enumerate(self._free):
            if end - first >= count:
                self._free[i : i + 1] = [(first + count, end)] if end - first > count else []
                return first
        return None

    def append(self, count: int) -> int:
        """The first of `count` rows after the end."""
        self.end += count
        return self.end - count

    def give(self, first: int, count: int) -> None:
        """Frees rows that were taken. Free rows next to each other become one stretch."""
        end = first + count
        at = bisect.bisect(self._free, (first, end))
        if at < len(self._free) and self._free[at][0] == end:
            end = self._free.pop(at)[1]
        if at and self._free[at - 1][1] == first:
            at -= 1
            first = self._free.pop(at)[0]
        if end == self.end:
            self.end = first
        else:
            self._free.insert(at, (first, end))
