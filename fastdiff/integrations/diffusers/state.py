"""What a scheduler remembers between calls, one `State` for each context (thread or asyncio task)
that set timesteps.

Pipelines share a scheduler object between requests. `set_timesteps` makes a new state in the
calling context, and steps find the one of theirs; a context that never called it, such as a worker
that was handed the job, gets the last one made.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...ops.step import BoundStep
from ...schedule import Time
from ...solvers import Plan


class State:
    """One run's grid and where it stands.

    Attributes:
        timesteps: [n] as the pipeline iterates them, one for each network call.
        host: the same as Python numbers.
        times: the points of the solver's grid, the last being where the result lies.
        sigmas: noise levels as diffusers shows them, or None.
        scales: what the network's input is divided by at each timestep, or None.
        num_inference_steps: the number asked for; None before set_timesteps.
        extra: whatever else the class needs for its formula and attributes.
        step_index, begin_index: diffusers' counters.
        start, done: where the history that the slots hold began, and the last index stepped.
        seed: of fastdiff's noise, None until it is drawn.
    """

    def __init__(
        self,
        timesteps: Tensor,
        times: list[Time],
        *,
        steps: int | None,
        sigmas: Tensor | None = None,
        scales: list[float] | None = None,
        **extra: Any,
    ):
        self.timesteps = timesteps
        self.host = timesteps.tolist()
        self.times, self.sigmas, self.scales, self.num_inference_steps = (
            times,
            sigmas,
            scales,
            steps,
        )
        self.extra = extra
        self.step_index: int | None = None
        self.begin_index: int | None = None
        self.start: int | None = None
        self.done: int | None = None
        self.seed: int | None = None
        self.config: Any = None
        self.plans: dict[Any, Run] = {}
        self.slots: list[Tensor] = []
        self.locate()

    def locate(self) -> None:
        """Notes where the timesteps lie, so that a view of one says its index without a read of the
        device.
        """
        self.address, self.item = self.timesteps.data_ptr(), self.timesteps.element_size()
        self.extent = self.timesteps.numel() * self.item

    def view_index(self, timestep: Tensor) -> int | None:
        """The index of a timestep that is a view into `timesteps`."""
        offset = timestep.data_ptr() - self.address
        if 0 <= offset < self.extent and timestep.device == self.timesteps.device:
            return offset // self.item
        return None

    def fingerprint(self) -> Any:
        """What the plans depend on, as a key; None where that is more than numbers."""
        if not all(isinstance(v, (bool, int, float, str, type(None))) for v in self.extra.values()):
            return None
        return (self.num_inference_steps, *self.extra.values(), *self.host, *self.times)

    def buffers(self, count: int, sample: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """Two sets of slots: what the last step read, and what it wrote."""
        shape = (count, *sample.shape)
        if not self.slots or self.slots[0].shape != shape or self.slots[0].device != sample.device:
            self.slots = [torch.zeros(shape, dtype=dtype, device=sample.device) for _ in range(2)]
        return self.slots

    def __getstate__(self) -> dict[str, Any]:
        # addresses are another process's, and plans are made again; what the slots hold goes along
        return {**self.__dict__, "plans": {}, "config": None}

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)
        self.locate()


class Run:
    """A plan with what a step of it needs at hand: its rows by network call, and its table where
    the samples are.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        table = plan.table
        network = plan.column("network")
        drawn = [plan.columns.index(f"{to}.z") for to in _WRITTEN]
        self.draws = [bool(row[drawn].any()) for row in table]
        self.network = [bool(n) for n in network]
        self.calls: list[
            list[int]
        ] = []  # the rows of each network call: those without a call before it, and its own
        rows: list[int] = []
        for row in range(len(plan)):
            rows.append(row)
            if self.network[row]:
                self.calls.append(rows)
                rows = []
        self.slots = plan.slots
        self._tables: dict[torch.device, Tensor] = {}
        self._rows: tuple[Any, tuple[Tensor, ...]] = (None, ())
        self.steps: dict[torch.device, BoundStep] = {}

    def table(self, device: torch.device) -> Tensor:
        if device not in self._tables:
            self._tables[device] = torch.tensor(self.plan.table, device=device)
        return self._tables[device]

    def rows(self, batch: int, device: torch.device) -> tuple[Tensor, ...]:
        """The row index of every row for a batch, int64 [B] each."""
        key, rows = self._rows
        if key != (batch, device):
            count = torch.arange(len(self.plan.table), device=device)
            rows = count[:, None].expand(-1, batch).contiguous().unbind()
            self._rows = ((batch, device), rows)
        return rows


_WRITTEN = ("x", "s1", "s2", "s3", "s4")


_KEPT = 16  # grids whose plans a scheduler keeps


class _Context:
    """Names a context that set timesteps; its state goes when the context does."""

    __slots__ = ("__weakref__",)


class States:
    """The state of each context, and the last one made."""

    def __init__(self, first: State):
        self.last = first
        self._plans: tuple[Any, dict[Any, dict[Any, Run]]] = (None, {})
        self._context: ContextVar[_Context] = ContextVar("fastdiff.scheduler")
        self._states: WeakKeyDictionary[_Context, State] = WeakKeyDictionary()

    def get(self) -> State:
        context = self._context.get(None)
        return self.last if context is None else self._states.get(context, self.last)

    def set(self, state: State) -> None:
        context = _Context()
        self._states[context] = self.last = state
        self._context.set(context)

    def plans(self, state: State, config: Any) -> dict[Any, Run]:
        """The traced plans of a state: those of an equal one under this configuration, so that runs
        alike trace once.
        """
        key = state.fingerprint()
        if key is None:
            return {}
        owner, known = self._plans
        if owner is not config or len(known) > _KEPT:
            self._plans = (config, known := {})
        return known.setdefault(key, {})

    def __reduce__(self) -> Any:  # copies and pickles carry the current context's state
        return States, (self.get(),)
