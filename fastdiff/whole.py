"""Whole numbers of any type: Python's int, NumPy's integers and others with `__index__`."""

from __future__ import annotations

import operator
from typing import Any


def whole(value: Any) -> int | None:
    """The int of a whole number; None for a truth value and for anything else."""
    if type(value) is int:
        return value
    # NumPy's bool is no subclass of Python's
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
