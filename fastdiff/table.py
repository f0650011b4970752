"""The columns of a plan's table, one row per network call (kernels/README.md section 4).

Here are only the columns and their rules, which solvers, ops and backends share. A `fastdiff.Plan`
has the table (fastdiff.solvers.plan). Two other tables have their own modules:
fastdiff.schedule.noise_table is that of a schedule, and fastdiff.theory.likelihood.table that of
`vlb_terms`.

x0 = x0_x·x + x0_out·out, clipped; then the next x and every slot are linear combinations of
(x, x0, out, s1, s2, s3, s4, z). A zero coefficient means that the operand is not read.

A version of the schema adds columns at the end. A plan that does not use them keeps the version,
and so the hash, that it had without them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SCHEMA_VERSION = 4
SLOTS = 4
OPERANDS = ("x", "x0", "out", "s1", "s2", "s3", "s4", "z")
OUTPUTS = ("x", "s1", "s2", "s3", "s4")
HEADER = (
    "network",
    "t",
    "input_scale",
    "guidance_weight",
    "guidance_rescale",
    "out_grad",
    "x0_x",
    "x0_out",
    "clip_mode",
    "clip_bound",
    "clip_ratio",
    "noise_index",
    "noise_mode",
    "logvar_lo",
    "logvar_hi",
    "next",
)
FURTHER = (
    "out_uncond",
    "guidance_kind",
    "guidance_parallel",
    "guidance_x",
    "guidance_bound",
    "guidance_momentum",
)
COLUMNS = HEADER + tuple(f"{to}.{of}" for to in OUTPUTS for of in OPERANDS) + FURTHER
VERSIONS = {2: len(COLUMNS) - len(FURTHER), 3: len(COLUMNS) - len(FURTHER) + 1, 4: len(COLUMNS)}
"""How many columns each version of the schema has."""
INDEX = {name: i for i, name in enumerate(COLUMNS)}
ALL_COLUMNS = (1 << len(COLUMNS)) - 1


def columns(*names: str) -> int:
    """Returns the bit mask of the named columns."""
    return sum(1 << INDEX[name] for name in names)


LINEAR, ZERO_STAR, PROJECTED, PROJECTED_FROM_UNCOND, KEEPS = 0, 1, 2, 3, 2
"""What guidance_kind says (kernels/README.md section 4). The projected kinds plus KEEPS write their
difference into slot 4."""
KEEPING = (PROJECTED + KEEPS, PROJECTED_FROM_UNCOND + KEEPS)

READS = {operand: columns(*(f"{to}.{operand}" for to in OUTPUTS)) for operand in OPERANDS}
"""The columns by which some output reads an operand."""


def uses(mask: int, *names: str) -> bool:
    """Returns whether any of the named columns is non-zero in some row.

    `mask` is the bit mask of a table's columns; -1 is an unknown table, which may use all.
    """
    return mask & columns(*names) != 0


def reads(mask: int, operand: str) -> bool:
    """Returns whether some output of some row reads this operand."""
    return mask & READS[operand] != 0


# Rules of a table's header: (column, the values that it may have in words, a function of the column
# that says where it has them, the column and values for which the rule holds; None: every row). The
# functions take NumPy's and torch's arrays. NaN keeps no rule.
RULES: tuple[
    tuple[str, str, Callable[[Any, int], Any], tuple[str, tuple[int, ...]] | None], ...
] = (
    ("network", "0 or 1", lambda v, rows: (v == 0) | (v == 1), None),
    ("next", "a row of the table", lambda v, rows: (v >= 0) & (v < rows) & (v % 1 == 0), None),
    ("clip_mode", "0, 1 or 2", lambda v, rows: (v == 0) | (v == 1) | (v == 2), None),
    ("clip_bound", "at least 0", lambda v, rows: v >= 0, ("clip_mode", (1, 2))),
    ("clip_ratio", "in (0, 1]", lambda v, rows: (v > 0) & (v <= 1), ("clip_mode", (2,))),
    (
        "noise_index",
        "whole, in [0, 2^32)",
        lambda v, rows: (v >= 0) & (v < 2.0**32) & (v % 1 == 0),
        None,
    ),
    ("noise_mode", "0 or 1", lambda v, rows: (v == 0) | (v == 1), None),
    ("out_uncond", "0 or 1", lambda v, rows: (v == 0) | (v == 1), None),
    (
        "guidance_kind",
        "whole, in [0, 6)",
        lambda v, rows: (v >= 0) & (v < 6) & (v % 1 == 0),
        None,
    ),
    ("guidance_bound", "at least 0", lambda v, rows: v >= 0, ("guidance_kind", (2, 3, 4, 5))),
    (
        "guidance_momentum",
        "0 without guidance_kind 4 or 5",
        lambda v, rows: v == 0,
        ("guidance_kind", (0, 1, 2, 3)),
    ),
)
_S4 = [INDEX[f"s4.{operand}"] for operand in OPERANDS]


def version_of(table: Any) -> int:
    """Returns the first version of the schema with all columns that a table [rows, 62] uses."""
    return next(v for v, count in VERSIONS.items() if not (table[:, count:] != 0).any())


def broken_rule(table: Any, rows: int) -> tuple[int, str] | None:
    """Returns the first row of a table [n, 62] that breaks a rule of the header, and a sentence's
    middle: "expected next a row of the table in row 3, got 7"; None where all keep them.

    Args:
        table: of NumPy or torch, on the host; some or all rows of a table.
        rows: of the whole table.
    """
    for name, words, keeps, where in RULES:
        values = table[:, INDEX[name]]
        good = keeps(values, rows)
        if where is not None:
            column, held = table[:, INDEX[where[0]]], where[1]
            binds = column == held[0]
            for value in held[1:]:
                binds = binds | (column == value)
            good = good | ~binds
        if not bool(good.all()):
            at = int((~good).nonzero()[0][0])
            return at, f"expected {name} {words} in row {{row}}, got {float(values[at]):g}"
    kind = table[:, INDEX["guidance_kind"]]
    both = ((kind == KEEPING[0]) | (kind == KEEPING[1])) & (table[:, _S4] != 0).any(1)
    if bool(both.any()):
        at = int(both.nonzero()[0][0])
        return at, (
            "expected coefficients 0 of slot 4, which guidance_kind 4 and 5 write, in row {row},"
            " got others"
        )
    return None


OPS = (
    "randn",
    "q_sample",
    "reverse_step",
    "q_posterior",
    "reparameterize",
    "noise_mse",
    "gaussian_kl",
    "discretized_gaussian_nll",
    "vlb_terms",
    "group_norm_silu",
    "step_log_prob",
)
"""The fused ops. Each has its name in every layer (CONTRIBUTING.md, "Add an op")."""

VLB_COLUMNS = (
    "x0_x",
    "x0_out",
    "clip_bound",
    "mean_x0",
    "mean_x",
    "logvar_q",
    "logvar_lo",
    "logvar_hi",
    "first",
)
"""The columns of the table of `vlb_terms`, one row a timestep (kernels/README.md section 11)."""
