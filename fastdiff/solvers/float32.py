"""Whether float32 can hold a plan's steps: the coefficients, and what rows make of each other.

Schedules whose alpha ends far below 1e-38 have both faults. A prediction over such an alpha is a
difference of two terms that are infinite in float32. And multistep methods in eps take steps whose
coefficients are large and nearly cancel, so that each row multiplies the rounding errors of the
rows before it, for any network.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..table import INDEX, OPERANDS, OUTPUTS, SLOTS

Table = NDArray[np.float64]
_MOST = float(np.finfo(np.float32).max)
_UNIT = 4.0  # what x, outputs and noise are taken to be at most, in units of their deviation
_X0_READ = [INDEX[f"{to}.x0"] for to in OUTPUTS]
_SAFE = 1e30  # rows that together grow less than this can't overflow
_STATE = np.array([-1.7, -0.6, 0.3, 1.1])  # a few values of deviation 1
_NOISE = np.array([0.9, -1.2, -0.4, 1.3])


def large_rows(table: Table) -> list[tuple[int, str]]:
    """(row, what float32 can't hold in it) of the rows that overflow for inputs of unit scale.

    Of x0 that is its value before the clip, where an output of the row reads it.
    """
    size, values = np.abs(table), {}
    x0 = _UNIT * (size[:, INDEX["x0_x"]] + size[:, INDEX["x0_out"]])
    values["x0"] = np.where(size[:, _X0_READ].any(axis=1), x0, 0.0)
    for to, total in zip(OUTPUTS, _totals(table).T, strict=True):
        values["the next x" if to == "x" else f"slot {to[1:]}"] = total
    return sorted(
        (int(row), f"{name} of the order of {value[row]:.0e} in row {int(row)}")
        for name, value in values.items()
        for row in np.flatnonzero(value > _MOST)
    )


def _totals(table: Table) -> Table:
    """The largest outputs [rows, outputs] for inputs of unit scale."""
    size = np.abs(table)
    x0 = _UNIT * (size[:, INDEX["x0_x"]] + size[:, INDEX["x0_out"]])
    clipped = np.where(table[:, INDEX["clip_mode"]] != 0, table[:, INDEX["clip_bound"]], np.inf)
    scale = np.full((len(table), len(OPERANDS)), _UNIT)
    scale[:, OPERANDS.index("x0")] = np.minimum(x0, clipped)
    with np.errstate(over="ignore"):
        totals = [
            (size[:, [INDEX[f"{to}.{of}"] for of in OPERANDS]] * scale).sum(axis=1)
            for to in OUTPUTS
        ]
    return np.stack(totals, axis=1)


def overflows(table: Table, levels: Table, begin: int) -> int | None:
    """The row at which a run from row `begin` on overflows in float32 for any good network.

    The rows are executed in float32 for the exact network of normal data and for that of data at 0,
    x0 = alpha x/(alpha² + sigma²) and x0 = 0. None where one of the runs is finite, and for plans
    that clip x0: their samples are finite even after a state that was not.

    Args:
        levels: (alpha, sigma) of the state before each row.
    """
    if table[begin:, INDEX["clip_mode"]].any():
        return None
    growth = np.maximum(_totals(table)[begin:].max(axis=1) / _UNIT, 1.0)
    with np.errstate(over="ignore"):
        if np.log10(growth).sum() < np.log10(_SAFE):
            return None
    end = _run(table, levels, begin, 1.0)
    return None if end is None else _run(table, levels, begin, 0.0)


def _run(table: Table, levels: Table, begin: int, spread: float) -> int | None:
    """The first row whose outputs are not finite, for data of deviation `spread`; None without."""
    with np.errstate(over="ignore"):
        rounded = table.astype(np.float32)
    alpha, sigma = levels[begin]
    state = (_STATE * np.hypot(alpha, sigma)).astype(np.float32)
    slots = [np.zeros_like(state)] * SLOTS
    row, last = begin, len(table) - 1
    with np.errstate(all="ignore"):
        for _ in range(len(table)):  # a table of the user may lead back
            if row == last:
                break
            alpha, sigma = levels[row]
            on_x, on_out = table[row, INDEX["x0_x"]], table[row, INDEX["x0_out"]]
            true = alpha * spread * state / (alpha**2 + sigma**2)
            out = ((true - on_x * state) / on_out if on_out else true).astype(np.float32)
            x0 = rounded[row, INDEX["x0_x"]] * state + rounded[row, INDEX["x0_out"]] * out
            values = [state, x0, out, *slots, _NOISE.astype(np.float32)]
            results = list(_outputs(rounded[row], values))
            if not all(np.isfinite(result).all() for result in results):
                return row
            state, *slots = results
            row = int(table[row, INDEX["next"]])
    return None


def _outputs(
    row: NDArray[np.float32], values: list[NDArray[np.float32]]
) -> Iterator[NDArray[np.float32]]:
    """The next x and the slots; one that a row does not write keeps its value."""
    for k, to in enumerate(OUTPUTS):
        total: NDArray[np.float32] | None = None
        for of, value in zip(OPERANDS, values, strict=True):
            c = row[INDEX[f"{to}.{of}"]]
            if c != 0:
                total = c * value if total is None else total + c * value
        held = values[0] * 0 if k == 0 else values[2 + k]
        yield held if total is None else total
