"""The plan: a solver traced over a grid of times, as a float64 table with one row per network call.

A few solvers add rows without a call, and the last row is the identity, for samples that are done.
Kernels need nothing else of a solver. The table prints as formulas, and its hash identifies it.
Samplers hold plans in `fastdiff.sampling.plans.Plans` and in
`fastdiff.sampling.device_plan.DevicePlan`.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..notebook import html_table
from ..table import (
    COLUMNS,
    INDEX,
    KEEPING,
    OPERANDS,
    OUTPUTS,
    SLOTS,
    VERSIONS,
    ZERO_STAR,
    broken_rule,
    version_of,
)
from . import float32

# of slot i: where it is read, and what is written to it
_SLOT_COLUMNS = {i: [INDEX[f"{to}.s{i}"] for to in OUTPUTS] for i in range(1, SLOTS + 1)}
_SLOT_SOURCES = {i: [INDEX[f"s{i}.{of}"] for of in OPERANDS] for i in range(1, SLOTS + 1)}


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """An immutable table of solver steps.

    Attributes:
        table: float64 [rows, 62]; the last row is the identity.
        info: the arguments that it was made from (solver, steps, schedule, …), as JSON values.
        columns: the names of the table's columns (`fastdiff.table`).
        initial_std: deviation of the state that row 0 starts from, N(0, initial_std² I).
        levels: float64 [rows, 2], (alpha, sigma) of the state before each row; levels[next] is that
            after it. None if unknown.
        whole_times: whether the network gets t as whole timesteps (int64) or as real numbers
            (float32). If None is passed, it is true where all times of the table are integers.
        used: bit mask of the columns that are not zero in every row; kernels are specialised on it.
        slots: the number of slots that a run of this plan needs.
    """

    table: NDArray[np.float64]
    info: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = COLUMNS
    initial_std: float = 1.0
    levels: NDArray[np.float64] | None = None
    whole_times: bool | None = None
    used: int = field(init=False)
    slots: int = field(init=False)

    def __post_init__(self) -> None:
        if (
            self.table.dtype != np.float64
            or self.table.ndim != 2
            or self.table.shape[1] != len(COLUMNS)
        ):
            raise ValueError(
                f"fastdiff.Plan: expected a float64 table [rows, {len(COLUMNS)}], got"
                f" {self.table.shape}."
            )
        if not np.isfinite(self.table).all():
            row, column = np.argwhere(~np.isfinite(self.table))[0]
            raise ValueError(
                f"fastdiff.Plan: expected finite coefficients, got {self.table[row, column]} in row"
                f" {row}, column {COLUMNS[column]!r}. The schedule reaches a point where the"
                " prediction type is undefined."
            )
        broken = broken_rule(self.table, len(self.table))
        if broken is not None:
            raise ValueError(f"fastdiff.Plan: {broken[1].format(row=broken[0])}.")
        self.table.flags.writeable = False
        if self.whole_times is None:
            object.__setattr__(self, "whole_times", bool((self.column("t") % 1 == 0).all()))
        # computed here and not on demand, so that torch.compile finds numbers
        used = (self.table != 0).any(axis=0)
        object.__setattr__(self, "used", sum(1 << int(i) for i in np.flatnonzero(used)))
        read = (i for i, columns in _SLOT_COLUMNS.items() if used[columns].any())
        remembers = SLOTS if used[INDEX["guidance_momentum"]] else 0
        object.__setattr__(self, "slots", max([remembers, *read]))

    def __len__(self) -> int:
        """Returns the number of rows without the identity at the end."""
        return len(self.table) - 1

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of schema, table and initial deviation, in hexadecimal.

        Schema and table are those of the first version that has the table's columns.
        """
        version = version_of(self.table)
        count = VERSIONS[version]
        digest = hashlib.sha256(
            f"fastdiff plan {version} {','.join(self.columns[:count])}\n".encode()
        )
        digest.update(np.ascontiguousarray(self.table[:, :count], dtype="<f8").tobytes())
        if self.initial_std != 1.0:
            digest.update(np.float64(self.initial_std).astype("<f8").tobytes())
        return digest.hexdigest()

    @property
    def stochastic(self) -> bool:
        """Whether any row draws noise."""
        return any((self.column(f"{to}.z") != 0).any() for to in OUTPUTS)

    @property
    def network_calls(self) -> int:
        """The number of rows that call the network."""
        return int(self.column("network").sum())

    def enterable(self, row: int) -> bool:
        """Returns whether a run may start at this row.

        It may if no later row reads a slot that an earlier row of such a run has not written.
        """
        return bool(self._enterable[row])

    @functools.cached_property
    def _enterable(self) -> NDArray[np.bool_]:
        """Whether a run may start at each row, [rows]."""

        def mask(columns: Mapping[int, list[int]]) -> NDArray[np.int64]:
            """The slots of which any of the columns is not zero, as bits, for every row."""
            used = self.table != 0
            return sum(used[:, c].any(axis=1).astype(np.int64) << i for i, c in columns.items())

        read, written = mask(_SLOT_COLUMNS), mask(_SLOT_SOURCES)
        # guidance with momentum keeps its difference in the last slot
        read |= (self.column("guidance_momentum") != 0).astype(np.int64) << SLOTS
        written |= np.isin(self.column("guidance_kind"), KEEPING).astype(np.int64) << SLOTS
        needed = np.zeros(len(self.table), np.int64)  # of the slots, before each row
        for row in reversed(range(len(self))):
            needed[row] = read[row] | (needed[row + 1] & ~written[row])
        return needed == 0

    def beyond_float32(self, row: int = 0) -> str | None:
        """What float32 can't hold from this row on, as the end of a sentence; None if it can.

        See `fastdiff.solvers.float32`.
        """
        if row not in self._beyond:
            text = next((text for at, text in self._large_rows if at >= row), None)
            if text is None and self.levels is not None:
                end = float32.overflows(self.table, self.levels, row)
                text = None if end is None else f"rounding errors that grow beyond it by row {end}"
            self._beyond[row] = text
        return self._beyond[row]

    @functools.cached_property
    def _large_rows(self) -> list[tuple[int, str]]:
        return float32.large_rows(self.table)

    @functools.cached_property
    def _beyond(self) -> dict[int, str | None]:
        """`beyond_float32` by row."""
        return {}

    @classmethod
    def stack(cls, plans: Sequence[Plan]) -> tuple[Plan, list[int]]:
        """Returns one plan with the rows of all, and the first row of each plan in it.

        Samples of one batch can then follow different plans, each by its row. The result has levels
        if every plan has them, and the initial deviation of the first plan.
        """
        if len(plans) == 1:
            return plans[0], [0]
        offsets = np.cumsum([0, *(len(plan.table) for plan in plans)])
        tables = [plan.table.copy() for plan in plans]
        for table, offset in zip(tables, offsets, strict=False):
            table[:, INDEX["next"]] += offset
        levels = [plan.levels for plan in plans if plan.levels is not None]
        together = np.concatenate(levels) if len(levels) == len(plans) else None
        info = {"stacked": [dict(plan.info) for plan in plans]}
        first = plans[0]
        stacked = cls(
            np.concatenate(tables),
            info,
            initial_std=first.initial_std,
            levels=together,
            whole_times=first.whole_times,
        )
        return stacked, [int(offset) for offset in offsets[:-1]]

    def column(self, name: str) -> NDArray[np.float64]:
        """Returns one column, [rows]."""
        return self.table[:, INDEX[name]]

    def __repr__(self) -> str:
        return f"Plan({self._title()})"

    def __str__(self) -> str:
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ]
        return "\n".join([self._title(), *lines])

    def _repr_html_(self) -> str:
        return html_table(self._title(), self._cells())

    def _title(self) -> str:
        title = ", ".join(f"{k} {v}" for k, v in self.info.items() if v is not None)
        return f"{title or 'plan'}: {self.network_calls} network calls, hash {self.hash[:12]}"

    def _cells(self) -> list[list[str]]:
        """The head and the rows of the table as people read it; an empty column is left out."""
        cells = [("row", "t", "x0 =", "next x =", "remembers", "guided by")]
        for i in range(len(self)):
            cells.append(
                (
                    str(i),
                    f"{self.column('t')[i]:g}",
                    self._x0(i),
                    self._sum(i, "x"),
                    self._memory(i),
                    self._guided(i),
                )
            )
        columns = [c for c in range(6) if c < 4 or any(row[c] for row in cells[1:])]
        return [[row[c] for c in columns] for row in cells]

    def _x0(self, row: int) -> str:
        if not (self.column("network")[row] or self.column("x0_x")[row]):
            return "-"
        text = _terms([(self.column("x0_x")[row], "x"), (self.column("x0_out")[row], "out")])
        mode, bound = self.column("clip_mode")[row], self.column("clip_bound")[row]
        if mode == 2:
            return f"{text}, over its {self.column('clip_ratio')[row]:g}-quantile in [1, {bound:g}]"
        return f"{text}, |x0| <= {bound:g}" if mode else text

    def _sum(self, row: int, to: str) -> str:
        noise = f"z{int(self.column('noise_index')[row])}"
        if self.column("noise_mode")[row] == 1:
            noise = f"std(out) {noise}"  # the network's own deviation
        out = "uncond" if self.column("out_uncond")[row] else "out"
        names = [{"z": noise, "out": out}.get(o, o) for o in OPERANDS]
        return _terms(
            [(self.column(f"{to}.{o}")[row], n) for o, n in zip(OPERANDS, names, strict=True)]
        )

    def _memory(self, row: int) -> str:
        written = [(i, self._sum(row, f"s{i}")) for i in range(1, SLOTS + 1)]
        return "; ".join(f"s{i} = {text}" for i, text in written if text != "0")

    def _guided(self, row: int) -> str:
        """What the row's kind of guidance multiplies by its strength; nothing without a kind."""
        kind = int(self.column("guidance_kind")[row])
        if kind <= ZERO_STAR:
            return "c - s uncond" if kind else ""
        momentum, on_x, bound, parallel = (
            self.column(f"guidance_{name}")[row] for name in ("momentum", "x", "bound", "parallel")
        )
        text = f"c - uncond {momentum:+.6g} s4" if momentum else "c - uncond"
        text = f"|{text}| <= {bound:.6g}" if bound else text
        if kind in KEEPING:
            text = f"s4 = {text}"
        along = f"c {on_x:+.6g} x" if on_x else "c"
        return text if parallel == 1 else f"{text}, {parallel:g} of it along {along}"


def _terms(terms: list[tuple[float, str]]) -> str:
    return " ".join(f"{c:+.6g} {name}" for c, name in terms if c != 0) or "0"
