"""The figure of a plan: noise levels and log-SNR over the rows, and each output's coefficients."""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np

from ..solvers import Plan
from ..table import OPERANDS, OUTPUTS
from .figures import new, save, style

# of each operand, the same in every panel
COLOURS = dict(
    zip(
        OPERANDS,
        ("#1b6ca8", "#d1495b", "#6b4c9a", "#edae49", "#2a9d8f", "#8d6e63", "#c77dff", "#7f8c3a"),
        strict=True,
    )
)


def plot(plan: Plan, path: str | PathLike[str]) -> None:
    """Writes the figure as PNG. Raises RuntimeError without matplotlib."""
    outputs = [
        to for to in OUTPUTS if any((plan.column(f"{to}.{of}")[:-1] != 0).any() for of in OPERANDS)
    ]
    panels = (2 if plan.levels is not None else 0) + len(outputs)
    columns = 2 if panels > 1 else 1
    lines = -(-panels // columns)
    figure = new(6.4 * columns, 2.9 * lines + 0.9)
    options = [
        f"{k}={v}"
        for k, v in plan.info.items()
        if k not in ("solver", "schedule", "steps") and v is not None
    ]
    figure.suptitle(
        f"{plan.info.get('solver', 'plan')}: {len(plan)} rows, {plan.network_calls} network calls\n"
        f"{plan.info.get('schedule', '')}\n{', '.join(options)}",
        fontsize=10,
        wrap=True,
    )
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis in axes[panels:]:
        axis.remove()
    if plan.levels is not None:
        _levels(axes[0], axes[1], plan)
        axes = axes[2:]
    for axis, to in zip(axes, outputs, strict=False):
        _coefficients(axis, plan, to)
    save(figure, path)


def _levels(left: Any, right: Any, plan: Plan) -> None:
    alpha, sigma = np.asarray(plan.levels).T
    row = np.arange(len(alpha))
    with np.errstate(divide="ignore"):
        rho, log_snr = sigma / alpha, 2.0 * (np.log(alpha) - np.log(sigma))
    # both axes are infinite there
    infinite = {"pure noise": row[alpha == 0], "clean data": row[sigma == 0]}
    ends = [
        f"{name}: row {', '.join(map(str, rows[:3]))}{', …' * (len(rows) > 3)}"
        for name, rows in infinite.items()
        if len(rows)
    ]
    for axis, values, title in (
        (left, rho, "noise level σ/α before each row"),
        (right, log_snr, "log-SNR before each row"),
    ):
        shown = (alpha > 0) & (sigma > 0)
        axis.plot(
            row[shown],
            values[shown],
            color="#444444",
            linewidth=1.2,
            marker="o",
            markersize=_marker_size(len(row)),
        )
        axis.set_title(title, fontsize=10, loc="left")
        _row_axis(axis, len(plan))
        axis.set_title("; ".join(ends), fontsize=8, loc="right", color="#777777")
    left.set_yscale("log")


def _coefficients(axis: Any, plan: Plan, to: str) -> None:
    row, largest = np.arange(len(plan)), 0.0
    for of in OPERANDS:
        values = plan.column(f"{to}.{of}")[:-1]
        shown = values != 0
        if not shown.any():
            continue
        largest = max(largest, float(np.abs(values).max()))
        # a coefficient of zero is left out: the line breaks there
        axis.plot(
            row,
            np.where(shown, values, np.nan),
            color=COLOURS[of],
            linewidth=1.2,
            marker="o",
            markersize=_marker_size(len(plan)),
            label=of,
        )
    if largest > 5:
        axis.set_yscale("symlog", linthresh=1.0)
    axis.axhline(0.0, color="#bbbbbb", linewidth=0.8, zorder=0)
    axis.set_title(
        "next x = Σ coefficient · operand" if to == "x" else f"slot {to}", fontsize=10, loc="left"
    )
    axis.legend(fontsize=8, frameon=False, ncols=4, loc="best")
    _row_axis(axis, len(plan))


def _marker_size(rows: int) -> float:
    return 3.5 if rows <= 60 else 1.5 if rows <= 250 else 0.0


def _row_axis(axis: Any, rows: int) -> None:
    axis.set_xlim(-0.5, rows + 0.5)
    style(axis, "row")
    axis.tick_params(labelsize=8)
    axis.xaxis.get_major_locator().set_params(integer=True)
