"""Ranks what was measured: which solver and grid have the lowest error for a number of calls.

A band is some schedules and numbers of network calls. The score of a solver on a grid is the
geometric mean of its errors there, so that each of them counts alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastdiff.solvers import SOLVERS

# below it the start from N(0, 1) instead of x_T's own law, and the draws of noise, decide
RESOLUTION = 0.005


class Band(NamedTuple):
    """What a line of the advice is judged by.

    Attributes:
        cases: of the mixture; the score is the geometric mean over them too.
        calls: the numbers of network calls.
        stochastic: only solvers with noise (True), or all (None).
    """

    cases: tuple[str, ...]
    calls: tuple[int, ...]
    stochastic: bool | None = None


BANDS = {
    "few": Band(("betas", "edm"), (5, 6, 8, 10)),
    "many": Band(("betas", "edm"), (15, 20, 30, 50)),
    "noise": Band(("betas", "edm"), (8, 10, 15, 20, 30, 50), stochastic=True),
    "guidance": Band(("guided",), (8, 10, 15, 20)),
    "flow": Band(("flow",), (5, 8, 10, 15, 20, 30)),
}


class Ranked(NamedTuple):
    """A solver on a grid, with its score."""

    score: float
    solver: str
    grid: str


class Mixture:
    """The errors of the mixture's part of the result file.

    Attributes:
        calls: the numbers of network calls.
        grids, solvers: their names, in the order of the file.
        floor: the error of as many draws of the data as solvers with noise make.
    """

    def __init__(self, part: Mapping[str, Any]) -> None:
        self.calls, self.floor = tuple(part["calls"]), part["floor"]
        self._errors = {
            (row["case"], row["solver"], row["grid"]): dict(
                zip(self.calls, row["errors"], strict=True)
            )
            for row in part["rows"]
        }
        self.solvers = list(dict.fromkeys(solver for _, solver, _ in self._errors))
        self.grids = list(dict.fromkeys(grid for _, _, grid in self._errors))

    def error(self, case: str, solver: str, grid: str, calls: int) -> float | None:
        """Returns an error, None where it is undefined or the run diverged."""
        return self._errors.get((case, solver, grid), {}).get(calls)

    def best_grid(self, case: str, solver: str, calls: int) -> tuple[float, str] | None:
        """Returns the lowest error of a solver and its grid, None if it has none."""
        found = [(self.error(case, solver, grid, calls), grid) for grid in self.grids]
        return min(((v, grid) for v, grid in found if v is not None), default=None)

    def score(self, solver: str, grid: str, band: Band) -> float:
        """Returns the geometric mean of the errors in a band, each at least RESOLUTION; inf if one
        is missing.
        """
        total, count = 0.0, 0
        for case in band.cases:
            for n in band.calls:
                value = self.error(case, solver, grid, n)
                if value is None:
                    return math.inf
                total, count = total + math.log(max(value, RESOLUTION)), count + 1
        return math.exp(total / count)

    def ranked(self, band: Band) -> list[Ranked]:
        """Returns the solvers and grids that are defined everywhere in a band, the best first."""
        solvers = [s for s in self.solvers if band.stochastic in (None, SOLVERS[s].stochastic)]
        found = [Ranked(self.score(s, g, band), s, g) for s in solvers for g in self.grids]
        return sorted(r for r in found if r.score < math.inf)
