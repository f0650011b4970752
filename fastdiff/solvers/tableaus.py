"""Tableaus of explicit Runge-Kutta methods: named ones, and checks of the user's own.

A step of y' = f(u, y) over the width h is

    k_i = f(u + c_i h, y + h Σ_{j<i} a_ij k_j),    y_next = y + h Σ b_i k_i

with c_i = Σ_j a_ij and Σ b_i = 1 (Butcher 2016, section 23).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from .options import Domain, plain, shown

_WHERE = "fastdiff.Sampler: expected tableau"
_TOLERANCE = 1e-9  # of sums, which published decimals and thirds reach only to their rounding


class Tableau(NamedTuple):
    """An explicit tableau of s stages.

    Attributes:
        a: for stage i its weights a_i0 … a_i(i-1) of the stages before.
        b: the weights of the step, [s].
        order: of the method; 0 if unknown.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int = 0

    @property
    def c(self) -> list[float]:
        """The times of the stages, as fractions of the step."""
        return [math.fsum(row) for row in self.a]


_DORMAND_PRINCE = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
)
_R = math.sqrt(5.0)

# Butcher 2016, sections 232 to 236; Ralston 1962; Shu & Osher 1988; Bogacki & Shampine 1989;
# Dormand & Prince 1980
TABLEAUS = {
    "euler": Tableau(((),), (1.0,), 1),
    "midpoint": Tableau(((), (1 / 2,)), (0.0, 1.0), 2),
    "heun": Tableau(((), (1.0,)), (1 / 2, 1 / 2), 2),
    "ralston": Tableau(((), (2 / 3,)), (1 / 4, 3 / 4), 2),
    "heun3": Tableau(((), (1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4), 3),
    "kutta3": Tableau(((), (1 / 2,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6), 3),
    "ralston3": Tableau(((), (1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9), 3),
    "bogacki_shampine": Tableau(((), (1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9), 3),
    "ssprk3": Tableau(((), (1.0,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3), 3),
    "rk4": Tableau(((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4),
    "three_eighths": Tableau(
        ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8), 4
    ),
    "ralston4": Tableau(
        (
            (),
            (2 / 5,),
            ((-2889 + 1428 * _R) / 1024, (3785 - 1620 * _R) / 1024),
            (
                (-3365 + 2094 * _R) / 6040,
                (-975 - 3046 * _R) / 2552,
                (467040 + 203968 * _R) / 240845,
            ),
        ),
        (
            (263 + 24 * _R) / 1812,
            (125 - 1000 * _R) / 3828,
            1024 * (3346 + 1623 * _R) / 5924787,
            (30 - 4 * _R) / 123,
        ),
        4,
    ),
    "dormand_prince": Tableau(
        _DORMAND_PRINCE, (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84), 5
    ),
}


def tableau_of(given: Any) -> Tableau:
    """Returns a tableau by its name, or checked from numbers.

    given: a name of `TABLEAUS`; or (a, b) or (a, b, c), where a row of a has the weights of the
        stages before it, or all s with zeros in the others' place.

    Raises ValueError for an unknown name, other shapes, numbers that are not finite, an implicit
    tableau, rows of a that do not add up to c in [0, 1], and b that does not add up to 1.
    """
    if isinstance(given, str):
        if given not in TABLEAUS:
            raise ValueError(f"{_WHERE} in {list(TABLEAUS)} or (a, b), got {shown(given)}.")
        return TABLEAUS[given]
    rows, b = [_numbers(row) for row in given[0]], _numbers(given[1])
    stages = len(b)
    if not stages or len(rows) != stages:
        raise ValueError(
            f"{_WHERE} with as many rows of a as weights b, got {len(rows)} and {stages}."
        )
    for i, row in enumerate(rows):
        if len(row) not in (i, stages):
            raise ValueError(
                f"{_WHERE} with {i} or {stages} numbers in row {i} of a, got {len(row)}."
            )
        if any(row[i:]):
            raise ValueError(
                f"{_WHERE} that is explicit, got a weight of stage"
                f" {next(j for j in range(i, stages) if row[j])} in row {i} of a."
            )
    made = Tableau(tuple(tuple(row[:i]) for i, row in enumerate(rows)), tuple(b))
    if abs(math.fsum(b) - 1.0) > _TOLERANCE:
        raise ValueError(f"{_WHERE} whose b adds up to 1, got {math.fsum(b):.9g}.")
    c = made.c if len(given) == 2 else _numbers(given[2])
    if len(c) != stages:
        raise ValueError(f"{_WHERE} with as many times c as weights b, got {len(c)} and {stages}.")
    for i, (total, node) in enumerate(zip(made.c, c, strict=True)):
        if not abs(total - node) <= _TOLERANCE:
            raise ValueError(
                f"{_WHERE} whose rows of a add up to c, got {total:.9g} and {node:.9g} in row {i}."
            )
        if not -_TOLERANCE <= total <= 1.0 + _TOLERANCE:
            raise ValueError(
                f"{_WHERE} with c in [0, 1], because no network is called outside a step, got"
                f" {total:.9g} in row {i}."
            )
    return made


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _numbers(values: Any) -> list[float]:
    """Returns finite numbers as floats."""
    try:
        found = [float(plain(v)) for v in values] if _is_list(values) else [math.nan]
    except (ValueError, TypeError, OverflowError, RuntimeError):
        found = [math.nan]
    if not all(map(math.isfinite, found)):
        raise ValueError(f"{_WHERE} of lists of finite numbers, got {shown(values)}.")
    return found


def _read(given: Any) -> Any:
    """A name, or two or three lists of which the first has rows; `tableau_of` checks the rest."""
    if not isinstance(given, str) and not (
        _is_list(given) and len(given) in (2, 3) and _is_list(given[0])
    ):
        raise TypeError
    return given


TableauOption = Annotated[Any, Domain("as a name, (a, b) or (a, b, c)", _read)]
