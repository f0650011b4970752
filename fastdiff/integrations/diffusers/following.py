"""Steps that follow one of their kind: nothing has changed but the state, so only that is checked.

A pipeline's loop takes the same step twenty times: the same arguments, the next timestep, tensors
like those before. A first step goes through `DropIn._advance`, which finds the row of the plan and
checks everything. It leaves a `Following`, and `checks` asks that before it calls the method of the
class. A `Following` looks at everything that may have changed since (a table, an attribute of the
scheduler, its configuration, a counter, the backend, shapes, dtypes, gradients) and takes the step,
or says that it can't. Runs that begin alike share it, see `repeated`, so that it holds nothing of a
run.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ...backend import choice
from ...ops import common
from .state import State
from .traced import TracedPlan

_SIMPLE = frozenset({bool, int, float, str, type(None), torch.Generator})
_MISSING = object()


class Following:
    """How to take steps like a given one without its checks.

    `plans` are those of the tables that it was made for: edited tables have others.
    `given` is what that step was called with and what it returned, until `confirmed`: a class may
    pass other tensors to `_advance` than it was given, or return another result, and then its steps
    can't be taken this way.
    """

    __slots__ = (
        "args",
        "attributes",
        "begin",
        "chosen",
        "cpu",
        "device",
        "dtype",
        "first",
        "given",
        "has_history",
        "kwargs",
        "launch",
        "output",
        "output_shape",
        "plans",
        "rows",
        "seeded",
        "settled",
        "shape",
        "shift",
        "traced",
        "with_x0",
    )

    args: tuple[Any, ...]
    attributes: list[Any]
    kwargs: dict[str, Any]
    launch: Any  # not None where it is confirmed

    def __init__(
        self,
        scheduler: Any,
        state: State,
        traced: TracedPlan,
        first: int,
        given: tuple[Any, ...],
        return_dict: bool,
        seeded: bool,
    ):
        """After a step of a plan that begins with the timestep of index `first`.

        seeded: whether it had no generator, so that steps that draw have fastdiff's noise.
        """
        output, _, sample, _ = self.given = given
        self.traced, self.first, self.shift = traced, first, state.shift
        self.seeded = seeded
        self.begin, self.plans = state.begin_index, state.plans
        self.has_history, self.settled = scheduler._has_history, state.settled
        self.dtype, self.shape, self.output_shape = sample.dtype, sample.shape, output.shape
        self.cpu, self.device, self.chosen = sample.is_cpu, sample.device, choice.chosen()
        self.with_x0: bool = scheduler._returns_x0
        self.output = scheduler._output if return_dict else None
        self.rows, self.launch = traced.launch_like(sample, output, with_x0=self.with_x0)

    def confirmed(
        self,
        scheduler: Any,
        given: tuple[Any, ...],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> bool:
        """Whether the step of the class was this one: with these tensors, and this result."""
        same = _alike(self.given, given)
        self.given, self.args, self.kwargs = (), args, kwargs
        self.attributes = list(vars(scheduler).values())
        values = (*args, *kwargs.values())
        # a class may take the seed from a generator that it does not pass on
        took = self.seeded and any(value.__class__ is torch.Generator for value in values)
        return (
            same
            and self.launch is not None
            and not took
            and all(value.__class__ in _SIMPLE for value in values)
        )

    def step(
        self,
        scheduler: Any,
        state: State,
        output: Any,
        timestep: Any,
        sample: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """The result of the next step; None where it must be taken with all checks."""
        last, traced = state.last_index, self.traced
        index = 0 if last is None else last + 1
        call = index - self.first
        row = traced.single(call) if call >= 0 else None
        draws = row is not None and traced.calls[call].draws
        if (
            row is None
            or (draws and not self.seeded)
            or timestep.__class__ is not Tensor
            or output.__class__ is not Tensor
            or sample.__class__ is not Tensor
            # the next timestep of unchanged tables, configuration and counters
            or state.shift is None
            or state.shift != self.shift
            or timestep.data_ptr() != state.address_of(index)
            or timestep.is_cpu is not state.on_cpu
            or timestep.numel() != 1
            or (state.step_index != index and not (last is None and state.step_index is None))
            or (last is None and state.begin_index != self.begin)
            or state.driven is not None
            or state.broken
            or state.plans is not self.plans
            or state.edits != scheduler._edits
            or state.config is not scheduler._internal_dict
            # tensors like those before
            or sample.dtype is not self.dtype
            or output.dtype is not self.dtype
            or sample.shape != self.shape
            or output.shape != self.output_shape
            or not sample.is_contiguous()
            or not output.is_contiguous()
            or sample.is_cpu is not self.cpu
            or output.is_cpu is not self.cpu
            or sample.is_neg()
            or output.is_neg()
            or sample._is_zerotensor()
            or output._is_zerotensor()
            or not (self.cpu or sample.device == output.device == self.device)
            or (torch.is_grad_enabled() and (sample.requires_grad or output.requires_grad))
            or choice.chosen() != self.chosen
            or common.observed()
        ):
            return None
        if args or self.args or len(kwargs) != len(self.kwargs):
            return None
        for name, value in kwargs.items():
            if self.kwargs.get(name, _MISSING) is not value:
                return None
        if not _alike(list(vars(scheduler).values()), self.attributes):
            return None
        version = 0
        for table in state.watched:
            version += table._version
        if version != state.version:
            return None
        if last is None and self.has_history:
            state.history_start = 0
        state.settled = self.settled
        slots = slots_out = None
        if traced.slots:
            slots, slots_out = (
                state.slots(index, sample, traced, call) if last is None else state.next_slots()
            )
        state.last_index, state.last = index, (traced, call)
        state.step_index = scheduler._counted(state, index)
        x = torch.empty_like(sample, memory_format=torch.contiguous_format)
        x0 = torch.empty_like(x) if self.with_x0 else None
        seed = scheduler._seed(state) if draws else 0
        self.launch((sample, output, None, seed, self.rows[row], slots, slots_out, x, x0))
        if slots_out is not None:
            increment_version(slots_out)
        if self.output is None:
            return (x,) if x0 is None else (x, x0)
        return self.output(x) if x0 is None else self.output(x, x0)


def _alike(values: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether these are the same objects."""
    return len(values) == len(others) and all(map(operator.is_, values, others))
