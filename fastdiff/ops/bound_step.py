"""A step that is bound to its buffers: checked at the first call of each kind, then only launched.

`fastdiff.ops.step.StepArguments.bind` makes it. This file does not import that one: it uses the
arguments' methods `check`, `launchable` and `write`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from ..backend import choice
from . import common

WHERE = "reverse_step"
_INDEX = torch.int64
_FIXED = frozenset({"stream", "mode", "used", "workspace"})  # arguments that can't move
_MOST_KINDS, _MOST_INDICES = 64, 1024  # cached by a bound step


class _Launch(NamedTuple):
    """How to launch a kind of call that has been checked, and the tensors that it writes."""

    launches: list[Callable[[Sequence[Any]], None]]  # from row to row_out and, if asked for, back
    written: list[Tensor]  # fixed outputs with a version counter, which inference tensors lack
    moved: list[int]  # the positions of outputs among the moving values


class BoundStep:
    """Executes rows with fixed arguments and some that move: checked once, launched many times.

    The first call of each kind (the shapes, dtypes and devices of what moves, and which of it is
    None) is checked like `reverse_step`; later calls of that kind move the pointers and launch the
    kernel. Some calls can't be repeated this way: a tensor must be copied, the table moves and its
    columns in use are not given, or ops are being observed (fake tensors, dispatch modes, tracing).
    They are checked and executed every time. A bound step may be called from several threads.

    `own` names moving arguments that the caller makes for each call, dense and to fit the others:
    their shapes, dtypes and devices follow from those, so that a kind is only which of them are
    None. The caller counts versions of its own outputs where they are not new.
    """

    def __init__(self, arguments: Any, moving: Sequence[str], own: Sequence[str] = ()):
        movable = set(arguments._fields) - _FIXED
        if not movable.issuperset(moving) or len(set(moving)) < len(moving):
            raise ValueError(
                "fastdiff.ops.step.StepArguments.bind: expected different names in"
                f" {sorted(movable)}, got"
                f" {list(moving)}."
            )
        count = len(moving) - len(own)
        if tuple(moving[count:]) != tuple(own):
            raise ValueError(
                "fastdiff.ops.step.StepArguments.bind: expected own names at the end of the moving"
                f" ones, got {list(own)} and {list(moving)}."
            )
        self._moving, self._given = tuple(moving), count
        # moving tensors belong to the caller: no reference to them stays between calls
        nothing: dict[str, Any] = dict.fromkeys(moving)
        self._fixed = arguments._replace(**nothing)
        self._launches: dict[Any, _Launch | None] = {}
        self._indices: dict[int, tuple[Tensor, str]] = {}
        self._tokens: dict[Any, str] = {}
        self._way, self._both = 0, False

    def both_ways(self) -> tuple[BoundStep, BoundStep]:
        """Returns the steps from `row` to `row_out` and from `row_out` to `row`, which are fixed.

        A loop that exchanges the two tensors after every step takes them in turn. They share their
        checks: what one has checked, the other launches.
        """
        self._both = True
        back = copy.copy(self)
        fixed = self._fixed
        back._way, back._fixed = 1, fixed._replace(row=fixed.row_out, row_out=fixed.row)
        return self, back

    def __call__(self, *values: Any) -> None:
        """Executes row[b] for every sample b; `values` are those of the moving arguments."""
        kind = None if common.observed() else self._kind(values)
        if kind is not None:
            try:
                known = self._launches[kind]
            except KeyError:
                known = self._check(kind, values)
            if known is not None:
                known.launches[self._way](values)
                written = known.written
                if known.moved:
                    moved = [values[i] for i in known.moved]
                    written = [*written, *(value for value in moved if not value.is_inference())]
                torch.autograd.graph.increment_version(written)
                return
        self._checked(values).write()

    def launch_of(self, values: Sequence[Any]) -> Callable[[Sequence[Any]], None] | None:
        """Returns what launches calls of the kind of these values, if such a call was checked.

        It takes the values and looks at none of them. None if there was no such call, if calls of
        this kind must be checked, or if they write outputs that are not the caller's own.
        """
        known = self._launches.get(self._kind(values))
        if known is None or known.written or known.moved:
            return None
        return known.launches[self._way]

    def _kind(self, values: Sequence[Any]) -> Any:
        """Returns the key of all calls that pass the same checks; None where there is none."""
        kind: list[Any] = [choice.chosen()]
        if self._given < len(values):
            kind += [value is None for value in values[self._given :]]
            values = values[: self._given]
        for value in values:
            cls = value.__class__
            if cls is Tensor or cls is Parameter:
                dtype = value.dtype
                if dtype is _INDEX:
                    known = self._indices.get(id(value))
                    token = known[1] if known and known[0] is value else self._remember(value)
                    if token is None:
                        return None
                    kind.append(token)
                elif value.is_contiguous() and not (value.is_neg() or value._is_zerotensor()):
                    kind += (value.shape, dtype, value.is_cpu or value.device)
                else:
                    return None
            elif value is None:
                kind.append(None)
            elif cls is int and 0 <= value < 2**64:
                kind.append(int)
            else:
                return None
        return tuple(kind)

    def _remember(self, index: Tensor) -> str | None:
        """Returns a short key for a tensor of rows or ids, and stores it; None if it is not dense.

        A run passes the same few of them many times.
        """
        if not index.is_contiguous() or common.lazy(index):
            return None
        if len(self._indices) >= _MOST_INDICES:
            self._indices.clear()
        kind = index.shape, index.dtype, index.device
        token = self._tokens.setdefault(kind, f"index {len(self._tokens)}")
        self._indices[id(index)] = index, token
        return token

    def _arguments(self, values: Sequence[Any]) -> Any:
        return self._fixed._replace(**dict(zip(self._moving, values, strict=True)))

    def _checked(self, values: Sequence[Any]) -> Any:
        checked = self._arguments(values).check()
        if checked.out is None:
            raise ValueError(f"fastdiff.{WHERE}: expected out, got None. Pass a tensor like x_t.")
        return checked

    def _check(self, kind: Any, values: Sequence[Any]) -> _Launch | None:
        """Checks the first call of a kind; None where every call of the kind must be checked."""
        arguments = self._arguments(values)
        checked = self._checked(values).launchable()
        known = None
        # a table that moves may use other columns than this call's
        follows_table = "table" in self._moving and self._fixed.used is None
        if not (checked.x_t.is_meta or follows_table) and all(
            not isinstance(ready, Tensor) or (given is ready and not common.lazy(ready))
            for given, ready in zip(arguments, checked, strict=True)
        ):
            binder = choice.binder(WHERE, checked.x_t.device) or _bind_launcher
            fixed = self._fixed.outputs
            written = [v for v in fixed if v is not None and not v.is_inference()]
            outputs = self._fixed._fields[-len(fixed) :]
            moved = [
                i
                for i, (name, value) in enumerate(zip(self._moving, values, strict=True))
                if name in outputs and value is not None and i < self._given
            ]
            launches = binder(checked, self._moving, self._both)
            known = _Launch(launches[::-1] if self._way else launches, written, moved)
        if len(self._launches) >= _MOST_KINDS:
            self._launches.clear()
        self._launches[kind] = known
        return known


def _bind_launcher(
    checked: Any, moving: Sequence[str], both_ways: bool
) -> list[Callable[..., None]]:
    """Binds a step on a backend without a binder: each call replaces the values and launches."""
    launch = choice.launcher(WHERE, checked.x_t.device)
    nothing: dict[str, Any] = dict.fromkeys(moving)

    def launcher(fixed: Any) -> Callable[..., None]:
        return lambda values: launch(fixed._replace(**dict(zip(moving, values, strict=True))))

    ways = [checked._replace(**nothing)]
    if both_ways:
        ways.append(ways[0]._replace(row=checked.row_out, row_out=checked.row))
    return [launcher(fixed) for fixed in ways]
