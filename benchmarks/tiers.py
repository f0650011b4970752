"""The suite's three tiers: `--quick` (one row of each kind), the default, and `--full` (all rows).

A row is marked with the smallest tier that it belongs to, `pytest.param(…, marks=tier("quick"))`,
and with `gpu_only` if a CPU would take hours. A row without a mark belongs to `full`.
"""

from __future__ import annotations

from typing import Any

import pytest

TIERS = ("quick", "default", "full")
# seconds for measuring a row, all arms together; and the fewest turns A B … B A
SECONDS = {"quick": 0.3, "default": 0.6, "full": 3.0}
ROUNDS = {"quick": 2, "default": 2, "full": 5}


def tier(name: str, *, gpu_only: bool = False) -> Any:
    """Returns the mark of a row that belongs to this tier and larger ones."""
    if name not in TIERS:
        raise ValueError(f"benchmarks.tiers: expected a tier in {TIERS}, got {name!r}.")
    return pytest.mark.tier(name, gpu_only)


def row(name: str, *values: Any, gpu_only: bool = False, id: str | None = None) -> Any:
    """Returns `pytest.param` of a row that belongs to this tier and larger ones."""
    return pytest.param(*values, marks=tier(name, gpu_only=gpu_only), id=id)


def chosen(asked: str, mark: Any, device: str) -> bool:
    """Returns whether a row with this mark, None without one, runs in the requested tier."""
    name, gpu_only = ("full", False) if mark is None else mark.args
    return TIERS.index(name) <= TIERS.index(asked) and (device == "cuda" or not gpu_only)
