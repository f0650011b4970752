"""What a scheduler remembers between calls: one `State` per context (thread or asyncio task).

Pipelines share a scheduler object between requests. `set_timesteps` makes a new state in the
calling context, and steps in that context use it. A context that never called `set_timesteps`, such
as a worker thread, uses the state that was made last.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from ...backend.eager.common import compute_dtype
from ...grad_mode import outside_inference
from ...recent import Recent
from ...schedule import Time
from .traced import TracedPlan

_STALE = -1  # never a scheduler's number of edits
_MOST_GRIDS = 16  # whose plans are cached by a scheduler
_MOST_PLANS, _MOST_ROWS = 1024, 2**16  # that are cached of a grid
# what is kept may meet autograd later
_zeros, _clone = outside_inference(torch.zeros), outside_inference(torch.clone)


def traced_plans() -> Recent[TracedPlan]:
    """An empty cache of the traced plans of a grid, by first index and options."""
    return Recent(_MOST_PLANS, _rows, _MOST_ROWS)


def _rows(traced: TracedPlan) -> int:
    return len(traced.plan.table)


class State:
    """The grid of a run, and its position on it.

    The tables are what diffusers shows as attributes, and users may assign them or write into them.
    Everything that follows from them is computed by the scheduler's `_renew`: when the run starts,
    and again when a table is another one or has another version counter.

    Attributes:
        tables: by diffusers' names, `timesteps` [n] as the pipeline iterates them, one per network
            call, and for some classes noise levels.
        num_inference_steps: as passed to set_timesteps or assigned; None before.
        values: the timesteps as Python numbers.
        times: the points of the solver's grid; the last one is the result's.
        scales: the divisor of the network's input at each timestep, or None.
        extra: further values that the class needs for its formula and attributes.
        edits: the number of assignments to the scheduler's own tables when they were last read.
        watched, version: the tensors that were read, and the sum of their version counters. Writes
            raise a counter, so nothing is read to see them; those through NumPy's view do not.
        step_index, begin_index: diffusers' counters.
        shift: what the index of a step is above its timestep's position on the grid, where
            diffusers' counter says so; None until it is found for newly assigned timesteps.
        history_start: the index at which the history in the slots begins.
        last_index: the index of the last step; None before the first one.
        driven: what diffusers' step remembers, where a user asked for it; see `history`.
        last: the plan of the last step, and its call.
        broken: whether a table was edited that the last step's results depend on.
        following: how to take the next step, if that is like the last one; see `following`.
        begun: what runs that begin alike share, see `repeated`; None where nothing is known.
        on_cpu: whether the timesteps are there.
        seed: of fastdiff's noise, None until it is drawn.
        settled: the options that the run's later calls must have, too.
        plans: the traced plans by first index and options.
        config: the configuration that `plans` were traced with.
    """

    def __init__(
        self,
        timesteps: Tensor,
        *,
        steps: int | None,
        tables: dict[str, Tensor] | None = None,
        **extra: Any,
    ):
        self.tables = {"timesteps": timesteps, **(tables or {})}
        self.num_inference_steps = steps
        self.values: list[Any] = []
        self.times: list[Time] = []
        self.scales: list[float] | None = None
        self.extra = extra
        self.edits, self.version = _STALE, 0
        self.watched: tuple[Tensor, ...] = ()
        self.step_index: int | None = None
        self.begin_index: int | None = None
        self.shift: int | None = 0
        self.broken = False
        self.driven: dict[str, Any] | None = None
        self.last: tuple[TracedPlan, int] | None = None
        self.history_start: int | None = None
        self.last_index: int | None = None
        self.following: Any = None
        self.begun: Any = None
        self.on_cpu = True
        self.seed: int | None = None
        self.config: Any = None
        self.plans = traced_plans()
        self._slots: list[Tensor] = []
        self._returned: dict[int, Tensor] = {}
        self.settled: dict[str, Any] = {}

    def set_table(self, name: str, value: Any) -> None:
        """Replaces a table by the user's. Raises ValueError for one that is no row of numbers."""
        table = torch.as_tensor(value)
        if table.ndim != 1:
            raise ValueError(
                f"fastdiff.integrations.diffusers: expected {name} of shape [n], got"
                f" {list(table.shape)}."
            )
        self.tables[name] = table
        if name == "timesteps":
            self.shift = None
        self.edits = _STALE

    def set_extra(self, name: str, value: Any) -> None:
        """Replaces one of the further values by the user's."""
        self.extra[name], self.edits = value, _STALE

    def set_steps(self, steps: int | None) -> None:
        """Replaces the number of steps by the user's."""
        self.num_inference_steps, self.edits = steps, _STALE

    def watch(self, edits: int, tables: Iterable[Any]) -> None:
        """Reads the timesteps, and notes the versions of its tables and of the scheduler's."""
        for name, table in self.tables.items():
            if table.is_inference():  # such tensors count no versions
                self.tables[name] = _clone(table)
        timesteps = self.tables["timesteps"]
        self.values = timesteps.tolist()
        self._locate()
        self.edits = edits
        self.watched = tuple(
            t
            for t in (*self.tables.values(), *tables)
            if isinstance(t, Tensor) and not t.is_inference()
        )
        self.version = sum(t._version for t in self.watched)

    def _locate(self) -> None:
        """Notes the memory of the timesteps, so that `view_index` needs no read of the device."""
        timesteps = self.tables["timesteps"]
        self._device, self._address = timesteps.device, timesteps.data_ptr()
        self.on_cpu = timesteps.is_cpu
        self._item = timesteps.element_size() * max(timesteps.stride()[0], 0)
        self._extent = len(self.values) * self._item
        self._gaps = self._item != timesteps.element_size()

    def address_of(self, index: int) -> int:
        """The address of the timestep of an index, for a known shift."""
        return self._address + (index - self.shift) * self._item  # type: ignore[operator]

    def share_plans(self, states: States, config: Any) -> None:
        """Takes the traced plans of equal states with this configuration."""
        self.plans, self.config = states.plans(self, config), config

    def again(self) -> State:
        """A new state like this one as its run began, with tables of its own."""
        new = object.__new__(State)
        new.__dict__.update(self.__dict__)
        copies = {id(table): _clone(table) for table in self.tables.values()}
        new.tables = {name: copies[id(table)] for name, table in self.tables.items()}
        new.watched = tuple([copies.get(id(table), table) for table in self.watched])
        new.version = sum([table._version for table in new.watched])
        new.extra, new.settled, new._slots, new._returned = dict(self.extra), {}, [], {}
        new._locate()
        return new

    def view_index(self, timestep: Tensor) -> int | None:
        """The index of a timestep that is a view into `timesteps`, None for another tensor."""
        offset = timestep.data_ptr() - self._address
        if 0 <= offset < self._extent and timestep.device == self._device:
            if self._gaps and offset % self._item:
                return None
            return offset // self._item
        return None

    def fingerprint(self) -> Any:
        """A key of everything that the plans depend on; None where that is more than numbers."""
        if not all(
            isinstance(v, (bool, int, float, str, tuple, type(None))) for v in self.extra.values()
        ):
            return None
        return (self.num_inference_steps, *self.extra.values(), *self.values, *self.times)

    def digest(self) -> int:
        """Returns a hash of the contents of the tables."""
        flat = (t.detach().cpu().contiguous().reshape(-1) for t in self.watched)
        return hash(tuple(t.view(torch.uint8).numpy().tobytes() for t in flat))

    def slots(
        self, index: int, sample: Tensor, traced: TracedPlan, call: int
    ) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """The slots [count, B, …] that the step at an index reads, and those that it writes.

        A step that is taken again reads the values that it read the first time. Where the sample's
        dtype or device changes, the slots change theirs.

        Raises ValueError where the sample's shape changes and this step or a later one needs what
        is in the slots.
        """
        if not traced.slots:
            return None, None
        shape, dtype = (traced.slots, *sample.shape), compute_dtype(sample)
        held = self._slots
        if held and held[0].shape[1:] != sample.shape and traced.continues(call):
            raise ValueError(
                f"fastdiff.integrations.diffusers: expected a sample of shape"
                f" {list(held[0].shape[1:])} at step {index}, as in the steps before, got"
                f" {list(sample.shape)}. Call set_timesteps before another batch."
            )
        if not held or held[0].shape != shape:
            held = [_zeros(shape, dtype=dtype, device=sample.device) for _ in range(2)]
        elif held[0].dtype != dtype or held[0].device != sample.device:
            held = [outside_inference(h.to)(device=sample.device, dtype=dtype) for h in held]
        read, written = held[::-1] if self.last_index == index else held
        if written.requires_grad:  # a graph may hold it
            written = torch.zeros_like(written)
        self._slots = [written, read]
        return read, written

    def next_slots(self) -> tuple[Tensor, Tensor]:
        """The slots that a step reads and writes after a step of the same plan and kind of state.

        The step before it has checked what `slots` checks.
        """
        read, written = self._slots
        if written.requires_grad:  # a graph may hold it
            written = torch.zeros_like(written)
        self._slots = [written, read]
        return read, written

    def keep_slots(self, written: Tensor) -> None:
        """Keeps the slots that a step has written, where it wrote them into a tensor of its own."""
        if written is not self._slots[0]:
            self._slots = [written, self._slots[1]]

    def given_or_returned(self, index: int, sample: Tensor) -> Tensor:
        """The state that the step at an index continues from: as the step before it returned it.

        The sample, which the caller may have changed since, where there was none.
        """
        return self._returned.get(index, sample)

    def keep_returned(self, index: int, x: Tensor) -> None:
        """Keeps a copy of the state that the step at an index returned for the one after it.

        The step may be taken again, so what it continued from stays, too.
        """
        before = {k: v for k, v in self._returned.items() if k == index}
        self._returned = {**before, index + 1: x.clone()}

    def __getstate__(self) -> dict[str, Any]:
        # Plans are traced again and addresses found anew; the slots are copied.
        none = dict.fromkeys(("config", "last", "following", "begun"))
        stale = {"edits": _STALE, "watched": (), "plans": traced_plans()}
        return {**self.__dict__, **none, **stale}


class Table:
    """A scheduler's own table, such as `alphas_cumprod`, whose assignment counts as an edit."""

    def tables(self, scheduler: Any) -> dict[str, Any]:
        """Where a scheduler has its tables."""
        values: dict[str, Any] = scheduler.__dict__
        return values

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, scheduler: Any, owner: type) -> Any:
        if scheduler is None:
            return self
        try:
            return self.tables(scheduler)[self.name]
        except KeyError:
            raise AttributeError(self.name) from None

    def __set__(self, scheduler: Any, value: Any) -> None:
        scheduler.__dict__[self.name] = value
        scheduler._edits = scheduler._edits + 1


class RunTable(Table):
    """A table of the run in the calling context, such as `sigmas`."""

    def tables(self, scheduler: Any) -> dict[str, Any]:
        """Where a run has its tables."""
        values: dict[str, Any] = scheduler._state.tables
        return values

    def __set__(self, scheduler: Any, value: Any) -> None:
        scheduler._state.set_table(self.name, value)


class _Context:
    """The key of a context's state, which is freed with the context or with the scheduler."""

    __slots__ = ("__weakref__", "state")

    def __init__(self, state: State):
        self.state = ref(state)


class States:
    """The state of each context, and the one that was made last."""

    def __init__(self, first: State):
        self.last = first
        self._plans: tuple[Any, Recent[Recent[TracedPlan]]] = (None, Recent(_MOST_GRIDS))
        self._begun: Recent[Any] = Recent(_MOST_GRIDS)
        self._context: ContextVar[_Context] = ContextVar("fastdiff.scheduler")
        self._states: WeakKeyDictionary[_Context, State] = WeakKeyDictionary()

    def get(self) -> State:
        context = self._context.get(None)
        state = None if context is None else context.state()
        return self.last if state is None else state

    def set(self, state: State) -> None:
        context = _Context(state)
        self._states[context] = self.last = state
        self._context.set(context)

    def begun(self, key: Hashable) -> Any:
        """What `keep` keeps under this key, see `repeated`; None without."""
        return self._begun.get(key)

    def keep(self, key: Hashable, begun: Any) -> None:
        """Keeps how a run begins."""
        self._begun.put(key, begun)

    def plans(self, state: State, config: Any) -> Recent[TracedPlan]:
        """The traced plans of a state, which equal states with this configuration share."""
        key = state.fingerprint()
        if key is None:
            return traced_plans()
        key = (state.digest(), *key)
        owner, known = self._plans
        if owner is not config:
            self._plans = (config, known := Recent(_MOST_GRIDS))
        found = known.get(key)
        return known.put(key, traced_plans()) if found is None else found

    def __reduce__(self) -> Any:  # copies and pickles contain the current context's state
        return States, (self.get(),)
