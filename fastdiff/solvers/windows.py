"""Plans with noise in a window of rows, such as those of MixGRPO (Li et al. 2025).

A solver is traced twice, with its noise and without it (`Solver.noiseless`). The plan has the rows
of the first trace inside the window and those of the second outside. Zeroing the noise of a row
instead would leave a step of another equation, because a solver that adds noise also takes some
away.

The window may begin and end at rows where both traces have the same state and, whatever is read
later, the same remembered terms: every row of a solver of one call a step, whose memory is at most
its predictions; the first rows of the steps of others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..whole import whole
from .options import Domain, optional
from .registry import SOLVERS, Solver
from .trace import Linear, Row, Symbol, Trace

_SHOWN = 12  # rows in an error message

Rows = list[Row]
Terms = tuple[int, frozenset[tuple[Symbol, float]]]  # the row of a remembered term, and its value


def _rows(value: Any) -> tuple[int, int]:
    first, last = (whole(v) for v in value)
    if first is None or last is None or not 0 <= first <= last:
        raise ValueError
    return first, last


WINDOW = optional(Domain("as two rows (i, j) with 0 <= i <= j", _rows))


def quiet(solver: Solver, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a solver with its noise off.

    Raises ValueError for a solver that has no such form, or no noise.
    """
    if not solver.noiseless:
        able = [name for name, s in SOLVERS.items() if s.noiseless]
        raise ValueError(
            f"fastdiff.Sampler: expected a solver whose noise can be turned off with sde_rows, one"
            f" of {able}, got {solver.name!r}."
        )
    return {**options, **solver.noiseless}


def join(
    solver: Solver,
    options: Mapping[str, Any],
    noisy: Trace,
    still: Trace,
    window: tuple[int, int],
) -> None:
    """Replaces the rows of `noisy` outside the window by those of `still`.

    Both traces are finished; options are those of `noisy`. Raises ValueError for a window outside
    the rows, and where a row outside it would read what only a row inside it remembers, or the
    other way round.
    """
    where, count = "fastdiff.Sampler: expected", len(noisy.rows)
    if not any("z" in _operands(row) for row in noisy.rows):
        given = {**solver.options, **options}
        named = " and ".join(f"{name}={given[name]}" for name in solver.noiseless or {})
        raise ValueError(
            f"{where} a plan that draws noise for sde_rows, got {solver.name!r} with {named} and"
            f" {count} rows that draw none."
        )
    if window[1] > count:
        raise ValueError(
            f"{where} sde_rows (i, j) with 0 <= i <= j <= {count}, the rows of the plan, got"
            f" {window}."
        )
    if count != len(still.rows):
        raise ValueError(
            f"{where} a solver with the same rows with and without noise for sde_rows, got"
            f" {solver.name!r} with {count} and {len(still.rows)}. Take ddim, flow_sde or another"
            " of one call a step."
        )
    numbers: dict[Terms, int] = {}
    inside, outside = _numbered(noisy.rows, numbers), _numbered(still.rows, numbers)
    joints = _joints(inside, outside)
    if not joints.issuperset(window):
        shown = ", ".join(str(row) for row in sorted(joints)[:_SHOWN])
        more = ", …" if len(joints) > _SHOWN else ""
        raise ValueError(
            f"{where} sde_rows to begin and end where {solver.name!r} remembers nothing that its"
            f" noise changes, at two of the rows {shown}{more}, got {window}."
        )
    first, last = window
    noisy.rows = [*outside[:first], *inside[first:last], *outside[last:]]


def later(settings: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Returns the settings of the rest of a plan that begins after this number of its rows."""
    window = settings.get("sde_rows")
    if window is None:
        return dict(settings)
    return {**settings, "sde_rows": tuple(max(row - rows, 0) for row in window)}


def _operands(row: Row) -> set[str]:
    values = (row.next_x, *row.remembered.values())
    return {name for value in values for name, _ in value.terms}


def _numbered(rows: Rows, numbers: dict[Terms, int]) -> Rows:
    """The rows with new numbers for remembered terms: equal terms of a row have equal ones.

    numbers: those given so far, which this adds to.
    """
    new: dict[int, int] = {}

    def renamed(value: Linear) -> Linear:
        return Linear({(n, new[k] if n == "slot" else k): c for (n, k), c in value.terms.items()})

    found = []
    for i, row in enumerate(rows):
        next_x, kept = renamed(row.next_x), {}
        for number, value in row.remembered.items():
            term = renamed(value)
            new[number] = numbers.setdefault((i, frozenset(term.terms.items())), len(numbers))
            kept[new[number]] = term
        found.append(row._replace(next_x=next_x, remembered=kept))
    return found


def _joints(one: Rows, other: Rows) -> set[int]:
    """The rows at which a plan may change from either list to the other."""
    known = [{number for row in rows for number in row.remembered} for rows in (one, other)]
    needed: list[set[int]] = [set(), set()]  # before each row, of the terms of earlier rows
    joints = {0, len(one)}
    for i in reversed(range(len(one))):
        for row, live in zip((one[i], other[i]), needed, strict=True):
            live.difference_update(row.remembered)
            values = (row.next_x, *row.remembered.values())
            live.update(k for value in values for name, k in value.terms if name == "slot")
        if one[i].at == other[i].at and needed[0] <= known[1] and needed[1] <= known[0]:
            joints.add(i)
    return joints
