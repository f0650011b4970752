"""Which solver and grid to take, case by case, as docs/choosing.md measures them.

`fastdiff solvers` prints this table. A test compares it with the measurements: the error of no line
may be over 1.5 times the best of its kind, and its Fréchet distance not above the default's.
"""

from __future__ import annotations

from typing import NamedTuple


class Advice(NamedTuple):
    """One line of the table.

    Attributes:
        case: the line's name: few, many, noise, guidance, flow.
        when: what it is for, in words.
        solver, spacing: names of a solver and of a grid.
        calls: the fewest and the most network calls that it is for.
    """

    case: str
    when: str
    solver: str
    spacing: str
    calls: tuple[int, int]


ADVICE = (
    Advice("few", "few network calls", "ipndm", "ays_sdxl", (5, 10)),
    Advice("many", "many network calls", "ipndm", "ays_sdxl", (15, 50)),
    Advice("noise", "a solver with noise (SDE)", "er_sde", "ays_sdxl", (8, 50)),
    Advice("guidance", "strong guidance", "ipndm", "ays_sdxl", (8, 20)),
    Advice("flow", "flow matching", "ipndm", "beta57", (5, 30)),
)


def advised(solver: str) -> list[str]:
    """Returns the cases for which a solver is recommended."""
    return [line.case for line in ADVICE if line.solver == solver]
