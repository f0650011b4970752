"""The numbered lines of the derivations in docs/theory: their text, and both sides as numbers.

A line is a function marked by `@line(number, equality, because)`. It ends with the statement
`return left, right`: both sides of the equality on an example, arrays of one shape. A test
compares the rows of the chapters with the arguments of `@line`.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from tolerances import DERIVATION

Sides = tuple[ArrayLike, ArrayLike]
Function = Callable[[], Sides]
LINES: dict[str, Line] = {}


@dataclass(frozen=True)
class Line:
    """A line: chapter and number as "5.3", its text, the function, and the tolerance.

    The tolerance is that of the largest difference of the sides over the largest value of the left.
    free: changes of the sides under which the equality remains true.
    """

    number: str
    equality: str
    because: str
    tolerance: float
    free: tuple[str, ...]
    function: Function

    @property
    def row(self) -> str:
        """The row of the chapter's table."""
        return f"| ({self.number}) | {_escaped(self.equality)} | {_escaped(self.because)} |"

    def holds(self, function: Function) -> bool:
        """Compares the sides that a function returns: the line's own, or a changed one."""
        return difference(*function()) <= self.tolerance

    def unseen(self) -> list[str]:
        """The changes of the function's sides that the comparison does not see."""
        return list(unseen(self.function, self.holds))


def line(
    number: str,
    equality: str,
    because: str,
    *,
    tolerance: float = DERIVATION,
    free: tuple[str, ...] = (),
) -> Callable[[Function], Function]:
    """Adds a function to LINES. Another tolerance, and what is free, need a reason next to them."""

    def add(function: Function) -> Function:
        assert number not in LINES, f"two functions are line {number}"
        assert " = " in equality, f"expected an equality in line {number}, got {equality!r}"
        LINES[number] = Line(number, equality, because, tolerance, free, function)
        return function

    return add


def difference(left: ArrayLike, right: ArrayLike) -> float:
    """The largest difference of two arrays of one shape, over the largest value of the left."""
    a, b = np.asarray(left, np.float64), np.asarray(right, np.float64)
    assert a.shape == b.shape, f"expected sides of one shape, got {a.shape} and {b.shape}"
    scale = np.abs(a).max()
    assert np.isfinite(a).all() and scale > 0, "expected a left side that is finite and not 0"
    return float(np.abs(a - b).max() / scale)


def unseen(function: Function, holds: Callable[[Function], bool]) -> Iterator[str]:
    """Yields the changes of the two sides under which the equality still holds.

    Each number, sign, operator and quantity of `return left, right` is changed alone: + and - are
    swapped, * and / too, a power becomes a product, a number and a quantity grow.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for index, node in enumerate(_nodes(tree)):
        other = deepcopy(tree)
        target = _nodes(other)[index]
        if not _change(target):
            continue
        names = dict(function.__globals__, _grown=_grown, line=lambda *_, **__: lambda f: f)
        exec(ast.unparse(ast.fix_missing_locations(other)), names)
        try:
            same = holds(names[function.__name__])
        except _NoQuantityError:
            continue
        except Exception:  # an index out of range, or shapes that no longer fit
            continue
        if same:
            yield f"{ast.unparse(node)} became {ast.unparse(target)}"


SWAPPED: dict[type[ast.operator], ast.operator] = {
    ast.Add: ast.Sub(),
    ast.Sub: ast.Add(),
    ast.Mult: ast.Div(),
    ast.Div: ast.Mult(),
    ast.Pow: ast.Mult(),
}


def _nodes(tree: ast.Module) -> list[ast.AST]:
    """The nodes of the returned pair, in a fixed order."""
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    last = definition.body[-1]
    assert isinstance(last, ast.Return) and isinstance(last.value, ast.Tuple), (
        f"expected {definition.name} to end with return left, right"
    )
    left, right = last.value.elts
    assert ast.dump(left) != ast.dump(right), f"both sides of {definition.name} are the same"
    return [*ast.walk(left), *ast.walk(right)]


def _change(node: ast.AST) -> bool:
    """Changes a node in place; False if there is nothing to change."""
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPPED:
        node.op = SWAPPED[type(node.op)]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node.op = ast.UAdd()
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        node.value += 1 if isinstance(node.value, int) else 0.01 + 0.01 * node.value
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        node.id = f"_grown({node.id})"
    else:
        return False
    return True


class _NoQuantityError(Exception):
    """A name is that of a function, a module or a counter."""


def _grown(value: Any) -> Any:
    if not isinstance(value, float | np.ndarray):
        raise _NoQuantityError
    return 1.01 * value


def _escaped(text: str) -> str:
    """Text for a cell of a Markdown table: | and an underscore that could start emphasis."""
    return re.sub(r"(?<![\w\u0302\u0303])_", r"\\_", text.replace("|", r"\|"))
