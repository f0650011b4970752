"""What a scheduler remembers between calls: one `State` per context (thread or asyncio task).

Pipelines share a scheduler object between requests. `set_timesteps` makes a new state in the
calling context, and steps in that context use it. A context that never called `set_timesteps`, such
as a worker thread, uses the state that was made last.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from ...backend.eager.common import compute_dtype
from ...schedule import Time
from .traced import TracedPlan


class State:
    """The grid of a run, and its position on it.

    Attributes:
        timesteps: [n] as the pipeline iterates them, one per network call.
        values: the same as Python numbers.
        times: the points of the solver's grid; the last one is the result's.
        sigmas: noise levels as diffusers shows them, or None.
        scales: the divisor of the network's input at each timestep, or None.
        num_inference_steps: as passed to set_timesteps; None before it is called.
        extra: further values that the class needs for its formula and attributes.
        step_index, begin_index: diffusers' counters.
        history_start: the index at which the history in the slots begins.
        last_index: the index of the last step; None before the first one.
        seed: of fastdiff's noise, None until it is drawn.
        plans: the traced plans by first index and options.
        config: the configuration that `plans` were traced with.
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
        self.values = timesteps.tolist()
        self.times, self.sigmas, self.scales, self.num_inference_steps = (
            times,
            sigmas,
            scales,
            steps,
        )
        self.extra = extra
        self.step_index: int | None = None
        self.begin_index: int | None = None
        self.history_start: int | None = None
        self.last_index: int | None = None
        self.seed: int | None = None
        self.config: Any = None
        self.plans: dict[Any, TracedPlan] = {}
        self._slots: list[Tensor] = []
        self.locate()

    def locate(self) -> None:
        """Notes the memory of the timesteps, so that `view_index` needs no read of the device."""
        self.address, self.item = self.timesteps.data_ptr(), self.timesteps.element_size()
        self.extent = self.timesteps.numel() * self.item

    def view_index(self, timestep: Tensor) -> int | None:
        """The index of a timestep that is a view into `timesteps`, None for another tensor."""
        offset = timestep.data_ptr() - self.address
        if 0 <= offset < self.extent and timestep.device == self.timesteps.device:
            return offset // self.item
        return None

    def fingerprint(self) -> Any:
        """A key of everything that the plans depend on; None where that is more than numbers."""
        if not all(isinstance(v, (bool, int, float, str, type(None))) for v in self.extra.values()):
            return None
        return (self.num_inference_steps, *self.extra.values(), *self.values, *self.times)

    def slots(
        self, index: int, count: int, sample: Tensor
    ) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """The slots [count, B, …] that the step at an index reads, and those that it writes.

        A step that is taken again reads the values that it read the first time.

        Raises ValueError where the sample's shape changes after steps that filled the slots.
        """
        if not count:
            return None, None
        shape = (count, *sample.shape)
        held = self._slots
        later = self.last_index is not None and index == self.last_index + 1
        if later and index != self.history_start and held and held[0].shape[1:] != sample.shape:
            raise ValueError(
                f"fastdiff.integrations.diffusers: expected a sample of shape"
                f" {list(held[0].shape[1:])} at step {index}, as in the steps before, got"
                f" {list(sample.shape)}. Call set_timesteps before another batch."
            )
        if not held or held[0].shape != shape or held[0].device != sample.device:
            dtype = compute_dtype(sample)
            with torch.inference_mode(False):  # what is kept may meet autograd later
                held = [torch.zeros(shape, dtype=dtype, device=sample.device) for _ in range(2)]
        read, written = held[::-1] if self.last_index == index else held
        if written.requires_grad:  # a graph may hold it
            written = torch.zeros_like(written)
        self._slots = [written, read]
        return read, written

    def keep_slots(self, written: Tensor) -> None:
        """Keeps the slots that a step has written, where it wrote them into a tensor of its own."""
        if written is not self._slots[0]:
            self._slots = [written, self._slots[1]]

    def __getstate__(self) -> dict[str, Any]:
        # Plans are traced again and addresses found anew; the slots are copied.
        return {**self.__dict__, "plans": {}, "config": None}

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)
        self.locate()


_MAX_GRIDS = 16  # the plans of about this many grids are cached by a scheduler


class _Context:
    """The key of a context's state, which is freed with the context or with the scheduler."""

    __slots__ = ("__weakref__", "state")

    def __init__(self, state: State):
        self.state = ref(state)


class States:
    """The state of each context, and the one that was made last."""

    def __init__(self, first: State):
        self.last = first
        self._plans: tuple[Any, dict[Any, dict[Any, TracedPlan]]] = (None, {})
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

    def plans(self, state: State, config: Any) -> dict[Any, TracedPlan]:
        """The traced plans of a state, which equal states with this configuration share."""
        key = state.fingerprint()
        if key is None:
            return {}
        owner, known = self._plans
        if owner is not config or len(known) > _MAX_GRIDS:
            self._plans = (config, known := {})
        return known.setdefault(key, {})

    def __reduce__(self) -> Any:  # copies and pickles contain the current context's state
        return States, (self.get(),)
